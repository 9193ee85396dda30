"""What an event is: the rule on p_A for whole videos (`cut_events`) and for rows that come one by one (`EventRule`).

Every number of evaluate.py, every event of predict.py and every alarm of a stream is made with it; report.html has it
once more, so that its slider works without Python, and a test compares the two. Intervals of frames are half-open. E
events, C anomaly classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videoanomaly.runtime.console import InputError

LOW_SHARE = 0.5
MERGE_GAP = 1.0  # seconds
MIN_LENGTH = 1.0  # seconds


EVENT_OPTIONS = ("threshold", "false_alarms_per_hour", "hysteresis", "merge_gap", "min_length")


def check_event_options(
    threshold: float | None, false_alarms_per_hour: float | None, hysteresis: float, merge_gap: float, min_length: float
) -> None:
    """Refuses options of events, by an InputError, that are out of range; they are predict.py's of these names."""
    for option, share in (("--threshold", threshold), ("--hysteresis", hysteresis)):
        if share is not None and not 0 < share <= 1:
            raise InputError(f"{option} {share}: expected a number above 0, at most 1")
    for option, seconds in (("--min-length", min_length), ("--merge-gap", merge_gap)):
        if not 0 <= seconds < math.inf:
            raise InputError(f"{option} {seconds}: expected seconds, at least 0")
    if false_alarms_per_hour is not None and not 0 < false_alarms_per_hour < math.inf:
        raise InputError(f"--false-alarms-per-hour {false_alarms_per_hour}: expected a number above 0")
    if None not in (threshold, false_alarms_per_hour):
        raise InputError("--threshold and --false-alarms-per-hour both choose the threshold: expected one of them")


class EventSettings(NamedTuple):
    """When an event begins and ends, for whole videos and for streams."""

    threshold: float  # an event has to reach this p_A
    low_share: float = LOW_SHARE  # it lasts while p_A >= low_share * threshold
    merge_gap: float = MERGE_GAP  # seconds; events at most so far apart are one
    min_length: float = MIN_LENGTH  # seconds; shorter ones are dropped

    @property
    def low(self) -> float:
        """The p_A below which an event ends."""
        return self.low_share * self.threshold

    @property
    def is_usual(self) -> bool:
        """Whether all but the threshold is as by default, and so as in the numbers of evaluate.py."""
        return self == EventSettings(self.threshold)


def highest_classes(means: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """The three classes of highest mean p_class, (C,), best first."""
    return [{"class": classes[c], "p_class": float(means[c])} for c in np.argsort(-means, kind="stable")[:3]]


class Event(NamedTuple):
    """Of a stream."""

    start: int  # row
    end: int  # row behind the last
    p_A: float  # mean, closed gaps included
    p_class: np.ndarray  # mean, (C,)


class EventRule:
    """`cut_events` for rows that come one by one: an event has ended when no later row can change it.

    Args:
        rate: Rows per second.
        settings: As `cut_events` takes them by name.
        num_classes: C.
    """

    def __init__(self, rate: float, settings: EventSettings, num_classes: int):
        self.rate, self.high, self.low = rate, settings.threshold, settings.low
        self.merge_gap, self.min_length = settings.merge_gap * rate, settings.min_length * rate
        self.nothing = np.zeros(1 + num_classes)
        self.forget()

    def forget(self) -> None:
        """As if no row had come yet."""
        self.start: int | None = None  # row, of the event so far
        self.run: int | None = None  # first row of the current run of rows of at least low
        self.end = 0  # row behind the last of the event so far
        self.reached = self.begun = False  # the run reached high; the event was told
        self.total = self.later = self.nothing  # sums of p_A and p_class: of the event, of what is behind it

    def add(self, row: int, p_A: float, p_class: np.ndarray) -> tuple[str, Event] | None:
        """Returns ("begin" or "end", event) if that is what this row tells."""
        self.later = self.later + np.concatenate([[p_A], p_class])
        if p_A >= self.low:
            self.run = row if self.run is None else self.run
            self.reached |= bool(p_A >= self.high)
        else:
            self.run, self.reached = None, False
        if self.run is not None and self.reached:
            return self.extend(row, self.run)
        if self.run is None and self.start is None:
            self.later = self.nothing
        elif self.run is None and row + 1 - self.end > self.merge_gap:
            return self.finish()

    def extend(self, row: int, run: int) -> tuple[str, Event] | None:
        """The event reaches up to this row; its first one is that of the run, if there is no event yet."""
        start = self.start = run if self.start is None else self.start
        self.total, self.later, self.end = self.total + self.later, self.nothing, row + 1
        if not self.begun and self.end - start >= self.min_length:
            self.begun = True
            event = self.event()
            return event and ("begin", event)

    def event(self) -> Event | None:
        """The one that is open, None without."""
        if self.begun and self.start is not None:
            p_A, *p_class = self.total / (self.end - self.start)
            return Event(self.start, self.end, float(p_A), np.array(p_class))

    def finish(self) -> tuple[str, Event] | None:
        """Ends the open event, if any: no more rows."""
        event = self.event()
        self.forget()
        return event and ("end", event)


class Events(NamedTuple):
    """In whole videos."""

    intervals: np.ndarray  # (E, 2), frames, half-open
    scores: np.ndarray  # (E,)


def runs(mask: np.ndarray) -> np.ndarray:
    """Maximal runs of True, (E, 2), half-open."""
    padded = np.concatenate([[False], mask, [False]])
    return np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)


def join_videos(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Curves of V videos as one, -inf behind each, which no event spans, (frames + V,), and where each starts, (V,)."""
    sizes = [len(p) + 1 for p in curves]
    return np.concatenate([part for p in curves for part in (p, [-np.inf])]).astype(float), np.cumsum([0, *sizes[:-1]])


def find_runs(p: np.ndarray, high: float, low: float) -> np.ndarray:
    """Maximal runs of p >= low of which one frame at least has p >= high, (E, 2); p ends with -inf."""
    found = runs(p >= low)
    return found[np.maximum.reduceat(p, found.ravel())[::2] >= high] if len(found) else found


def close_gaps(p: np.ndarray, found: np.ndarray, starts: np.ndarray, most: np.ndarray) -> Events:
    """Runs of a video at most `most` frames apart (one number per video) become one event each.

    Args:
        p: As `join_videos` gives it, with `starts`.
        found: The runs, (E, 2), ascending.
        starts: Where each video starts, (V,).
        most: Of each video, (V,).
    """
    video_idx = np.searchsorted(starts, found[:, 0], side="right") - 1
    apart = (found[1:, 0] - found[:-1, 1] > most[video_idx[1:]]) | (video_idx[1:] != video_idx[:-1])
    ends = np.ones(min(len(found), 1), bool)
    found = np.stack([found[np.append(ends, apart), 0], found[np.append(apart, ends), 1]], axis=1)
    sums = np.add.reduceat(p, found.ravel())[::2] if len(found) else np.zeros(0)
    return Events(found, sums / (found[:, 1] - found[:, 0]))


def cut_joined(
    p: np.ndarray, starts: np.ndarray, rates: np.ndarray, high: float, low: float, merge_gap: float, min_length: float
) -> Events:
    """cut_events of all videos at once; p and starts as join_videos gives them, one rate per video."""
    events = close_gaps(p, find_runs(p, high, low), starts, merge_gap * rates)
    least = min_length * rates[np.searchsorted(starts, events.intervals[:, 0], side="right") - 1]
    kept = events.intervals[:, 1] - events.intervals[:, 0] >= least
    return Events(events.intervals[kept], events.scores[kept])


def cut_events(
    p: np.ndarray,
    fps: float,
    *,
    high: float = 0.5,
    low: float | None = None,
    merge_gap: float = MERGE_GAP,
    min_length: float = MIN_LENGTH,
) -> Events:
    """Cuts events out of one probability per frame.

    1. Hysteresis: an event is a maximal run of frames with p >= low, of which one at least has p >= high.
    2. Events at most merge_gap apart become one, the gap included.
    3. Events shorter than min_length are dropped.
    The score of an event is its mean probability, closed gaps included.

    Args:
        p: (N,).
        fps: Frames per second.
        high, low: Thresholds, low is LOW_SHARE * high if not given.
        merge_gap, min_length: Seconds.
    """
    p, starts = join_videos([p])
    return cut_joined(p, starts, np.array([fps]), high, LOW_SHARE * high if low is None else low, merge_gap, min_length)
