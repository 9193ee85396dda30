"""What fills a place now and then in the demo world's normal life: a market, a parade, roadworks and the like.

Each is a function of (scene, rng, length of the video in seconds) that returns actors, as in everyday.py. They change a
picture as much as an anomaly does, so that what is unusual is not yet wrong.
"""

import math
from dataclasses import replace

import numpy as np

from videoanomaly.demo import actors
from videoanomaly.demo.actors import (
    CENTRE,
    COLOURS,
    Actor,
    Colour,
    Overlay,
    Person,
    PersonScript,
    Pose,
    Thing,
    random_look,
    vary,
    wave,
)
from videoanomaly.demo.everyday import fact, free_x, goes, part_of, seeds_for, spot, stays, when
from videoanomaly.demo.scenes import Scene

BRIGHT = ("red", "blue", "green", "yellow", "orange", "purple")


def bright(rng: np.random.Generator) -> Colour:
    return vary(rng, COLOURS[str(rng.choice(BRIGHT))])


def worker(rng: np.random.Generator, script: PersonScript, action: str) -> Person:
    look = random_look(rng, shirt=vary(rng, COLOURS["orange"]), colour="orange", skirt=False)
    return Person(look, script, when(script, ("worker", "", action)))


def stall(x: float, y: float, h: float, awning: Colour, goods: list[tuple[float, Colour]]) -> Overlay:
    """A table with an awning; `goods` are (place along the table in [0, 1), colour)."""
    left, width = x - 0.5 * h, h

    def paint(canvas, pen, t):
        pen.rectangle((left, y - 0.42 * h, left + width, y), fill=(120, 88, 60))
        for at, colour in goods:
            cx, r = left + (0.06 + 0.88 * at) * width, 0.05 * h
            pen.ellipse((cx - r, y - 0.42 * h - r, cx + r, y - 0.42 * h + r), fill=colour)
        for side in (0, 1):
            pen.line((left + side * width, y, left + side * width, y - 1.1 * h), fill=(90, 90, 90), width=2)
        for k in range(6):
            top = left + (0.08 + 0.14 * k) * width
            pen.polygon(
                [
                    (top, y - 1.35 * h),
                    (top + 0.14 * width, y - 1.35 * h),
                    (left + (k + 1) * width / 6, y - 1.05 * h),
                    (left + k * width / 6, y - 1.05 * h),
                ],
                fill=awning if k % 2 else (235, 235, 228),
            )

    return Overlay(y, paint, words=lambda t: ("stall", "", "selling things"))


def market(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Stalls, who sells and who buys."""
    found: list[Actor] = []
    for _ in range(2):
        x, y = free_x(scene, rng, 30, 162), scene.ground[0] + rng.uniform(6, 20)
        h, looks = scene.size(y), [random_look(rng) for _ in range(2)]
        found.append(stall(x, y, h, bright(rng), [(rng.random(), bright(rng)) for _ in range(8)]))
        sells = stays(x + rng.uniform(-0.2, 0.2) * h, y - 2, h, 1, actors.stand)
        buys = stays(x + rng.uniform(-0.5, 0.5) * h, y + 6, h, int(rng.choice((-1, 1))), actors.reach)
        for look, script, action in zip(looks, (sells, buys), ("selling things", "buying things")):
            found.append(Person(look, script, when(script, fact(look, action))))
    return found


def dig(p: float) -> Pose:
    s = wave(p)
    return actors.Pose(0.75 + 0.25 * s, (0.4, -0.3), (0.4, 0.2), (0.9 + 0.4 * s, 0.7 + 0.4 * s), (0.3, 0.3))


def roadworks(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A striped barrier with a light, cones, a heap of earth, and workers who dig."""
    x, y, h = spot(scene, rng, 40)
    rate = rng.uniform(0.7, 1.2)

    def paint(canvas, pen, t):
        pen.ellipse((x - 0.6 * h, y - 0.35 * h, x + 0.6 * h, y + 0.1 * h), fill=(96, 72, 48))
        for k in range(8):
            left = x + (-0.8 + 0.2 * k) * h
            pen.rectangle(
                (left, y - 0.32 * h, left + 0.2 * h, y - 0.16 * h), fill=((205, 40, 35), (235, 235, 230))[k % 2]
            )
        for dx in (-1.1, -0.75, 0.75, 1.1):
            cx = x + dx * h
            pen.polygon([(cx - 0.12 * h, y + 4), (cx + 0.12 * h, y + 4), (cx, y + 4 - 0.4 * h)], fill=(240, 110, 30))

    def lights(t):
        return [(x + 0.75 * h, y - 0.42 * h, 12, (255, 165, 30), 0.9)] if wave(rate * t) > 0 else []

    people = [
        worker(rng, stays(x + side * 0.4 * h, y - 3, h, -side, dig, rng.uniform(0.5, 0.8), rng.random()), "digging")
        for side in (-1, 1)
    ]
    return [Overlay(y, paint, lights), *people]


def parade(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """People in rows who walk slowly and carry flags."""
    found, side, (begin, end) = [], int(rng.choice((-1, 1))), part_of(rng, length)
    middle = scene.ground[0] + 0.3 * (scene.ground[1] - scene.ground[0])
    for k in range(math.ceil((end - begin) / 0.55)):
        look, colour = random_look(rng), bright(rng)
        y, start = middle + (-7, 9)[k % 2] + rng.uniform(-3, 3), begin - 4 + 0.55 * k
        script = goes(scene, CENTRE - side * 120, y, CENTRE + side * 120, y, start, 0.6, cadence=0.8)

        def flag(canvas, pen, t, script=script, colour=colour):
            if state := script(t):
                px, py, h, facing, _ = state
                hand, top = px + facing * 0.2 * h, py - 1.5 * h
                pen.line((hand, py - 0.55 * h, hand, top), fill=(190, 180, 160), width=2)
                pen.polygon(
                    [
                        (hand, top),
                        (hand - facing * (0.5 + 0.06 * wave(t)) * h, top + 0.08 * h),
                        (hand - facing * 0.48 * h, top + 0.36 * h),
                        (hand, top + 0.32 * h),
                    ],
                    fill=colour,
                )

        found += [Person(look, script, when(script, fact(look, "marching"))), Overlay(y + 0.1, flag)]
    return found


def football(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Some who run after a ball."""
    x, y, h = CENTRE, sum(scene.ground) / 2, scene.size(sum(scene.ground) / 2)
    rates, phases = rng.uniform(0.12, 0.3, 8), rng.random(8)

    def ball(canvas, pen, t):
        bx, by = x + 70 * wave(rates[0] * t + phases[0]), y + 14 * wave(rates[1] * t + phases[1])
        up, r = 0.5 * h * abs(wave(0.6 * t + phases[2])), 0.1 * h
        pen.ellipse((bx - r, by - up - r, bx + r, by - up + r), fill=(245, 245, 245), outline=(60, 60, 60))

    found: list[Actor] = [Overlay(y + 14, ball)]
    for k in range(int(rng.integers(4, 7))):
        look, rate, phase = random_look(rng), rng.uniform(0.1, 0.2), rng.random()
        foot = scene.ground[0] + (scene.ground[1] - scene.ground[0]) * (k + rng.random()) / 7

        def script(t, rate=rate, phase=phase, foot=foot):
            facing = 1 if wave(rate * t + phase + 0.25) > 0 else -1
            return CENTRE + 72 * wave(rate * t + phase), foot, scene.size(foot), facing, actors.run(1.3 * t + phase)

        found.append(Person(look, script, when(script, fact(look, "playing football"))))
    return found


def delivery(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Piles of boxes, and workers who lift them."""
    x, y, h = spot(scene, rng, 34)
    boxes = [
        Thing(
            "box",
            x + (0.42 * (k % 4) - 0.63) * h,
            y + 0.01 * k - 0.3 * h * (k // 4),
            h,
            vary(rng, (165, 125, 80)),
            0,
            math.inf,
            lambda t: ("box", "", "delivered"),
        )
        for k in range(int(rng.integers(5, 9)))
    ]
    rate = rng.uniform(0.12, 0.25)

    def lift(t):
        return actors.bend(t) if wave(rate * t) > 0 else actors.Pose(0.1, (0.1, -0.1), (0, 0), (1.2, 1.3), (0.4, 0.3))

    people = [worker(rng, stays(x + side * 0.95 * h, y + 1, h, -side, lift), "moving boxes") for side in (-1, 1)]
    return [*boxes, *people]


def barbecue(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A grill with a small fire, and those who stand around it."""
    x, y, h = spot(scene, rng, 30)
    seeds, puffs = seeds_for(rng, 5), seeds_for(rng, 5)

    def paint(canvas, pen, t):
        for dx in (-0.22, 0.2):
            pen.line((x + dx * h, y, x + 0.6 * dx * h, y - 0.4 * h), fill=(40, 40, 42), width=2)
        actors.flames(pen, t, x, y - 0.5 * h, 0.4 * h, 0.22 * h, "orange", seeds)
        pen.chord((x - 0.32 * h, y - 0.68 * h, x + 0.32 * h, y - 0.32 * h), 0, 180, fill=(48, 48, 50))
        actors.smoke(canvas, t, x, y - 0.6 * h, 0.3 * h, (190,) * 3, puffs, 0.4)

    def lights(t):
        return [(x, y - 0.6 * h, 0.4 * h, (255, 150, 60), 0.4)]

    found: list[Actor] = [Overlay(y, paint, lights, lambda t: ("grill", "", "burning"))]
    for k, dx in enumerate((-0.6, 0.65, 1.0, -1.0)[: int(rng.integers(2, 5))]):
        look = random_look(rng)
        script = stays(
            x + dx * h, y + (1, 2, -5, -6)[k], h, -1 if dx > 0 else 1, actors.reach if k == 0 else actors.stand
        )
        found.append(Person(look, script, when(script, fact(look, "grilling" if k == 0 else "waiting for food"))))
    return found


def party(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """People who dance under coloured lights that move."""
    lamps = [(rng.uniform(0.1, 0.35), rng.random(), COLOURS[name]) for name in rng.choice(BRIGHT, 4, replace=False)]

    def lights(t):
        return [
            (CENTRE + 80 * wave(rate * t + phase), 60 + 30 * wave(1.3 * rate * t + 2 * phase), 42, colour, 1.1)
            for rate, phase, colour in lamps
        ]

    def paint(canvas, pen, t):
        for x, y, _, colour, _ in lights(t):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)

    found: list[Actor] = [Overlay(0, paint, lights, words=lambda t: ("coloured light", "", "moving"))]
    for _ in range(int(rng.integers(4, 7))):
        (x, y, h), look, rate = spot(scene, rng, 6), random_look(rng), rng.uniform(0.8, 1.3)
        script = stays(x, y, h, int(rng.choice((-1, 1))), actors.dance, rate)
        found.append(Person(look, script, when(script, fact(look, "dancing"))))
    return found


def cleaning(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A wet floor with yellow signs, and somebody with a machine that goes to and fro."""
    x, y, h = free_x(scene, rng, 40, 150), sum(scene.ground) / 2, scene.size(sum(scene.ground) / 2)
    rate, phase = rng.uniform(0.04, 0.08), rng.random()

    def floor(canvas, pen, t):
        pen.ellipse((x - 1.6 * h, y - 0.3 * h, x + 1.6 * h, y + 0.35 * h), fill=(205, 225, 240, 110))

    def signs(canvas, pen, t):
        for dx in (-0.9, 0.9):
            cx = x + dx * h
            pen.polygon([(cx - 0.17 * h, y + 6), (cx + 0.17 * h, y + 6), (cx, y + 6 - 0.55 * h)], fill=(245, 205, 30))

    def script(t):
        facing = 1 if wave(rate * t + phase + 0.25) > 0 else -1
        pose = replace(actors.walk(t), lean=0.2, shoulders=(0.9, 0.9), elbows=(0.3, 0.3))
        return x + 50 * wave(rate * t + phase), y, h, facing, pose

    def machine(canvas, pen, t):
        px, _, _, facing, _ = script(t)
        left, right = sorted((px + facing * 0.3 * h, px + facing * 0.85 * h))
        pen.rounded_rectangle((left, y - 0.45 * h, right, y), 0.06 * h, fill=(50, 95, 165))
        pen.line((px + facing * 0.2 * h, y - 0.6 * h, px + facing * 0.5 * h, y - 0.42 * h), fill=(40, 40, 40), width=2)

    return [
        Overlay(0, floor),
        Overlay(y + 6, signs, words=lambda t: ("sign", "yellow", "standing on the floor")),
        Overlay(y + 0.1, machine),
        worker(rng, script, "cleaning the floor"),
    ]


OUTDOORS, INDOORS = ("street", "car park"), ("corridor", "shop")
OCCASIONS = {  # and where they take place
    "market": (market, (*OUTDOORS, "shop")),
    "roadworks": (roadworks, OUTDOORS),
    "parade": (parade, OUTDOORS),
    "football": (football, OUTDOORS),
    "delivery": (delivery, (*OUTDOORS, *INDOORS)),
    "barbecue": (barbecue, OUTDOORS),
    "party": (party, INDOORS),
    "cleaning": (cleaning, INDOORS),
}
