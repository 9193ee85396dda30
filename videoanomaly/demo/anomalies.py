"""What goes wrong in the demo world: seven classes, each in looks of training and looks of the test alone.

Each is a function of (scene, rng, look, begin, end) in seconds that returns actors and the true begin and end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from videoanomaly.demo import actors
from videoanomaly.demo.actors import (
    CENTRE,
    Actor,
    Colour,
    Overlay,
    Pen,
    Person,
    Pose,
    Seeds,
    Thing,
    VehicleScript,
    random_look,
    vary,
    wave,
)
from videoanomaly.demo.everyday import (
    LUGGAGE,
    bag_colour,
    chain,
    fact,
    free_x,
    goes,
    lane,
    random_vehicle,
    seeds_for,
    spot,
    stays,
    vehicle_length,
    way,
)
from videoanomaly.demo.scenes import AT_OBSTACLE, Scene

Happening = tuple[Sequence[Actor], float, float]  # with the true begin and end

# ---------------------------------------------------------------- fire and explosion

# width and height in heights of a person, palette, brightness of the smoke, number of puffs, how dense they are
FIRES = {
    "puddle": (0.9, 0.55, "orange", 70, 7, 0.5),
    "bin": (0.35, 0.65, "yellow", 60, 7, 0.5),
    "car": (0.9, 0.8, "orange", 35, 12, 0.5),
    "tall": (0.5, 1.3, "red", 90, 7, 0.5),
    "wall": (1.3, 0.5, "yellow", 110, 7, 0.5),
    "smoky": (0.5, 0.45, "red", 25, 12, 0.75),
}


def fire_place(scene: Scene, rng: np.random.Generator, look: str) -> tuple[float, float, float, float, list[Actor]]:
    """x, y of what burns, y of the flames' base, height of a person there, and what else is there."""
    if look == "wall":
        y = scene.obstacle[2] + 4
        return scene.wall[0], y, y, 1.5 * scene.size(y), []
    x, y, h = spot(scene, rng, 24)
    if look == "bin":

        def paint(canvas, pen, t):
            pen.rectangle((x - 0.17 * h, y - 0.38 * h, x + 0.17 * h, y), fill=(70, 84, 78))

        return x, y, y - 0.36 * h, h, [Overlay(y, paint)]
    if look == "car" and not scene.is_indoor:  # indoors the bare ground burns
        place = lane(scene, rng, "standing")
        assert place, "an anomaly comes first, when every lane is free"
        y = place[0]
        h = scene.size(y)
        return x, y, y - 0.3 * h, h, [random_vehicle(scene, rng, lambda t: (x, y, 1, 0), "parked", "car", y)]
    return x, y, y, h, []


def fire(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    x, y, base, h, others = fire_place(scene, rng, look)
    width, height, palette, dark, num_puffs, density = FIRES[look]
    width, height = width * h * rng.uniform(0.8, 1.3), height * h * rng.uniform(0.8, 1.25)
    seeds, puffs, glow = seeds_for(rng, 8), seeds_for(rng, num_puffs), actors.PALETTES[palette][1]

    def size(t):
        return min(1, 0.45 + 0.5 * (t - begin), max(0.35, (end - t) / 0.8)) if begin <= t < end else 0

    def paint(canvas, pen, t):
        if k := size(t):
            actors.smoke(canvas, t, x, base - 0.5 * height * k, (0.6 * width + 6) * k, (dark,) * 3, puffs, density)
            actors.flames(pen, t, x, base, width * k, height * k, palette, seeds)

    def lights(t):
        k = size(t)
        return [(x, base - 0.4 * height, 1.1 * max(width, height) * k, glow, 0.5 + 0.1 * wave(2.3 * t))] if k else []

    return [Overlay(y + 1, paint, lights), *others], begin, end


BLASTS = {
    "fireball": (1, 50, "orange"),
    "dust": (0.3, 165, "yellow"),
    "flash": (0.6, 90, "yellow"),  # heat, smoke, palette
    "double": (0.9, 35, "red"),
    "sparks": (0.5, 120, "yellow"),
}


def smoke_burst(
    canvas: Image.Image,
    x: float,
    y: float,
    scale: float,
    grow: float,
    fade: float,
    age: float,
    tone: float,
    seeds: Seeds,
) -> None:
    for p, q, r in seeds:
        angle, far = 2 * math.pi * p, scale * (0.25 + 0.75 * q) * grow
        actors.paste_puff(
            canvas,
            x + far * math.cos(angle),
            y - 0.8 * far * abs(math.sin(angle)) - 7 * age,
            scale * (0.25 + 0.3 * r) * (0.5 + 0.5 * grow),
            (int(tone * (0.75 + 0.5 * r)),) * 3,
            0.85 * fade,
        )


def fire_burst(
    canvas: Image.Image, x: float, y: float, scale: float, grow: float, heat: float, palette: str, seeds: Seeds
) -> None:
    """From the dark outside to the bright inside."""
    for i, (p, q, _) in enumerate(seeds):
        level = 3 * i // len(seeds)
        angle, far = 2 * math.pi * p, scale * 0.6 * q * grow * (1.2 - 0.35 * level)
        actors.paste_puff(
            canvas,
            x + far * math.cos(angle),
            y - far * abs(math.sin(angle)),
            scale * (0.34 - 0.07 * level) * (0.4 + 0.6 * grow),
            actors.PALETTES[palette][level],
            heat,
        )


def flying_bits(pen: Pen, x: float, y: float, scale: float, age: float, colour: Colour, seeds: Seeds) -> None:
    for p, q, r in seeds:
        px, up = x + scale * 2.4 * (p - 0.5) * age * (1 + q), scale * (2.4 * (0.5 + r) * age - 2.6 * age * age)
        if up > 0:
            pen.rectangle((px - 1.5, y - up - 1.5, px + 1.5, y - up + 1.5), fill=colour)


def explosion(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    x, y, h = spot(scene, rng, 30)
    end = min(end, begin + rng.uniform(2, 4))
    hot, tone, palette = BLASTS[look]
    bits = (255, 210, 90) if look == "sparks" else (48, 42, 38)
    seeds, scale = seeds_for(rng, 26), h * rng.uniform(0.75, 1.15)
    blasts = (
        ((begin, 0), (begin + 0.9, 0.5 * h)) if look == "double" else ((begin, 0),)
    )  # when, and how far to the right

    def paint(canvas, pen, t):
        for at, dx in blasts:
            if at <= t < end:
                age = t - at + 0.06
                grow, fade = 1 - math.exp(-4.5 * age), 1 - 0.5 * age / (end - begin)  # seen to the end
                smoke_burst(canvas, x + dx, y - 0.4 * h, scale, grow, fade, age, tone, seeds[:18])
                if age < 1.05:
                    fire_burst(canvas, x + dx, y - 0.45 * h, scale, grow, hot * (1 - age / 1.1), palette, seeds[:14])
                    flying_bits(pen, x + dx, y - 0.3 * h, scale, age, bits, seeds[10:])

    def lights(t):
        return [
            (x + dx, y - 0.4 * h, 1.6 * scale, (255, 215, 140), 1.5 - 3 * (t - at))
            for at, dx in blasts
            if 0 <= t - at < 0.5
        ]

    return [Overlay(y + 1, paint, lights)], begin, end


# ---------------------------------------------------------------- people

FIGHTS = {
    "boxing": (actors.box, actors.box),
    "kicking": (actors.kick, actors.stagger),
    "shoving": (actors.shove, actors.stagger),  # poses of the two sides
    "stomping": (actors.kick, actors.squirm),
    "wrestling": (actors.grapple, actors.stagger),
    "beating": (actors.strike_down, actors.squirm),
    "brawl": (actors.grapple, actors.box),
}


def fighter(
    scene: Scene,
    rng: np.random.Generator,
    pose: Callable[[float], Pose],
    x: float,
    y: float,
    h: float,
    side: int,
    apart: float,
    begin: float,
    end: float,
) -> Person:
    """Stands, fights during [begin, end), walks away."""
    look, pace, sway = random_look(rng, skirt=False), rng.uniform(1.2, 1.9), rng.uniform(0, 1)

    def blow(t):
        return x + side * apart + 0.09 * h * wave(0.8 * t + sway), y, h, -side, pose(pace * t + sway)

    script = chain(
        (begin, stays(x + side * 1.35 * apart, y, h, -side, actors.stand)),
        (end, blow),
        (math.inf, goes(scene, x + side * apart, y, CENTRE + side * 130, y, end, 0.9)),
    )
    return Person(
        look, script, lambda t: None if begin <= t < end else fact(look, "talking" if t < begin else "walking away")
    )


def fighting(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    x, y, h = spot(scene, rng, 26)
    count = int(rng.integers(3, 5)) if look == "brawl" else 2
    people = [
        fighter(
            scene,
            rng,
            FIGHTS[look][i % 2],
            x,
            y + i + i // 2 * 5,
            h,
            side=1 - 2 * (i % 2),
            apart=(0.27 + 0.3 * (i // 2)) * h,
            begin=begin,
            end=end,
        )
        for i in range(count)
    ]
    return people, begin, end


def runner_way(
    scene: Scene, rng: np.random.Generator, look: str, y: float, stands: bool
) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of one of a running crowd, who stands there before or comes from outside."""
    side = {"right": 1, "panic": 1, "left": -1}.get(look) or int(rng.choice((-1, 1)))
    if look == "away":
        x0 = rng.uniform(20, 172)
        return x0, 200 + 25 * rng.random(), CENTRE + (x0 - CENTRE) * 0.6, scene.ground[0] - 14
    x0 = rng.uniform(20, 172) if stands else CENTRE - side * rng.uniform(108, 206)
    return x0, y, CENTRE + side * 116, y


def running_crowd(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    people, count, last, wait = [], int(rng.integers(8, 14)), begin, rng.uniform(0.3, 2)
    surprised = look in ("scatter", "panic")
    for i in range(count):
        stands = surprised and i % 2 == 0
        y = scene.ground[0] + (scene.ground[1] - scene.ground[0]) * (i + rng.random()) / count
        ends = runner_way(scene, rng, look, y, stands)
        start, speed, person = begin + wait * i / count, rng.uniform(1.5, 2.1), random_look(rng)
        h, side = scene.size(ends[1]), 1 if ends[2] > ends[0] else -1
        before = stays(*ends[:2], h, side, actors.stand, rng.uniform(0.8, 1.2)) if stands else lambda t: None
        script = chain(
            (start, before),
            (
                math.inf,
                goes(scene, *ends, start, speed, actors.panic if surprised else actors.run, rng.uniform(1.4, 1.8)),
            ),
        )
        last = max(last, start + way(*ends) / speed / h)

        def words(t, start=start, before=before, person=person):
            return None if first <= t < until else fact(person, "standing" if t < start and before(t) else "running")

        people.append(Person(person, script, words))
    seen = [t for t in np.arange(begin, last, 0.05) if sum(is_running(person, t) for person in people) >= 3]
    first = min(seen, default=begin)
    until = max(max(seen, default=begin) + 0.05, first + 0.75)
    return people, first, until


def is_running(person: Person, t: float) -> bool:
    """Whether one of a crowd is in the picture and no longer stands."""
    state = person.script(t)
    return (
        state is not None
        and 0 < state[0] < actors.CANVAS
        and state[1] < actors.CANVAS + 0.5 * state[2]
        and (state[4].lean > 0.2)
    )


def abandoned_object(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    """The owner sets the thing down, walks off and comes back: it is abandoned while he is 0.7 heights away or more."""
    x, y, h = spot(scene, rng, 24)
    side, person, kind, speed = int(rng.choice((-1, 1))), random_look(rng), look.replace("_", " "), 0.95
    away, near = 0.7 * h, 0.22 * h
    leave, found = begin - (away + near) / speed / h, end + away / speed / h
    arrive, start = leave - 1.2, x - side * near

    def absent(t):
        gone = speed * h * min(t - leave, found - t + near / speed / h)
        return start + side * gone, y - 1, h, side if t - leave < found - t else -side, actors.walk(t - leave)

    owner = chain(
        (arrive, goes(scene, x - side * 3 * speed * h, y - 1, start, y - 1, arrive - 3, speed)),
        (leave, stays(start, y - 1, h, side, actors.bend)),
        (found, absent),
        (math.inf, lambda t: None),
    )
    takes = goes(scene, x, y - 1, CENTRE + side * 124, y - 1, found, speed)
    carrying = replace(person, carries="backpack" if kind == "backpack" else "suitcase")
    walks, puts = fact(person, "walking"), fact(person, "putting something down")
    return (
        [
            Thing(kind, x, y, LUGGAGE * h, bag_colour(rng), arrive, found),
            Person(person, owner, lambda t: puts if arrive <= t < leave else walks),
            Person(carrying, takes, lambda t: walks),
        ],
        begin,
        end,
    )


def climbing(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    """Somebody climbs what is in the way, or a pipe or a swinging rope in front of it."""
    left, right, foot, height = scene.obstacle
    colour = str(rng.choice(("black", "grey", "blue")))
    person = random_look(
        rng,
        shirt=vary(rng, actors.shade(actors.COLOURS[colour], 0.7)),
        colour=colour,
        hood=True,
        skirt=False,
        carries=str(rng.choice(["", "backpack"])),
    )
    y, x, side = foot + 3, free_x(scene, rng, left + 8, right - 8), int(rng.choice((-1, 1)))
    h, end = scene.size_at_obstacle, min(end, begin + (rng.uniform(2, 3) if look == "vault" else rng.uniform(3, 7)))

    def swing(t):
        return 0.2 * h * wave(0.4 * (t - begin)) if begin <= t < end else 0

    def up(t):
        s = (t - begin) / (end - begin)
        pose, dx, lift = actors.climb(1.3 * t), 0, 0.9 * height / h * min(1, 1.7 * s)
        if look == "over" and s > 0.6:
            pose, dx, lift = actors.straddle(t), (s - 0.6) * 0.5 * h, height / h * (0.75 + 0.1 * (1 - s))
        elif look == "hanging":
            lift = 0.9 * height / h * (0.55 + 0.12 * wave(0.8 * s))
        elif look == "pipe":
            lift = 0.2 * min(1, 1.7 * s)
        elif look == "rope":
            dx, lift = swing(t), 0.1 + 0.15 * s
        elif look == "vault":
            pose, dx, lift = actors.vault(t), 0.25 * h * wave(0.35 * (t - begin)), height / h - 0.23
        return x + side * dx, y, h, side, replace(pose, lift=lift)

    script = chain(
        (begin, goes(scene, x - side * 1.6 * h, y, x, y, begin - 2, 0.8, scale=AT_OBSTACLE)),
        (end, up),
        (math.inf, goes(scene, x + side * 0.2 * h, y, CENTRE + side * 125, y, end, 1.6, actors.run, 1.5, AT_OBSTACLE)),
    )

    def paint(canvas, pen, t):
        if look == "pipe":
            pen.line((x + side * 3, 0, x + side * 3, y), fill=(120, 122, 126), width=4)
        else:
            pen.line((x, -40, x + side * swing(t), y - 0.5 * h), fill=(150, 130, 95), width=2)

    def words(t):
        return None if begin <= t < end else fact(person, "walking" if t < begin else "running")

    climber = Person(person, script, words)
    return [climber, Overlay(y - 1, paint)] if look in ("pipe", "rope") else [climber], begin, end


# ---------------------------------------------------------------- road accidents


class Crash:
    """What the looks of an accident share: where it happens, and a car that comes, hits at `begin` and stands."""

    def __init__(self, scene: Scene, rng: np.random.Generator, begin: float) -> None:
        place = lane(scene, rng, "standing")
        assert place, "an anomaly comes first, when every lane is free"
        (self.y, self.direction), self.begin = place, begin
        self.size, self.speed, self.x = vehicle_length(scene, self.y), rng.uniform(70, 120), rng.uniform(80, 112)

    def after(self, t: float, value: float) -> float:
        """Grows from 0 to `value` after the impact."""
        return value * (1 - math.exp(-3 * max(0, t - self.begin)))

    def tilted(self, degrees: Callable[[float], float], up: float = 0) -> VehicleScript:
        """Script of the car, `degrees` nose up and `up` pixels above the road after the impact."""

        def script(t):
            x = self.x - self.direction * (0.5 * self.size + self.speed * max(0, self.begin - t) - self.after(t, 10))
            hit = t > self.begin
            return x, self.y - up * hit, self.direction, self.direction * degrees(t) * hit

        return script


Wreck = tuple[VehicleScript, list[Actor]]  # of the car that crashes, and what else is there


def into_car(crash: Crash, scene: Scene, rng: np.random.Generator) -> Wreck:
    def script(t):
        hit = t > crash.begin
        return (
            crash.x + crash.direction * (0.55 * crash.size + crash.after(t, 16) * hit),
            crash.y,
            crash.direction,
            -crash.direction * 7 * hit,
        )

    return crash.tilted(lambda t: -9), [random_vehicle(scene, rng, script, "standing", "car", crash.y)]


def into_pole(crash: Crash, scene: Scene, rng: np.random.Generator) -> Wreck:
    def pole(canvas, pen, t):
        x = crash.x + crash.direction * 6
        pen.line((x, crash.y, x + crash.direction * crash.after(t, 16), crash.y - 62), fill=(70, 72, 74), width=4)

    return crash.tilted(lambda t: -14), [Overlay(crash.y + 1, pole)]


def into_pedestrian(crash: Crash, scene: Scene, rng: np.random.Generator) -> Wreck:
    """Who waits at the far side, and is hit after four seconds on the way."""
    look, h, begin, kerb = random_look(rng), scene.size(crash.y), crash.begin, scene.obstacle[2] + 8

    def script(t):
        if t < begin:
            left = min((begin - t) / 4, 1)
            y = crash.y + left * (kerb - crash.y)
            return (
                crash.x + crash.direction * 0.1 * crash.size,
                y,
                scene.size(y),
                1,
                (actors.stand if left == 1 else actors.walk)(t),
            )
        return (
            crash.x + crash.direction * (0.4 * crash.size + crash.after(t, 0.45 * crash.size)),
            crash.y + 2,
            h,
            crash.direction,
            actors.lie(t),
        )

    def words(t):
        return fact(look, "standing" if begin - t >= 4 else "crossing the road") if t < begin else None

    return crash.tilted(lambda t: 0), [Person(look, script, words)]


def rolling(crash: Crash, scene: Scene, rng: np.random.Generator) -> Wreck:
    return crash.tilted(lambda t: -crash.after(2 * t - crash.begin, 85), 0.1 * crash.size), []


def overturning(crash: Crash, scene: Scene, rng: np.random.Generator) -> Wreck:
    return crash.tilted(lambda t: -crash.after(2 * t - crash.begin, 180), 0.18 * crash.size), []


def sideswipe(crash: Crash, scene: Scene, rng: np.random.Generator) -> Wreck:
    """Another one comes from ahead."""
    speed = rng.uniform(60, 110)

    def script(t):
        return (
            crash.x + crash.direction * (0.45 * crash.size + speed * max(0, crash.begin - t)),
            crash.y - 6,
            -crash.direction,
            crash.direction * 22 * (t > crash.begin),
        )

    def action(t):
        return "driving by" if t <= crash.begin else None

    return crash.tilted(lambda t: 20), [random_vehicle(scene, rng, script, action, "van", crash.y)]


ACCIDENTS = {
    "rear": into_car,
    "pole": into_pole,
    "pedestrian": into_pedestrian,
    "rolled": rolling,
    "overturned": overturning,
    "sideswipe": sideswipe,
}


def road_accident(scene: Scene, rng: np.random.Generator, look: str, begin: float, end: float) -> Happening:
    """From the impact to the end of the video: what crashed stays."""
    crash = Crash(scene, rng, begin)
    script, others = ACCIDENTS[look](crash, scene, rng)
    shards, puffs = seeds_for(rng, 16), seeds_for(rng, 7)

    def debris(canvas, pen, t):
        if t >= begin:
            s = min(t - begin, 0.9)
            for p, q, r in shards:
                x, y = crash.x + 90 * (p - 0.5) * s, crash.y - 4 + 16 * (q - 0.3) * s - 40 * r * s * (0.9 - s)
                pen.rectangle((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(205, 215, 220) if q < 0.5 else (50, 46, 44))
            if look != "pedestrian":
                strength = 0.4 * min(1, t - begin)
                actors.smoke(
                    canvas, t, crash.x, crash.y - 0.25 * crash.size, 0.3 * crash.size, (150,) * 3, puffs, strength
                )

    car = random_vehicle(scene, rng, script, lambda t: "driving by" if t < begin else None, "car", crash.y)
    return [*others, car, Overlay(crash.y + 2, debris)], begin, math.inf


ANOMALIES = {  # class: function, looks of training, looks of the test alone
    "Fire": (fire, ("puddle", "bin", "car", "tall"), ("wall", "smoky")),
    "Explosion": (explosion, ("fireball", "dust", "flash"), ("double", "sparks")),
    "Fighting": (fighting, ("boxing", "kicking", "shoving", "stomping", "wrestling"), ("beating", "brawl")),
    "Road_accident": (road_accident, ("rear", "pole", "pedestrian", "rolled"), ("overturned", "sideswipe")),
    "Running_crowd": (running_crowd, ("right", "left", "panic"), ("scatter", "away")),
    "Abandoned_object": (abandoned_object, ("backpack", "suitcase", "box", "handbag"), ("duffel_bag", "trolley")),
    "Climbing": (climbing, ("over", "hanging", "pipe"), ("rope", "vault")),
}
CLASSES = tuple(ANOMALIES)
