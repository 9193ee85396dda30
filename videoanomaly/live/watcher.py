"""Rows of a stream in, events out.

Shapes: S segments of F rows, T = S * F rows in the ring, D feature size, C anomaly classes, n new rows.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from anomalyclip import AnomalyCLIPConfig, VideoModel
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


@torch.inference_mode()
def predict_together(model: VideoModel, streams: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """`model.predict` of several streams at once.

    Args:
        model: In evaluation mode, on any device.
        streams: Of each its newest rows, (n, crops, D) with n at most T; fewer are repeated from their start.
    Returns:
        For each p_A (n,) and p_class (n, C).
    """
    shape = (model.config.num_segments, model.config.num_frames)
    grid = np.arange(shape[0] * shape[1]).reshape(shape)
    rows = np.stack([rows[grid % len(rows)] for rows in streams])  # (J, S, F, crops, D), a stream for each pass
    segments = torch.from_numpy(rows).to(model.prototype.device, torch.float32).movedim(3, 0)
    p_A, p_class = model.score_segments(segments)
    return [
        (model.smoothed(p_A[j].reshape(-1)[: len(n)]), model.smoothed(p_class[j].reshape(grid.size, -1)[: len(n)]))
        for j, n in enumerate(streams)
    ]


class Watch:
    """Rows in, events out: ring, model and event rule of one stream.

    Args:
        model: In evaluation mode.
        rate: Rows per second.
        settings: Of `EventRule`.
        num_crops: Crops of a row.
        tell: Called with "begin", "update" or "end", the number of the event, the event and the latency, seconds.
        seen: Called with each row's number, p_A, and p_class, before what it tells is told.
        say: Takes a line for the user.
    """

    def __init__(
        self,
        model: Model,
        *,
        rate: float,
        settings: EventSettings,
        num_crops: int,
        tell: Callable[[str, int, Event, float], None],
        seen: Callable[[int, float, np.ndarray], None] | None = None,
        say: Callable[[str], object] = note,
    ):
        config, self.model, self.tell, self.seen, self.say = model.config, model, tell, seen, say
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
        """Takes a row as `push` does, and runs the model if it is time to."""
        if self.push(features, row, arrival):
            self.score()

    def push(self, features: np.ndarray, row: int, arrival: float) -> bool:
        """Takes a row, (crops, D), by its number, greater than that of the one before; missing ones repeat that one.

        `arrival` is when its frame came, time.monotonic(). Returns whether there are enough rows to run the model.
        """
        if self.next_row is not None and row - self.next_row > self.max_missing:
            self.note_slowness(row - self.next_row)
            self.finish()
        for missing in range(row - (row if self.next_row is None else self.next_row), -1, -1):
            self.ring.push(self.features if missing else features)
            self.arrivals.append(arrival)
        self.next_row, self.features, self.arrival = row + 1, features, arrival
        return len(self.arrivals) >= self.num_frames

    def has_room(self, row: int) -> bool:
        """Whether the model, if it is run only after this row, still sees all that have no scores yet."""
        return self.next_row is None or len(self.arrivals) + row + 1 - self.next_row <= self.ring.num_rows

    def note_slowness(self, num_missing: int) -> None:
        """One line if the source is too slow for this model: rows stand alone, time after time."""
        self.num_alone = self.num_alone + 1 if self.ring.count == 1 else 0
        if self.num_alone == 3:
            found, most = (rows / self.rule.rate for rows in (num_missing + 1, self.max_missing + 1))
            self.say(
                f"a picture every {found:.1f} s: each is scored alone, as this model sees events in pictures at most "
                f"{most:.1f} s apart"
            )

    def score(self) -> None:
        """Runs the model for this stream alone."""
        self.take(*self.model.predict(self.ring.newest()))

    def take(self, p_A: np.ndarray, p_class: np.ndarray) -> None:
        """Tells what the scores of the n newest rows begin, continue and end.

        Args:
            p_A, p_class: What the model says of `ring.newest()`, (T,) and (T, C).
        """
        assert self.next_row is not None, "rows come before their scores"
        num_new, numbers = len(self.arrivals), []
        p_A, p_class = p_A[-num_new:], p_class[-num_new:]
        self.latencies.append(time.monotonic() - self.arrivals[0])
        first = self.next_row - num_new
        for i in range(num_new):
            if self.seen:
                self.seen(first + i, float(p_A[i]), p_class[i])
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
            self.score()
        if news := self.rule.finish():
            self.announce(*news, self.arrival)
        self.next_row, self.ring.count = None, 0
