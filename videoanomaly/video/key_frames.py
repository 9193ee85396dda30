"""Pictures out of video files: which frames to show, and reading them.

Shapes: N frames of a video.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from videoanomaly.data.annotations import VIDEO_SUFFIXES
from videoanomaly.video.decoding import BROKEN, decode, to_image, video_stream

NUM_EVENT_PICTURES = 12
PICTURE_SIDE = 480  # pixels, at most
SEEK_GAP = 10.0  # seconds; what is nearer is reached by decoding on


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
    """Yields (number, picture) of some frames, ascending, decoding up to the last; with the times of all frames, (N,)
    seconds from the start of the file, it seeks where the next is far, and gives fewer where that fails.

    Raises:
        One of decoding.BROKEN: If the file is damaged before the last of them.
    """
    with av.open(str(video)) as container:
        reformatter, stream = VideoReformatter(), video_stream(container)
        if times is not None:
            found = frames_at(container, stream, [float(times[i]) for i in numbers])
            yield from ((numbers[place], to_image(frame, reformatter)) for place, frame in found)
            return
        wanted = set(numbers)
        for i, frame in enumerate(decode(stream)):
            if i in wanted:
                yield i, to_image(frame, reformatter)


def frames_at(
    container: av.container.InputContainer, stream: av.VideoStream, times: list[float]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (place in `times`, frame) of the first frame at or after each of some ascending times."""
    start, shown, frames = (container.start_time or 0) / av.time_base, None, decode(stream)
    for place, time in enumerate(times):
        if shown is None or time - shown > SEEK_GAP:
            container.seek(int((time + start) * av.time_base))
            frames = decode(stream)
        for frame in frames:
            shown = None if frame.time is None else frame.time - start
            if shown is not None and shown >= time - 1e-4:
                yield place, frame
                break


def find_video(folder: str, name: str) -> Path | None:
    """The file of a video of that name, with whatever suffix."""
    paths = (Path(folder, name + suffix) for suffix in sorted(VIDEO_SUFFIXES))
    return next((path for path in paths if path.is_file()), None)


class KeyFrame(NamedTuple):
    """A picture for a page."""

    time: float  # seconds
    score: float  # p_A
    jpeg: bytes


def key_frames(video: Path, p_A: np.ndarray, times: np.ndarray, events: list[dict]) -> list[KeyFrame]:
    """Pictures for browsers that cannot play the video; fewer, or none, where the file cannot be sought in.

    Args:
        p_A: (N,). times: (N,), seconds. events: As events.find_events gives them.
    """
    pictures = []
    try:
        for i, image in read_frames(video, peak_frames(p_A, events, 10), times):
            file = io.BytesIO()
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            image.save(file, "JPEG", quality=80)
            pictures.append(KeyFrame(float(times[i]), float(p_A[i]), file.getvalue()))
    except BROKEN:
        pass
    return pictures
