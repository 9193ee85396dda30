"""Clips of events: the packets that a camera sent, written into a file as they are, without encoding them again.

A ring keeps the last seconds from a key frame on; when an event begins, the clip begins with those, goes on with what
comes, and ends some seconds behind the event. Sound is left out. Browsers play H.264.
"""

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.error
from av.container import OutputContainer

from videoanomaly.runtime.files import sync_folder

CODECS = ("h264", "hevc", "av1", "mpeg4", "vp9", "mjpeg")  # that MP4 holds
RING_BYTES = 2**26  # of a camera: 64 s of 8 Mbit/s
TICK = Fraction(1, 90_000)  # seconds, where a stream tells none, or one that is made up
LONGEST_PAUSE = 60.0  # seconds between two pictures of a clip
SLACK = 10.0  # seconds that an event may be old when it is told: its shortest length, and the model's delay
FAILURES = (av.FFmpegError, OSError, ValueError)  # of writing: a full disk, time stamps that fall

Done = Callable[
    [str, str | None, int, str], object
]  # event, name of the file below the folder, bytes, why there is none


class Kept(NamedTuple):
    """A packet and when it came, time.monotonic()."""

    packet: av.Packet
    arrival: float


class PacketRing:
    """The newest packets, from a key frame on.

    Args:
        seconds: That are kept at least, once they came; more by up to the distance of two key frames.
        most: Bytes that are kept at most.
    """

    def __init__(self, seconds: float, most: int = RING_BYTES):
        self.seconds, self.most = seconds, most
        self.kept: deque[Kept] = deque()
        self.keys: deque[float] = deque()  # arrivals of the key frames among them
        self.size = 0

    def push(self, packet: av.Packet, arrival: float) -> None:
        if packet.is_keyframe:
            self.keys.append(arrival)
        elif not self.keys:
            return
        self.kept.append(Kept(packet, arrival))
        self.size += packet.size
        while len(self.keys) > 1 and (self.keys[1] <= arrival - self.seconds or self.size > self.most):
            self.drop_first()
        if self.size > self.most:
            self.clear()

    def drop_first(self) -> None:
        """Forgets up to the second key frame."""
        self.keys.popleft()
        while self.kept and self.kept[0].arrival < self.keys[0]:
            self.size -= self.kept.popleft().packet.size

    def clear(self) -> None:
        self.kept.clear()
        self.keys.clear()
        self.size = 0

    def since(self, moment: float) -> list[Kept]:
        """From the last key frame that came before `moment` on, or from the first there is."""
        start = max((key for key in self.keys if key <= moment), default=self.keys[0] if self.keys else 0.0)
        return [kept for kept in self.kept if kept.arrival >= start]


class Clip:
    """A file that is being written; it appears under its name when it is finished.

    Args:
        folder, name: Where, and its name there.
        stream: Of the camera.
        restamp: Whether the packets' times are those at which they came.
    """

    def __init__(self, folder: Path, name: str, stream: av.VideoStream, restamp: bool):
        self.path, self.restamp = folder / name, restamp
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = self.path.parent / f".{uuid.uuid4().hex}.tmp"
        self.container: OutputContainer = av.open(f"file:{self.temporary}", "w", format="mp4")
        self.stream = self.container.add_stream_from_template(stream)
        if stream.codec_context.name == "hevc":
            self.stream.codec_context.codec_tag = "hvc1"  # which Apple's players ask for
        self.is_empty, self.first, self.last, self.step = True, 0, 0, 1  # stamp of time 0, last time, last step

    def write(self, kept: Kept) -> None:
        """Adds a packet."""
        source, base = kept.packet, TICK if self.restamp else kept.packet.time_base or TICK
        known = [stamp for stamp in (source.dts, source.pts) if stamp is not None]
        if self.restamp:
            known = [round(kept.arrival / base)]
        dts, pts = known[0], known[-1]
        self.place(dts, round(LONGEST_PAUSE / base))
        packet = av.Packet(bytes(source))
        packet.stream, packet.is_keyframe, packet.time_base = self.stream, source.is_keyframe, base
        packet.pts, packet.dts = pts - self.first, dts - self.first
        packet.duration = self.step  # without it the last picture would not be shown
        self.container.mux(packet)
        self.is_empty = False

    def place(self, dts: int, most: int) -> None:
        """Time goes on by the usual step where stamps fall, or leave out more than `most` ticks."""
        if self.is_empty:
            self.first = dts
        step = dts - self.first - self.last
        if not self.is_empty and not 0 < step <= most:
            step = self.step
            self.first = dts - self.last - step
        self.last, self.step = self.last + step, max(step, 1)

    def finish(self) -> int:
        """Bytes of the file, which now is there."""
        self.container.close()
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())
        size = self.temporary.stat().st_size
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)
        return size

    def discard(self) -> None:
        """Leaves nothing behind."""
        try:
            self.container.close()
        except FAILURES:
            pass
        self.temporary.unlink(missing_ok=True)


class Running(NamedTuple):
    """A clip of an event."""

    clip: Clip
    until: float  # time.monotonic() at which it ends


class Recorder:
    """Clips of one camera; its methods may be called by any thread.

    Args:
        folder: Of the clips.
        camera: Its name, which begins the names of its files.
        pre_roll, post_roll, longest: Seconds before and behind an event, and of a clip.
        done: Called with each event's clip, or with the reason why there is none.
    """

    def __init__(self, folder: Path, camera: str, *, pre_roll: float, post_roll: float, longest: float, done: Done):
        self.folder, self.camera, self.done = folder, camera, done
        self.pre_roll, self.post_roll, self.longest = pre_roll, post_roll, longest
        self.ring, self.lock = PacketRing(pre_roll + SLACK), threading.Lock()
        self.stream: av.VideoStream | None = None
        self.restamp = False
        self.running: dict[str, Running] = {}

    def opened(self, stream: av.VideoStream, restamp: bool) -> None:
        """The camera is connected."""
        with self.lock:
            self.ring.clear()
            self.stream, self.restamp = stream, restamp

    def packet(self, packet: av.Packet) -> None:
        """What the camera sent."""
        if not packet.size or not self.restamp and packet.pts is packet.dts is None:  # as the first of an RTSP stream
            return
        kept = Kept(packet, time.monotonic())
        with self.lock:
            self.ring.push(*kept)
            for event, (clip, until) in list(self.running.items()):
                if kept.arrival > until:
                    self.finish(event)
                else:
                    self.write(event, clip, [kept])

    def begin(self, event: str, start: float) -> None:
        """An event has begun, at `start` by time.monotonic()."""
        with self.lock:
            if self.stream is None:
                return self.tell(event, None, 0, "the camera was away")
            codec = self.stream.codec_context.name
            if codec not in CODECS:
                return self.tell(event, None, 0, f"{codec} is not recorded")
            try:
                clip = Clip(self.folder, f"{self.camera}/{event}.mp4", self.stream, self.restamp)
            except FAILURES as error:
                return self.tell(event, None, 0, reason(error))
            self.running[event] = Running(clip, start + self.longest)
            self.write(event, clip, self.ring.since(start - self.pre_roll))

    def end(self, event: str, end: float) -> None:
        """An event has ended, at `end` by time.monotonic()."""
        with self.lock:
            if running := self.running.get(event):
                self.running[event] = running._replace(until=min(running.until, end + self.post_roll))

    def write(self, event: str, clip: Clip, packets: list[Kept]) -> None:
        try:
            for kept in packets:
                clip.write(kept)
        except FAILURES as error:
            del self.running[event]
            clip.discard()
            self.tell(event, None, 0, reason(error))

    def finish(self, event: str) -> None:
        clip = self.running.pop(event).clip
        try:
            if clip.is_empty:
                raise ValueError("nothing came from the camera")
            size = clip.finish()
        except FAILURES as error:
            clip.discard()
            self.tell(event, None, 0, reason(error))
        else:
            self.tell(event, f"{self.camera}/{event}.mp4", size, "")

    def tell(self, event: str, name: str | None, size: int, why: str) -> None:
        self.done(event, name, size, why)

    def close(self) -> None:
        """The camera is gone: what came so far are the clips."""
        with self.lock:
            for event in list(self.running):
                self.finish(event)
            self.ring.clear()
            self.stream = None


def reason(error: Exception) -> str:
    """What went wrong, without names of files."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
