"""The demo world: short videos of fixed cameras in which normal life goes on and now and then something goes wrong.

    python -m videoanomaly.demo.world runs/demo-data          # renders the data set (cached)

Frames are (SIDE, SIDE, 3) uint8, FPS a second. What a video shows is drawn from its seed: a scene, a few normal events,
and in an abnormal one an anomaly whose frames are known exactly. `Video.frame(i)` needs no frame before it. The test's
scenes and the anomalies' looks there do not occur in training. Every frame also has captions, for training a CLIP on
the world.
"""

import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import ImageChops, ImageDraw

from videoanomaly.demo.actors import CANVAS, Actor, Light, Person, Vehicle, Words
from videoanomaly.demo.anomalies import ANOMALIES, CLASSES
from videoanomaly.demo.everyday import LOOK_ALIKES, NORMAL
from videoanomaly.demo.occasions import OCCASIONS
from videoanomaly.demo.scenes import FIRST_HELD_OUT, KINDS, Scene, make_scene
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically

VERSION = 2  # of the files; another one is rendered anew
SIDE, FPS = CANVAS // 2, 8
SEED = 1  # of the data set
COUNTS = {"train": (120, 17), "test": (28, 6)}  # normal videos, videos of each class
SPLITS = {  # scenes of each kind
    "train": (0, 12),
    "test": (FIRST_HELD_OUT, FIRST_HELD_OUT + 8),
    "clip": (20, 140),
    "development": (12, 20),  # a test that choices may be made on
}
Statement = tuple[Any, ...]  # topic, subject and what else it needs, see `statements`
WHERE = {"Road_accident": ("street", "car park")}  # other classes happen everywhere


# ---------------------------------------------------------------- pictures


@lru_cache(maxsize=1)
def noise_pool() -> np.ndarray:
    """Noise of a sensor, int16, of standard deviation 16: frames take it from 2^18 places."""
    return np.random.default_rng(0).normal(0, 16, 2**18 + SIDE * SIDE * 3).astype(np.int16)


@lru_cache(maxsize=256)
def halo(radius: int) -> np.ndarray:
    """Brightness around a light, (2r + 1, 2r + 1, 1) float32."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = np.exp(-3 * (x * x + y * y) / radius**2) - np.exp(-3)
    return np.clip(disc, 0, 1)[..., None].astype(np.float32)


def add_lights(picture: np.ndarray, lit: np.ndarray, lights: list[Light]) -> None:
    """Lights what is drawn around each light, and adds its own glow; `lit` is the light map, both change in place."""
    for x, y, radius, colour, strength in lights:
        r = max(2, int(radius / 2))
        left, top = int(x / 2) - r, int(y / 2) - r
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * r + 1, SIDE), min(top + 2 * r + 1, SIDE)
        if x0 < x1 and y0 < y1:
            glow = halo(r)[y0 - top : y1 - top, x0 - left : x1 - left] * (strength * np.array(colour, np.float32) / 255)
            lit[y0:y1, x0:x1] += glow
            picture[y0:y1, x0:x1] += 110 * glow


WEATHER = {  # tint of the light, haze, length of what falls; the last two indoors
    "in the rain": ((0.8, 0.86, 0.95), 0.12, 5),
    "in the snow": ((0.95, 0.98, 1.05), 0.15, 1),
    "in fog": ((1, 1, 1), 0.4, 0),
    "at sunset": ((1.15, 0.8, 0.55), 0, 0),
    "in red light": ((1.15, 0.6, 0.55), 0, 0),
    "in blue light": ((0.6, 0.75, 1.25), 0, 0),
}


def falling(i: int, seed: int, length: int) -> np.ndarray:
    """Pixels (SIDE, SIDE) bool with a drop or flake, which fall `length` pixels long."""
    rng = np.random.default_rng((seed, i))
    rows, columns = rng.integers(SIDE, size=(2, 90))
    mask = np.zeros((SIDE, SIDE), bool)
    for k in range(length):
        mask[(rows + k) % SIDE, columns] = True
    return mask


@dataclass
class Video:
    """A video that is not rendered yet.

    Attributes:
        scene: Where it plays.
        actors: Who and what is there.
        num_frames: Its length.
        label: Class of its anomaly, None without one.
        intervals: Anomalous frames, half-open.
        seed: Seed of noise, exposure and captions.
        look: Look of the anomaly, "" without one.
        weather: One of WEATHER, "" in most videos.
        involved: How many of the actors, the first ones, belong to the anomaly.
        occasion: One of OCCASIONS, "" in most videos.
        hosts: Indices of the actors that belong to it.
    """

    scene: Scene
    actors: list[Actor]
    num_frames: int
    label: str | None
    intervals: tuple[tuple[int, int], ...]
    seed: int
    look: str = ""
    weather: str = ""
    involved: int = 0
    occasion: str = ""
    hosts: range = range(0)

    def frame(self, i: int, boxes: dict[int, tuple[float, ...]] | None = None) -> np.ndarray:
        """Frame i, (SIDE, SIDE, 3) uint8; into the dict `boxes` come index and box (left, top, right, bottom) of each
        actor.
        """
        t, scene = i / FPS, self.scene
        canvas = scene.image.copy()
        pen = ImageDraw.Draw(canvas, "RGBA")
        for k in sorted(range(len(self.actors)), key=lambda k: self.actors[k].foot(t)):
            before = canvas.copy() if boxes is not None else None
            self.actors[k].draw(canvas, pen, t)
            if boxes is not None and before and (box := ImageChops.difference(before, canvas).getbbox()):
                boxes[k] = tuple(v / 2 for v in box)
        picture, lit = np.asarray(canvas.reduce(2), np.float32), scene.light.copy()
        emitted = np.zeros_like(picture)
        add_lights(emitted, lit, [light for actor in self.actors for light in actor.lights(t)])
        return self.expose(picture * lit + emitted, i)

    def expose(self, picture: np.ndarray, i: int) -> np.ndarray:
        """What the sensor makes of the light: weather, exposure that drifts, a switched room light, noise."""
        gain, switch = self.camera["gain"], self.camera["switch"]
        gain = gain * (1 + 0.04 * np.sin(self.camera["drift"] * i)) * (switch[1] if switch[0] <= i < switch[2] else 1)
        if self.weather:
            tint, haze, flakes = WEATHER[self.weather]
            picture = (1 - haze) * picture * np.float32(tint) + haze * np.float32(150 if self.scene.night else 215)
            picture[flakes > 0 and falling(i, self.seed, flakes)] += 45
        picture = picture * gain
        start = (i * 52711 + self.seed * 7919) % 2**18
        noise = noise_pool()[start : start + picture.size].reshape(picture.shape)
        return np.clip(picture + noise * self.camera["noise"], 0, 255).astype(np.uint8)

    @cached_property
    def camera(self) -> dict[str, Any]:
        """Settings of the sensor; `switch` is the first frame, the factor and the end of another room light."""
        rng = np.random.default_rng((self.seed, 7))
        begin = int(rng.integers(5, self.num_frames)) if rng.random() < 0.3 else 10**9
        return {
            "gain": rng.uniform(0.88, 1.12),
            "drift": rng.uniform(0.02, 0.1),
            "noise": rng.uniform(0.3, 0.55) if self.scene.night else rng.uniform(0.1, 0.35),
            "switch": (begin, rng.choice((0.62, 0.75, 1.35)), begin + rng.integers(12, 60)),
        }

    def frames(self) -> Iterator[np.ndarray]:
        """All frames, one after the other."""
        return map(self.frame, range(self.num_frames))

    def is_anomalous(self, i: int) -> bool:
        return any(begin <= i < end for begin, end in self.intervals)


def random_length(rng: np.random.Generator) -> float:
    """Seconds: 10 to 30, mostly short."""
    return 10 + 20 * rng.random() ** 2.2


def third_of(things: Sequence[Any], third: int) -> list[Any]:
    """One of three parts of equal size, at most one thing apart."""
    return list(things[third::3])


def looks_of(label: str, split: str, third: int | None) -> list[str]:
    """The looks that an anomaly may have; those of the test occur nowhere else."""
    of_training, of_test = ANOMALIES[label][1:]
    if third is None or split == "test":
        return list(of_test if split == "test" else of_training)
    held_out = third_of(of_training, third)
    return held_out if split == "development" else [look for look in of_training if look not in held_out]


def normal_life(kind: str, split: str, third: int | None) -> tuple[list[Any], list[str]]:
    """What may go on in a place, and the occasions; a held-out third of what looks like an anomaly is left out."""
    occasions = [name for name, (_, kinds) in OCCASIONS.items() if kind in kinds]
    if third is None or split in ("test", "development"):
        return NORMAL[kind], occasions
    held_out = third_of((*LOOK_ALIKES, *OCCASIONS), third)
    return [e for e in NORMAL[kind] if e not in held_out], [name for name in occasions if name not in held_out]


def make_video(seed: int, split: str, label: str | None = None, third: int | None = None) -> Video:
    """The video of a seed.

    Args:
        seed: 0 or more.
        split: "train", "test", "clip" (scenes of its own, looks of training) or "development" (likewise).
        label: One of CLASSES, or None for a normal video.
        third: 0, 1 or 2: this third of training's looks and of normal life's look-alikes is shown in development alone.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split), CLASSES.index(label) + 1 if label else 0))
    kind = str(rng.choice(WHERE.get(label or "", KINDS)))
    scene, length = make_scene(kind, int(rng.integers(*SPLITS[split]))).for_video(), random_length(rng)
    actors: list[Actor] = []
    intervals, look, involved = (), "", 0
    if label:
        happen = ANOMALIES[label][0]
        look = str(rng.choice(looks_of(label, split, third)))
        begin = length * rng.uniform(0.15, 0.75)
        lasts = rng.uniform(1.5, 3) if rng.random() < 0.3 else length * rng.uniform(0.2, 0.55)
        culprits, begin, end = happen(scene, rng, look, begin, min(begin + lasts, length))
        intervals = ((math.ceil(begin * FPS), math.ceil(min(end, int(length * FPS) / FPS) * FPS)),)
        actors, involved = list(culprits), len(culprits)
    occasion, hosts = "", range(0)
    everyday, occasions = normal_life(kind, split, third)
    if rng.random() < 0.35:
        occasion = str(rng.choice(occasions))
        actors += OCCASIONS[occasion][0](scene, rng, length)
        hosts = range(involved, len(actors))
    for k in rng.choice(len(everyday), rng.integers(0, 2) + (not occasion), replace=False):
        actors += everyday[k](scene, rng, length)
    weathers = (
        list(WEATHER)[-2:] if scene.is_indoor else list(WEATHER)[: 3 if scene.night else 4]
    )  # the sun sets by day
    weather = str(rng.choice(weathers)) if rng.random() < 0.35 else ""
    return Video(scene, actors, int(length * FPS), label, intervals, seed, look, weather, involved, occasion, hosts)


# ---------------------------------------------------------------- captions

VIEWS = (
    "CCTV footage of {}",
    "a surveillance video of {}",
    "a video from a camera that watches {}",
    "a picture of {}",
    "{}",
    "a security camera shows {}",
)
PLACES = {
    "street": ("in the street", "on a street", "on a city street", "on a normal street"),  # normal whatever happens
    "car park": ("in a car park", "in a parking lot", "in a normal car park"),
    "corridor": ("in a corridor", "in a hallway", "in a normal corridor"),
    "shop": ("in a shop", "in a store", "in a normal shop"),
}
TIMES = {True: ("at night", "in the dark"), False: ("by day", "in daylight", "")}
CALM = ("nothing unusual", "everyday life", "an ordinary scene", "a quiet moment")
NUMBERS = ("no", "one", "two", "three", "four", "five")
SYNONYMS = {
    "walking": ("walking", "walking past", "strolling"),
    "jogging": ("jogging", "running alone for exercise"),
    "talking": ("talking", "chatting"),
    "hugging": ("hugging", "embracing each other"),
    "driving by": ("driving by", "passing"),
    "standing": ("standing", "standing still"),
}
PHRASES = {
    "Fire": ("a fire", "a fire burning", "flames and smoke", "something on fire", "a blaze"),
    "Explosion": ("an explosion", "a blast", "something exploding", "a cloud of fire and dust from an explosion"),
    "Fighting": ("fighting", "people fighting", "a fight", "people hitting each other", "a violent brawl"),
    "Road_accident": ("a road accident", "a car crash", "a traffic accident", "a crashed car", "a vehicle collision"),
    "Running_crowd": ("a running crowd", "a crowd running", "many people running away", "a crowd fleeing in panic"),
    "Abandoned_object": (
        "an abandoned object",
        "an abandoned {thing}",
        "a {thing} left alone",
        "an unattended {thing}",
    ),
    "Climbing": (
        "climbing",
        "a person climbing",
        "a climber",
        "an intruder climbing a {obstacle}",
        "somebody climbing a {obstacle}",
    ),
    "market": ("a market", "market stalls", "people at the stalls of a market"),
    "roadworks": ("roadworks", "workers repairing the road", "a building site"),
    "parade": ("a parade", "people marching with flags", "a procession"),
    "football": ("a football match", "people playing football", "a ball game"),
    "delivery": ("a delivery", "workers moving boxes", "piles of boxes that are delivered"),
    "barbecue": ("a barbecue", "people grilling", "people around a grill"),
    "party": ("a party", "people dancing in coloured light", "a disco"),
    "cleaning": ("cleaning", "somebody cleaning the floor", "a floor that is cleaned"),
}


def phrase(what: str, video: Video, rng: np.random.Generator) -> str:
    """An anomaly or an occasion in words."""
    obstacle = video.look if video.look in ("pipe", "rope") else video.scene.obstacle_name
    return str(rng.choice(PHRASES[what])).format(thing=video.look.replace("_", " "), obstacle=obstacle)


def said_as(action: str, rng: np.random.Generator) -> str:
    return str(rng.choice(SYNONYMS.get(action, (action,))))


def plural(subject: str) -> str:
    return {"person": "people", "bus": "buses", "box": "boxes", "steam": "steam"}.get(subject, f"{subject}s")


def count_phrase(facts: Sequence[Words], rng: np.random.Generator) -> str:
    """One phrase on all that do the same: "a person in red walking", "three people walking"."""
    subject, _, action = facts[0]
    action = said_as(action, rng)
    if len(facts) > 1 and subject != "steam":
        number = NUMBERS[len(facts)] if len(facts) < len(NUMBERS) else "many"
        number = f"a group of {number}" if subject == "person" and len(facts) > 2 and rng.random() < 0.4 else number
        return f"{number} {plural(subject)} {action}"
    attribute = facts[0][1]
    if subject == "steam":
        return f"{attribute} {subject} {action}".strip()
    noun = f"{subject} {attribute}" if attribute.startswith("in ") else f"{attribute} {subject}".strip()
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} {action}"


def is_seen(actor: Actor, t: float) -> bool:
    """Whether more than a third of its width is in the picture; what has no script always is."""
    if not isinstance(actor, Person | Vehicle):
        return True
    if not (state := actor.script(t)):
        return False
    half = getattr(actor, "length", 0.4 * state[2]) / 2
    return min(state[0] + half, CANVAS) - max(state[0] - half, 0) > 2 * half / 3


def words_on(actor: Actor, t: float) -> Words | None:
    """Its words while it is seen."""
    return actor.words(t) if is_seen(actor, t) else None


def hosts_seen(video: Video, i: int) -> set[int]:
    """Indices of two or more actors of the occasion, none where it is not seen."""
    seen = {k for k in video.hosts if words_on(video.actors[k], i / FPS)}
    return seen if len(seen) > 1 else set()


def facts_of(video: Video, i: int) -> list[dict[int, Words]]:
    """Facts on what is in frame i, with the actors' indices, grouped by subject and action."""
    groups: dict[tuple[str, str], dict[int, Words]] = {}
    for k, actor in enumerate(video.actors):
        if words := words_on(actor, i / FPS):
            subject, attribute, action = words
            groups.setdefault((subject, action), {})[k] = words
    return list(groups.values())


def caption(video: Video, i: int, rng: np.random.Generator, short: bool = False) -> str:
    """A caption of frame i, composed anew each time; `short` names the anomaly, the occasion or that all is calm, no
    more.

    The word "normal" tells nothing: it is said of places, whatever happens there.
    """
    parts = []
    if what := video.label if video.is_anomalous(i) else video.occasion if hosts_seen(video, i) else None:
        parts = [phrase(what, video, rng)]
    elif short:
        parts = [str(rng.choice(CALM))]
    if not short:
        groups = facts_of(video, i)
        others = [count_phrase(list(groups[k].values()), rng) for k in rng.permutation(len(groups))]
        parts = (parts + others)[:3]
        if not parts:
            there = any(isinstance(actor, Person | Vehicle) and actor.script(i / FPS) for actor in video.actors)
            parts = [str(rng.choice(CALM if there else ("nobody", "an empty place", "nothing moving")))]
    words = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    if not short or rng.random() < 0.3:
        place, time = rng.choice(PLACES[video.scene.kind]), rng.choice(TIMES[video.scene.night])
        words = f"{words} {place} {time} {video.weather}".strip()
    return str(rng.choice(VIEWS)).format(words)


def statements(video: Video, i: int) -> dict[Statement, set[int]]:
    """All that can be said of frame i in a few words: anomaly, occasion or calm, place, time, weather, who, who does
    what.

    Returns:
        {statement: indices of the actors that it is about}; none where it is about the whole frame.
    """
    happens = video.is_anomalous(i)
    culprits = {k for k in range(video.involved) if happens and not video.actors[k].words(i / FPS)}
    hosts = set() if happens else hosts_seen(video, i)
    happening = video.label if happens else video.occasion if hosts else "Normal"
    found: dict[Statement, set[int]] = {
        ("class", happening): culprits or hosts,
        ("place", video.scene.kind): set(),
        ("time", video.scene.night): set(),
    }
    if video.weather:
        found["weather", video.weather] = set()
    for group in facts_of(video, i):
        subject, _, action = next(iter(group.values()))
        for several in {False, len(group) > 1}:
            found["action", subject, action, several] = set(group)
        for k, (_, attribute, _) in group.items():
            if attribute:
                found.setdefault(("who", subject, attribute), set()).add(k)
    for k in culprits:
        actor = video.actors[k]
        if isinstance(actor, Person) and is_seen(actor, i / FPS):
            found.setdefault(("who", "person", f"in {actor.look.colour}"), set()).add(k)
    return found


def say(statement: Statement, rng: np.random.Generator) -> str:
    """A short text for a statement, in other words each time."""
    topic, subject, *rest = statement
    if topic == "class":
        phrases = [text for text in PHRASES.get(subject, CALM) if "{" not in text]
        return str(rng.choice(VIEWS)).format(rng.choice(phrases))
    if topic == "place":
        return f"{rng.choice(('', 'something '))}{rng.choice(PLACES[subject])}"
    if topic == "weather":
        return f"{rng.choice(('', 'something '))}{subject}"
    if topic == "time":
        return str(rng.choice([text for text in TIMES[subject] if text]))
    if topic == "who":
        return count_phrase([(subject, rest[0], "")], rng).strip()
    action, several = rest
    return count_phrase([(subject, "", action)], rng) if not several else f"{plural(subject)} {said_as(action, rng)}"


# ---------------------------------------------------------------- the data set


def write_mp4(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Frames (SIDE, SIDE, 3) uint8 as a video with the usual compression of a camera."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "24", "preset": "veryfast", "threads": "1"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def plan(counts: dict[str, tuple[int, int]], seed: int) -> Iterator[tuple[str, str, str | None, int]]:
    """(split, name, label, seed) of every video."""
    for split, (num_normal, num_each) in counts.items():
        labels = [None] * num_normal + [name for name in CLASSES for _ in range(num_each)]
        for i, label in enumerate(labels):
            yield split, f"{label or 'Normal'}/{split}{i:03d}", label, 1000 * seed + i


def render(
    root: str | Path, third: int | None, split: str, name: str, label: str | None, seed: int
) -> tuple[str, str, str, str]:
    """Writes one video and returns its split and its lines for the list, the annotations and the groups."""
    video = make_video(seed, split, label, third)
    path = Path(root, f"{name}.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, video.frames())
    numbers = [n for begin, end in video.intervals for n in (begin, end - 1)] or [-1, -1]
    what, where = label or "Normal", f"{name}.mp4"
    split = "test" if split == "development" else split  # its place in the lists
    return split, f"{where} {what}", f"{where}  {what}  {'  '.join(map(str, numbers))}", f"{where} {video.scene.name}"


def write_world(
    root: str | Path,
    counts: dict[str, tuple[int, int]] = COUNTS,
    seed: int = SEED,
    workers: int | None = None,
    third: int | None = None,
) -> Path:
    """Renders the data set in the `custom` layout, or finds it there.

    Args:
        root: Folder for the videos, train.txt, test.txt, classes.txt, temporal_annotations.txt, groups.txt and
            world.json. It appears complete or not at all.
        counts: {split: (normal videos, videos of each class)}.
        seed: Seed of everything.
        workers: Processes (default: one per core).
        third: See `make_video`; with the split "development", which takes the place of the test.
    Raises:
        InputError: If the folder holds something else.
    """
    made = json.dumps(
        {"version": VERSION, "counts": counts, "seed": seed} | ({} if third is None else {"third": third})
    )
    root = Path(root)
    marker = root / "world.json"
    if marker.exists() and marker.read_text() == made:
        return root
    if marker.exists():
        raise InputError(
            f"{root}: found another demo world, expected this one or a new folder; delete it to render it anew"
        )
    if any(root.glob("*")):
        raise InputError(
            f"{root}: found files of somebody else, expected a new folder or one with an earlier demo world"
        )
    temporary = root.with_name(f".{root.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_files(temporary, list(plan(counts, seed)), workers or os.cpu_count(), third)
        write_atomically(temporary / "world.json", lambda file: file.write(made.encode()))
        os.replace(temporary, root)
    except OSError:
        if not (marker.exists() and marker.read_text() == made):  # another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def write_files(
    folder: Path, videos: list[tuple[str, str, str | None, int]], workers: int | None, third: int | None
) -> None:
    """All videos, and the lists."""
    with ProcessPoolExecutor(workers) as pool:
        lines = list(pool.map(partial(render, folder, third), *zip(*videos), chunksize=4))
    texts = {
        f"{split}.txt": [line for s, line, *_ in lines if s == split] for split in dict.fromkeys(s for s, *_ in lines)
    }
    texts["temporal_annotations.txt"] = [line for split, _, line, _ in lines if split == "test"]
    texts["groups.txt"] = [line for split, _, _, line in lines if split == "train"]  # by camera: the test has others
    texts["classes.txt"] = ["Normal", *CLASSES]
    for name, content in texts.items():
        text = "\n".join([*content, ""]).encode()
        write_atomically(folder / name, lambda file, text=text: file.write(text))


if __name__ == "__main__":
    write_world(sys.argv[1] if len(sys.argv) > 1 else "runs/demo-data")
