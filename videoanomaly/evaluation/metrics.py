"""What the field reports beyond the paper's metrics: intervals, events and operating points.

`scores` is everywhere a sequence with one object per video, as scoring.py's `Scores`: p_A (N,), p_class (N, C) and
labels (N,), -1 for normal frames, else the class; or masks (N, C) in all videos where frames show several classes at
once. `fps` is one number, or one per video. Metrics are in [0, 1]; a value
that does not exist is None. Intervals of frames are half-open. V is the number of videos, R of bootstrap draws, E of
events.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from videoanomaly.evaluation.paper_metrics import is_anomalous, is_class
from videoanomaly.event_rule import (
    MERGE_GAP,
    MIN_LENGTH,
    Events,
    close_gaps,
    cut_events,
    cut_joined,
    find_runs,
    join_videos,
    runs,
)
from videoanomaly.operating_curve import Watched, measure

LEVELS_AT_ONCE = 128  # rows of the (levels, R) matrices of the bootstrap: 1 MB each at 1,000 draws
PROPOSAL_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NMS_IOU = 0.6  # as VadCLIP's
IOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
FALSE_ALARMS_PER_HOUR = 1.0
NUM_CANDIDATES = 200  # thresholds tried, at most
Rates = float | Sequence[float] | np.ndarray  # frames per second: one number, or one per video


class Scored(Protocol):
    """A video whose p_A alone is read."""

    @property
    def p_A(self) -> np.ndarray: ...  # (N,)


class Labelled(Scored, Protocol):
    """A video of `scores`."""

    @property
    def p_class(self) -> np.ndarray | None: ...  # (N, C); None where a rule knows no classes

    @property
    def labels(self) -> np.ndarray: ...  # (N,) or (N, C)


def class_curve(scores: Labelled, c: int) -> np.ndarray:
    """p_class of one class, (N,)."""
    assert scores.p_class is not None, "a rule without classes has no curve of one"
    return scores.p_class[:, c]


def class_runs(scores: Sequence[Labelled], c: int) -> list[np.ndarray]:
    """The maximal runs of frames of one class in each video, (E, 2)."""
    return [runs(is_class(s.labels, c)) for s in scores]


def sums_by_level(
    level: np.ndarray, video_idx: np.ndarray, num_levels: int, weights: Tensor
) -> Callable[[int, int], Tensor]:
    """Function of (a, b): summed weights (V, R) of the items at each of the levels a to b - 1, (b - a, R) float64.

    Args:
        level: Of each item, (items,), in [0, num_levels); those beyond are left out.
        video_idx: Of each item, (items,).
        num_levels: At least 0.
        weights: Of each video, (V, R).
    """
    order = np.argsort(level, kind="stable")
    items = torch.from_numpy(video_idx[order])
    ends = torch.from_numpy(np.searchsorted(level[order], np.arange(num_levels + 1)))

    def between(a: int, b: int) -> Tensor:
        first, last = ends[a], ends[b]
        return torch.nn.functional.embedding_bag(items[first:last], weights, ends[a:b] - first, mode="sum").double()

    return between


def weighted_auc_ap(
    p: np.ndarray, positive: np.ndarray, video_idx: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and AP for many weightings of the videos at once, equal to scikit-learn's with sample_weight.

    Scores are sorted once. Both metrics need the frames above (and level with) a positive frame alone, so a level is a
    distinct positive score. All weightings run down the levels together, a few levels at a time, so that they stay in
    the cache, at whose speed torch's embedding_bag adds rows of a matrix.

    Args:
        p: Scores, (N,).
        positive: (N,), bool.
        video_idx: Video of each frame, (N,), in [0, V).
        weights: Times that each draw holds each video, (R, V), whole numbers.
    Returns:
        AUC (R,) and AP (R,); NaN where a draw has no positive or no negative frame.
    """
    num_draws, num_videos = weights.shape
    most = (weights @ np.bincount(video_idx, minlength=num_videos)).max(initial=0)
    exact = np.float32 if most < 2**24 else np.float64  # holds the frames of any draw exactly
    by_video = torch.from_numpy(np.ascontiguousarray(weights.T, dtype=exact))  # (V, R)
    levels, level = np.unique(p[positive], return_inverse=True)  # ascending
    rank = np.searchsorted(levels, p[~positive], side="right")  # levels at or below each negative
    tied = (rank > 0) & (levels[np.maximum(rank, 1) - 1] == p[~positive]) if len(levels) else rank > 0
    L, negative_idx = len(levels), video_idx[~positive]
    positives = sums_by_level(L - 1 - level, video_idx[positive], L, by_video)  # levels are descending from here on
    negatives = sums_by_level(L - rank, negative_idx, L, by_video)
    ties = sums_by_level((L - rank)[tied], negative_idx[tied], L, by_video)

    totals = [
        weights @ np.bincount(video_idx[mask], minlength=num_videos).astype(float) for mask in (positive, ~positive)
    ]
    num_positives, num_negatives = map(torch.from_numpy, totals)
    wins, area, hits, alarms = torch.zeros(4, num_draws, dtype=torch.float64)
    for a in range(0, L, LEVELS_AT_ONCE):
        b = min(a + LEVELS_AT_ONCE, L)
        gain = positives(a, b)  # (levels, R)
        true, false = hits + gain.cumsum(0), alarms + negatives(a, b).cumsum(0)  # at or above each level
        hits, alarms = true[-1], false[-1]
        wins = wins + (gain * (num_negatives - false)).sum(0) + (gain * ties(a, b)).sum(0) / 2
        area = area + (gain * true).div_((true + false).clamp_(min=1)).sum(0)
    ap = (area / num_positives).where(num_negatives > 0, torch.nan)
    return (wins / (num_positives * num_negatives)).numpy(), ap.numpy()


def interval(values: np.ndarray) -> list[float] | None:
    """2.5 and 97.5 percentile of the draws that have a value."""
    values = values[np.isfinite(values)]
    return np.percentile(values, (2.5, 97.5)).tolist() if len(values) else None


def mean_of_present(values: np.ndarray) -> np.ndarray:
    """Mean over the classes of each draw that have a value, (C, R) to (R,); NaN where none has."""
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(0) / present.sum(0)


def bootstrap_metrics(scores: Sequence[Labelled], classes: Sequence[str], num_draws: int = 1000, seed: int = 0) -> dict:
    """95% percentile intervals of the metrics of paper_metrics.metrics, from a bootstrap over videos.

    Each draw takes as many videos as there are, with replacement, and all frames of each. A class without frames in a
    draw leaves this draw out of its own intervals; the means of a draw are over the classes that occur in it.

    Returns:
        AUC, AP, mAUC, mAP, each [low, high] or None; draws, those behind AUC and AP; videos, frames; and
        per_class[name] with AUC, AP, draws (those with the class), videos and frames (those that have the class).
        Without p_class (a rule that knows no classes) neither the means nor per_class.
    """
    labels, p_A = (np.concatenate([getattr(s, name) for s in scores]) for name in ("labels", "p_A"))
    video_idx = np.repeat(np.arange(len(scores)), [len(s.labels) for s in scores])
    weights = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), num_draws)

    def intervals(p: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict]:
        auc, ap = weighted_auc_ap(p, positive, video_idx, weights)
        return auc, ap, {"AUC": interval(auc), "AP": interval(ap), "draws": int(np.isfinite(auc).sum())}

    *_, result = intervals(p_A, is_anomalous(labels))
    result |= {"videos": len(scores), "frames": len(labels)}
    if scores[0].p_class is None:
        return result
    aucs, aps, per_class = [], [], {}
    for c, name in enumerate(classes):
        mask = is_class(labels, c)
        auc, ap, per_class[name] = intervals(np.concatenate([class_curve(s, c) for s in scores]), mask)
        per_class[name] |= {"videos": len(np.unique(video_idx[mask])), "frames": int(mask.sum())}
        aucs.append(auc)
        aps.append(ap)
    means = {"mAUC": interval(mean_of_present(np.array(aucs))), "mAP": interval(mean_of_present(np.array(aps)))}
    return result | means | {"per_class": per_class}


def reduce_runs(ufunc: np.ufunc, p: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """ufunc over the frames of each of some ascending, disjoint intervals, (E,)."""
    return ufunc.reduceat(np.append(p, 0), intervals.ravel())[::2] if len(intervals) else np.zeros(0)


def interval_iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Temporal IoU of one interval (2,), or of one each (E, 2), with others (E, 2): (E,)."""
    inter = np.maximum(np.minimum(one[..., 1], others[:, 1]) - np.maximum(one[..., 0], others[:, 0]), 0)
    return inter / (one[..., 1] - one[..., 0] + others[:, 1] - others[:, 0] - inter)


def overlapping_pairs(intervals: np.ndarray, iou: float) -> np.ndarray:
    """All pairs of intervals, sorted by their start, whose IoU is over the given one, (pairs, 2), the earlier first.

    The lengths of such a pair differ by a factor below 1 / iou, so only intervals of one power of it and the next are
    compared; and the later starts before 1 - iou of the earlier is over.
    """
    starts, lengths = intervals[:, 0], intervals[:, 1] - intervals[:, 0]
    power, pairs = np.floor(np.log(lengths) / -np.log(iou) + 1e-9).astype(int), [np.zeros((0, 2), int)]
    for least in np.unique(power):
        group = np.flatnonzero((power == least) | (power == least + 1))
        first = np.arange(len(group) - 1)
        for step in range(1, len(group)):
            first = first[first + step < len(group)]
            first = first[starts[group[first + step]] - starts[group[first]] < (1 - iou) * lengths[group[first]] + 1e-6]
            if not len(first):
                break
            pair = np.stack([group[first], group[first + step]], axis=1)
            pair = pair[power[pair].min(axis=1) == least]  # two of the next power come with that
            pairs.append(pair[interval_iou(intervals[pair[:, 0]], intervals[pair[:, 1]]) > iou])
    return np.concatenate(pairs)


def suppress(events: Events, iou: float) -> Events:
    """Non-maximum suppression: best first, each removes what overlaps it by more than `iou`, of equal ones the later.

    In rounds, all at once: what no better one overlaps any more stays, and removes others.

    Args:
        events: Sorted by start, then end.
        iou: Temporal IoU, in (0, 1).
    """
    rank = np.empty(len(events.scores), int)
    rank[np.argsort(-events.scores, kind="stable")] = np.arange(len(rank))
    pairs, alive = overlapping_pairs(events.intervals, iou), np.ones(len(rank), bool)
    better, worse = np.where((rank[pairs[:, 0]] < rank[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1]).T
    while len(better):
        blocked = np.zeros(len(rank), bool)
        blocked[worse] = True
        alive[worse[~blocked[better]]] = False
        left = alive[better] & alive[worse]
        better, worse = better[left], worse[left]
    return Events(events.intervals[alive], events.scores[alive])


def propose_events(curves: Sequence[np.ndarray], rates: Sequence[float] | np.ndarray) -> tuple[np.ndarray, Events]:
    """Events of each video's curve at several thresholds, as one threshold would bind the mAP to it; see event_map.

    Returns:
        Video of each event (E,), and the events by video, start and end.
    """
    p, starts = join_videos(curves)
    parts, gap = [Events(np.zeros((0, 2), int), np.zeros(0))], MERGE_GAP * np.asarray(rates)
    for high in PROPOSAL_THRESHOLDS:
        found = find_runs(p, high, high / 2)
        parts += [close_gaps(p, found, starts, most) for most in (0 * gap, gap)]
    intervals, scores = (np.concatenate(values) for values in zip(*parts))
    first = np.unique(intervals[:, 0] * len(p) + intervals[:, 1], return_index=True)[1]
    events = suppress(Events(intervals[first], scores[first]), NMS_IOU)
    video_idx = np.searchsorted(starts, events.intervals[:, 0], side="right") - 1
    return video_idx, Events(events.intervals - starts[video_idx, None], events.scores)


def match_events(
    video_idx: Sequence[int] | np.ndarray, intervals: np.ndarray, truths: list[np.ndarray], min_iou: float
) -> np.ndarray:
    """Whether each detection, best first, finds a ground truth of its video that none before it took: (E,), bool.

    It takes the one of those left with the largest IoU, the earliest if equal, provided that this is at least min_iou.
    """
    left, hits = list(truths), np.zeros(len(intervals), bool)
    for i, v in enumerate(video_idx):
        if len(left[v]):
            iou = interval_iou(intervals[i], left[v])
            best = iou.argmax()
            hits[i] = iou[best] >= min_iou
            left[v] = np.delete(left[v], best, axis=0) if hits[i] else left[v]
    return hits


def average_precision(hits: np.ndarray, scores: np.ndarray, num_truths: int) -> float:
    """Area under the PR curve without interpolation; detections of equal (descending) scores are one point of it."""
    if not hits.any():
        return 0.0
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # last of each group of equal scores
    tp = np.cumsum(hits)[ends]
    return float((np.diff(tp, prepend=0) * tp / (ends + 1)).sum() / num_truths)


def best_ious(video_idx: np.ndarray, intervals: np.ndarray, truths: list[np.ndarray]) -> np.ndarray:
    """Largest IoU of each detection with a ground truth of its video, (E,)."""
    best = np.zeros(len(intervals))
    for v, truth in enumerate(truths):
        at = np.flatnonzero(video_idx == v) if len(truth) else ()
        for one in truth if len(at) else ():
            best[at] = np.maximum(best[at], interval_iou(one, intervals[at]))
    return best


def ap_by_iou(video_idx: np.ndarray, events: Events, truths: list[np.ndarray], ties_as_one: bool) -> np.ndarray:
    """AP of the detections of all videos at each of IOUS, (5,). Ties are ordered by video, start and end."""
    order = np.lexsort((events.intervals[:, 1], events.intervals[:, 0], video_idx, -events.scores))
    video_idx, intervals, scores = video_idx[order], events.intervals[order], events.scores[order]
    ranking, num_truths, aps = scores if ties_as_one else np.arange(len(order)), sum(map(len, truths)), []
    near = np.flatnonzero(best_ious(video_idx, intervals, truths) >= min(IOUS))  # few: the others hit nothing
    for iou in IOUS:
        hits = np.zeros(len(order), bool)
        hits[near] = match_events(video_idx[near], intervals[near], truths, iou)
        aps.append(average_precision(hits, ranking, num_truths))
    return np.array(aps)


def named_aps(aps: np.ndarray | None, prefix: str) -> dict[str, float | None]:
    """AP at each IoU and their mean, from (5,)."""
    values = [None] * 6 if aps is None else [aps.mean(), *aps]
    return {
        name: value if value is None else float(value)
        for name, value in zip((prefix, *(f"{prefix}@{iou}" for iou in IOUS)), values)
    }


def event_map(scores: Sequence[Labelled], fps: Rates, classes: Sequence[str]) -> dict:
    """Mean average precision of events at temporal IoU 0.1 to 0.5, over the anomaly classes that occur.

    Ground truth are the maximal runs of a class in labels. Detections of class c are the events of p_class[:, c] that
    cut_events finds at each of 11 thresholds `high` from 0.02 to 0.9, low = high / 2, of any length, with gaps up to 1
    s closed and with none closed; of two that overlap with IoU over 0.6 the one with the higher score (mean
    probability) stays. Matching is greedy by descending score, each ground truth once. A perfect oracle (p_class
    one-hot) scores exactly 1: the events with no gap closed are the ground truth, and every other scores less.

    Returns:
        mAP (mean of the five), mAP@0.1 to mAP@0.5, and per_class[name] with AP, AP@0.1 to AP@0.5, and events, the
        number of ground truths.
    """
    rates, per_class, present = np.broadcast_to(fps, len(scores)), {}, []
    for c, name in enumerate(classes):
        truths = class_runs(scores, c)
        num_truths = sum(map(len, truths))
        aps = None
        if num_truths:
            aps = ap_by_iou(*propose_events([class_curve(s, c) for s in scores], rates), truths, True)
            present.append(aps)
        per_class[name] = named_aps(aps, "AP") | {"events": num_truths}
    return named_aps(np.mean(present, axis=0) if present else None, "mAP") | {"per_class": per_class}


def vadclip_events(p: np.ndarray) -> Events:
    """Runs of 2 or more frames above max - 0.6 (max - min); score: max in the run + 0.7 * mean of the top N / 16."""
    p = np.asarray(p, float)
    found = runs(p > p.max() - 0.6 * (p.max() - p.min()))
    found = found[found[:, 1] - found[:, 0] >= 2]
    return Events(found, reduce_runs(np.maximum, p, found) + 0.7 * np.sort(p)[-max(len(p) // 16, 1) :].mean())


def vadclip_map(
    scores: Sequence[Labelled], classes: Sequence[str], *, normal_segments: bool
) -> dict[str, float | None]:
    """The mAP that VadCLIP (AAAI 2024) and its successors publish, quirks included; compare with their tables alone.

    Normal, p = 1 - p_A, is one more class in the mean: 14 for UCF-Crime, 7 for XD-Violence. A class without ground
    truth counts as 0. Runs of one threshold never overlap, so the published non-maximum suppression (IoU 0.6) removes
    none.

    Args:
        normal_segments: True for XD-Violence, whose normal videos are each one ground truth from end to end. False for
            UCF-Crime: its normal segments carry a name that is no class, so Normal scores 0 and a perfect oracle 13/14.
    Returns:
        mAP (mean of the five), mAP@0.1 to mAP@0.5.
    """
    normal_truths = [runs(np.full(len(s.labels), normal_segments and not is_anomalous(s.labels).any())) for s in scores]
    cases = [([1 - s.p_A for s in scores], normal_truths)]
    for c in range(len(classes)):
        cases.append(([class_curve(s, c) for s in scores], class_runs(scores, c)))
    aps = []
    for curves, truths in cases:
        parts = [vadclip_events(p) for p in curves]
        video_idx = np.repeat(np.arange(len(parts)), [len(e.scores) for e in parts])
        aps.append(ap_by_iou(video_idx, Events(*map(np.concatenate, zip(*parts))), truths, False))
    return named_aps(np.mean(aps, axis=0), "mAP")


def false_alarm_rate(
    normal: Sequence[np.ndarray],
    rates: Sequence[float],
    threshold: float,
    joined: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Events of cut_events per hour of the p_A of normal videos; `joined`: join_videos(normal), for many thresholds."""
    fps, (p, starts) = np.asarray(rates, float), joined or join_videos(normal)
    alarms = len(cut_joined(p, starts, fps, threshold, threshold / 2, MERGE_GAP, MIN_LENGTH).scores)
    return float(alarms / sum(len(p) / rate / 3600 for p, rate in zip(normal, fps)))


def quiet_threshold(normal: Sequence[np.ndarray], rates: Sequence[float]) -> float:
    """Lowest threshold at and above which these normal videos raise at most one false alarm per hour.

    Tried from the top are at most 200 of their scores, denser towards the highest; alarms do not grow steadily as the
    threshold falls, for they merge, so the first threshold with too many ends the search. Just above the highest score
    if none does.
    """
    pooled = np.sort(np.concatenate(normal).astype(float))[::-1]
    quiet, joined = float(np.nextafter(pooled[0], np.inf)), join_videos(normal)
    ranks = np.unique(np.geomspace(1, len(pooled), NUM_CANDIDATES).astype(int)) - 1
    for threshold in np.unique(pooled[ranks])[::-1]:
        if false_alarm_rate(normal, rates, threshold, joined) > FALSE_ALARMS_PER_HOUR:
            break
        quiet = float(threshold)
    return quiet


def choose_threshold(train_scores: Sequence[Scored], video_labels: Sequence[int], fps: Rates) -> float:
    """Threshold on p_A from the training videos and their video labels alone, to be stored with the model.

    It is the lowest at and above which the normal training videos raise at most one false alarm (event of cut_events)
    per hour: what an operator can bear is known, and normal videos need no frame truth, while abnormal ones do not say
    which of their frames are normal. Under an hour of normal footage that means none at all. The model was fitted to
    these very videos, so others raise more. Never above 1, and 0.5 if there are no normal videos.

    Args:
        train_scores: As `scores`; p_A alone is read.
        video_labels: Class of each video, (V,), -1 normal.
        fps: Frames per second.
    """
    rates = np.broadcast_to(fps, len(train_scores))
    normal = [(s.p_A, rate) for s, label, rate in zip(train_scores, video_labels, rates, strict=True) if label < 0]
    return min(quiet_threshold([p for p, _ in normal], [rate for _, rate in normal]), 1.0) if normal else 0.5


def equal_error_rate(p: np.ndarray, positive: np.ndarray) -> float | None:
    """Rate at which misses equal false alarms, by frame, linear between ROC points; None with one kind of frame."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-p, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))
    tpr, fpr = (np.append(0, np.cumsum(kind[order])[ends] / kind.sum()) for kind in (positive, ~positive))
    excess = fpr + tpr - 1  # false alarms less misses, rising from -1 to 1
    return float(np.interp(0, excess, fpr))


def found_events(scores: Sequence[Labelled], rates: Sequence[float] | np.ndarray, threshold: float) -> tuple[int, int]:
    """Anomalous events (runs of anomalous frames) that an event of p_A overlaps, and all of them."""
    found = total = 0
    for s, fps in zip(scores, rates):
        covered = np.zeros(len(s.labels), bool)
        for start, end in cut_events(s.p_A, fps, high=threshold).intervals:
            covered[start:end] = True
        truths = runs(is_anomalous(s.labels))
        found, total = found + sum(covered[start:end].any() for start, end in truths), total + len(truths)
    return int(found), total


def share_alarmed(videos: Sequence[tuple[np.ndarray, float]], threshold: float) -> float | None:
    """Share of videos, p_A and frames per second of each, in which there is an event."""
    alarmed = [len(cut_events(p_A, rate, high=threshold).scores) > 0 for p_A, rate in videos]
    return sum(alarmed) / len(alarmed) if alarmed else None


def best_balanced_accuracy(
    quiet: Sequence[tuple[np.ndarray, float]], loud: Sequence[tuple[np.ndarray, float]]
) -> float:
    """The highest balanced accuracy by video of all thresholds, p_A and frames per second of each video.

    Args:
        quiet: Normal videos. loud: The others.
    """
    videos = [(label, p_A, rate) for label, kind in ((-1, quiet), (0, loud)) for p_A, rate in kind]
    curve = measure([Watched(label, p_A, p_A[:, None], float(rate)) for label, p_A, rate in videos])
    return float(curve.balanced_accuracy.max())


def operating_points(scores: Sequence[Labelled], fps: Rates, threshold: float) -> dict[str, float | None]:
    """What a camera operator would see, from p_A alone.

    The threshold comes from training (operating_curve.py, or choose_threshold). recall_at_1_false_alarm_per_hour and
    best_balanced_accuracy are points read off the curves of these videos, as EER is: the event recall where their own
    normal videos raise at most one alarm per hour, and the balanced accuracy by video at the threshold that suits them
    best. They compare, and set no threshold; they are not what a deployed threshold will reach.

    Returns:
        threshold; F1 (frames with p_A >= threshold); at the threshold event_recall (anomalous runs that an event
        overlaps), false_alarms_per_hour (on normal videos), normal_alarmed (share of normal videos with an event) and
        balanced_accuracy (its complement's mean with the share of other videos that have one);
        best_balanced_accuracy; recall_at_1_false_alarm_per_hour; EER (frames); events and normal_hours, what the rates
        rest on.
    """
    rates = np.broadcast_to(fps, len(scores))
    p_A, positive = np.concatenate([s.p_A for s in scores]), is_anomalous(np.concatenate([s.labels for s in scores]))
    quiet = [(s.p_A, rate) for s, rate in zip(scores, rates) if not is_anomalous(s.labels).any()]
    normal, normal_rates = [p for p, _ in quiet], [rate for _, rate in quiet]
    found, total = found_events(scores, rates, threshold)
    alarm = p_A.astype(float) >= threshold
    loud = [(s.p_A, rate) for s, rate in zip(scores, rates) if is_anomalous(s.labels).any()]
    alarmed, videos_found = share_alarmed(quiet, threshold), share_alarmed(loud, threshold)
    balanced = None if alarmed is None or videos_found is None else (1 - alarmed + videos_found) / 2
    quiet_recall = None
    if normal and total:
        quiet_recall = found_events(scores, rates, quiet_threshold(normal, normal_rates))[0] / total
    return {
        "threshold": threshold,
        "F1": 2 * int((alarm & positive).sum()) / int(alarm.sum() + positive.sum()) if positive.any() else None,
        "event_recall": found / total if total else None,
        "false_alarms_per_hour": false_alarm_rate(normal, normal_rates, threshold) if normal else None,
        "normal_alarmed": alarmed,
        "balanced_accuracy": balanced,
        "best_balanced_accuracy": best_balanced_accuracy(quiet, loud) if quiet and loud else None,
        "recall_at_1_false_alarm_per_hour": quiet_recall,
        "EER": equal_error_rate(p_A, positive),
        "events": total,
        "normal_hours": float(sum(len(p) / rate / 3600 for p, rate in quiet)),
    }
