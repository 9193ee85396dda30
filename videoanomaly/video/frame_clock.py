"""Time stamps -> when frames are shown: the one place where that is decided, for files and for streams."""

from collections import deque
from statistics import median_low
from typing import NamedTuple

LONGEST_STEP = 10  # usual distances between two frames: a longer one is a pause, or a jump
USUAL_STEP = 0.04  # seconds, where nothing tells
MAX_JUMPS = 10**5  # that are remembered
MAX_DRIFT = 5.0  # seconds that time stamps of a stream and the clock may differ
BACKWARD = 0.2  # seconds that a stamp may fall below the one before, or five usual steps: badly muxed B-frames


def clock(seconds: float) -> str:
    """hh:mm:ss.mmm"""
    milliseconds = round(max(seconds, 0) * 1000)
    minutes, rest = divmod(milliseconds, 60000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest / 1000:06.3f}"


class Jump(NamedTuple):
    """Where time stamps do not go on."""

    frame: int  # the first one behind it
    time: float  # when that is shown, seconds
    by: float  # seconds that its stamp is off what was to be expected


class Damage(NamedTuple):
    """A place that cannot be decoded."""

    start: float  # seconds
    end: float | None  # None: to the end, wherever that is
    reason: str

    def overlaps(self, other: "Damage") -> bool:
        return self.start <= (other.end or self.start) and other.start <= (self.end or other.start)

    def text(self) -> str:
        """Such as 00:00:15.167 to 00:00:15.300 (Invalid data found when processing input)."""
        return f"{clock(self.start)} to {'the end' if self.end is None else clock(self.end)} ({self.reason})"


class FrameClock:
    """Called with the time stamp of each frame in turn, says when the frame is shown: seconds, never falling.

    A stamp that falls, or leaves out more than `longest_pause` at once, is a jump: time goes on by the usual distance
    of two frames, as players do. A frame without a stamp comes that distance after the one before; and so do all but
    the first two of those with one and the same. A source that is slow throughout never jumps forward.

    Args:
        rate: Frames per second that the header names, if it does.
        longest_pause: Seconds.
        start: Time stamp of second 0; None: that of the first frame.
    """

    def __init__(self, rate: float | None, longest_pause: float, start: float | None = None):
        self.longest_pause, self.start = longest_pause, start
        self.steps = deque([1 / rate] if rate else [], maxlen=9)  # seconds between the last frames
        self.offset = 0.0  # time less stamp
        self.stamp: float | None = None  # the last that there was
        self.num_frames = self.since = 0  # frames in all, and since the stamp last rose
        self.time = 0.0  # of the last frame
        self.jumps: list[Jump] = []  # the first of them
        self.num_jumps = 0
        self.is_exact = True  # each time is that of the stamp, so that it can be sought

    @property
    def step(self) -> float:
        """The usual distance between two frames, seconds."""
        return median_low(self.steps) if self.steps else USUAL_STEP

    def __call__(self, stamp: float | None, now: float = 0.0) -> float:
        if stamp is None:
            self.time += self.step if self.num_frames else 0
            self.since += 1
        elif self.stamp is None:
            self.begin(stamp)
        else:
            self.go_on(stamp, stamp - self.stamp)
        self.is_exact &= stamp is not None and abs(stamp - (self.start or 0) - self.time) < 1e-4
        self.stamp = self.stamp if stamp is None else stamp
        self.num_frames += 1
        return self.time

    def begin(self, stamp: float) -> None:
        """The first stamp."""
        start = stamp if self.start is None else self.start
        if abs(stamp - start) > self.longest_pause:
            self.note(stamp - start)
            start = stamp
        self.offset, self.time, self.since = -start, max(stamp - start, self.time), 0

    def go_on(self, stamp: float, difference: float) -> None:
        """Any other stamp, so many seconds after the one before."""
        self.since += 1
        pause = max(self.longest_pause, LONGEST_STEP * self.step * self.since)
        if not -max(BACKWARD, 5 * self.step) <= difference <= pause:
            self.jump(stamp, difference)
        elif stamp + self.offset > self.time:
            self.time = stamp + self.offset
        elif self.since > 1 or difference > 0:  # it stands still, or has stood
            self.time += self.step if difference <= 0 else min(difference, self.step)
            if self.time - (stamp + self.offset) > max(BACKWARD, 5 * self.step) and difference > 0:
                self.offset = self.time - stamp
        if difference > 0:
            self.steps.append(difference / self.since)
            self.since = 0

    def jump(self, stamp: float, difference: float) -> None:
        self.time += self.step
        self.offset = self.time - stamp
        self.note(difference - self.step)

    def note(self, difference: float) -> None:
        self.num_jumps += 1
        if self.num_jumps <= MAX_JUMPS:
            self.jumps.append(Jump(self.num_frames, self.time, difference))


class LiveClock:
    """As `FrameClock` for frames that come as they are filmed: stamps count as long as they go with the clock.

    Called with the time stamp of each frame and the seconds since the stream began, by the clock. Where stamps begin,
    fall, or leave the clock by more than MAX_DRIFT, they are tied to it anew; a frame without one is shown now.
    """

    def __init__(self):
        self.offset: float | None = None  # of the clock from the time stamps, seconds
        self.stamp, self.num_jumps = 0.0, 0

    def __call__(self, stamp: float | None, now: float) -> float:
        if stamp is None:
            return now
        if self.offset is None:
            self.offset = now - stamp
        elif stamp < self.stamp - BACKWARD or abs(stamp + self.offset - now) > MAX_DRIFT:
            self.offset, self.num_jumps = now - stamp, self.num_jumps + 1
        self.stamp = stamp
        return stamp + self.offset
