"""Made events for the tests of what is stored and sent."""

import numpy as np

from videoanomaly.watching.event_store import NewEvent, Progress

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
