"""Normal life in the demo world, with what looks like an anomaly and is none.

Each event is a function of (scene, rng, length of the video in seconds) that returns actors; `words(t)` of an actor
gives (subject, attribute, action) or None. A script is a function of time that tells where its actor is and how, or
None.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from videoanomaly.demo import actors
from videoanomaly.demo.actors import (
    CANVAS,
    CENTRE,
    COLOURS,
    Actor,
    Colour,
    Look,
    Overlay,
    Person,
    PersonScript,
    Pose,
    Seeds,
    Thing,
    Vehicle,
    VehicleScript,
    Words,
    random_look,
    vary,
    wave,
)
from videoanomaly.demo.scenes import Scene

LUGGAGE = 1.5  # its size, as if people were that much taller
NEON = ((255, 110, 25), (255, 60, 40), (255, 190, 60), (60, 150, 255))
VEHICLE_COLOURS = ("red", "blue", "white", "black", "grey", "green", "yellow")


def free_x(scene: Scene, rng: np.random.Generator, left: float, right: float) -> float:
    """An x away from those that are taken; now it is, too."""
    x = max(rng.uniform(left, right, 8), key=lambda x: min((abs(x - other) for other in scene.taken), default=0))
    scene.taken.append(x)
    return x


def spot(scene: Scene, rng: np.random.Generator, margin: float = 0) -> tuple[float, float, float]:
    """A place to stand: x, y, height of a person."""
    x, y = free_x(scene, rng, scene.sides[0] + margin, scene.sides[1] - margin), rng.uniform(*scene.ground)
    return x, y, scene.size(y)


def fact(look: Look, action: str) -> Words:
    return ("person", f"in {look.colour}", action)


def stays(
    x: float,
    y: float,
    h: float,
    facing: int,
    pose: Callable[[float], Pose],
    phase: float = 1.0,
    start: float = 0.0,
    end: float = math.inf,
) -> PersonScript:
    """Script of somebody who is at one place during [start, end)."""
    return lambda t: (x, y, h, facing, pose(phase * t)) if start <= t < end else None


def way(x0: float, y0: float, x1: float, y1: float) -> float:
    """Length of a way over the ground, which the camera sees foreshortened."""
    return math.hypot(x1 - x0, 3 * (y1 - y0)) or 1.0


def goes(
    scene: Scene,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    start: float,
    speed: float,
    pose: Callable[[float], Pose] = actors.walk,
    cadence: float = 1.0,
    scale: float = 1.0,
) -> PersonScript:
    """Script of somebody who goes from one place to another, `speed` in heights per second, and is away before and
    after.

    People are `scale` times as tall as the perspective has it.
    """
    distance = way(x0, y0, x1, y1)

    def script(t):
        h = scale * scene.size(y0)  # advances as fast as a person of the starting point's height
        part = (t - start) * speed * h / distance
        if not 0 <= part < 1:
            return None
        x, y = x0 + part * (x1 - x0), y0 + part * (y1 - y0)
        return x, y, scale * scene.size(y), 1 if x1 >= x0 else -1, pose(cadence * (t - start))

    return script


def chain(*parts: tuple[float, PersonScript]) -> PersonScript:
    """Scripts one after the other: (end of the part in seconds, script)."""

    def script(t):
        return next((part(t) for end, part in parts if t < end), None)

    return script


def when(script: Callable[[float], Any], value: Words) -> Callable[[float], Words | None]:
    """Words while a script shows its actor."""
    return lambda t: value if script(t) else None


def seeds_for(rng: np.random.Generator, count: int) -> Seeds:
    return [tuple(row) for row in rng.random((count, 3))]


def crossing(scene: Scene, rng: np.random.Generator, direction: int | None = None) -> tuple[float, float, float, float]:
    """Ends of a way through the picture."""
    direction = direction or (1 if rng.random() < 0.5 else -1)
    y0, y1 = rng.uniform(*scene.ground, size=2)
    return (-20, y0, CANVAS + 20, y1) if direction > 0 else (CANVAS + 20, y0, -20, y1)


# ---------------------------------------------------------------- normal life


def passer_by(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    look = random_look(rng, carries=str(rng.choice(["", "", "backpack", "bag", "suitcase"])))
    script = goes(scene, *crossing(scene, rng), rng.uniform(-2, length - 3), rng.uniform(0.65, 0.85))
    return [Person(look, script, when(script, fact(look, "walking")))]


def jogger(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    look = random_look(rng)
    script = goes(scene, *crossing(scene, rng), rng.uniform(-2, length - 3), rng.uniform(1.45, 1.95), actors.run, 1.5)
    return [Person(look, script, when(script, fact(look, "jogging")))]


def stander(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    look, pose = random_look(rng), (actors.stand, actors.phone)[rng.integers(2)]
    script = stays(*spot(scene, rng), int(rng.choice((-1, 1))), pose)
    return [
        Person(look, script, when(script, fact(look, "standing" if pose is actors.stand else "looking at a phone")))
    ]


def group(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Three to five people who walk together."""
    x0, y0, x1, y1 = crossing(scene, rng)
    start, people = rng.uniform(-1, length - 5), []
    for i in range(rng.integers(3, 6)):
        dy, look = rng.uniform(-10, 10), random_look(rng)
        y = min(max(y0 + dy, scene.ground[0]), 188)
        script = goes(scene, x0, y, x1, y, start + 0.45 * i, 0.8, cadence=rng.uniform(0.9, 1.1))
        people.append(Person(look, script, when(script, fact(look, "walking"))))
    return people


def pair(
    scene: Scene,
    rng: np.random.Generator,
    poses: tuple[Callable[[float], Pose], Callable[[float], Pose]],
    action: str,
    begin: float,
    end: float,
    gap: float = 0.34,
) -> list[Actor]:
    """Two people who talk, do something during [begin, end) and talk again."""
    x, y, h = spot(scene, rng, 18)
    people = []
    for side, pose in ((-1, poses[0]), (1, poses[1])):
        look, distance = random_look(rng), gap * h / 2
        phase = rng.uniform(0.9, 1.1)
        script = chain(
            (begin, stays(x + side * 0.3 * h, y, h, -side, actors.stand, phase)),
            (end, stays(x + side * distance, y + side, h, -side, pose, phase)),
            (math.inf, stays(x + side * 0.3 * h, y, h, -side, actors.stand, phase)),
        )
        people.append(Person(look, script, lambda t, look=look: fact(look, action if begin <= t < end else "talking")))
    return people


def part_of(rng: np.random.Generator, length: float) -> tuple[float, float]:
    begin = rng.uniform(0.1, 0.5) * length
    return begin, begin + rng.uniform(2, 0.4 * length)


def hugging(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    return pair(scene, rng, (actors.hug, actors.hug), "hugging", *part_of(rng, length), gap=0.26)


def greeting(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    return pair(scene, rng, (actors.shake_hands, actors.shake_hands), "shaking hands", *part_of(rng, length), gap=0.6)


def dancing(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    return pair(scene, rng, (actors.dance, actors.dance), "dancing", *part_of(rng, length), gap=0.7)


def waiting_with_luggage(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Somebody puts a bag down and stays beside it."""
    x, y, h = spot(scene, rng, 20)
    kinds = ("duffel bag", "trolley") if scene.held_out else ("backpack", "suitcase", "box", "handbag")
    kind, side = str(rng.choice(kinds)), int(rng.choice((-1, 1)))
    look, action = random_look(rng), f"waiting beside a {kind}"
    script = stays(x + side * 0.42 * h, y - 1, h, -side, (actors.stand, actors.phone)[rng.integers(2)])
    return [
        Person(look, script, when(script, fact(look, action))),
        Thing(kind, x, y, LUGGAGE * h, bag_colour(rng), 0, math.inf),
    ]


def bag_colour(rng: np.random.Generator) -> Colour:
    return vary(rng, ((165, 45, 40), (45, 75, 150), (75, 77, 80), (190, 150, 70), (60, 115, 60))[rng.integers(5)])


def sitting(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Somebody on a bench."""
    x, y, h = spot(scene, rng, 16)
    look, facing = random_look(rng), int(rng.choice((-1, 1)))

    def bench(canvas, pen, t):
        pen.rectangle((x - 0.35 * h, y - 0.25 * h, x + 0.35 * h, y - 0.2 * h), fill=(105, 74, 48))
        for leg in (-0.3, 0.28):
            pen.rectangle((x + leg * h, y - 0.22 * h, x + leg * h + 2, y), fill=(60, 46, 36))

    script = stays(x, y, h, facing, actors.sit)
    return [Overlay(y - 0.5, bench), Person(look, script, when(script, fact(look, "sitting on a bench")))]


def ladder(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A worker in orange on a ladder."""
    left, right, foot, _ = scene.obstacle
    x, h = free_x(scene, rng, left, right), scene.size_at_obstacle
    foot, top = foot + 6, foot - 1.25 * h
    look = random_look(rng, shirt=vary(rng, COLOURS["orange"]), skirt=False)

    def rungs(canvas, pen, t):
        for side in (-0.14, 0.14):
            pen.line((x + side * h, foot, x + side * h * 0.8, top), fill=(190, 180, 120), width=2)
        for i in range(9):
            y = foot + (top - foot) * i / 9
            pen.line((x - 0.13 * h, y, x + 0.13 * h, y), fill=(190, 180, 120), width=1)

    script = stays(x - 0.05 * h, foot, h, 1, lambda p: replace(actors.reach(p), lift=0.35))
    return [Overlay(foot - 0.5, rungs), Person(look, script, when(script, ("worker", "", "standing on a ladder")))]


def at_the_obstacle(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Somebody who leans on what an intruder would climb."""
    left, right, foot, _ = scene.obstacle
    look, y = random_look(rng), foot + 3
    facing, pose = int(rng.choice((-1, 1))), (actors.stand, actors.phone)[rng.integers(2)]
    script = stays(free_x(scene, rng, left + 5, right - 5), y, scene.size_at_obstacle, facing, pose)
    return [Person(look, script, when(script, fact(look, f"standing at the {scene.obstacle_name}")))]


def shopper(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    y = scene.ground[0] - 12
    look = random_look(rng, carries=str(rng.choice(["", "bag"])))
    script = stays(rng.uniform(*scene.sides), y, scene.size(y), int(rng.choice((-1, 1))), actors.reach)
    return [Person(look, script, when(script, fact(look, "taking something from a shelf")))]


def random_vehicle(
    scene: Scene,
    rng: np.random.Generator,
    script: VehicleScript,
    action: str | Callable[[float], str | None],
    kind: str,
    y: float,
    **options: Any,
) -> Vehicle:
    """A vehicle on the lane at y; `action` is what it does, or a function of time that tells."""
    name = str(rng.choice(VEHICLE_COLOURS))
    length = int(vehicle_length(scene, y) * {"car": 1, "van": 1.1, "truck": 1.35, "bus": 1.6}[kind])

    def words(t):
        does = action(t) if callable(action) else action
        return (kind, name, does) if does and script(t) else None

    return Vehicle(kind, vary(rng, COLOURS[name]), length, script, words, headlights=scene.night, **options)


def vehicle_length(scene: Scene, y: float) -> int:
    return int(1.25 * scene.size(y))


def drive(x0: float, direction: int, y: float, start: float, speed: float) -> VehicleScript:
    """Script of a vehicle at constant speed, pixels per second."""
    return lambda t: (
        (x0 + direction * speed * (t - start), y, direction, 0)
        if t >= start and (-140 < x0 + direction * speed * (t - start) < CANVAS + 140)
        else None
    )


def lane(scene: Scene, rng: np.random.Generator, use: str) -> tuple[float, int] | None:
    """y of a lane and its direction, the far one goes left; None if none is left: what stands has a lane of its own.

    `use` is "moving" or "standing".
    """
    free = [i for i in (0, 1) if i not in scene.lane_use or scene.lane_use[i] == use == "moving"]
    if not free:
        return None
    i = int(rng.choice(free))
    scene.lane_use[i] = use
    return scene.lanes[i], (-1, 1)[i]


def passing_car(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    if not (place := lane(scene, rng, "moving")):
        return []
    y, direction = place
    speed = rng.uniform(45, 130) if scene.kind == "street" else rng.uniform(25, 50)
    script = drive(-100 if direction > 0 else CANVAS + 100, direction, y, rng.uniform(-1, length - 2), speed)
    kind = str(rng.choice(["car", "car", "car", "van", "truck", "bus"] if scene.kind == "street" else ["car", "van"]))
    return [random_vehicle(scene, rng, script, "driving by", kind, y)]


def braking(x0: float, x1: float, start: float, seconds: float) -> Callable[[float], float]:
    """Position of a vehicle that slows down evenly from x0 and stands at x1 after `seconds`."""

    def x(t):
        s = min(max((t - start) / seconds, 0), 1)
        return x0 + (x1 - x0) * (2 * s - s * s)

    return x


def parking(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A car comes, stops, and stays; or one stands and drives off."""
    if not (place := lane(scene, rng, "standing")):
        return []
    y, direction = place
    begin, seconds, x1 = rng.uniform(0, 0.5) * length, rng.uniform(2, 4), free_x(scene, rng, 40, 150)
    x = braking(-60 if direction > 0 else CANVAS + 60, x1, begin, seconds)
    leaves = rng.random() < 0.4

    def script(t):
        return (x(2 * begin + seconds - t if leaves else t), y, direction, 0)

    def does(t):
        return "parked" if not begin <= t < begin + seconds else "driving off" if leaves else "parking"

    return [random_vehicle(scene, rng, script, does, "car", y)]


def queue(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Cars that stop close behind each other."""
    if not (place := lane(scene, rng, "standing")):
        return []
    y, direction = place
    begin, cars = rng.uniform(0, 0.4) * length, []

    def does(stands):
        return lambda t: "waiting in a queue" if t >= stands else "driving by"

    size = vehicle_length(scene, y)
    for i in range(2):
        x1 = CENTRE + direction * (size * 0.56 - i * size * 1.12)
        x = braking(x1 - direction * 300, x1, begin + 1.2 * i, 2.5)
        cars.append(
            random_vehicle(scene, rng, lambda t, x=x: (x(t), y, direction, 0), does(begin + 1.2 * i + 2.5), "car", y)
        )
    return cars


def hazard_lights(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    if not (place := lane(scene, rng, "standing")):
        return []
    y, direction = place
    x = free_x(scene, rng, 40, 150)
    return [
        random_vehicle(
            scene, rng, lambda t: (x, y, direction, 0), "standing with blinking lights", "car", y, blink=True
        )
    ]


def lamp_switched(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A bright warm lamp goes on, and perhaps off again."""
    (x, y), (begin, end) = scene.wall, part_of(rng, length)
    end = end if rng.random() < 0.5 else math.inf
    radius, warm = rng.uniform(14, 34), ((255, 190, 90), (255, 235, 200), (255, 150, 60))[rng.integers(3)]

    def paint(canvas, pen, t):
        pen.ellipse((x - 5, y - 4, x + 5, y + 5), fill=(255, 240, 190) if begin <= t < end else (120, 118, 110))

    return [
        Overlay(
            0,
            paint,
            lambda t: [(x, y, radius, warm, 0.9)] if begin <= t < end else [],
            lambda t: ("lamp", "", "shining") if begin <= t < end else None,
        )
    ]


def neon_sign(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A bright sign that flickers, beside where a lamp may be."""
    (x, y), rate = scene.wall, rng.uniform(0.4, 1.5)
    x += 40 if x < CENTRE else -40
    w, h, colour = rng.uniform(12, 20), rng.uniform(5, 8), NEON[rng.integers(len(NEON))]

    def is_lit(t):
        return wave(rate * t) > -0.6

    def paint(canvas, pen, t):
        pen.rectangle((x - w, y - h, x + w, y + h), fill=(40, 34, 36), outline=(80, 78, 76))
        for i in range(-2, 3):
            centre = x + 0.38 * w * i
            pen.rectangle(
                (centre - 2, y - 0.6 * h, centre + 2, y + 0.6 * h), fill=colour if is_lit(t) else (90, 60, 50)
            )

    return [
        Overlay(
            0,
            paint,
            lambda t: [(x, y, 20, colour, 0.55)] if is_lit(t) else [],
            lambda t: ("neon sign", "", "flickering"),
        )
    ]


def steam(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """White steam from the ground."""
    x, y, h = spot(scene, rng, 10)
    seeds, begin, end = seeds_for(rng, 9), *part_of(rng, length)
    size = rng.uniform(0.25, 0.45) * h
    tone = tuple([int(rng.integers(200, 236))] * 3)

    def paint(canvas, pen, t):
        pen.ellipse((x - 0.2 * h, y - 0.05 * h, x + 0.2 * h, y + 0.05 * h), fill=(58, 58, 60))
        if begin <= t < end:
            actors.smoke(canvas, t, x, y, size, tone, seeds, 0.5)

    return [
        Overlay(
            y - 30, paint, words=lambda t: ("steam", "white", "rising from the ground") if begin <= t < end else None
        )
    ]


def door_opens(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """A door opens on a bright or dark room, and perhaps somebody stands in it."""
    (x0, y0, x1, y1), (begin, end) = scene.door, part_of(rng, length)
    inside, look = ((255, 240, 200), (40, 38, 36))[rng.integers(2)], random_look(rng)
    somebody = rng.random() < 0.6

    def paint(canvas, pen, t):
        if begin <= t < end:
            pen.rectangle((x0, y0, x1, y1), fill=inside)
            pen.polygon([(x0, y0), (x0 + 5, y0 + 3), (x0 + 5, y1 + 3), (x0, y1)], fill=(80, 60, 44))
            if somebody and t > begin + 0.6:
                actors.draw_person(pen, (x0 + x1) / 2, y1, 0.8 * (y1 - y0), 1, actors.stand(t), look)

    return [Overlay(0, paint, words=lambda t: ("door", "", "standing open") if begin <= t < end else None)]


def camera_flash(scene: Scene, rng: np.random.Generator, length: float) -> list[Actor]:
    """Somebody takes pictures with a flash."""
    x, y, h = spot(scene, rng, 16)
    look, times = random_look(rng), rng.uniform(0.5, length - 1, rng.integers(2, 5))
    script = stays(x, y, h, 1, lambda p: actors.Pose(0.0, (0.1, -0.1), (0, 0), (1.2, 1.3), (1.1, 1.0)))

    def is_lit(t):
        return any(0 <= t - at < 0.26 for at in times)

    return [
        Person(
            look, script, lambda t: fact(look, "taking a picture with a flash" if is_lit(t) else "taking a picture")
        ),
        Overlay(0, glow=lambda t: [(x + 0.3 * h, y - 0.8 * h, 34, (255, 255, 255), 1.3)] if is_lit(t) else []),
    ]


ALIKE = (jogger, hugging, greeting, dancing, waiting_with_luggage, ladder, at_the_obstacle, lamp_switched, neon_sign)
EVERYWHERE = [*(passer_by, passer_by, passer_by, stander, group), *ALIKE, *(door_opens, camera_flash, steam, sitting)]
LOOK_ALIKES = (*ALIKE, camera_flash, steam, group, parking, queue, hazard_lights)  # of an anomaly
NORMAL = {
    "street": [*EVERYWHERE, passing_car, passing_car, passing_car, parking, queue, hazard_lights],
    "car park": [*EVERYWHERE, passing_car, passing_car, parking, parking, queue, hazard_lights],
    "corridor": EVERYWHERE,
    "shop": [*EVERYWHERE, shopper, shopper, shopper],
}
