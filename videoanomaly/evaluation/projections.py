"""What re-centring does to the features (Fig. 2a): how far frames lie along each direction, before and after it."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from anomalyclip import AnomalyCLIP, Rows
from videoanomaly.data.annotations import Video
from videoanomaly.data.features import FeatureFolder
from videoanomaly.evaluation.scoring import class_masks, score_videos


def lengths_along(rows: Rows, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length of each row (N, crops, D) along each direction (C, D) from an origin (D,), mean over the crops.

    Returns:
        The longest of each row, (N,), and all, (N, C): in the places of p_A and p_class, so that `score_videos` takes
        them.
    """
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = (np.asarray(rows[:], dtype=np.float32).mean(axis=1) - origin) @ unit.T
    return lengths.max(axis=1), lengths


def projections(
    model: AnomalyCLIP, videos: Sequence[Video], features: FeatureFolder
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projections of all frames on each direction before and after re-centring (Fig. 2a), in units of the features.

    Args:
        model: In evaluation mode. Where its directions are free vectors, the point to which one leads
            from the prototype stands for the text feature.
    Returns:
        Along the text features from the origin, (frames, C); along their way from the prototype, (frames, C); the
        classes that each frame shows, (frames, C) bool.
    """
    prototype, directions = (t.cpu().numpy() for t in (model.prototype, model.directions))
    # cosine: they are not re-centred
    text = directions if model.config.likelihood == "cosine" else directions + prototype

    def measure(origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        along = partial(lengths_along, origin=origin, directions=text - origin)
        scores = list(score_videos(along, videos, features).values())
        lengths = [s.p_class for s in scores if s.p_class is not None]  # of all: `lengths_along` leaves out none
        return np.concatenate(lengths), np.concatenate([class_masks(s) for s in scores])

    before, truth = measure(0 * prototype)
    after, _ = measure(prototype)
    return before, after, truth
