"""What moves in the demo world: people with joints, vehicles, fire, smoke and things, drawn at twice the final size.

An actor has `draw(canvas, pen, t)` for a PIL image and its drawing pen, `lights(t)`, `foot(t)`, the y by which it is
sorted, and `words(t)`: (subject, attribute, action) or None. What moves has a `script(t)` that begins with x and y,
None where it is away. Time t is in seconds. Positions are canvas pixels, y down, with the feet at (x, y); h is a
person's height there. Everything is a function of t alone, so any frame can be drawn without those before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 192  # side of the canvas; frames have half of it
CENTRE = CANVAS // 2

Pen = ImageDraw.ImageDraw
Colour = tuple[int, ...]  # red, green, blue and perhaps opacity, in [0, 255]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Light = tuple[float, float, float, Colour, float]  # x, y, radius, colour, strength
Words = tuple[str, str, str]  # subject, attribute, action
Seeds = list[tuple[float, ...]]  # (n, 3) in [0, 1)

COLOURS = {
    "red": (190, 40, 40),
    "blue": (45, 75, 170),
    "green": (50, 125, 60),
    "yellow": (215, 185, 60),
    "white": (225, 225, 220),
    "black": (38, 38, 44),
    "grey": (125, 125, 130),
    "brown": (115, 78, 48),
    "purple": (115, 60, 135),
    "orange": (215, 115, 40),
}
SKINS = ((236, 200, 170), (214, 165, 125), (160, 110, 78), (95, 66, 48))
HAIRS = ((30, 24, 20), (84, 55, 30), (160, 120, 60), (120, 118, 115))


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(c * factor)) for c in colour)


def vary(rng: np.random.Generator, colour: Colour, spread: int = 18) -> Colour:
    return tuple(int(min(255, max(0, c + rng.integers(-spread, spread + 1)))) for c in colour)


# ---------------------------------------------------------------- people


@dataclass
class Pose:
    """Angles in radians from hanging down or standing upright, positive to the front; legs and arms as (far, near)."""

    lean: float = 0.0
    hips: tuple[float, float] = (0.0, 0.0)
    knees: tuple[float, float] = (0.0, 0.0)  # bend backwards
    shoulders: tuple[float, float] = (0.1, -0.1)
    elbows: tuple[float, float] = (0.2, 0.2)  # bend forwards
    lift: float = 0.0  # height above the ground, in body heights
    turn: float = 0.0  # of the whole body, 1.5 lies on the back


PersonScript = Callable[[float], tuple[float, float, float, int, Pose] | None]  # x, y, height, facing, pose
VehicleScript = Callable[[float], tuple[float, float, int, float] | None]  # x, y, facing, angle in degrees


def wave(phase: float) -> float:
    return math.sin(2 * math.pi * phase)


def stand(p: float) -> Pose:
    return Pose(lean=0.03 * wave(p / 5), hips=(0.07, -0.07), shoulders=(0.15 + 0.05 * wave(p / 3), -0.12))


def phone(p: float) -> Pose:
    return Pose(lean=0.06, hips=(0.07, -0.07), shoulders=(0.1, 0.7 + 0.05 * wave(p / 3)), elbows=(0.2, 2.0))


def walk(p: float) -> Pose:
    s, c = wave(p), wave(p + 0.25)
    return Pose(
        0.05,
        (0.48 * s, -0.48 * s),
        (0.12 + 0.5 * max(0, c), 0.12 + 0.5 * max(0, -c)),
        (-0.45 * s, 0.45 * s),
        (0.35, 0.35),
    )


def run(p: float) -> Pose:
    s, c = wave(p), wave(p + 0.25)
    return Pose(
        0.34,
        (0.35 + 0.85 * s, 0.35 - 0.85 * s),
        (0.35 + 1.3 * max(0, c), 0.35 + 1.3 * max(0, -c)),
        (-0.95 * s, 0.95 * s),
        (1.5, 1.5),
        lift=0.03 * abs(c),
    )


def panic(p: float) -> Pose:
    """Running with the arms thrown up."""
    pose = run(p)
    pose.shoulders, pose.elbows = (2.4 + 0.4 * wave(p), 2.6 - 0.4 * wave(p)), (0.5, 0.5)
    return pose


def box(p: float) -> Pose:
    s = wave(p)
    return Pose(
        0.18 + 0.2 * s,
        (0.5, -0.55),
        (0.25, 0.35),
        (1.5 if s > 0 else 0.7, 0.7 if s > 0 else 1.55),
        (0.1 if s > 0 else 2.0, 2.0 if s > 0 else 0.1),
    )


def kick(p: float) -> Pose:
    s = max(0.0, wave(p))
    return Pose(0.1 - 0.45 * s, (-0.15, 1.65 * s - 0.3), (0.2, 0.5 * (1 - s)), (0.9, 0.3), (1.6, 1.4))


def grapple(p: float) -> Pose:
    return Pose(0.6 + 0.2 * wave(p), (0.75, -0.6), (0.6, 0.25), (1.9, 1.2 + 0.4 * wave(p)), (1.0, 1.2))


def shove(p: float) -> Pose:
    s = abs(wave(p / 2))
    return Pose(0.3 + 0.2 * s, (0.6, -0.6), (0.3, 0.2), (1.45, 1.55), (0.9 - 0.8 * s, 0.9 - 0.8 * s))


def stagger(p: float) -> Pose:
    return Pose(-0.35 + 0.15 * wave(p), (0.55, -0.25), (0.2, 0.5), (1.0 + 0.5 * wave(p), 2.0), (0.5, 0.8))


def strike_down(p: float) -> Pose:
    s = 0.5 + 0.5 * wave(p)
    return Pose(0.5 + 0.4 * s, (0.5, -0.4), (0.5, 0.2), (2.7 - 1.9 * s, 2.4 - 1.2 * s), (0.5, 0.4))


def lie(p: float) -> Pose:
    return Pose(0, (0.3, -0.05), (0.7, 0.1), (0.8, 0.3), (1.0, 0.6), turn=1.5)


def squirm(p: float) -> Pose:
    return Pose(0.2, (0.9 + 0.4 * wave(p), 0.5), (1.4, 1.0), (2.0, 1.5 + 0.4 * wave(p)), (1.8, 1.6), turn=1.45)


def hug(p: float) -> Pose:
    return Pose(0.12 + 0.02 * wave(p / 3), (0.1, -0.05), (0, 0), (1.25, 1.35), (0.55, 0.75))


def shake_hands(p: float) -> Pose:
    return Pose(0.08, (0.1, -0.08), (0, 0), (0.0, 0.95 + 0.12 * wave(p)), (0.2, 0.45))


def dance(p: float) -> Pose:
    s = wave(p / 2)
    return Pose(0.14 * s, (0.2 + 0.15 * s, -0.2), (0.2, 0.3 + 0.2 * s), (2.3 + 0.6 * s, 2.5 - 0.6 * s), (0.4, 0.4))


def bend(p: float) -> Pose:
    return Pose(1.1, (0.25, -0.05), (0.35, 0.3), (0.9, 1.0), (0.1, 0.1))


def sit(p: float) -> Pose:
    return Pose(0.05, (1.45, 1.35), (1.45, 1.35), (0.5, 0.45), (0.7, 0.7 + 0.1 * wave(p / 3)))


def reach(p: float) -> Pose:
    return Pose(0.05, (0.1, -0.05), (0, 0), (0.4, 1.9 + 0.25 * wave(p / 2)), (0.3, 0.4))


def climb(p: float) -> Pose:
    s = wave(p)
    return Pose(
        0.15,
        (0.95 + 0.5 * s, 0.95 - 0.5 * s),
        (1.25 + 0.3 * s, 1.25 - 0.3 * s),
        (2.75 + 0.25 * s, 2.75 - 0.25 * s),
        (0.3, 0.3),
    )


def straddle(p: float) -> Pose:
    """One leg over the top of a fence."""
    return Pose(0.7, (1.5, -0.5), (0.6, 0.6), (1.3, 1.1), (0.4, 0.5))


def vault(p: float) -> Pose:
    """Over the top with the legs first, on stretched arms."""
    return Pose(0.2, (1.75 + 0.15 * wave(p), 1.35), (0.25, 1.0), (-0.6, 0.2), (0.1, 0.1))


@dataclass
class Look:
    """What a person looks like: colours, build, what they carry."""

    shirt: Colour
    trousers: Colour
    skin: Colour
    hair: Colour
    build: float  # height, times that of an average person
    colour: str  # of the shirt, for captions
    carries: str = ""  # "", "backpack", "bag" or "suitcase"
    skirt: bool = False
    hood: bool = False


def random_look(rng: np.random.Generator, **fixed: Any) -> Look:
    colour = str(rng.choice(list(COLOURS)))
    values = {
        "shirt": vary(rng, COLOURS[colour]),
        "trousers": vary(rng, ((40, 44, 62), (92, 82, 68), (58, 58, 60), (130, 125, 115))[rng.integers(4)]),
        "skin": SKINS[rng.integers(4)],
        "hair": HAIRS[rng.integers(4)],
        "build": float(rng.uniform(0.9, 1.1)),
        "colour": colour,
        "skirt": bool(rng.random() < 0.15),
    }
    return Look(**values | fixed)


def joint(x: float, y: float, angle: float, length: float) -> tuple[float, float]:
    return x + length * math.sin(angle), y + length * math.cos(angle)


def limb(pen: Pen, points: Sequence[tuple[float, float]], colour: Colour, width: int) -> None:
    pen.line(points, fill=colour, width=width, joint="curve")
    r = width / 2
    for x, y in (points[0], points[-1]):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def draw_person(pen: Pen, x: float, y: float, h: float, facing: int, pose: Pose, look: Look) -> None:
    """One person with the feet on (x, y), h pixels tall, `facing` 1 (right) or -1."""
    h *= look.build
    upper, lower = 0.25 * h, 0.26 * h
    feet = [upper * math.cos(a) + lower * math.cos(a - k) for a, k in zip(pose.hips, pose.knees)]
    hip_y = -max(feet) - pose.lift * h  # relative to the feet, facing right; turned and mirrored by `place`
    cos, sin = math.cos(pose.turn), math.sin(pose.turn)

    def place(point):
        px, py = point
        if pose.turn:
            px, py = px * cos + py * sin + 0.45 * h * sin, -px * sin + py * cos - 0.08 * h * sin
        return x + facing * px, y + py

    neck = joint(0, hip_y, math.pi - pose.lean, 0.31 * h)
    head = joint(*neck, math.pi - pose.lean * 0.7, 0.095 * h)
    legs, arms = [], []
    for hip, knee in zip(pose.hips, pose.knees):
        middle = joint(0, hip_y, hip, upper)
        end = joint(*middle, hip - knee, lower)
        legs.append([place(point) for point in ((0, hip_y), middle, end, (end[0] + 0.06 * h, end[1]))])
    for shoulder, elbow in zip(pose.shoulders, pose.elbows):
        middle = joint(neck[0], neck[1] + 0.03 * h, shoulder + pose.lean, 0.17 * h)
        arms.append(
            [
                place(point)
                for point in (
                    (neck[0], neck[1] + 0.03 * h),
                    middle,
                    joint(*middle, shoulder + pose.lean + elbow, 0.16 * h),
                )
            ]
        )
    leg_width, arm_width = max(2, round(0.1 * h)), max(2, round(0.075 * h))
    sides = ((0, 0.7), (1, 1.0))
    for side, light in sides[:1]:
        limb(pen, arms[side], shade(look.shirt, light), arm_width)
    for side, light in sides:
        limb(pen, legs[side], shade(look.trousers, light), leg_width)
    if look.carries == "backpack":
        limb(
            pen,
            [place(joint(-0.1 * h, hip_y, math.pi - pose.lean, d * h)) for d in (0.12, 0.24)],
            (60, 70, 50),
            round(0.13 * h),
        )
    limb(pen, [place((0, hip_y)), place(neck)], look.shirt, max(3, round(0.18 * h)))
    if look.skirt:
        hem = ((-0.07, -0.04), (0.07, -0.04), (0.14, 0.2), (-0.13, 0.2))
        pen.polygon([place((dx * h, hip_y + dy * h)) for dx, dy in hem], fill=look.shirt)
    (hx, hy), r = place(head), 0.078 * h
    pen.ellipse((hx - r, hy - r, hx + r, hy + r), fill=look.shirt if look.hood else look.hair)
    hx, hy = place((head[0] + 0.028 * h, head[1] + 0.022 * h))
    pen.ellipse((hx - 0.75 * r, hy - 0.75 * r, hx + 0.75 * r, hy + 0.75 * r), fill=look.skin)
    limb(pen, arms[1], shade(look.shirt, 0.88), arm_width)
    (hx, hy), r = arms[1][-1], 0.045 * h
    pen.ellipse((hx - r, hy - r, hx + r, hy + r), fill=look.skin)
    if look.carries in ("bag", "suitcase"):
        draw_thing(pen, look.carries, hx, hy + 0.26 * h if look.carries == "bag" else y, h, (70, 45, 35))


@dataclass
class Person:
    """`script(t)` gives (x, y, height, facing, pose)."""

    look: Look
    script: PersonScript
    words: Callable[[float], Words | None] = lambda t: None

    def foot(self, t: float) -> float:
        state = self.script(t)
        return state[1] if state else 0

    def draw(self, canvas: Image.Image, pen: Pen, t: float) -> None:
        if state := self.script(t):
            x, y, h, facing, pose = state
            if pose.lift < 0.2:
                pen.ellipse((x - 0.24 * h, y - 0.06 * h, x + 0.24 * h, y + 0.05 * h), fill=(0, 0, 0, 70))
            draw_person(pen, x, y, h, facing, pose, self.look)

    def lights(self, t: float) -> Sequence[Light]:
        return []


# ---------------------------------------------------------------- things


def draw_thing(pen: Pen, kind: str, x: float, y: float, h: float, colour: Colour) -> None:
    """A bag, box or the like that stands on (x, y), in the scale of a person of height h."""

    def rectangle(left, top, right, bottom, fill, radius=0.03):
        pen.rounded_rectangle((x + left * h, y + top * h, x + right * h, y + bottom * h), radius * h, fill=fill)

    dark = shade(colour, 0.6)
    if kind == "backpack":
        rectangle(-0.13, -0.34, 0.13, 0, colour, 0.1)
        rectangle(-0.09, -0.16, 0.09, -0.02, dark)
    elif kind in ("suitcase", "trolley"):
        tall = 0.4 if kind == "suitcase" else 0.52
        pen.line(
            (
                x - 0.06 * h,
                y - tall * h,
                x - 0.06 * h,
                y - (tall + 0.13) * h,
                x + 0.06 * h,
                y - (tall + 0.13) * h,
                x + 0.06 * h,
                y - tall * h,
            ),
            fill=(50, 50, 50),
            width=2,
        )
        rectangle(-0.15, -tall, 0.15, -0.02, colour)
        rectangle(-0.15, -0.6 * tall, 0.15, -0.5 * tall, dark, 0)
    elif kind in ("bag", "handbag", "duffel bag"):
        wide = {"bag": 0.1, "handbag": 0.16, "duffel bag": 0.24}[kind]
        pen.arc((x - 0.7 * wide * h, y - 0.28 * h, x + 0.7 * wide * h, y - 0.05 * h), 180, 360, fill=dark, width=2)
        rectangle(-wide, -0.18, wide, 0, colour, 0.06)
    else:  # a box
        rectangle(-0.18, -0.3, 0.18, 0, colour, 0.0)
        rectangle(-0.03, -0.3, 0.03, 0, shade(colour, 1.25), 0)


@dataclass
class Thing:
    """A bag or box that stands somewhere during [start, end)."""

    kind: str
    x: float
    y: float
    h: float
    colour: Colour
    start: float
    end: float
    words: Callable[[float], Words | None] = lambda t: None

    def foot(self, t: float) -> float:
        return self.y

    def draw(self, canvas: Image.Image, pen: Pen, t: float) -> None:
        if self.start <= t < self.end:
            pen.ellipse(
                (self.x - 0.2 * self.h, self.y - 0.05 * self.h, self.x + 0.2 * self.h, self.y + 0.04 * self.h),
                fill=(0, 0, 0, 70),
            )
            draw_thing(pen, self.kind, self.x, self.y, self.h, self.colour)

    def lights(self, t: float) -> Sequence[Light]:
        return []


@dataclass
class Overlay:
    """Whatever a plain function draws: `paint(canvas, pen, t)`; `glow(t)` lists its lights."""

    y: float
    paint: Callable[[Image.Image, Pen, float], None] = lambda canvas, pen, t: None
    glow: Callable[[float], Sequence[Light]] = lambda t: []
    words: Callable[[float], Words | None] = lambda t: None

    def foot(self, t: float) -> float:
        return self.y

    def draw(self, canvas: Image.Image, pen: Pen, t: float) -> None:
        self.paint(canvas, pen, t)

    def lights(self, t: float) -> Sequence[Light]:
        return self.glow(t)


# ---------------------------------------------------------------- vehicles

SHAPES = {  # outline of body and windows, in lengths; x to the front, y up from the ground
    "car": (
        [(0, 0.1), (0, 0.24), (0.13, 0.27), (0.25, 0.4), (0.62, 0.4), (0.77, 0.26), (0.97, 0.22), (1, 0.1)],
        [
            [(0.18, 0.27), (0.27, 0.37), (0.42, 0.37), (0.42, 0.27)],
            [(0.45, 0.27), (0.45, 0.37), (0.6, 0.37), (0.7, 0.27)],
        ],
    ),
    "van": (
        [(0, 0.1), (0, 0.5), (0.05, 0.53), (0.7, 0.53), (0.86, 0.32), (0.98, 0.27), (1, 0.1)],
        [
            [(0.62, 0.33), (0.62, 0.48), (0.7, 0.48), (0.81, 0.33)],
            [(0.4, 0.33), (0.4, 0.48), (0.58, 0.48), (0.58, 0.33)],
        ],
    ),
    "truck": (
        [
            (0, 0.14),
            (0, 0.62),
            (0.68, 0.62),
            (0.68, 0.14),
            (0.71, 0.14),
            (0.71, 0.5),
            (0.9, 0.5),
            (1, 0.3),
            (1, 0.1),
            (0, 0.1),
        ],
        [[(0.78, 0.3), (0.78, 0.46), (0.88, 0.46), (0.95, 0.3)]],
    ),
    "bus": (
        [(0, 0.1), (0, 0.48), (0.03, 0.52), (0.97, 0.52), (1, 0.45), (1, 0.1)],
        [[(a, 0.28), (a, 0.45), (a + 0.15, 0.45), (a + 0.15, 0.28)] for a in (0.06, 0.24, 0.42, 0.6, 0.8)],
    ),
}


@lru_cache(maxsize=512)
def vehicle_sprite(kind: str, colour: Colour, length: int, facing: int, angle: float) -> Image.Image:
    """RGBA picture of a vehicle seen from the side, its ground centre at (length, 1.5 * length); angle in degrees."""
    size, k = length * 2, 0.5 * length
    image = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(image)
    outline, windows = SHAPES[kind]

    def points(shape):
        return [(k + px * length, 1.5 * length - py * length) for px, py in shape]

    pen.polygon(points(outline), fill=colour)
    pen.polygon(points([(0, 0.1), (0, 0.16), (1, 0.16), (1, 0.1)]), fill=shade(colour, 0.7))
    for window in windows:
        pen.polygon(points(window), fill=(60, 75, 90))
    for centre in (0.2, 0.8):
        (cx, cy), r = points([(centre, 0.085)])[0], 0.085 * length
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(22, 22, 24))
        pen.ellipse((cx - r / 2, cy - r / 2, cx + r / 2, cy + r / 2), fill=(130, 130, 135))
    pen.polygon(points([(0.95, 0.17), (0.95, 0.22), (1, 0.22), (1, 0.17)]), fill=(250, 245, 205))
    pen.polygon(points([(0, 0.17), (0, 0.23), (0.03, 0.23), (0.03, 0.17)]), fill=(190, 30, 25))
    if facing < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.rotate(angle, Image.Resampling.BILINEAR, center=(length, 1.3 * length)) if angle else image


@dataclass
class Vehicle:
    """`script(t)` gives (x of the centre, y of the ground, facing, angle in degrees)."""

    kind: str
    colour: Colour
    length: int
    script: VehicleScript
    words: Callable[[float], Words | None] = lambda t: None
    headlights: bool = False
    blink: bool = False

    def foot(self, t: float) -> float:
        state = self.script(t)
        return state[1] if state else 0

    def draw(self, canvas: Image.Image, pen: Pen, t: float) -> None:
        state = self.script(t)
        if not state or not -self.length < state[0] < CANVAS + self.length:
            return
        x, y, facing, angle = state
        half = self.length / 2
        pen.ellipse((x - half, y - 0.05 * self.length, x + half, y + 0.06 * self.length), fill=(0, 0, 0, 90))
        sprite = vehicle_sprite(self.kind, self.colour, self.length, facing, round(angle / 3) * 3)
        canvas.paste(sprite, (round(x - self.length), round(y - 1.5 * self.length)), sprite)

    def lights(self, t: float) -> Sequence[Light]:
        state = self.script(t)
        if not state:
            return []
        x, y, facing, _ = state
        found, front = [], x + facing * 0.5 * self.length
        if self.headlights:
            found += [
                (front, y - 0.2 * self.length, 7, (255, 245, 205), 0.9),
                (front + facing * 26, y - 2, 26, (255, 240, 190), 0.45),
            ]
            found += [(x - facing * 0.5 * self.length, y - 0.2 * self.length, 4, (255, 40, 25), 0.8)]
        if self.blink and t % 1 < 0.5:
            found += [
                (x + side * 0.47 * self.length, y - 0.2 * self.length, 7, (255, 150, 20), 0.9) for side in (-1, 1)
            ]
        return found


Actor = Person | Thing | Overlay | Vehicle

# ---------------------------------------------------------------- fire and smoke


@lru_cache(maxsize=64)
def soft_disc(radius: int) -> Image.Image:
    """Mask of a soft disc."""
    side = 2 * radius + 1
    y, x = np.mgrid[:side, :side] - radius
    mask = np.clip(1.15 - np.hypot(x, y) / radius, 0, 1) ** 0.8
    return Image.fromarray((mask * 255).astype(np.uint8))


@lru_cache(maxsize=4096)
def puff_mask(radius: int, alpha: int) -> Image.Image:
    return soft_disc(radius).point([v * alpha // 16 for v in range(256)])


def paste_puff(canvas: Image.Image, x: float, y: float, radius: float, colour: Colour, opacity: float) -> None:
    """A soft round cloud; opacity in [0, 1]."""
    radius, alpha = max(2, int(radius)), int(16 * min(opacity, 1))
    if alpha > 0:
        radius = min(radius - radius % 2, 64)
        canvas.paste(colour, (int(x) - radius, int(y) - radius), puff_mask(radius, alpha))


def smoke(
    canvas: Image.Image, t: float, x: float, y: float, size: float, colour: Colour, seeds: Seeds, strength: float = 0.55
) -> None:
    """A column of puffs that rise, spread and fade; `seeds` (n, 3) in [0, 1) move each of them differently."""
    for a, b, c in seeds:
        age = (t / (2.2 + 1.2 * c) + a) % 1
        paste_puff(
            canvas,
            x + size * ((b - 0.5) * 0.6 + 0.9 * age * (c - 0.35)),
            y - size * 2.2 * age,
            size * (0.25 + 0.5 * age),
            colour,
            strength * min(1, 5 * age) * (1 - age),
        )


PALETTES = {
    "orange": ((205, 45, 10), (250, 130, 20), (255, 225, 110)),
    "red": ((150, 22, 12), (225, 70, 20), (255, 170, 70)),
    "yellow": ((225, 95, 15), (255, 185, 45), (255, 245, 180)),
}


def flames(pen: Pen, t: float, x: float, y: float, width: float, height: float, palette: str, seeds: Seeds) -> None:
    """Tongues of flame on a base around (x, y), flickering; the inner ones are smaller and brighter."""
    for colour, part in zip(PALETTES[palette], (1, 0.68, 0.38)):
        for a, b, c in seeds:
            flicker = 0.62 + 0.38 * wave((1.3 + 1.7 * b) * t + a) * wave(0.7 * t + c)
            cx, top = x + (a - 0.5) * width * (0.4 + 0.6 * part), height * flicker * part * (1.15 - abs(a - 0.5))
            w, tip = 0.24 * width * part + 2, 0.12 * width * wave(1.9 * t + b)
            pen.polygon(
                [
                    (cx - w, y),
                    (cx - 0.9 * w, y - 0.35 * top),
                    (cx - 0.3 * w + tip * 0.4, y - 0.7 * top),
                    (cx + tip, y - top),
                    (cx + 0.5 * w + tip * 0.4, y - 0.6 * top),
                    (cx + w, y - 0.3 * top),
                    (cx + 0.9 * w, y),
                ],
                fill=colour,
            )
