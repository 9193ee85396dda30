"""Fixed cameras of the demo world: streets, car parks, corridors and shops, each drawn once from its number."""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from videoanomaly.demo.actors import CANVAS, COLOURS, Box, Colour, Pen, shade, vary, vehicle_sprite

AT_OBSTACLE = 1.25  # people there are so much larger than the perspective has it: few pixels show them
FIRST_HELD_OUT = 1000  # scenes from this number on are the test's
KINDS = ("street", "car park", "corridor", "shop")
WALLS = ((150, 120, 100), (170, 165, 155), (125, 80, 65), (105, 110, 120), (185, 170, 135))
PLAIN_CARS = ("grey", "white", "black", "blue", "red")


@dataclass
class Scene:
    """What a camera sees when nobody is there; canvas pixels, y down."""

    kind: str
    night: bool
    held_out: bool  # of the test videos
    image: Image.Image
    name: str  # the camera's
    horizon: float = 60.0
    growth: float = 0.7  # height of a person per pixel below the horizon
    ground: tuple[float, float] = (100, 185)  # y of feet
    sides: tuple[float, float] = (15, 177)  # x of people who stay
    lanes: tuple[float, ...] = ()  # y of wheels, far to near
    obstacle: Box = (60, 100, 100, 40)  # left, right, y of its foot and height of what can be climbed
    obstacle_name: str = "fence"
    wall: tuple[float, float] = (40, 60)  # x and y of a place on a wall, for lamps and signs
    door: Box = (100, 50, 125, 98)
    lamps: list[tuple[float, float]] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)  # x of those who stand somewhere, in one video
    lane_use: dict[int, str] = field(default_factory=dict)  # lane: "moving" or "standing", in one video
    light: np.ndarray = field(default_factory=lambda: np.ones((1, 1, 3), np.float32))  # (H, W, 3) factor on the picture

    def size(self, y: float) -> float:
        """Height of an average person whose feet are at y."""
        return self.growth * (y - self.horizon)

    @property
    def size_at_obstacle(self) -> float:
        return AT_OBSTACLE * self.size(self.obstacle[2] + 3)

    def for_video(self) -> "Scene":
        """The same place with nobody in it yet."""
        return replace(self, taken=[], lane_use={})

    @property
    def is_indoor(self) -> bool:
        return self.kind in ("corridor", "shop")


def gradient(image: Image.Image, top: float, bottom: float, first: Colour, last: Colour) -> None:
    """Fills rows [top, bottom) from one colour to another."""
    rows = np.linspace(first, last, max(1, int(bottom - top)))[:, None].repeat(CANVAS, 1)
    image.paste(Image.fromarray(rows.astype(np.uint8)), (0, int(top)))


def texture(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Grain of walls and ground: fixed, unlike the noise of the sensor."""
    coarse = (
        np.asarray(Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).resize((CANVAS, CANVAS), 2), float) - 127
    )
    grain = (coarse * 0.12 + rng.normal(0, 6, (CANVAS, CANVAS))) * strength
    return Image.fromarray(np.clip(np.asarray(image, float) + grain[..., None], 0, 255).astype(np.uint8))


def draw_houses(pen: Pen, rng: np.random.Generator, bottom: float, night: bool) -> None:
    x = -int(rng.integers(0, 20))
    while x < CANVAS:
        width, top = int(rng.integers(34, 70)), int(bottom * rng.uniform(0.02, 0.4))
        wall = vary(rng, WALLS[rng.integers(len(WALLS))], 14)
        pen.rectangle((x, top, x + width, bottom), fill=wall)
        pen.rectangle((x, top, x + 1, bottom), fill=shade(wall, 0.7))
        step = int(rng.integers(12, 18))
        for wx in range(x + 6, x + width - 8, step):
            for wy in range(top + 7, int(bottom) - 26, 17):
                lit = night and rng.random() < 0.25
                pen.rectangle((wx, wy, wx + step - 7, wy + 9), fill=(255, 215, 140) if lit else (62, 74, 90))
        x += width


def draw_fence(pen: Pen, box: Box, style: str) -> None:
    left, right, foot, height = box
    if style == "wall":
        pen.rectangle((left, foot - height, right, foot), fill=(140, 110, 92))
        for y in range(int(foot - height), int(foot), 6):
            pen.line((left, y, right, y), fill=(115, 88, 74))
        pen.rectangle((left - 1, foot - height - 3, right + 1, foot - height), fill=(165, 150, 135))
    else:
        for x in range(int(left), int(right) + 1, 5 if style == "fence" else 9):
            pen.line((x, foot - height, x, foot), fill=(72, 76, 78), width=1 if style == "fence" else 3)
        for y in (foot - height, foot - height // 2, foot - 3):
            pen.line((left, y, right, y), fill=(90, 94, 96), width=2)


def draw_door(pen: Pen, rng: np.random.Generator, box: Box) -> None:
    colour = ((96, 66, 44), (70, 84, 98), (88, 92, 78))[rng.integers(3)]
    pen.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3]), fill=shade(colour, 0.6))
    pen.rectangle(box, fill=colour)
    pen.ellipse((box[2] - 6, (box[1] + box[3]) / 2, box[2] - 3, (box[1] + box[3]) / 2 + 3), fill=(200, 190, 150))


def street(scene: Scene, image: Image.Image, rng: np.random.Generator) -> None:
    pen, far = ImageDraw.Draw(image), int(rng.integers(84, 94))
    gradient(image, 0, far, (120, 160, 205), (200, 212, 222))
    draw_houses(pen, rng, far, scene.night)
    road, near = far + int(rng.integers(14, 20)), far + int(rng.integers(62, 70))
    gradient(image, far, CANVAS, vary(rng, (150, 146, 140)), vary(rng, (178, 174, 166)))
    gradient(image, road, near, vary(rng, (72, 74, 78), 8), vary(rng, (90, 91, 94), 8))
    pen.line((0, near, CANVAS, near), fill=(196, 194, 188), width=3)
    pen.line((0, road, CANVAS, road), fill=(190, 188, 182), width=2)
    for x in range(int(rng.integers(-30, 0)), CANVAS, 32):
        pen.polygon(
            [
                (x, (road + near) // 2),
                (x + 16, (road + near) // 2),
                (x + 17, (road + near) // 2 + 3),
                (x + 1, (road + near) // 2 + 3),
            ],
            fill=(205, 205, 200),
        )
    if rng.random() < 0.5:  # a crossing
        left = int(rng.integers(20, 130))
        for y in range(road + 4, near - 4, 8):
            pen.rectangle((left, y, left + 30, y + 4), fill=(215, 215, 212))
    left, style = int(rng.integers(10, 110)), ("fence", "wall", "railing")[rng.integers(3)]
    scene.obstacle, scene.obstacle_name = (
        (left, left + int(rng.integers(46, 72)), far + 3, int(rng.integers(32, 40))),
        style,
    )
    draw_fence(pen, scene.obstacle, style)
    scene.door = (left + 82 if left < 80 else left - 34, far - 30, left + 98 if left < 80 else left - 18, far)
    draw_door(pen, rng, scene.door)
    for x in rng.choice(np.arange(12, 185, 44), 2, replace=False):
        if rng.random() < 0.5:
            pen.rectangle((x - 2, far - 28, x + 2, far + 6), fill=(88, 66, 48))
            pen.ellipse((x - 15, far - 58, x + 15, far - 20), fill=vary(rng, (66, 104, 58)))
        else:
            pen.rectangle((x - 1, 26, x + 1, far + 6), fill=(58, 60, 62))
            pen.rectangle((x - 6, 23, x + 6, 27), fill=(72, 74, 76))
            scene.lamps.append((x, 30))
    scene.horizon, scene.growth = far - 84, 0.62
    scene.ground, scene.lanes = (near + 8, 186), (road + 0.46 * (near - road), near - 5)
    scene.wall = (int(rng.integers(30, 160)), far - 40)


def car_park(scene: Scene, image: Image.Image, rng: np.random.Generator) -> None:
    pen, far = ImageDraw.Draw(image), int(rng.integers(70, 82))
    gradient(image, 0, far, (135, 165, 200), (205, 212, 218))
    if rng.random() < 0.5:
        draw_houses(pen, rng, far - 8, scene.night)
    else:
        for x in range(-10, CANVAS, 22):
            pen.ellipse((x, far - 42 + int(rng.integers(-8, 9)), x + 38, far + 12), fill=vary(rng, (62, 92, 56), 12))
    gradient(image, far, CANVAS, vary(rng, (92, 94, 96), 12), vary(rng, (116, 116, 114), 12))
    left, style = int(rng.integers(10, 100)), ("fence", "railing", "wall")[rng.integers(3)]
    draw_fence(pen, (0, CANVAS, far + 2, 14), "fence")
    scene.obstacle, scene.obstacle_name = (
        (left, left + int(rng.integers(56, 84)), far + 6, int(rng.integers(32, 40))),
        style,
    )
    draw_fence(pen, scene.obstacle, style)
    row = far + int(rng.integers(20, 26))
    for x in range(int(rng.integers(-14, 4)), CANVAS, 46):
        pen.line((x, far + 8, x - 8, row + 3), fill=(215, 215, 210), width=2)
        if rng.random() < 0.55 and not left - 30 < x < scene.obstacle[1] + 4:
            colour = vary(rng, COLOURS[str(rng.choice(PLAIN_CARS))])
            sprite = vehicle_sprite("car", colour, 44, int(rng.choice((-1, 1))), 0)
            image.paste(sprite, (x + 22 - 44, row - 66), sprite)
    for x in range(int(rng.integers(-30, 0)), CANVAS + 40, 52):
        pen.line((x, 164, x - 16, CANVAS), fill=(210, 210, 205), width=3)
    x = int(rng.integers(20, 170))
    pen.rectangle((x - 1, 16, x + 1, far + 10), fill=(66, 68, 70))
    scene.lamps.append((x, 18))
    scene.horizon, scene.growth = far - 74, 0.6
    scene.ground, scene.lanes = (far + 36, 186), (far + 52, 158)
    scene.door, scene.wall = (160, far - 28, 176, far + 2), (int(rng.integers(30, 160)), far - 24)
    draw_door(pen, rng, scene.door)


def corridor(scene: Scene, image: Image.Image, rng: np.random.Generator) -> None:
    vx, vy, back = int(rng.integers(76, 116)), 62, int(rng.integers(20, 26))
    wall = vary(rng, ((188, 184, 170), (160, 172, 178), (176, 158, 140), (150, 166, 150))[rng.integers(4)], 10)
    floor = vary(rng, ((120, 112, 104), (96, 102, 112), (140, 124, 100))[rng.integers(3)], 10)
    pen = ImageDraw.Draw(image)
    box = (vx - back * 1.4, vy - back * 1.2, vx + back * 1.4, vy + back)
    pen.rectangle((0, 0, CANVAS, CANVAS), fill=wall)
    pen.polygon([(0, 0), (CANVAS, 0), (box[2], box[1]), (box[0], box[1])], fill=shade(wall, 1.15))
    pen.polygon([(-60, CANVAS), (CANVAS + 60, CANVAS), (box[2], box[3]), (box[0], box[3])], fill=floor)
    for k in (0.15, 0.35, 0.62):
        y = box[3] + k * (CANVAS - box[3])
        pen.line(((1 - k) * box[0] - k * 60, y, (1 - k) * box[2] + k * (CANVAS + 60), y), fill=shade(floor, 0.86))
    pen.rectangle(box, fill=shade(wall, 0.82))
    for side in (-1, 1):  # doors in the walls
        for k in (0.25, 0.62):
            xs = [vx + side * (back * 1.4 + (k + d) * 100) for d in (0, 0.13)]
            tops = [box[1] + 14 + (k + d) * 6 for d in (0, 0.13)]
            foots = [box[3] + (k + d) * 68 for d in (0, 0.13)]
            corners = [(xs[0], tops[0]), (xs[1], tops[1]), (xs[1], foots[1]), (xs[0], foots[0])]
            pen.polygon(corners, fill=vary(rng, (112, 82, 58), 12))
    for k in (0.1, 0.4, 0.8):
        y, half = box[1] * (1 - k), 8 + 22 * k
        wide, above = 1.25 * half, y - 5 - 4 * k
        pen.polygon([(vx - half, y), (vx + half, y), (vx + wide, above), (vx - wide, above)], fill=(250, 250, 240))
        scene.lamps.append((vx, y))
    scene.door = (vx - 10, vy - 14, vx + 10, box[3])
    draw_door(pen, rng, scene.door)
    left = int(rng.integers(24, 96))
    scene.obstacle, scene.obstacle_name = (left, left + int(rng.integers(50, 64)), 122, 36), "gate"
    draw_fence(pen, scene.obstacle, "railing")
    scene.horizon, scene.growth, scene.ground, scene.sides = 32, 0.72, (118, 187), (24, 168)
    scene.wall = (int(rng.choice((30, 160))), 56)


def shop(scene: Scene, image: Image.Image, rng: np.random.Generator) -> None:
    pen, far = ImageDraw.Draw(image), int(rng.integers(84, 96))
    wall = vary(rng, ((200, 195, 185), (170, 180, 190), (205, 190, 160))[rng.integers(3)], 10)
    pen.rectangle((0, 0, CANVAS, far), fill=wall)
    gradient(image, far, CANVAS, vary(rng, (165, 160, 150)), vary(rng, (190, 186, 178)))
    for x in range(-200, 400, 34):
        pen.line((96 + (x - 96) * 0.5, far, x, CANVAS), fill=(148, 144, 136))
    for y in (far + 14, far + 36, far + 68):
        pen.line((0, y, CANVAS, y), fill=(150, 146, 138))
    goods = [vary(rng, c, 25) for c in COLOURS.values()]
    left = 4 + int(rng.integers(0, 12))
    while left < 150:
        width = int(rng.integers(36, 56))
        pen.rectangle((left, 26, left + width, far + 2), fill=(96, 84, 72))
        for y in range(30, far - 8, 15):
            x = left + 3
            while x < left + width - 6:
                w, h = int(rng.integers(3, 8)), int(rng.integers(7, 12))
                pen.rectangle((x, y + 12 - h, x + w, y + 12), fill=goods[rng.integers(len(goods))])
                x += w + 1
        left += width + int(rng.integers(4, 22))
    scene.door = (168, 38, 188, far)
    draw_door(pen, rng, scene.door)
    for x in (30, 96, 160):
        pen.rectangle((x - 16, 4, x + 16, 9), fill=(252, 252, 244))
        scene.lamps.append((x, 8))
    left = int(rng.integers(16, 100))
    scene.obstacle, scene.obstacle_name = (left, left + int(rng.integers(56, 70)), far + 30, 26), "counter"
    pen.rectangle((left, far + 4, scene.obstacle[1], far + 30), fill=vary(rng, (120, 88, 62)))
    pen.rectangle((left - 2, far + 2, scene.obstacle[1] + 2, far + 7), fill=(186, 172, 150))
    pen.rectangle((left + 8, far - 8, left + 20, far + 3), fill=(52, 54, 58))
    scene.horizon, scene.growth, scene.ground = far - 62, 0.72, (far + 36, 187)
    scene.wall = (int(rng.integers(30, 160)), 18)


DRAW = {"street": street, "car park": car_park, "corridor": corridor, "shop": shop}


def light_map(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) factor: daylight from a side, or a dark night with pools of lamp light."""
    side = CANVAS // 2
    y, x = np.mgrid[:side, :side] * 2.0
    slope = 1 + rng.uniform(-0.12, 0.12) * (x / 96 - 1) + rng.uniform(-0.1, 0.1) * (y / 96 - 1)
    if not scene.night:
        tone = np.array(((1.0, 1.0, 1.0), (1.06, 1.0, 0.9), (0.92, 0.98, 1.06))[rng.integers(3)]) * rng.uniform(
            0.8, 1.08
        )
        return (slope[..., None] * tone).astype(np.float32)
    base = rng.uniform(0.5, 0.66) * np.array((0.85, 0.95, 1.15))
    light = slope[..., None] * base
    warm = np.array(((1.0, 0.88, 0.65), (0.95, 1.0, 1.0))[rng.integers(2)])
    for lx, ly in scene.lamps:
        pool = np.exp(-(((x - lx) / 42) ** 2 + ((y - ly - 80) / 62) ** 2)) * 0.42 + np.exp(
            -np.hypot(x - lx, y - ly) / 9
        )
        light = light + pool[..., None] * warm * rng.uniform(0.7, 1.0)
    return light.astype(np.float32)


@lru_cache(maxsize=512)  # 220 kB each
def make_scene(kind: str, number: int) -> Scene:
    """The scene of this kind and number: the same each time; every third one is at night."""
    rng = np.random.default_rng((KINDS.index(kind), number))
    image = Image.new("RGB", (CANVAS, CANVAS), (128, 128, 128))
    scene = Scene(
        kind,
        night=number % 3 == 1,
        held_out=number >= FIRST_HELD_OUT,
        image=image,
        name=f"{kind}_{number}".replace(" ", "_"),
    )
    DRAW[kind](scene, image, rng)
    scene.image = texture(image, rng, rng.uniform(0.4, 1.0))
    scene.light = light_map(scene, rng)
    return scene
