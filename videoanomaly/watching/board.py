"""What every camera is doing now: written by the threads that read and score, read by the page, metrics and notes."""

import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

STATES = ("starting", "connected", "away", "frozen", "black", "paused")  # paused: outside its schedule
STRIP_SECONDS, STRIP_STEP = 3600, 10  # the last hour, a point for ten seconds
LATENCY_BOUNDS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # seconds, of the histogram


@dataclass
class CameraStatus:
    """One camera; counts are since the start of the program."""

    name: str
    source: str  # the address as it may be shown
    state: str = "starting"
    since: float = field(default_factory=time.time)  # seconds since 1970 at which it came into this state
    detail: str = ""  # such as the reason why it is away
    width: int = 0
    height: int = 0
    codec: str = ""
    last_frame: float = 0.0  # seconds since 1970; 0: none yet
    frames: int = 0
    rows: int = 0  # that were due
    encoded: int = 0
    reused: int = 0  # of still scenes
    dropped: int = 0  # that the device could not take
    reconnects: int = 0
    rows_per_second: float = 0.0  # encoded or reused, over the last minute
    wanted_rows_per_second: float = 0.0
    p_A: float | None = None  # of the newest row
    threshold: float = 0.5
    event: str | None = None  # id of the open event


class Strip:
    """Highest p_A of each ten seconds of the last hour."""

    def __init__(self):
        self.values = np.full(STRIP_SECONDS // STRIP_STEP, np.nan, np.float32)
        self.newest = 0  # number of the newest step since 1970

    def add(self, p_A: float, now: float) -> None:
        step, size = int(now // STRIP_STEP), len(self.values)
        for missing in range(max(self.newest + 1, step - size + 1), step + 1):
            self.values[missing % size] = np.nan
        self.newest = max(self.newest, step)
        if step > self.newest - size:
            self.values[step % size] = np.fmax(self.values[step % size], p_A)

    def read(self, now: float) -> list[float | None]:
        """Oldest first, the last one for the step of `now`; None where no row was scored."""
        size, last = len(self.values), int(now // STRIP_STEP)
        steps = np.arange(last - size + 1, last + 1)
        is_known = (self.newest - size < steps) & (steps <= self.newest)
        values = np.where(is_known, self.values[steps % size], np.nan).astype(float).round(3).tolist()
        return [None if value != value else value for value in values]  # NaN is not equal to itself


class Board:
    """All cameras, for any thread. `version` grows with each change that a reader should see."""

    def __init__(self):
        self.lock = threading.Lock()
        self.cameras: dict[str, CameraStatus] = {}
        self.strips: dict[str, Strip] = {}
        self.latencies: dict[str, np.ndarray] = {}  # by camera: counts up to each of LATENCY_BOUNDS, and above
        self.latency_sums: dict[str, float] = {}
        self.version = 0

    def add(self, status: CameraStatus) -> None:
        """A camera that is new, or begins anew."""
        with self.lock:
            self.cameras[status.name] = status
            self.strips.setdefault(status.name, Strip())
            self.latencies.setdefault(status.name, np.zeros(len(LATENCY_BOUNDS) + 1, np.int64))
            self.latency_sums.setdefault(status.name, 0.0)
            self.version += 1

    def remove(self, name: str) -> None:
        with self.lock:
            for kept in (self.cameras, self.strips, self.latencies, self.latency_sums):
                kept.pop(name, None)
            self.version += 1

    def set(self, name: str, **values: Any) -> None:
        """Changes fields of a camera; with another `state`, `since` is now."""
        with self.lock:
            if status := self.cameras.get(name):
                if values.get("state", status.state) != status.state:
                    status.since = time.time()
                changed = [key for key, value in values.items() if getattr(status, key) != value]
                for key in changed:
                    setattr(status, key, values[key])
                self.version += bool(changed)

    def count(self, name: str, **by: int) -> None:
        """Adds to counts of a camera."""
        with self.lock:
            if status := self.cameras.get(name):
                for key, number in by.items():
                    setattr(status, key, getattr(status, key) + number)

    def scored(self, name: str, p_A: Iterable[float], latency: float) -> None:
        """New scores of a camera, oldest first, and the seconds from the picture of the oldest to now."""
        with self.lock:
            if status := self.cameras.get(name):
                for value in p_A:
                    status.p_A = float(value)
                    self.strips[name].add(value, time.time())
                self.latencies[name][np.searchsorted(LATENCY_BOUNDS, latency)] += 1
                self.latency_sums[name] += latency
                self.version += 1

    def snapshot(self) -> list[dict[str, Any]]:
        """The fields of each `CameraStatus`, by name."""
        with self.lock:
            return [asdict(self.cameras[name]) for name in sorted(self.cameras)]

    def strip(self, name: str) -> list[float | None]:
        """The last hour, see `Strip.read`; nothing of a camera that is not there."""
        with self.lock:
            return self.strips[name].read(time.time()) if name in self.strips else []
