"""What watch.py says on stderr: how each camera begins, then at most a line a minute, of what changed."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from videoanomaly.runtime.console import duration, note

EVERY = 60.0  # seconds between two lines
MOST = 12  # sayings in a line; of more only their number


class Journal:
    """Collects what is to be said, for any thread.

    Args:
        every: Seconds between two lines.
    """

    def __init__(self, every: float = EVERY):
        self.every, self.lock = every, threading.Lock()
        self.waiting: dict[str, int] = {}  # what is to be said, and how many times it came
        self.said_at = time.monotonic()
        self.told: dict[str, tuple[str, str]] = {}  # what each camera did when it was last told
        self.introduced: set[str] = set()  # cameras whose connection was told with all there is to know
        self.dropped: dict[str, int] = {}

    def say(self, text: str) -> None:
        """Something for the next line; what comes again and again is said once, with its number."""
        with self.lock:
            self.waiting[text] = self.waiting.get(text, 0) + 1

    def look(self, cameras: Sequence[Mapping[str, Any]]) -> None:
        """Notices what is new of the cameras, as `Board.snapshot` gives them, and says it when it is time."""
        for camera in cameras:
            self.look_at(camera)
        if time.monotonic() - self.said_at >= self.every:
            self.look_at_rates(cameras)
            self.flush()

    def look_at(self, camera: Mapping[str, Any]) -> None:
        name, state, detail = camera["name"], camera["state"], camera["detail"]
        told = (state, detail if state == "connected" else "")  # reasons why it is away may come in turn
        if state == "starting" or self.told.get(name) == told:  # that nobody need hear of
            return
        is_first, self.told[name] = name not in self.told, told
        text = f"{name} {state}" + (f" ({detail})" if detail else "")
        if state == "connected" and name not in self.introduced:
            self.introduced.add(name)
            size = f"{camera['width']} x {camera['height']} {camera['codec']}"
            note(f"{name}: connected to {camera['source']}, {size}, events begin at p_A {camera['threshold']:.4g}")
        elif is_first:
            note(text)
        else:
            self.say(text)

    def forget(self, name: str) -> None:
        """The camera is gone, or watched otherwise: it is new when it comes back."""
        self.told.pop(name, None)
        self.introduced.discard(name)

    def look_at_rates(self, cameras: Sequence[Mapping[str, Any]]) -> None:
        """Cameras of which rows were dropped since the last line."""
        passed = time.monotonic() - self.said_at
        for camera in cameras:
            name, dropped = camera["name"], camera["dropped"]
            new, self.dropped[name] = dropped - self.dropped.get(name, 0), dropped
            if new > 0:
                rates = f"{camera['rows_per_second']:.1f} of {camera['wanted_rows_per_second']:.1f} rows/s"
                self.say(f"{name}: {new} rows dropped in {duration(passed)}, the device is too slow: {rates}")

    def flush(self) -> None:
        """Says what waits, if anything does."""
        with self.lock:
            waiting, self.waiting = self.waiting, {}
            self.said_at = time.monotonic()
        texts = [text if number == 1 else f"{text} ({number} times)" for text, number in waiting.items()]
        if texts:
            more = [f"and {len(texts) - MOST} more"] if len(texts) > MOST else []
            note("; ".join(texts[:MOST] + more))
