"""Rows of a stream in, events out.

Shapes: S segments of F rows, T = S * F rows in the ring, D feature size, C anomaly classes, n new rows.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.event_rule import Event, EventRule, EventSettings
from videoanomaly.runtime.console import note

GAP = 10.0  # seconds without a frame that end the open event


class Model(Protocol):
    """What scores rows: an AnomalyCLIP."""

    @property
    def config(self) -> AnomalyCLIPConfig: ...

    def predict(self, features: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, crops, D) -> p_A (N,) and p_class (N, C)."""
        ...


class RowRing:
    """The newest rows of a stream in one piece; each is stored twice, so that any T of them lie side by side.

    Args:
        num_rows: T.
        shape: Of a row, (crops, D).
    """

    def __init__(self, num_rows: int, shape: tuple[int, ...]):
        self.rows, self.num_rows, self.count = np.zeros((2 * num_rows, *shape), np.float32), num_rows, 0

    def push(self, row: np.ndarray) -> None:
        """Adds a row, (crops, D); of T + 1 the oldest is forgotten."""
        place = self.count % self.num_rows
        self.rows[[place, place + self.num_rows]] = row
        self.count += 1

    def newest(self) -> np.ndarray:
        """Up to T rows, (T, crops, D), the newest last; a view, good until the next push."""
        end = (self.count - 1) % self.num_rows + 1 + self.num_rows
        return self.rows[end - min(self.count, self.num_rows) : end]


class Watch:
    """Rows in, events out: ring, model and event rule of one stream.

    Args:
        model: In evaluation mode.
        rate: Rows per second.
        settings: Of `EventRule`.
        num_crops: Crops of a row.
        tell: Called with "begin", "update" or "end", the number of the event, the event and the latency, seconds.
    """

    def __init__(
        self,
        model: Model,
        *,
        rate: float,
        settings: EventSettings,
        num_crops: int,
        tell: Callable[[str, int, Event, float], None],
    ):
        config, self.model, self.tell = model.config, model, tell
        num_rows, self.num_frames = config.num_segments * config.num_frames, config.num_frames
        self.ring = RowRing(num_rows, (num_crops, config.feature_dim))
        self.rule = EventRule(rate, settings, len(config.classes))
        # what is filled has to fit into the ring
        self.max_missing = max(min(int(GAP * rate), num_rows - self.num_frames), 1)
        self.arrivals: list[float] = []  # of the rows without scores yet, seconds
        self.next_row: int | None = None  # behind the last row
        self.features, self.arrival = np.zeros((num_crops, config.feature_dim), np.float32), 0.0  # of the last row
        self.num_events = self.num_alone = 0  # num_alone: the last rows that came with longer gaps before and behind
        self.latencies: deque[float] = deque(maxlen=4096)  # of the oldest new row at each run of the model, seconds

    def add(self, features: np.ndarray, row: int, arrival: float) -> None:
        """Takes a row, (crops, D), by its number, greater than that of the one before; missing ones repeat that one.

        `arrival` is when its frame came, time.monotonic().
        """
        if self.next_row is not None and row - self.next_row > self.max_missing:
            self.note_slowness(row - self.next_row)
            self.finish()
        for missing in range(row - (row if self.next_row is None else self.next_row), -1, -1):
            self.ring.push(self.features if missing else features)
            self.arrivals.append(arrival)
        self.next_row, self.features, self.arrival = row + 1, features, arrival
        if len(self.arrivals) >= self.num_frames:
            self.score(self.next_row)

    def note_slowness(self, num_missing: int) -> None:
        """One line if the source is too slow for this model: rows stand alone, time after time."""
        self.num_alone = self.num_alone + 1 if self.ring.count == 1 else 0
        if self.num_alone == 3:
            found, most = (rows / self.rule.rate for rows in (num_missing + 1, self.max_missing + 1))
            note(
                f"a picture every {found:.1f} s: each is scored alone, as this model sees events in pictures at most "
                f"{most:.1f} s apart"
            )

    def score(self, next_row: int) -> None:
        """Runs the model and tells what the scores of the n rows before `next_row` begin, continue and end."""
        num_new, numbers = len(self.arrivals), []
        p_A, p_class = (p[-num_new:] for p in self.model.predict(self.ring.newest()))
        self.latencies.append(time.monotonic() - self.arrivals[0])
        first = next_row - num_new
        for i in range(num_new):
            if news := self.rule.add(first + i, float(p_A[i]), p_class[i]):
                self.announce(*news, self.arrivals[i])
                numbers.append(self.num_events)
        if (event := self.rule.event()) and self.num_events not in numbers and event.end > first:
            self.announce("update", event, self.arrivals[0])
        self.arrivals.clear()

    def announce(self, kind: str, event: Event, arrival: float) -> None:
        """Tells of an event, because of a row that came at `arrival`."""
        self.num_events += kind == "begin"
        self.tell(kind, self.num_events, event, time.monotonic() - arrival)

    def finish(self) -> None:
        """Scores what is left, ends the open event and starts anew."""
        if self.next_row is None:
            return
        if self.arrivals:
            self.score(self.next_row)
        if news := self.rule.finish():
            self.announce(*news, self.arrival)
        self.next_row, self.ring.count = None, 0
