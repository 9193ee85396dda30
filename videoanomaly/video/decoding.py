"""Video files -> frames and their times.

Decoding (PyAV, i.e. FFmpeg) gives the frames of OpenCV's VideoCapture: as many, and the same pixels bit by bit.
Compared with OpenCV 5.0 and 4.14 for H.264, HEVC, MPEG-2, MPEG-4, MJPEG, VP9, FLV, WMV and FFV1, 8 and 10 bits, 4:2:0
to 4:4:4, limited and full range, BT.601 and BT.709, odd sizes, variable frame rate and rotated videos. It differs
- from OpenCV 4.5.5, which the paper's code names: it takes every video for BT.601, so the colours of videos tagged
  BT.709 (most HD ones) are up to 41 of 255 levels off there; full-range VP9 (21), 10 bits (45) and MPEG-4 with odd
  sides (53) are off, too. Ours are the right colours;
- where a video is damaged: OpenCV ends it there silently, we name it and leave it out. A .mkv, .webm or .ts file that
  is cut off does not show it, and gives the frames up to there, as in OpenCV.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from videoanomaly.data.annotations import VIDEO_SUFFIXES
from videoanomaly.runtime.console import InputError


def frame_times(found: list[float | None], fps: float | None) -> tuple[np.ndarray, float]:
    """When the frames are shown, (N,) float64 ascending seconds, and their mean rate, frames/s to three decimals.

    Args:
        found: Time stamps, None where the file has none: such a frame comes 1 / fps after the one before.
        fps: Rate that the file's header names, or None: 25 frames/s are assumed where it is needed.
    """
    step, times, last = 1 / (fps or 25), [], None
    for time in found:
        if time is None:
            time = 0.0 if last is None else last + step
        last = time if last is None else max(time, last)
        times.append(last)
    span = times[-1] - times[0]
    return np.array(times), round((len(times) - 1) / span if span > 0 else 1 / step, 3)


TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}  # by the display matrix, degrees; OpenCV ignores other angles
BROKEN = (av.FFmpegError, OSError, InputError)  # what an unreadable video raises; anything else ends the run


def video_stream(container: InputContainer) -> av.VideoStream:
    """The stream that OpenCV reads: the first with pictures; an InputError if there is none."""
    if not container.streams.video:
        raise InputError("found no pictures in it, expected a video stream")
    return container.streams.video[0]


def decode(stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yields every frame, an av.VideoFrame, in the order of showing.

    One thread a video: it is as fast for small videos, and with more of them FFmpeg hides errors near the end.

    Raises:
        av.FFmpegError: At the first damage that the decoder cannot conceal.
        InputError: If the file ends in the middle of a frame.
    """
    is_cut_off, container = False, stream.container
    assert isinstance(container, InputContainer), "the stream is one that is written"
    for packet in container.demux(stream):
        is_cut_off = packet.is_corrupt if packet.size else is_cut_off  # an empty packet only flushes the decoder
        yield from packet.decode()
    if is_cut_off:
        raise InputError("the file is cut off in the middle of a frame")


def to_image(frame: av.VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    """A decoded frame as PIL RGB image, upright. The reformatter keeps the conversion tables: one a video."""
    # bgr24 is what OpenCV asks for; rgb24 takes another path in FFmpeg, some levels apart for 10 bits
    bgr = reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1)
    plane, size = bgr.planes[0], (bgr.width, bgr.height)
    image = Image.frombytes("RGB", size, memoryview(plane), "raw", "BGR", plane.line_size)  # one copy, in C
    return image.transpose(TURNS[frame.rotation]) if frame.rotation in TURNS else image


def find_videos(source: Path) -> dict[str, Path]:
    """Every video in a folder and its subfolders, or the one file, by its path without extension, with "/".

    Raises:
        InputError: If there is none, or two have one name.
    """
    if not source.exists():
        raise InputError(f"--videos {source}: found nothing there, expected a video or a folder of videos")
    root, files = (source.parent, [source]) if source.is_file() else (source, sorted(source.rglob("*")))
    videos = {}
    for path in files:
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in videos:
            raise InputError(f"{videos[key]} and {path} would both give {key}.npy: rename one of them")
        videos[key] = path
    if not videos:
        raise InputError(f"--videos {source}: found no video, expected files with {' '.join(sorted(VIDEO_SUFFIXES))}")
    return videos


def header_frames(path: Path) -> int:
    """Number of frames by the file's header, for shares and the time left only: it may be wrong, or 0."""
    try:
        with av.open(str(path)) as container:
            return video_stream(container).frames
    except BROKEN:
        return 0


def why_skipped(error: Exception) -> str:
    """What is wrong with a video that raised this, without its name."""
    return getattr(error, "strerror", None) or str(error)


def find_all_videos(sources: list[Path], out: Path) -> dict[str, Path]:
    """Videos of all sources by name, the path below the folder given, without suffix; what lies below `out` is ours.

    Raises:
        InputError: As `find_videos`, also if two sources have videos of one name.
    """
    videos = {}
    for source in sources:
        try:
            found = find_videos(source)
        except InputError as error:
            raise InputError(str(error).removeprefix("--videos ")) from None
        for name, path in found.items():
            if out.resolve() in path.resolve().parents:
                continue
            if name in videos:
                raise InputError(
                    f"{videos[name]} and {path} would both give {name}: rename one of them, or run them apart"
                )
            videos[name] = path
    return videos
