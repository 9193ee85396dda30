"""Cameras and streams: a thread that reads one, again and again if it breaks, and picks the frames that are rows.

Addresses hold passwords. They are shown as addresses.public_name gives them, and of FFmpeg's errors only what went
wrong: their texts have the whole address.
"""

import queue
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.request import url2pathname

import av
import av.error
from av.container import InputContainer

from videoanomaly.runtime.addresses import LISTENING, STREAMS, check_address, is_address, public_name
from videoanomaly.runtime.console import InputError, as_text, note
from videoanomaly.video.decoding import BROKEN, picture_stream
from videoanomaly.video.frame_clock import FrameClock, LiveClock

TIMEOUT = 10.0  # seconds without data after which a stream counts as broken
BACK_OFF = (1.0, 30.0)  # seconds before the first and at most before a further attempt to connect, doubled each time
LONGEST_PAUSE = 10.0  # seconds between two pictures of a file: more is a jump of the time stamps
QUEUE_FRAMES = 16  # frames waiting for the encoder: 50 MB of 1080p; enough for the time that the model takes
MARGIN = 1.05  # frames are thinned out to a little fewer than the encoder can take, so that the queue empties
MAX_DAMAGED = 250  # packets in a row that cannot be decoded before the stream counts as broken
USUAL_RATE = 25.0  # frames/s of a source that does not tell, or nothing sensible
HOPELESS = (av.error.ProtocolNotFoundError, av.error.DemuxerNotFoundError, av.error.ArgumentError)  # at the first time
# FFmpeg's AVFMT_NOTIMESTAMPS: MJPEG over HTTP, raw H.264; theirs would be 25 frames/s by assumption
NO_TIMESTAMPS = 0x80
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}:none", "avfoundation")}  # file and format by system


class Source(NamedTuple):
    """A stream, and how it is opened."""

    name: str  # for messages: without credentials
    options: dict  # of av.open
    ends: bool  # a file or standard input: not opened again
    bursts: bool  # may come faster than it was filmed, as files and the segments of HLS do, and is slowed down


def find_source(text: str, option: str = "--live") -> Source:
    """What an option names.

    Raises:
        InputError: If it is a camera or file that does not exist, or an address of which nothing can ever come.
    """
    if text == "-":
        return Source("standard input", {"file": "pipe:0"}, True, True)
    if text.lower().startswith("file:") and not Path(text).exists():
        path = text[len("file:") :]
        return file_source(path if Path(path).exists() else url2pathname(path.removeprefix("//localhost")), option)
    if text.isdigit():
        return camera_source(text, option)
    return address_source(text, option) if is_address(text) else file_source(text, option)


def address_source(text: str, option: str) -> Source:
    """A stream of the network, which is opened again if it breaks."""
    address = check_address(option, text, STREAMS, LISTENING)
    options = {"rtsp_flags": "prefer_tcp"} if address.startswith(("rtsp://", "rtsps://")) else {}
    how = {"file": address, "timeout": (TIMEOUT, TIMEOUT), "options": options}
    return Source(public_name(address), how, False, address.startswith("http"))


def camera_source(text: str, option: str) -> Source:
    """A camera of this machine, by its number."""
    if sys.platform not in CAMERAS:
        raise InputError(f"{option} {text}: cameras are not read by number on this system, expected an address")
    file, format = CAMERAS[sys.platform]
    if sys.platform == "linux" and not Path(file.format(text)).exists():
        raise InputError(f"{option} {text}: found no camera {file.format(text)}, expected one")
    options = {"file": file.format(text), "format": format, "timeout": (TIMEOUT, TIMEOUT)}
    return Source(f"camera {text}", options, False, False)


def file_source(path: str, option: str) -> Source:
    """A file, at the speed at which it was filmed."""
    if not Path(path).is_file():
        raise InputError(
            f"{option} {as_text(path)}: no such file, expected a file, an address, the number of a camera, or - for "
            "standard input"
        )
    return Source(as_text(path), {"file": f"file:{path}"}, True, True)  # FFmpeg takes the name "a:b" for an address


def sensible_rate(stream: av.VideoStream) -> float:
    """Frames per second of the header; some cameras tell none, or the 90,000 ticks of RTP."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 1 <= rate <= 240 else USUAL_RATE


def decode_patiently(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """Yields frames; damage costs the frames that it hits, as is usual where one joins a stream or packets are lost."""
    num_damaged = 0
    for packet in packets:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            num_damaged += 1
            if num_damaged > MAX_DAMAGED:
                raise
            continue
        num_damaged = 0 if frames else num_damaged
        yield from frames


class Sample(NamedTuple):
    """A frame that is a row."""

    row: int  # its number, ascending; those between were left out
    arrival: float  # time.monotonic()
    frame: av.VideoFrame


class Reader(threading.Thread):
    """Reads a stream, again and again if it breaks, and puts the frames that are rows into a short queue.

    Time is that of a FrameClock for a file, which is slowed down to the speed of filming, and of a LiveClock for a
    stream. Where the encoder takes longer than a row (`seconds_per_row`, set from outside), rows are left out evenly:
    the next is the first one due.

    Args:
        source: From `find_source`.
        rate: Rows per second; None: one for each `stride` frames of the source.
        stride: Frames per row.
    """

    def __init__(self, source: Source, rate: float | None, stride: int):
        super().__init__(daemon=True)  # FFmpeg may wait for a camera when the program ends
        self.source, self.stride = source, stride
        self.rate = rate or 0.0  # rows per second, 0 until it is known, which is before the first row
        self.samples: queue.Queue[Sample | None] = queue.Queue(QUEUE_FRAMES)  # None: the end
        self.stopping = threading.Event()
        self.error: Exception | None = None
        self.start_time = 0.0  # of the first frame, seconds since 1970
        self.began: float | None = None  # the same by time.monotonic()
        self.clock: FrameClock | LiveClock = LiveClock()
        self.num_jumps = 0  # of the time stamps
        self.row, self.due, self.seconds_per_row, self.is_away = -1, 0.0, 0.0, False
        self.num_frames = self.num_rows = self.num_dropped = self.num_breaks = 0

    def run(self) -> None:
        """Reads until the stream ends; `error` is what went wrong, None at the end of the samples."""
        try:
            self.read_again_and_again()
        except Exception as error:  # for the main thread
            self.error = error
        while not self.stopping.is_set():  # the end of the stream, behind the last frame
            try:
                return self.samples.put(None, timeout=0.1)
            except queue.Full:
                pass

    def read_again_and_again(self) -> None:
        """From the first connection to the end.

        Raises:
            InputError: If the source cannot be read by anyone, or a file is no video.
        """
        delay = BACK_OFF[0]
        while not self.stopping.is_set():
            num_before, reason = self.num_frames, "ended"
            try:
                self.read()
            except BROKEN as error:
                reason = self.reason(error)
                if isinstance(error, HOPELESS) and not (self.source.ends or self.num_frames):
                    raise InputError(
                        f"--live {self.source.name}: {reason}, expected an address that FFmpeg can open"
                    ) from None
            if self.stopping.is_set():
                return
            if self.source.ends:
                return self.end(reason)
            if self.num_frames > num_before:
                delay, self.num_breaks = BACK_OFF[0], self.num_breaks + 1
            self.away(reason, delay)
            self.stopping.wait(delay)
            delay = min(2 * delay, BACK_OFF[1])

    def away(self, reason: str, delay: float) -> None:
        """The stream is broken and is opened again in so many seconds."""
        self.is_away = True
        note(f"{self.source.name}: {reason}; trying again in {delay:.0f} s")

    def choose(self, container: InputContainer) -> av.VideoStream:
        """The stream to look at."""
        return picture_stream(container)

    def connected(self, container: InputContainer, stream: av.VideoStream) -> None:
        """The stream is open, whose frames are looked at."""
        if self.is_away:
            note(f"{self.source.name}: connected")
        self.is_away = False

    def packets(self, container: InputContainer, stream: av.VideoStream) -> Generator[av.Packet, None, None]:
        """Yields those of the stream to decode; it is closed before the container is."""
        yield from container.demux(stream)

    def offer(self, sample: Sample) -> None:
        """Puts a frame into the queue; queue.Full if there is no room."""
        self.samples.put_nowait(sample)

    def reason(self, error: Exception) -> str:
        """Never the error's own text, in which FFmpeg shows the address and its password."""
        if isinstance(error, av.error.ExitError):
            return f"nothing came for {TIMEOUT:.0f} s"
        return (error.strerror or type(error).__name__) if isinstance(error, OSError | av.FFmpegError) else str(error)

    def end(self, reason: str) -> None:
        """Of a file: an InputError if it gave no frame, a note if it is damaged."""
        if not self.num_frames:
            raise InputError(f"--live {self.source.name}: {reason}, expected a video")
        if reason != "ended":
            note(f"{self.source.name}: {reason}; ended there")

    def read(self) -> None:
        """From connecting to the end."""
        with av.open(**self.source.options, metadata_errors="replace") as container:
            stream = self.choose(container)
            frame_rate = sensible_rate(stream)
            self.rate = self.rate or frame_rate / self.stride
            self.connected(container, stream)
            early = min(0.5 / frame_rate, 0.5 / self.rate)  # time stamps of cameras tremble
            self.clock = FrameClock(frame_rate, LONGEST_PAUSE) if self.source.ends else LiveClock()
            invented = not self.source.ends and bool(container.format.flags & NO_TIMESTAMPS)
            with closing(self.packets(container, stream)) as packets:  # whatever it does at its end, it is still open
                for frame in decode_patiently(packets):
                    if self.stopping.is_set():
                        return
                    self.num_frames += 1
                    self.sample(frame, None if invented else frame.time, early)

    def sample(self, frame: av.VideoFrame, stamp: float | None, early: float) -> None:
        """Puts a frame into the queue if a row is due and the encoder can take it, at its time.

        Args:
            frame: As decoded.
            stamp: Time stamp, seconds from anywhere; None: the time is now.
            early: How much too early a frame may be for a row, seconds.
        """
        now = time.monotonic()
        if self.began is None:
            self.began, self.start_time = now, time.time()
        num_before = self.clock.num_jumps
        seconds = self.clock(stamp, now - self.began)
        self.num_jumps += self.clock.num_jumps - num_before
        ahead = seconds - (now - self.began)
        if self.source.bursts:
            self.stopping.wait(max(ahead, 0))
        elif (
            ahead > 0
        ):  # those before it had waited, in the server or while FFmpeg looked at the stream: it began earlier
            self.began, self.start_time = self.began - ahead, self.start_time - ahead
        row = int((seconds + early) * self.rate)
        if row <= self.row:
            return
        self.row, self.num_rows = row, self.num_rows + 1
        try:
            if seconds < self.due:
                raise queue.Full
            self.offer(Sample(row, time.monotonic(), frame))
            self.due = max(self.due, seconds - 1 / self.rate) + MARGIN * self.seconds_per_row
        except queue.Full:
            self.num_dropped += 1
