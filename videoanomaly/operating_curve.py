"""What a threshold means: alarms in videos that the model has not seen, by their labels alone.

No frame's truth is asked for. An alarm is an event of event_rule.cut_events; in a normal video it is a false one, in an
abnormal one it counts as a hit, wherever it lies. G thresholds, C anomaly classes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from videoanomaly.event_rule import cut_events

THRESHOLDS = np.concatenate([np.arange(1, 50) / 50, 1 - np.geomspace(0.01, 1e-4, 8)])  # (G,), ascending
Z = 1.96  # intervals of 95 %


class Watched(NamedTuple):
    """A video that was scored by a model that has not seen it."""

    label: int  # class, -1 normal
    p_A: np.ndarray  # (N,) by frame
    p_class: np.ndarray  # (N, C)
    fps: float


def share_interval(count: float, total: int) -> tuple[float, float]:
    """Of a share count / total, 95 % (E. B. Wilson, 1927); all of [0, 1] where nothing was counted."""
    if not total:
        return 0.0, 1.0
    share, n = count / total, total + Z**2
    middle = (count + Z**2 / 2) / n
    half = Z / n * math.sqrt(share * (1 - share) * total + Z**2 / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def rate_interval(count: float, hours: float) -> tuple[float, float]:
    """Of a rate count / hours, 95 %, were the events independent (F. Garwood, 1936, by Wilson and Hilferty's cube)."""
    if not hours:
        return 0.0, math.inf
    low = count * (1 - 1 / (9 * count) - Z / (3 * math.sqrt(count))) ** 3 if count else 0.0
    high = (count + 1) * (1 - 1 / (9 * (count + 1)) + Z / (3 * math.sqrt(count + 1))) ** 3
    return low / hours, high / hours


class OperatingCurve(NamedTuple):
    """Counts by threshold, each (G,)."""

    thresholds: np.ndarray
    false_alarms: np.ndarray  # events in normal videos
    alarmed: np.ndarray  # normal videos with an event
    found: np.ndarray  # abnormal videos with an event
    named: np.ndarray  # those whose surest event has their class
    num_normal: int
    num_abnormal: int
    normal_hours: float

    def to_plain(self) -> dict[str, Any]:
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self._asdict().items()
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "OperatingCurve":
        given: dict[str, Any] = {n: np.asarray(v) if isinstance(v, list) else v for n, v in plain.items()}
        return cls(**given)

    @property
    def balanced_accuracy(self) -> np.ndarray:
        """Mean of the shares of abnormal videos with an alarm and of normal ones without, (G,)."""
        return (self.found / max(self.num_abnormal, 1) + 1 - self.alarmed / max(self.num_normal, 1)) / 2

    def best_threshold(self) -> float:
        """That of the highest balanced accuracy; of several the middle one."""
        best = np.flatnonzero(self.balanced_accuracy >= self.balanced_accuracy.max() - 1e-9)
        return float(self.thresholds[best[len(best) // 2]])

    def threshold_at(self, rate: float) -> float | None:
        """The lowest at and above which there are at most `rate` false alarms per hour; None if there is none."""
        fits = self.false_alarms <= rate * self.normal_hours
        lowest = len(fits) - int(np.argmin(np.append(fits[::-1], False)))
        return float(self.thresholds[lowest]) if lowest < len(fits) else None

    @property
    def lowest_rate(self) -> float:
        """False alarms per hour that the normal footage can tell of: one in all of it."""
        return 1 / self.normal_hours if self.normal_hours else math.inf

    def at(self, threshold: float) -> dict[str, Any]:
        """What to expect at a threshold: values and their intervals, by name."""
        i = int(np.abs(self.thresholds - threshold).argmin())
        shares = {
            "normal_alarmed": (self.alarmed[i], self.num_normal),
            "found": (self.found[i], self.num_abnormal),
            "named": (self.named[i], self.num_abnormal),
        }
        row: dict[str, Any] = {"threshold": float(self.thresholds[i])}
        hours, count = self.normal_hours, int(self.false_alarms[i])
        row["false_alarms_per_hour"] = count / hours if hours else None
        row["false_alarms_per_hour_interval"] = list(rate_interval(count, hours))
        for name, (count, total) in shares.items():
            row[name] = float(count / total) if total else None
            row[f"{name}_interval"] = list(share_interval(float(count), total))
        return row | {"balanced_accuracy": float(self.balanced_accuracy[i])}


def measure(videos: Sequence[Watched], thresholds: np.ndarray = THRESHOLDS) -> OperatingCurve:
    """The curve of some videos, each scored by a model that has not seen it."""
    counts = np.zeros((4, len(thresholds)), int)
    for video in videos:
        for g, threshold in enumerate(thresholds):
            if video.p_A.max() < threshold:
                break
            events = cut_events(video.p_A, video.fps, high=threshold)
            if not len(events.intervals):
                continue
            if video.label < 0:
                counts[:2, g] += len(events.intervals), 1
                continue
            start, end = events.intervals[events.scores.argmax()]
            counts[2:, g] += 1, int(video.p_class[start:end].mean(axis=0).argmax() == video.label)
    normal = [video for video in videos if video.label < 0]
    hours = sum(len(video.p_A) / video.fps for video in normal) / 3600
    false_alarms, alarmed, found, named = counts
    num_abnormal = len(videos) - len(normal)
    return OperatingCurve(thresholds, false_alarms, alarmed, found, named, len(normal), num_abnormal, hours)
