"""What a threshold means: alarms in videos that the model has not seen, by their labels alone.

No frame's truth is asked for. An alarm is an event of event_rule.cut_events; in a normal video it is a false one, in an
abnormal one it counts as found, wherever it lies. G thresholds, N frames of a video, C anomaly classes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from videoanomaly.event_rule import cut_events

MOST_THRESHOLDS = 64
Z = 1.96  # intervals of 95 %
T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
)  # the same where 1, 2, ... differences told the variance (Student, 1908)
LADDER = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]  # false alarms per hour
COUNTS = ("false_alarms", "normal_alarmed", "found", "named")


class Watched(NamedTuple):
    """A video that was scored by a model that has not seen it."""

    label: int  # class, -1 normal
    p_A: np.ndarray  # (N,) by frame
    p_class: np.ndarray  # (N, C)
    fps: float
    source: str = ""  # what it comes from: videos of one source are alike; "" where each is its own
    fold: int = 0  # videos of one fold were scored by the same model


def share_interval(count: float, total: float) -> tuple[float, float]:
    """Of a share count / total, 95 % (E. B. Wilson, 1927); all of [0, 1] where nothing was counted."""
    if not total:
        return 0.0, 1.0
    share, n = count / total, total + Z**2
    middle = (count + Z**2 / 2) / n
    half = Z / n * math.sqrt(share * (1 - share) * total + Z**2 / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def rate_interval(count: float, hours: float) -> tuple[float, float]:
    """Of a rate count / hours, 95 % (F. Garwood, 1936, by Wilson and Hilferty's cube); open above without hours."""
    if not hours:
        return 0.0, math.inf
    low = count * max(1 - 1 / (9 * count) - Z / (3 * math.sqrt(count)), 0) ** 3 if count else 0.0
    high = (count + 1) * (1 - 1 / (9 * (count + 1)) + Z / (3 * math.sqrt(count + 1))) ** 3
    return low / hours, high / hours


def quantile_of(freedom: int) -> float:
    """Student's of 95 %, within 0.01: more than Z where few differences tell a variance."""
    if freedom <= len(T):
        return T[freedom - 1]
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


class OperatingCurve(NamedTuple):
    """What each threshold did, (G,) each; thresholds ascend."""

    thresholds: np.ndarray
    false_alarms: np.ndarray  # events in normal videos
    normal_alarmed: np.ndarray  # normal videos with an event
    found: np.ndarray  # abnormal videos with an event
    named: np.ndarray  # those whose surest event has their class
    dispersion: (
        np.ndarray
    )  # (4, G): of these counts over sources or over models, as a multiple of chance's alone; 1 or more
    num_normal: int
    num_abnormal: int
    normal_hours: float

    def to_plain(self) -> dict[str, Any]:
        return {name: np.asarray(value).tolist() for name, value in self._asdict().items()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "OperatingCurve":
        given: dict[str, Any] = {n: np.asarray(v) if isinstance(v, list) else v for n, v in plain.items()}
        return cls(**given)

    @property
    def balanced_accuracy(self) -> np.ndarray:
        """Mean of the shares of abnormal videos with an alarm and of normal ones without, (G,)."""
        return (self.found / max(self.num_abnormal, 1) + 1 - self.normal_alarmed / max(self.num_normal, 1)) / 2

    def best_threshold(self) -> float:
        """That of the highest balanced accuracy, of several the middle one; without abnormal videos that of one false
        alarm an hour, hence of none where there is less than an hour of normal footage.
        """
        if not self.num_abnormal:
            threshold = self.threshold_at(1.0)
            return float(self.thresholds[-1]) if threshold is None else threshold
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
        """What to expect at a threshold, values by name and NAME_interval of 95 %.

        Between two thresholds of the curve it is the lower one's, which promises less. None where no video tells.
        """
        g = max(int(np.searchsorted(self.thresholds, threshold + 1e-12, side="right")) - 1, 0)
        sizes = dict(zip(COUNTS, (self.normal_hours, self.num_normal, self.num_abnormal, self.num_abnormal)))
        row: dict[str, Any] = {"threshold": threshold}
        for k, (name, size) in enumerate(sizes.items()):
            count, spread = float(getattr(self, name)[g]), float(self.dispersion[k, g])
            interval = (share_interval if k else rate_interval)(count / spread, size / spread)
            key = name if k else "false_alarms_per_hour"
            row |= {key: count / size if size else None, f"{key}_interval": list(interval) if size else None}
        told = self.num_normal and self.num_abnormal
        return row | {"balanced_accuracy": float(self.balanced_accuracy[g]) if told else None}

    def rows(self) -> list[dict[str, Any]]:
        """Up to five of `at`: the default threshold, and others over the rates that the footage can tell."""
        rates = [rate for rate in LADDER if rate >= self.lowest_rate]
        others = sorted({t for rate in rates if (t := self.threshold_at(rate)) is not None})
        others = [others[i] for i in np.linspace(0, len(others) - 1, min(4, len(others))).round().astype(int)]
        return [self.at(threshold) for threshold in sorted({self.best_threshold(), *others})]


def thresholds_of(videos: Sequence[Watched]) -> np.ndarray:
    """Up to MOST_THRESHOLDS between the highest p_A of two videos, and one above all, ascending, (G,)."""
    peaks = np.unique([float(video.p_A.max()) for video in videos])
    between = (peaks[1:] + peaks[:-1]) / 2
    if len(between) > MOST_THRESHOLDS - 1:
        between = between[np.linspace(0, len(between) - 1, MOST_THRESHOLDS - 1).round().astype(int)]
    return np.append(between, min((peaks[-1] + 1) / 2, 1.0))


def counts_of(video: Watched, thresholds: np.ndarray) -> np.ndarray:
    """What COUNTS counts in a video at each threshold, (4, G)."""
    counts = np.zeros((4, len(thresholds)), int)
    for g, threshold in enumerate(thresholds[thresholds <= video.p_A.max()]):
        events = cut_events(video.p_A, video.fps, high=threshold)
        if len(events.intervals) and video.label < 0:
            counts[:2, g] = len(events.intervals), 1
        elif len(events.intervals):
            start, end = events.intervals[events.scores.argmax()]
            counts[2:, g] = 1, video.p_class[start:end].mean(axis=0).argmax() == video.label
    return counts


def dispersion_of(counts: np.ndarray, sizes: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Variance of counts over groups of videos as a multiple of chance's alone, (4, G), 1 or more.

    Args:
        counts: (videos, 4, G).
        sizes: Hours or videos that each was counted in, (videos, 4); 0 where the video is not of the kind.
        groups: Name of each video's.
    """
    group = np.unique(groups, return_inverse=True)[1]
    totals = np.zeros((group.max() + 1, *counts.shape[1:]))  # (groups, 4, G)
    np.add.at(totals, group, counts)
    weights = np.stack([np.bincount(group, column) for column in sizes.T], axis=1)[:, :, None]  # (groups, 4, 1)
    rates = totals.sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-9)
    freedom = np.maximum((weights > 0).sum(axis=0) - 1, 1)
    found = ((totals - rates * weights) ** 2).sum(axis=0) * (freedom + 1) / freedom
    by_chance = (
        weights.sum(axis=0) * rates * np.concatenate([np.ones_like(rates[:1]), 1 - rates[1:]])
    )  # Poisson, shares
    return np.maximum(np.divide(found, by_chance, out=np.ones_like(found), where=by_chance > 0), 1.0)


def doubt_of(sizes: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """What few sources leave open: how many times the variance that they show has to be taken, (4, 1), 1 or more.

    Args:
        sizes, groups: As in `dispersion_of`. Where each video is a group of its own there is nothing to ask.
    """
    names, factors = np.asarray(groups), np.ones((sizes.shape[1], 1))
    for k, column in enumerate(sizes.T):
        number = len(np.unique(names[column > 0]))
        if 1 < number < (column > 0).sum():
            factors[k] = (quantile_of(number - 1) / Z) ** 2
    return factors


def measure(videos: Sequence[Watched]) -> OperatingCurve:
    """The curve of some videos, each scored by a model that has not seen it."""
    thresholds = thresholds_of(videos)
    counts = np.stack([counts_of(video, thresholds) for video in videos])  # (videos, 4, G)
    normal = np.array([video.label < 0 for video in videos])
    hours = np.array([len(video.p_A) / video.fps / 3600 for video in videos])
    sizes = np.stack([hours * normal, normal, ~normal, ~normal], axis=1)  # of each count, (videos, 4)
    sources = [video.source or str(i) for i, video in enumerate(videos)]
    of_sources = dispersion_of(counts, sizes, sources) * doubt_of(sizes, sources)
    of_models = dispersion_of(counts, sizes, [str(video.fold) for video in videos])
    false_alarms, normal_alarmed, found, named = counts.sum(axis=0)
    return OperatingCurve(
        thresholds,
        false_alarms,
        normal_alarmed,
        found,
        named,
        np.maximum(of_sources, of_models),
        int(normal.sum()),
        int((~normal).sum()),
        float(hours[normal].sum()),
    )
