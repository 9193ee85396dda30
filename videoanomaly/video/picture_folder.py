"""A folder of numbered pictures as a video: 01_0014/000.jpg, 001.jpg, ..."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from videoanomaly.runtime.console import InputError, note
from videoanomaly.runtime.torchrun import is_main
from videoanomaly.video.frame_clock import Damage, Jump

FPS = 25.0  # where nobody tells another rate
NUMBERED = re.compile(r"(?!\.)(.*?)(\d+)(\D*\.(?:bmp|jpe?g|png|webp))", re.IGNORECASE | re.DOTALL)
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # PIL hands some others to programs such as Ghostscript


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by the last number in their names: frame9.jpg comes before frame10.jpg.

    None if they are numbered in several ways (two videos, or pictures and masks); one that stands alone is left out.

    Raises:
        OSError: If the folder cannot be read.
    """
    series = defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            if (match := NUMBERED.fullmatch(entry.name)) and entry.is_file():
                series[match[1], match[3].lower()].append((int(match[2]), entry.name))
    several = [pictures for pictures in series.values() if len(pictures) > 1]
    return [folder / name for _, name in sorted(several[0])] if len(several) == 1 else []


def is_picture_folder(path: Path) -> bool:
    """Whether it can be opened as a `PictureFolder`."""
    try:
        return bool(numbered_pictures(path))
    except OSError:
        return False


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB, upright; an InputError if it is damaged."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode.startswith("I"):  # 16 bits a pixel, of which PIL would cut off what is above 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # PIL raises many kinds
        reason = getattr(error, "strerror", None) or "is damaged, or no picture"
        raise InputError(f"{path.name}: {reason}") from error


class PictureFolder:
    """A folder of numbered pictures, to be read like a video file.

    Attributes:
        pictures: Their files, in order.
        rate: Frames/s. num_frames: Number of pictures.
        codec: What stands where a video has FFmpeg's name of its codec.
    Raises:
        InputError, OSError: If it is none, or cannot be read.
    """

    codec, may_seek = "pictures", False
    jumps: tuple[Jump, ...] = ()  # of time stamps

    def __init__(self, path: Path, fps: float = FPS):
        if not 0.001 <= fps <= 1000:
            raise InputError(f"--fps {fps}: expected 0.001 to 1000 frames/s for pictures")
        self.pictures, self.rate = numbered_pictures(path), fps
        if not self.pictures:
            raise InputError("found no pictures that are numbered in one way, such as 000.jpg, 001.jpg")
        self.num_frames, self.damage = len(self.pictures), list[Damage]()

    def __enter__(self) -> "PictureFolder":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open between two pictures."""

    def decode(self) -> Iterator[av.VideoFrame]:
        """Yields the pictures, rgb24, with their time stamps; they may differ in size. What is damaged goes there."""
        time_base = 1 / Fraction(self.rate).limit_denominator(10**6)
        for i, path in enumerate(self.pictures):
            try:
                frame = av.VideoFrame.from_image(read_picture(path))
            except InputError as error:
                self.damage.append(Damage(i / self.rate, (i + 1) / self.rate, str(error)))
                continue
            frame.pts, frame.time_base = i, time_base
            yield frame

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields every picture with its time in seconds; an InputError if there is none."""
        frame = None
        for frame in self.decode():
            yield float(frame.time or 0), frame
        if frame is None:
            raise InputError(self.damage[0].reason)


def picture_rate(videos: Iterable[Path], fps: float | None) -> float:
    """Frames/s of the picture folders among some videos: `fps`, else 25, which is said where there are any."""
    if fps is None and is_main() and any(map(is_picture_folder, videos)):
        note(f"folders of pictures are taken for {FPS:g} frames/s; --fps tells another rate")
    return fps or FPS
