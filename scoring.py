"""Probabilities of all videos by a model or a rule, and everything that is measured on them.

Shapes: N frames of a video, C anomaly classes.
"""
import sys
from functools import partial
from typing import NamedTuple

import numpy as np

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically


class Scores(NamedTuple):
    """Of one video, per frame."""

    p_A: np.ndarray  # (N,)
    p_class: np.ndarray | None  # (N, C); None where a rule knows no classes
    labels: np.ndarray  # (N,), -1 normal


def score_videos(predict, videos, features, temporal=None) -> dict[str, Scores]:
    """Runs predict(rows of a video[, rows of its other features]) on every video and spreads the rows over its frames."""
    from tqdm import tqdm

    from videoanomaly.data.annotations import frame_labels
    from videoanomaly.data.features import matching_rows

    scores = {}
    for video in tqdm(videos, unit="video", leave=False, disable=not sys.stderr.isatty()):
        rows = features.open(video.name)  # (N, crops, D)
        others = () if temporal is None else (matching_rows(temporal, video.name, len(rows), features.frames_per_feature),)
        num_frames = min(features.num_frames(video.name), len(rows) * features.frames_per_feature)
        row_of_frame = np.arange(num_frames) // features.frames_per_feature
        p_A, p_class = predict(rows, *others)
        if not np.isfinite(p_A).all():
            raise InputError(f"{video.name}: found features that are infinite or not a number, expected finite ones")
        scores[video.name] = Scores(p_A[row_of_frame], None if p_class is None else p_class[row_of_frame],
                                    frame_labels(video, num_frames))
    return scores


def write_scores(path, scores: dict[str, Scores]) -> None:
    """As a .npz file with NAME.p_A and NAME.p_class of each video."""
    arrays = {f"{name}.{key}": getattr(s, key) for name, s in scores.items() for key in ("p_A", "p_class")}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def frame_metrics(scores: dict[str, Scores], classes) -> dict:
    """Metrics over all frames of all videos; a rule without classes has AUC and AP alone."""
    from anomalyclip import auc_ap, metrics

    p_A, labels = (np.concatenate([getattr(s, name) for s in scores.values()]) for name in ("p_A", "labels"))
    if next(iter(scores.values())).p_class is None:
        return auc_ap(p_A, labels >= 0)
    return metrics(p_A, np.concatenate([s.p_class for s in scores.values()]), labels, classes)


def evaluate_rules(lists, model, features) -> dict[str, dict]:
    """Metrics of the two simple rules, on the same videos and features."""
    import baselines

    prototype = model.prototype.cpu().numpy()
    rules = {"distance to prototype": lambda rows: (baselines.distance_to_prototype(rows, prototype), None),
             "logistic regression": baselines.FrameLogisticRegression(lists.train, features, len(lists.classes)).predict}
    return {name: frame_metrics(score_videos(rule, lists.test, features), lists.classes) for name, rule in rules.items()}


def lengths_along(rows, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length of each row (N, crops, D) along each direction (C, D) from an origin (D,), mean over the crops.

    Returns:
        The longest of each row, (N,), and all, (N, C): in the places of p_A and p_class, so that `score_videos` takes them.
    """
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = (np.asarray(rows, dtype=np.float32).mean(axis=1) - origin) @ unit.T
    return lengths.max(axis=1), lengths


def projections(model, videos, features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projections of all frames on each direction before and after re-centring (Fig. 2a), in units of the features.

    Args:
        model: An AnomalyCLIP in evaluation mode. Where its directions are free vectors, the point to which one leads from
            the prototype stands for the text feature.
    Returns:
        Along the text features from the origin, (frames, C); along their way from the prototype, (frames, C); labels,
        (frames,), -1 normal.
    """
    prototype, directions = (t.cpu().numpy() for t in (model.prototype, model.directions))
    text = directions if model.config.likelihood == "cosine" else directions + prototype  # cosine: they are not re-centred
    measures = [partial(lengths_along, origin=origin, directions=text - origin) for origin in (0 * prototype, prototype)]
    before, after = (score_videos(measure, videos, features) for measure in measures)
    labels = np.concatenate([s.labels for s in before.values()])
    return *(np.concatenate([s.p_class for s in scores.values()]) for scores in (before, after)), labels


def frame_rates(features, videos, default: float) -> list[float]:
    """Frames per second of each video, as meta.json tells, else the default."""
    known = features.meta["videos"] if features.meta else {}
    return [known.get(video.name, {}).get("fps") or default for video in videos]


def alarm_threshold(model, lists, features, temporal=None, max_videos: int = 100, default_rate: float = 30.0) -> float:
    """Threshold on p_A at which the normal training videos are quiet (metrics.choose_threshold), from up to 100 of them."""
    import metrics

    normal = [video for video in lists.train if video.label < 0]
    picked = normal[::-(-len(normal) // max_videos)]  # evenly over the list
    scores = score_videos(model.eval().predict, picked, features, temporal)
    return metrics.choose_threshold(list(scores.values()), [-1] * len(picked), frame_rates(features, picked, default_rate))


def all_metrics(scores: dict[str, Scores], classes, rates: list[float], *, threshold: float, num_draws: int) -> dict:
    """Frame metrics with intervals, event metrics and operating points at a threshold on p_A."""
    import metrics

    videos = list(scores.values())
    return frame_metrics(scores, classes) | {
        "videos": len(videos), "intervals": metrics.bootstrap_metrics(videos, classes, num_draws=num_draws),
        "events": metrics.event_map(videos, rates, classes),
        "operation": metrics.operating_points(videos, rates, threshold)}
