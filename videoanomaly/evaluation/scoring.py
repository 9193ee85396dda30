"""Probabilities of all videos of a list, and everything that is measured on them.

Shapes: N frames of a video, C anomaly classes.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from anomalyclip import VideoModel
from videoanomaly.data.annotations import Video, VideoLists, frame_labels, frame_masks
from videoanomaly.data.features import FeatureFolder, matching_rows
from videoanomaly.evaluation import metrics, paper_metrics
from videoanomaly.frame_scores import score_frames
from videoanomaly.runtime.files import write_atomically


class Scores(NamedTuple):
    """Of one video, per frame."""

    p_A: np.ndarray  # (N,)
    p_class: np.ndarray | None  # (N, C); None where a rule knows no classes
    labels: np.ndarray  # (N,), -1 normal; (N, C) bool in all videos of a list where one shows several classes


def of_classes(scores: Scores) -> np.ndarray:
    """p_class of a model, which knows classes, (N, C)."""
    assert scores.p_class is not None, "a rule knows no classes"
    return scores.p_class


def class_masks(scores: Scores) -> np.ndarray:
    """The classes that each frame shows, (N, C) bool."""
    num_classes = of_classes(scores).shape[1]
    return np.stack([paper_metrics.is_class(scores.labels, c) for c in range(num_classes)], axis=1)


def score_videos(
    predict: Callable, videos: Sequence[Video], features: FeatureFolder, temporal: FeatureFolder | None = None
) -> dict[str, Scores]:
    """Runs predict(rows of a video[, rows of its other features]) on every video and spreads the rows over frames."""
    scores, several = {}, any(video.interval_labels for video in videos)
    for video in tqdm(videos, unit="video", leave=False, disable=not sys.stderr.isatty()):
        rows = features.open(video.name)  # (N, crops, D)
        others = (
            () if temporal is None else (matching_rows(temporal, video.name, len(rows), features.frames_per_feature),)
        )
        num_frames = min(features.num_frames(video.name), len(rows) * features.frames_per_feature)
        of_frames = score_frames(
            predict, rows, *others, num_frames=num_frames, spacing=features.frames_per_feature, name=video.name
        )
        if several and of_frames[1] is not None:
            labels = frame_masks(video, num_frames, of_frames[1].shape[1])
        else:
            labels = frame_labels(video, num_frames)
        scores[video.name] = Scores(*of_frames, labels)
    return scores


def write_scores(path: Path, scores: dict[str, Scores]) -> None:
    """As a .npz file with NAME.p_A and NAME.p_class of each video."""
    arrays = {f"{name}.{key}": getattr(s, key) for name, s in scores.items() for key in ("p_A", "p_class")}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def frame_metrics(scores: dict[str, Scores], classes: tuple[str, ...]) -> dict:
    """Metrics over all frames of all videos; a rule without classes has AUC and AP alone."""
    p_A, labels = (np.concatenate([getattr(s, name) for s in scores.values()]) for name in ("p_A", "labels"))
    if next(iter(scores.values())).p_class is None:
        return paper_metrics.auc_ap(p_A, paper_metrics.is_anomalous(labels))
    return paper_metrics.metrics(p_A, np.concatenate([of_classes(s) for s in scores.values()]), labels, classes)


def alarm_threshold(
    model: VideoModel,
    lists: VideoLists,
    features: FeatureFolder,
    temporal: FeatureFolder | None = None,
    max_videos: int = 100,
) -> float:
    """Threshold on p_A at which the normal training videos are quiet (metrics.choose_threshold), from up to 100 of
    them.
    """
    normal = [video for video in lists.train if video.label < 0]
    picked = normal[:: -(-len(normal) // max_videos)]  # evenly over the list
    scores = score_videos(model.eval().predict, picked, features, temporal)
    rates = [features.frame_rate(video.name) for video in picked]
    return metrics.choose_threshold(list(scores.values()), [-1] * len(picked), rates)


def all_metrics(
    scores: dict[str, Scores], classes: tuple[str, ...], rates: list[float], *, threshold: float, num_draws: int
) -> dict:
    """Frame metrics with intervals, event metrics and operating points at a threshold on p_A."""
    videos = list(scores.values())
    return frame_metrics(scores, classes) | {
        "videos": len(videos),
        "intervals": metrics.bootstrap_metrics(videos, classes, num_draws=num_draws),
        "events": metrics.event_map(videos, rates, classes),
        "operation": metrics.operating_points(videos, rates, threshold),
    }
