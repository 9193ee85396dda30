"""Made events for the tests of what is stored and sent."""

import subprocess
import time
from contextlib import contextmanager

import numpy as np
import pytest

from videoanomaly.watching.store.event_store import NewEvent, Progress

NOW = 1_700_000_000.0


def progress(end=NOW + 2, name="Fighting", points=5, **changed):
    classes = [
        {"class": name, "p_class": 0.7},
        {"class": "Arson", "p_class": 0.2},
        {"class": "Robbery", "p_class": 0.1},
    ]
    curve = np.linspace(0.25, 0.75, points, dtype=np.float32)
    return Progress(end, classes, 0.5, 0.75, end - 1, curve, end - 2, 2.5)._replace(**changed)


def new_event(camera="yard", start=NOW, **changed):
    return NewEvent(camera, start, progress(start + 2, **changed), "c0ffee", 0.4, "--threshold")


def begin(store, camera="yard", count=1) -> list[str]:
    return [store.begin(new_event(camera, NOW + n)) for n in range(count)]


def wait_until(condition, seconds=30.0):
    """Looks again and again; the time is only the end of a test that fails."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.005)


@contextmanager
def small_disk(place, size="1m"):
    """A file system of that size at `place`, made for it."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
