"""Video files -> frames and their times.

Decoding (PyAV, i.e. FFmpeg) gives the frames of OpenCV's VideoCapture: as many, and the same pixels bit by bit.
Compared with OpenCV 5.0 and 4.14 for H.264, HEVC, MPEG-2, MPEG-4, MJPEG, VP9, FLV, WMV and FFV1, 8 and 10 bits, 4:2:0
to 4:4:4, limited and full range, BT.601 and BT.709, odd sizes, variable frame rate and rotated videos. It differs
- from OpenCV 4.5.5, which the paper's code names: it takes every video for BT.601, so the colours of videos tagged
  BT.709 (most HD ones) are up to 41 of 255 levels off there; full-range VP9 (21), 10 bits (45) and MPEG-4 with odd
  sides (53) are off, too. Ours are the right colours;
- where a video is damaged: OpenCV ends it there silently, we go on behind the damage and name the place. A .mkv, .webm
  or .ts file that is cut off between two frames does not show it;
- interlaced MPEG-2 and the like, which OpenCV 5.0 gives as black pictures. Ours are both fields in one picture.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from videoanomaly.runtime.console import InputError
from videoanomaly.video.frame_clock import LONGEST_STEP, Damage, FrameClock, Jump
from videoanomaly.video.picture_folder import FPS, PictureFolder

TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}  # by the display matrix, degrees; OpenCV ignores other angles
BROKEN = (av.FFmpegError, OSError, InputError)  # what an unreadable video raises; anything else ends the run
LISTS = {"concat", "dash", "ffmetadata", "hls", "imf", "lavfi", "rtsp", "sdp", "webm_dash_manifest"}  # open other files
MEDIA = {"protocol_whitelist": "file", "format_whitelist": ",".join(sorted(av.formats_available - LISTS))}
LONGEST_PAUSE, TS_DISCONT = (3600.0, 10.0), 0x0200  # seconds; FFmpeg's mark of formats whose stamps may begin anew
FLATTEST = 100  # longer side of a picture by the shorter one: more is resized to gigabytes
MOST_REORDERED = 5  # frames between a frame's own packet and the one with which it comes, but for damage
MAX_UNREADABLE = 100  # places of a file
LOST_TAIL = 1.0  # seconds that the header may tell of more than there are


def seconds(ticks: int | None, time_base: Fraction | None) -> float:
    """Of a time stamp; not a number if there is none."""
    return math.nan if ticks is None or time_base is None else float(ticks * time_base)


def mean_rate(times: np.ndarray, rate: float | None) -> float:
    """Frames/s to three decimals of frames shown at `times`, (N,) seconds; pauses do not count.

    `rate` is that of the file's header, for a single frame.
    """
    steps = np.diff(times)
    if len(steps):
        steps = steps[steps <= max(LONGEST_STEP * np.median(steps), 5)]
    return round(len(steps) / steps.sum() if steps.sum() > 0 else rate or 25.0, 3)


def with_holes(damage: list[Damage], times: np.ndarray) -> list[Damage]:
    """Also where frames of a constant rate are missing that no error tells of; none where the rate varies anyway.

    Args:
        times: (N,) seconds.
    """
    steps = np.diff(times)
    usual = np.median(steps) if len(steps) else 0.0
    holes = np.flatnonzero(steps > 2.5 * usual)
    if not usual or (np.abs(steps - usual) > 0.5 * usual).sum() > 1 + 0.01 * len(steps):
        return damage
    found = [Damage(float(times[i] + usual), float(times[i + 1]), "no pictures there") for i in holes]
    found = [hole for hole in found if not any(hole.overlaps(known) for known in damage)]
    return sorted(damage + found, key=lambda place: place.start)


def picture_stream(container: InputContainer) -> av.VideoStream:
    """The stream that OpenCV reads: the first with pictures; an InputError if there is none."""
    if not container.streams.video:
        raise InputError("found no pictures in it, expected a video stream")
    if container.streams.video[0].codec_context is None:
        raise InputError("found pictures of a codec that FFmpeg does not know")
    return container.streams.video[0]


class VideoFile:
    """An opened video file: what its header tells, its frames and their times. Use it in a `with` statement.

    FFmpeg may open that file alone: no address that a name looks like, no list of other files.

    Raises:
        One of BROKEN: If it is no video.
    """

    def __init__(self, path: Path):
        try:
            self.container: InputContainer = av.open(f"file:{path}", options=MEDIA, metadata_errors="replace")
        except av.error.ArgumentError:
            raise InputError("found none of the formats of videos (a list of other files?)") from None
        try:
            self.stream = picture_stream(self.container)
        except InputError:
            self.container.close()
            raise
        self.codec, self.num_frames = self.stream.codec_context.name, self.stream.frames  # by the header, or 0
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = float(rate) if rate else None
        self.start = (self.container.start_time or 0) / av.time_base
        pause = LONGEST_PAUSE[bool(self.container.format.flags & TS_DISCONT)]
        self.clock = FrameClock(self.rate, pause, self.start)
        self.damage: list[Damage] = []
        # the stamps there are those of the order in the file, in which B-frames do not stand as they are shown
        self.lacks_order = self.container.format.name == "avi" and self.stream.codec_context.has_b_frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.container.close()

    def decode(self) -> Iterator[av.VideoFrame]:
        """Yields every frame that can be decoded, in the order of showing; what cannot be is added to `damage`.

        One thread a video: it is as fast for small videos, and with more of them FFmpeg hides errors near the end.
        """
        stamps: list[int | None] = []
        lossy, read, shown = None, math.nan, math.nan  # the last packet, if something is missing in it; seconds
        for packet in self.packets():
            if packet.size:  # an empty one only flushes the decoder
                if lossy:
                    self.note_damage(lossy, "packets are missing")
                lossy, read = packet if packet.is_corrupt else None, seconds(packet.dts, packet.time_base)
                stamps += [packet.dts] * self.lacks_order
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self.note_damage(packet, why_skipped(error))
                del stamps[-1:]
                continue
            for frame in frames:
                if max(frame.width, frame.height) > FLATTEST * min(frame.width, frame.height):
                    raise InputError(f"found pictures of {frame.width} x {frame.height}, expected less narrow ones")
                frame.pts = stamps.pop(0) if stamps else frame.pts
                if not self.is_leftover(frame, shown, read):
                    shown = seconds(frame.pts, frame.time_base)
                    yield frame
        if lossy:
            self.note_damage(None, "the file is cut off in the middle of a frame")

    def is_leftover(self, frame: av.VideoFrame, shown: float, read: float) -> bool:
        """Whether a frame from before some damage comes late; frames of a stream that begins anew are as late as any.

        `shown` and `read` are the times of the frame before and of the newest packet, seconds, not a number if unknown.
        """
        time = seconds(frame.pts, frame.time_base)
        return bool(self.damage) and time < shown and read - time > MOST_REORDERED * self.clock.step

    def packets(self) -> Iterator[av.Packet]:
        """Yields what the file holds; where it cannot be read, the next that can, and at last an empty packet."""
        for _ in range(MAX_UNREADABLE):
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size and self.damage and self.damage[-1].end is None:  # it was not the end
                        self.damage[-1] = self.damage[-1]._replace(end=max(self.time_of(packet), self.damage[-1].start))
                    yield packet
                return
            except av.FFmpegError as error:
                self.note_damage(None, why_skipped(error))

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields every frame with the time at which a player shows it, seconds from 0; see `FrameClock`.

        Raises:
            One of BROKEN: If there is none.
        """
        for frame in self.decode():
            yield self.clock(frame.time), frame
        if not self.clock.num_frames:
            raise InputError(self.damage[0].reason if self.damage else "found no frame in it, expected at least one")
        self.find_lost_tail()

    @property
    def jumps(self) -> list[Jump]:
        """Of the time stamps of the frames so far."""
        return self.clock.jumps

    @property
    def may_seek(self) -> bool:
        """Whether the times of the frames so far are those of the file's time stamps."""
        return self.clock.is_exact and not self.lacks_order

    def time_of(self, packet: av.Packet | None) -> float:
        """When a packet's frame is shown, or the next one, seconds."""
        time = math.nan
        if packet and self.clock.stamp is not None:
            time = seconds(packet.dts if packet.pts is None else packet.pts, packet.time_base) + self.clock.offset
        if math.isnan(time):
            time = self.clock.time + self.clock.step if self.clock.num_frames else 0.0
        return max(time, 0.0)

    def note_damage(self, packet: av.Packet | None, reason: str) -> None:
        """A packet that cannot be decoded, or None: nothing behind what was."""
        step, start = self.clock.step, self.time_of(packet)
        end = start + step if packet else None
        if self.damage and (last := self.damage[-1]).end is not None and start <= last.end + 5 * step:
            start, reason = min(start, last.start), last.reason
            end = end and max(end, last.end)
            self.damage.pop()
        self.damage.append(Damage(start, end, reason))

    def find_lost_tail(self) -> None:
        """Frames that the header tells of and that are not there."""
        stream, end, found = self.stream, self.clock.time + self.clock.step, self.clock.num_frames
        told, reason = 0.0, f"the file ends after {found} of {self.num_frames} frames"
        if self.num_frames > found:
            told = seconds((stream.start_time or 0) + (stream.duration or 0), stream.time_base) - self.start
        elif self.container.format.name == "matroska,webm" and len(self.container.streams) == 1:
            told, reason = (self.container.duration or 0) / av.time_base - self.start, "the file ends there"
        if told > end + LOST_TAIL and not self.jumps:
            if self.damage and self.damage[-1].end is None:
                end, _, reason = self.damage.pop()
            self.damage.append(Damage(end, told, reason))


def to_image(frame: av.VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    """A decoded frame as PIL RGB image, upright. The reformatter keeps the conversion tables: one a video."""
    # bgr24 is what OpenCV asks for; rgb24 takes another path in FFmpeg, some levels apart for 10 bits
    bgr = reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1)
    plane, size = bgr.planes[0], (bgr.width, bgr.height)
    image = Image.frombytes("RGB", size, memoryview(plane), "raw", "BGR", plane.line_size)  # one copy, in C
    return image.transpose(TURNS[frame.rotation]) if frame.rotation in TURNS else image


def open_video(path: Path, fps: float = FPS) -> VideoFile | PictureFolder:
    """A video file, or a folder of pictures that come `fps` a second; use it in a `with` statement."""
    return PictureFolder(path, fps) if path.is_dir() else VideoFile(path)


def header_length(path: Path) -> tuple[int, float]:
    """Number of frames and frames/s by the file's header; either may be wrong, or 0."""
    try:
        with open_video(path) as video:
            rate = video.rate or 0.0
            guess = 0 if isinstance(video, PictureFolder) else (video.container.duration or 0) / av.time_base * rate
            return video.num_frames or round(guess), rate
    except BROKEN:
        return 0, 0.0


def header_frames(path: Path) -> int:
    """Number of frames by the file's header, for shares and the time left only: it may be wrong, or 0."""
    return header_length(path)[0]


def why_skipped(error: Exception) -> str:
    """What is wrong with a video that raised this, without its name."""
    text = getattr(error, "strerror", None) or str(error)
    return text if isinstance(error, BROKEN) else f"{type(error).__name__}: {text}"
