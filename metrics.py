"""What the field reports beyond the frame metrics of anomalyclip.metrics: intervals, events and operating points.

`scores` is everywhere a sequence with one object per video, as evaluate.py's `Scores`: p_A (N,), p_class (N, C) and labels
(N,), -1 for normal frames, else the class. `fps` is one number, or one per video. Metrics are in [0, 1]; a value that does
not exist is None. Intervals of frames are half-open. V is the number of videos, R of bootstrap draws, E of events.
"""
from typing import NamedTuple

import numpy as np

LEVELS_AT_ONCE = 1024  # rows of the (levels, R) matrices of the bootstrap: 8 MB each at 1,000 draws
MERGE_GAP = 1.0  # seconds
MIN_LENGTH = 1.0  # seconds
PROPOSAL_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NMS_IOU = 0.6  # as VadCLIP's
IOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
FALSE_ALARMS_PER_HOUR = 1.0
NUM_CANDIDATES = 200  # thresholds tried, at most


# Bootstrap over videos

def counts_by_level(level: np.ndarray, column: np.ndarray, num_columns: int):
    """Function of (a, b): how many items each column has at each of the levels a to b - 1, (b - a, num_columns)."""
    order = np.argsort(level, kind="stable")
    level, column = level[order], column[order]

    def between(a: int, b: int) -> np.ndarray:
        first, last = np.searchsorted(level, (a, b))
        keys = (level[first:last] - a) * num_columns + column[first:last]
        return np.bincount(keys, minlength=(b - a) * num_columns).reshape(b - a, num_columns).astype(float)

    return between


def weighted_auc_ap(p: np.ndarray, positive: np.ndarray, video_idx: np.ndarray, weights: np.ndarray):
    """AUC and AP for many weightings of the videos at once, equal to scikit-learn's with sample_weight.

    Both metrics need the frames above (and level with) a positive frame alone, so negatives are counted per video and
    distinct positive score. The AUC of a draw is then the quadratic form w' U w, U[v, u] the wins of positives of v over
    negatives of u; its AP comes from the true and false positives at each level, matrix products as well.

    Args:
        p: Scores, (N,). positive: (N,), bool. video_idx: Video of each frame, (N,), in [0, V).
        weights: Times that each draw holds each video, (R, V), whole numbers.
    Returns:
        AUC (R,) and AP (R,); NaN where a draw has no positive or no negative frame.
    """
    num_videos, most = weights.shape[1], (weights @ np.bincount(video_idx, minlength=weights.shape[1])).max()
    exact = np.float32 if most < 2**24 else np.float64  # holds the whole numbers up to the frames of any draw, half the time
    videos, column = np.unique(video_idx[positive], return_inverse=True)  # those with positives
    levels, level = np.unique(p[positive], return_inverse=True)  # ascending
    rank = np.searchsorted(levels, p[~positive], side="right")  # levels at or below each negative
    tied = (rank > 0) & (levels[np.maximum(rank, 1) - 1] == p[~positive]) if len(levels) else rank > 0
    negative_idx = video_idx[~positive]
    positives = counts_by_level(len(levels) - 1 - level, column, len(videos))  # levels are descending from here on
    negatives = counts_by_level(len(levels) - rank, negative_idx, num_videos)
    ties = counts_by_level((len(levels) - rank)[tied], negative_idx[tied], num_videos)

    total = np.bincount(negative_idx, minlength=num_videos)
    every = np.ascontiguousarray(weights.T, dtype=exact)  # (V, R)
    own = every[videos]  # (videos with positives, R)
    wins, area = np.zeros((len(videos), num_videos)), np.zeros(len(weights))
    above, tp = np.zeros(num_videos), np.zeros(len(weights), exact)
    for a in range(0, len(levels), LEVELS_AT_ONCE):
        b = min(a + LEVELS_AT_ONCE, len(levels))
        found = positives(a, b)  # (levels, videos with positives)
        cumulative = above + np.cumsum(negatives(a, b), axis=0)  # (levels, V)
        v, at = np.nonzero(found.T)  # sorted by video; faster than a product with found, which is nearly empty
        first = np.flatnonzero(np.diff(v, prepend=-1))
        won = (total - cumulative + ties(a, b) / 2)[at] * found[at, v][:, None]
        wins[v[first]] += np.add.reduceat(won, first, axis=0)
        gain = found.astype(exact) @ own  # (levels, R)
        hits = tp + np.cumsum(gain, axis=0)
        alarms = np.maximum(hits + cumulative.astype(exact) @ every, 1)
        area += np.einsum("lr,lr->r", gain, np.divide(hits, alarms, dtype=float))
        above, tp = cumulative[-1], hits[-1]
    num_negatives = weights @ total
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = np.einsum("vr,vr->r", own, wins @ weights.T) / (tp.astype(float) * num_negatives)
        return auc, np.where(num_negatives > 0, area / tp, np.nan)


def interval(values: np.ndarray) -> list[float] | None:
    """2.5 and 97.5 percentile of the draws that have a value."""
    values = values[np.isfinite(values)]
    return np.percentile(values, (2.5, 97.5)).tolist() if len(values) else None


def mean_of_present(values: np.ndarray) -> np.ndarray:
    """Mean over the classes of each draw that have a value, (C, R) to (R,); NaN where none has."""
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(0) / present.sum(0)


def bootstrap_metrics(scores, classes: tuple[str, ...], num_draws: int = 1000, seed: int = 0) -> dict:
    """95% percentile intervals of the metrics of anomalyclip.metrics, from a bootstrap over videos.

    Each draw takes as many videos as there are, with replacement, and all frames of each. A class without frames in a draw
    leaves this draw out of its own intervals; the means of a draw are over the classes that occur in it.

    Returns:
        AUC, AP, mAUC, mAP, each [low, high] or None; draws, those behind AUC and AP; videos, frames; and per_class[name] with
        AUC, AP, draws (those with the class), videos and frames (those that have the class). Without p_class (a rule that
        knows no classes) neither the means nor per_class.
    """
    labels, p_A = (np.concatenate([getattr(s, name) for s in scores]) for name in ("labels", "p_A"))
    video_idx = np.repeat(np.arange(len(scores)), [len(s.labels) for s in scores])
    weights = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), num_draws)

    def intervals(p, positive):
        auc, ap = weighted_auc_ap(p, positive, video_idx, weights)
        return auc, ap, {"AUC": interval(auc), "AP": interval(ap), "draws": int(np.isfinite(auc).sum())}

    *_, result = intervals(p_A, labels >= 0)
    result |= {"videos": len(scores), "frames": len(labels)}
    if scores[0].p_class is None:
        return result
    aucs, aps, per_class = [], [], {}
    for c, name in enumerate(classes):
        auc, ap, per_class[name] = intervals(np.concatenate([s.p_class[:, c] for s in scores]), labels == c)
        per_class[name] |= {"videos": len(np.unique(video_idx[labels == c])), "frames": int((labels == c).sum())}
        aucs.append(auc)
        aps.append(ap)
    means = {"mAUC": interval(mean_of_present(np.array(aucs))), "mAP": interval(mean_of_present(np.array(aps)))}
    return result | means | {"per_class": per_class}


# Events

class Events(NamedTuple):
    intervals: np.ndarray  # (E, 2), frames, half-open
    scores: np.ndarray  # (E,)


def runs(mask: np.ndarray) -> np.ndarray:
    """Maximal runs of True, (E, 2), half-open."""
    padded = np.concatenate([[False], mask, [False]])
    return np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)


def reduce_runs(ufunc, p: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """ufunc over the frames of each of some ascending, disjoint intervals, (E,)."""
    return ufunc.reduceat(np.append(p, 0), intervals.ravel())[::2] if len(intervals) else np.zeros(0)


def cut_events(p: np.ndarray, fps: float, *, high: float = 0.5, low: float | None = None, merge_gap: float = MERGE_GAP,
               min_length: float = MIN_LENGTH) -> Events:
    """Cuts events out of one probability per frame.

    1. Hysteresis: an event is a maximal run of frames with p >= low, of which one at least has p >= high.
    2. Events at most merge_gap apart become one, the gap included.
    3. Events shorter than min_length are dropped.
    The score of an event is its mean probability, closed gaps included.

    Args:
        p: (N,). fps: Frames per second. high, low: Thresholds, low is high / 2 if not given. merge_gap, min_length: Seconds.
    """
    p = np.asarray(p, float)
    found = runs(p >= (high / 2 if low is None else low))
    found = found[reduce_runs(np.maximum, p, found) >= high]
    apart = found[1:, 0] - found[:-1, 1] > merge_gap * fps
    ends = np.ones(min(len(found), 1), bool)
    found = np.stack([found[np.append(ends, apart), 0], found[np.append(apart, ends), 1]], axis=1)
    found = found[found[:, 1] - found[:, 0] >= min_length * fps]
    return Events(found, reduce_runs(np.add, p, found) / (found[:, 1] - found[:, 0]))


def interval_iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Temporal IoU of one interval (2,) with others (E, 2): (E,)."""
    inter = np.maximum(np.minimum(one[1], others[:, 1]) - np.maximum(one[0], others[:, 0]), 0)
    return inter / (one[1] - one[0] + others[:, 1] - others[:, 0] - inter)


def propose_events(p: np.ndarray, fps: float) -> Events:
    """Events of p at several thresholds, as one threshold would bind the mAP to it; see event_map."""
    parts = [cut_events(p, fps, high=high, merge_gap=gap, min_length=0)
             for high in PROPOSAL_THRESHOLDS if p.max(initial=0) >= high for gap in (0, MERGE_GAP)]
    if not parts:
        return Events(np.zeros((0, 2), int), np.zeros(0))
    intervals, first = np.unique(np.concatenate([e.intervals for e in parts]), axis=0, return_index=True)
    scores = np.concatenate([e.scores for e in parts])[first]
    order, kept = np.argsort(-scores, kind="stable"), []  # ties: earlier start, then earlier end
    while len(order):
        kept.append(order[0])
        order = order[1:][interval_iou(intervals[order[0]], intervals[order[1:]]) <= NMS_IOU]
    return Events(intervals[kept], scores[kept])


def match_events(video_idx, intervals: np.ndarray, truths: list[np.ndarray], min_iou: float) -> np.ndarray:
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
    """Area under the PR curve without interpolation; detections of equal (descending) scores are one point of the curve."""
    if not hits.any():
        return 0.0
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # last of each group of equal scores
    tp = np.cumsum(hits)[ends]
    return float((np.diff(tp, prepend=0) * tp / (ends + 1)).sum() / num_truths)


def ap_by_iou(events: list[Events], truths: list[np.ndarray], ties_as_one: bool) -> np.ndarray:
    """AP of the detections of all videos at each of IOUS, (5,). Ties are ordered by video, start and end."""
    video_idx = np.repeat(np.arange(len(events)), [len(e.scores) for e in events])
    intervals, scores = (np.concatenate(parts) for parts in zip(*events))
    order = np.lexsort((intervals[:, 1], intervals[:, 0], video_idx, -scores))
    ranking = scores[order] if ties_as_one else np.arange(len(order))
    num_truths = sum(map(len, truths))
    return np.array([average_precision(match_events(video_idx[order], intervals[order], truths, iou), ranking, num_truths)
                     for iou in IOUS])


def named_aps(aps: np.ndarray | None, prefix: str) -> dict[str, float | None]:
    """AP at each IoU and their mean, from (5,)."""
    values = [None] * 6 if aps is None else [aps.mean(), *aps]
    return {name: value if value is None else float(value)
            for name, value in zip((prefix, *(f"{prefix}@{iou}" for iou in IOUS)), values)}


def event_map(scores, fps, classes: tuple[str, ...]) -> dict:
    """Mean average precision of events at temporal IoU 0.1 to 0.5, over the anomaly classes that occur.

    Ground truth are the maximal runs of a class in labels. Detections of class c are the events of p_class[:, c] that
    cut_events finds at each of 11 thresholds `high` from 0.02 to 0.9, low = high / 2, of any length, with gaps up to 1 s closed
    and with none closed; of two that overlap with IoU over 0.6 the one with the higher score (mean probability) stays. Matching
    is greedy by descending score, each ground truth once. A perfect oracle (p_class one-hot) scores exactly 1: the events with
    no gap closed are the ground truth, and every other scores less.

    Returns:
        mAP (mean of the five), mAP@0.1 to mAP@0.5, and per_class[name] with AP, AP@0.1 to AP@0.5, and events, the number of
        ground truths.
    """
    rates, per_class, present = np.broadcast_to(fps, len(scores)), {}, []
    for c, name in enumerate(classes):
        truths = [runs(s.labels == c) for s in scores]
        num_truths = sum(map(len, truths))
        aps = None
        if num_truths:
            aps = ap_by_iou([propose_events(s.p_class[:, c], rate) for s, rate in zip(scores, rates)], truths, True)
            present.append(aps)
        per_class[name] = named_aps(aps, "AP") | {"events": num_truths}
    return named_aps(np.mean(present, axis=0) if present else None, "mAP") | {"per_class": per_class}


def vadclip_events(p: np.ndarray) -> Events:
    """Runs of at least 2 frames above max - 0.6 (max - min); score: max in the run + 0.7 * mean of the top N / 16 frames."""
    p = np.asarray(p, float)
    found = runs(p > p.max() - 0.6 * (p.max() - p.min()))
    found = found[found[:, 1] - found[:, 0] >= 2]
    return Events(found, reduce_runs(np.maximum, p, found) + 0.7 * np.sort(p)[-max(len(p) // 16, 1):].mean())


def vadclip_map(scores, classes: tuple[str, ...], *, normal_segments: bool) -> dict[str, float]:
    """The mAP that VadCLIP (AAAI 2024) and its successors publish, quirks included; compare with their tables alone.

    Normal, p = 1 - p_A, is one more class in the mean: 14 for UCF-Crime, 7 for XD-Violence. A class without ground truth
    counts as 0. Runs of one threshold never overlap, so the published non-maximum suppression (IoU 0.6) removes none.

    Args:
        normal_segments: True for XD-Violence, whose normal videos are each one ground truth from end to end. False for
            UCF-Crime: its normal segments carry a name that is no class, so Normal scores 0 and a perfect oracle 13/14.
    Returns:
        mAP (mean of the five), mAP@0.1 to mAP@0.5.
    """
    normal_truths = [runs(np.full(len(s.labels), normal_segments and (s.labels < 0).all())) for s in scores]
    aps = [ap_by_iou([vadclip_events(1 - s.p_A) for s in scores], normal_truths, False)]
    for c in range(len(classes)):
        truths = [runs(s.labels == c) for s in scores]
        aps.append(ap_by_iou([vadclip_events(s.p_class[:, c]) for s in scores], truths, False))
    return named_aps(np.mean(aps, axis=0), "mAP")


# Operating points

def false_alarm_rate(normal: list[np.ndarray], rates, threshold: float) -> float:
    """Events of cut_events per hour of the p_A of normal videos."""
    alarms = sum(len(cut_events(p, fps, high=threshold).scores) for p, fps in zip(normal, rates))
    return float(alarms / sum(len(p) / fps / 3600 for p, fps in zip(normal, rates)))


def quiet_threshold(normal: list[np.ndarray], rates) -> float:
    """Lowest threshold at and above which these normal videos raise at most one false alarm per hour.

    Tried from the top are at most 200 of their scores, denser towards the highest; alarms do not grow steadily as the threshold
    falls, for they merge, so the first threshold with too many ends the search. Just above the highest score if none does.
    """
    pooled = np.sort(np.concatenate(normal).astype(float))[::-1]
    quiet = float(np.nextafter(pooled[0], np.inf))
    ranks = np.unique(np.geomspace(1, len(pooled), NUM_CANDIDATES).astype(int)) - 1
    for threshold in np.unique(pooled[ranks])[::-1]:
        if false_alarm_rate(normal, rates, threshold) > FALSE_ALARMS_PER_HOUR:
            break
        quiet = float(threshold)
    return quiet


def choose_threshold(train_scores, video_labels, fps) -> float:
    """Threshold on p_A from the training videos and their video labels alone, to be stored with the model.

    It is the lowest at and above which the normal training videos raise at most one false alarm (event of cut_events) per
    hour: what an operator can bear is known, and normal videos need no frame truth, while abnormal ones do not say which of
    their frames are normal. Under an hour of normal footage that means none at all. The model was fitted to these very
    videos, so others raise more. Never above 1, and 0.5 if there are no normal videos.

    Args:
        train_scores: As `scores`; p_A alone is read. video_labels: Class of each video, (V,), -1 normal.
    """
    rates = np.broadcast_to(fps, len(train_scores))
    normal = [(s.p_A, rate) for s, label, rate in zip(train_scores, video_labels, rates, strict=True) if label < 0]
    return min(quiet_threshold(*zip(*normal)), 1.0) if normal else 0.5


def equal_error_rate(p: np.ndarray, positive: np.ndarray) -> float | None:
    """Rate at which misses equal false alarms, by frame, linear between ROC points; None with one kind of frame alone."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-p, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))
    tpr, fpr = (np.append(0, np.cumsum(kind[order])[ends] / kind.sum()) for kind in (positive, ~positive))
    excess = fpr + tpr - 1  # false alarms less misses, rising from -1 to 1
    return float(np.interp(0, excess, fpr))


def found_events(scores, rates, threshold: float) -> tuple[int, int]:
    """Anomalous events (runs of labels >= 0) that an event of p_A overlaps, and all of them."""
    found = total = 0
    for s, fps in zip(scores, rates):
        covered = np.zeros(len(s.labels), bool)
        for start, end in cut_events(s.p_A, fps, high=threshold).intervals:
            covered[start:end] = True
        truths = runs(s.labels >= 0)
        found, total = found + sum(covered[start:end].any() for start, end in truths), total + len(truths)
    return int(found), total


def operating_points(scores, fps, threshold: float) -> dict[str, float | None]:
    """What a camera operator would see, from p_A alone.

    The threshold comes from training (choose_threshold). recall_at_1_false_alarm_per_hour is a point read off the curve of
    these videos, as EER is: the event recall where their own normal videos raise at most one alarm per hour. It compares
    models and sets no threshold; it is not what a deployed threshold will reach.

    Returns:
        threshold; F1 (frames with p_A >= threshold); event_recall (anomalous runs that an event overlaps) and
        false_alarms_per_hour (on normal videos) at the threshold; recall_at_1_false_alarm_per_hour; EER (frames);
        events and normal_hours, what the two rates rest on.
    """
    rates = np.broadcast_to(fps, len(scores))
    p_A, positive = np.concatenate([s.p_A for s in scores]), np.concatenate([s.labels for s in scores]) >= 0
    normal = [(s.p_A, rate) for s, rate in zip(scores, rates) if (s.labels < 0).all()]
    found, total = found_events(scores, rates, threshold)
    alarm = p_A.astype(float) >= threshold
    quiet = quiet_threshold(*zip(*normal)) if normal else None
    return {"threshold": threshold,
            "F1": 2 * int((alarm & positive).sum()) / int(alarm.sum() + positive.sum()) if positive.any() else None,
            "event_recall": found / total if total else None,
            "false_alarms_per_hour": false_alarm_rate(*zip(*normal), threshold) if normal else None,
            "recall_at_1_false_alarm_per_hour": found_events(scores, rates, quiet)[0] / total if normal and total else None,
            "EER": equal_error_rate(p_A, positive), "events": total,
            "normal_hours": float(sum(len(p) / rate / 3600 for p, rate in normal))}
