"""Pictures out of video files: which frames to show, and reading them.

Shapes: N frames of a video.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from videoanomaly.data.annotations import VIDEO_SUFFIXES
from videoanomaly.video.decoding import BROKEN, VideoFile, open_video, to_image
from videoanomaly.video.picture_folder import is_picture_folder

NUM_EVENT_PICTURES = 12
PICTURE_SIDE = 480  # pixels, at most
SEEK_GAP = 10.0  # seconds; what is nearer is reached by decoding on
SEEK_BACK = (1.0, 12.0, 70.0, 400.0)  # seconds that a seek aims before the time, tried in turn
SAME_TIME = 1e-4  # seconds


def peak_frames(p_A: np.ndarray, events: Sequence[dict], stretches: int) -> list[int]:
    """Numbers of the frames to show, ascending: the highest of each of some equal stretches and of the surest events.

    Args:
        p_A: (N,). events: As events.find_events gives them.
    """
    borders = np.linspace(0, len(p_A), stretches + 1).astype(int)
    surest = sorted(events, key=lambda event: -event["confidence"])[:NUM_EVENT_PICTURES]
    parts = [*zip(borders[:-1], borders[1:]), *((event["start_frame"], event["end_frame"]) for event in surest)]
    return sorted({int(a + p_A[a:b].argmax()) for a, b in parts if b > a})


def read_frames(video: Path, numbers: list[int], times: np.ndarray | None = None) -> Iterator[tuple[int, Image.Image]]:
    """Yields (number, picture) of some frames, ascending, decoding up to the last.

    With the times of all frames, (N,) seconds, it seeks where the next is far. A seek is a hint: where it does not lead
    to the very frame, all frames are decoded and counted.

    Raises:
        One of decoding.BROKEN: If the file cannot be read any more.
    """
    reformatter, left = VideoReformatter(), list(numbers)
    if times is not None:
        with VideoFile(video) as file:
            for frame in sought_frames(file, [float(times[i]) for i in numbers]):
                yield left.pop(0), to_image(frame, reformatter)
    if left:
        with open_video(video) as file:
            for i, frame in enumerate(file.decode()):
                if i == left[0]:
                    yield left.pop(0), to_image(frame, reformatter)
                if not left:
                    return


def sought_frames(file: VideoFile, times: list[float]) -> Iterator[av.VideoFrame]:
    """Yields the frame that begins at each of some ascending times; ends at the first that is not found."""
    shown, frames = None, file.decode()
    for time in times:
        if time - (shown or 0) > SEEK_GAP:
            frames = seek(file, time)
        found = (frame for frame in frames if frame.time is not None and frame.time - file.start >= time - SAME_TIME)
        frame = next(found, None)
        if frame is None or (shown := frame.time - file.start) > time + SAME_TIME:
            return
        yield frame


def seek(file: VideoFile, time: float) -> Iterator[av.VideoFrame]:
    """The frames from a key frame before `time` on; none if there is no way to it.

    In MPEG transport and program streams a seek finds some packet near the time, not a key frame before it.
    """
    for back in SEEK_BACK:
        file.container.seek(int((max(time - back, 0) + file.start) * av.time_base))
        frames = itertools.dropwhile(lambda frame: not frame.key_frame, file.decode())  # those before lack others
        first = next(frames, None)
        if first and first.time is not None and first.time - file.start <= time + SAME_TIME:
            return itertools.chain([first], frames)
    return iter(())


def find_video(folder: str, name: str) -> Path | None:
    """The file of a video of that name, with whatever suffix, or the folder of its pictures."""
    suffixes = (either for suffix in sorted(VIDEO_SUFFIXES) for either in (suffix, suffix.upper()))
    files = (path for suffix in suffixes if (path := Path(folder, name + suffix)).is_file())
    return next(files, Path(folder, name) if is_picture_folder(Path(folder, name)) else None)


class KeyFrame(NamedTuple):
    """A picture for a page."""

    time: float  # seconds
    score: float  # p_A
    jpeg: bytes


def key_frames(
    video: Path, p_A: np.ndarray, times: np.ndarray, events: list[dict], may_seek: bool = True
) -> list[KeyFrame]:
    """Pictures for browsers that cannot play the video; fewer, or none, where it cannot be read any more.

    Args:
        p_A: (N,). times: (N,), seconds. events: As events.find_events gives them.
        may_seek: False where the times are not those of the file's time stamps.
    """
    pictures = []
    try:
        for i, image in read_frames(video, peak_frames(p_A, events, 10), times if may_seek else None):
            file = io.BytesIO()
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            image.save(file, "JPEG", quality=80)
            pictures.append(KeyFrame(float(times[i]), float(p_A[i]), file.getvalue()))
    except BROKEN:
        pass
    return pictures
