"""Pictures out of video files: which frames to show, and reading them.

Shapes: N frames of a video.
"""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoanomaly.data.features import VIDEO_SUFFIXES
from videoanomaly.frame_scores import FrameScores
from videoanomaly.video.decoding import BROKEN, decode, to_image, video_stream

NUM_STRETCHES, NUM_EVENT_PICTURES = 10, 12
PICTURE_SIDE = 480  # pixels, at most
SEEK_GAP = 10.0  # seconds; what is nearer is reached by decoding on


def pictures_of(folder: str, name: str, p_A: np.ndarray, num_pictures: int = 6) -> list:
    """(frame number, PIL image) of the highest score in each of six equal stretches of a video, if its file is there."""
    path = next((p for p in (Path(folder, name + suffix) for suffix in sorted(VIDEO_SUFFIXES)) if p.is_file()), None)
    if path is None:
        return []
    borders = np.linspace(0, len(p_A), num_pictures + 1).astype(int)
    wanted = {int(a + p_A[a:b].argmax()) for a, b in zip(borders[:-1], borders[1:]) if b > a}
    pictures = []
    try:
        with av.open(str(path)) as container:
            reformatter = VideoReformatter()
            for i, frame in enumerate(decode(video_stream(container))):
                if i in wanted:
                    pictures.append((i, to_image(frame, reformatter)))
    except BROKEN as error:
        print(f"no key frames of {path}: {error}", file=sys.stderr)
    return pictures


class KeyFrame(NamedTuple):
    time: float  # seconds
    score: float  # p_A
    jpeg: bytes


def key_frame_numbers(scores: FrameScores, events: list[dict]) -> list[int]:
    """The highest frame of each of ten equal stretches and of the surest events, ascending."""
    borders = np.linspace(0, len(scores.p_A), NUM_STRETCHES + 1).astype(int)
    surest = sorted(events, key=lambda event: -event["confidence"])[:NUM_EVENT_PICTURES]
    parts = [*zip(borders[:-1], borders[1:]), *((event["start_frame"], event["end_frame"]) for event in surest)]
    return sorted({int(a + scores.p_A[a:b].argmax()) for a, b in parts if b > a})


def frames_at(container, stream, times: list[float]):
    """Yields (place in `times`, frame) of the first frame at or after each of some ascending times, seconds from the
    start.
    """
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


def key_frames(video: Path, scores: FrameScores, events: list[dict]) -> list[KeyFrame]:
    """Pictures for browsers that cannot play the video; fewer, or none, where the file cannot be sought in."""
    numbers, pictures, reformatter = key_frame_numbers(scores, events), [], VideoReformatter()
    try:
        with av.open(str(video)) as container:
            for place, frame in frames_at(container, video_stream(container), [scores.times[i] for i in numbers]):
                image, file = to_image(frame, reformatter), io.BytesIO()
                image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
                image.save(file, "JPEG", quality=80)
                i = numbers[place]
                pictures.append(KeyFrame(float(scores.times[i]), float(scores.p_A[i]), file.getvalue()))
    except BROKEN:
        pass
    return pictures
