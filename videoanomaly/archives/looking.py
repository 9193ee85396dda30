"""Reads some frames of a video: key frames for the first look, chosen frames for the second.

A frame that shows the same scene as the one that was encoded before it is not encoded again. N frames of a video; n of
them looked at.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

from videoanomaly.archives.budget import first_distance
from videoanomaly.archives.packets import Packets, decode_needed, decoded, finished, needed
from videoanomaly.video.decoding import VideoFile, open_video, seconds, to_image, with_holes
from videoanomaly.video.encoding import Reading, stack_inputs
from videoanomaly.video.luma import is_same_scene, luma_blocks


class Look(NamedTuple):
    """Frames that were looked at, in the order of time, and which row of features is whose."""

    reading: Reading
    frames: np.ndarray  # (n,) numbers, ascending
    rows: np.ndarray  # (n,) numbers of their rows, of those that were encoded for this look; -1: the nearest before
    stamps: np.ndarray  # (N,) time stamps in the file's order; (0,) where it is to be decoded wholly
    keys: np.ndarray  # (N,) bool; (0,)
    why_whole: str  # why it is, else empty


class How(NamedTuple):
    """How the encoder wants its inputs, and how dense the looks are."""

    to_inputs: Callable[[Image.Image], list[Tensor]]
    stride: int  # frames; a full pass encodes every so manieth
    batch_size: int
    pin_memory: bool
    fps: float  # of folders of pictures
    budget: float  # share of the rows of a full pass


class Scene:
    """Tells which frames show what was encoded last."""

    def __init__(self):
        self.reformatter, self.blocks, self.row, self.num_rows = VideoReformatter(), None, -1, 0

    def is_new(self, frame: av.VideoFrame) -> bool:
        """Whether it is to be encoded; then it is what the next ones are compared with."""
        blocks = luma_blocks(frame, self.reformatter)
        if self.blocks is not None and is_same_scene(blocks - self.blocks):
            return False
        self.blocks, self.row = blocks, self.num_rows
        self.num_rows += 1
        return True

    def known(self, frame: av.VideoFrame) -> None:
        """A frame that an earlier look encoded."""
        self.blocks, self.row = luma_blocks(frame, self.reformatter), -1


class Due:
    """Whether a frame's time, in seconds, has come: every `distance` seconds on average where frames are nearer."""

    def __init__(self, distance: float):
        self.distance, self.at = distance, 0.0

    def __call__(self, time: float) -> bool:
        if time < self.at - 1e-6:
            return False
        self.at = max(self.at + self.distance, time)
        return True


def first_look(path: Path, how: How) -> Iterator[Tensor | Look]:
    """Yields inputs of key frames, or where that cannot be of frames as far apart, and at last the look.

    Raises:
        One of decoding.BROKEN: If the video cannot be read.
    """
    scene = Scene()
    why = "it is a folder of pictures"
    if not path.is_dir():
        look = yield from key_look(path, how, scene)
        why = look if isinstance(look, str) else ""
        if isinstance(look, Look):
            yield look
            return
    scene.blocks = None  # what was read of it so far counts no more
    yield from whole_look(path, how, scene, why)


def key_look(path: Path, how: How, scene: Scene) -> Generator[Tensor, None, Look | str]:
    """Yields inputs of key frames; returns the look, or why the file's packets do not allow it."""
    packets, rows, stamps = Packets(), [], []
    with VideoFile(path) as file:
        distance = first_distance(how.budget, how.stride, file.rate or 25.0)

        def chosen() -> Iterator[list[Tensor]]:
            due = Due(distance)
            for packet in file.packets():
                if packet.size:
                    packets.add(packet)
                if packets.doubt:
                    return
                if packet.size and packet.is_keyframe and due(seconds(packet.pts, packet.time_base) - file.start):
                    found = key_frame(file, packet)
                    if found is None:
                        packets.doubt = "a key frame cannot be decoded"
                        return
                    if scene.is_new(found):
                        yield how.to_inputs(to_image(found, scene.reformatter))
                    rows.append(scene.row)
                    stamps.append(packet.pts)

        yield from stack_inputs(chosen(), how.batch_size, how.pin_memory)
        times = packets.times(file, distance)
        if packets.doubt:
            return packets.doubt
        in_file = np.array(packets.stamps, np.int64)
        frames = np.searchsorted(np.sort(in_file), stamps)
        reading = Reading(times, file.rate, with_holes([], times), [], True)
        return Look(reading, frames, np.array(rows), in_file, np.frombuffer(packets.keys, np.uint8) > 0, "")


def key_frame(file: VideoFile, packet: av.Packet) -> av.VideoFrame | None:
    """What a key frame's packet shows by itself."""
    context = file.stream.codec_context
    frames = [frame for frame in decoded(context, packet) + finished(context) if frame.pts == packet.pts]
    return frames[0] if frames else None


def whole_look(path: Path, how: How, scene: Scene, why: str) -> Iterator[Tensor | Look]:
    """As `first_look` where every frame has to be decoded to find the way."""
    times, frames, rows = [], [], []
    with open_video(path, how.fps) as video:
        due = Due(first_distance(how.budget, how.stride, video.rate or 25.0))

        def chosen() -> Iterator[list[Tensor]]:
            for time, frame in video.frames():
                times.append(time)
                if (len(times) - 1) % how.stride == 0 and due(time):
                    if scene.is_new(frame):
                        yield how.to_inputs(to_image(frame, scene.reformatter))
                    frames.append(len(times) - 1)
                    rows.append(scene.row)

        yield from stack_inputs(chosen(), how.batch_size, how.pin_memory)
        shown = np.array(times)
        reading = Reading(shown, video.rate, with_holes(video.damage, shown), [*video.jumps], video.may_seek)
    yield Look(reading, np.array(frames), np.array(rows), np.zeros(0, np.int64), np.zeros(0, bool), why)


def second_look(path: Path, how: How, first: Look, wanted: np.ndarray) -> Iterator[Tensor | Look]:
    """Yields inputs of chosen frames, and at last a look at those of them that could be decoded.

    Args:
        first: The look before.
        wanted: Numbers of frames that the first look does not have, (n,), ascending.
    """
    scene, frames, rows = Scene(), [], []
    new, known = set(wanted.tolist()), set(first.frames.tolist())

    def chosen() -> Iterator[list[Tensor]]:
        for number, frame in numbered(path, how, first, wanted):
            if number in new:
                if scene.is_new(frame):
                    yield how.to_inputs(to_image(frame, scene.reformatter))
                frames.append(number)
                rows.append(scene.row)
            elif number in known:
                scene.known(frame)

    yield from stack_inputs(chosen(), how.batch_size, how.pin_memory)
    yield first._replace(frames=np.array(frames, int), rows=np.array(rows, int))


def numbered(path: Path, how: How, first: Look, wanted: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (number, frame) of a video: of all frames, or of those that the wanted ones depend on and are shown
    between them.
    """
    with open_video(path, how.fps) as video:
        if first.why_whole or not isinstance(video, VideoFile):
            for number, (_, frame) in enumerate(video.frames()):
                yield number, frame
            return
        order = np.argsort(first.stamps)
        ascending = first.stamps[order]
        for frame in decode_needed(video, needed(first.stamps, first.keys, order[wanted])):
            stamp = -1 if frame.pts is None else frame.pts
            number = int(np.searchsorted(ascending, stamp))
            if number < len(ascending) and ascending[number] == stamp:
                yield number, frame
