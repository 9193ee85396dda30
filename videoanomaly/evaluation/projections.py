"""What re-centring does to the features (Fig. 2a): how far frames lie along each direction, before and after it."""

from functools import partial

import numpy as np

from videoanomaly.evaluation.scoring import score_videos


def lengths_along(rows, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length of each row (N, crops, D) along each direction (C, D) from an origin (D,), mean over the crops.

    Returns:
        The longest of each row, (N,), and all, (N, C): in the places of p_A and p_class, so that `score_videos` takes
        them.
    """
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = (np.asarray(rows, dtype=np.float32).mean(axis=1) - origin) @ unit.T
    return lengths.max(axis=1), lengths


def projections(model, videos, features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projections of all frames on each direction before and after re-centring (Fig. 2a), in units of the features.

    Args:
        model: An AnomalyCLIP in evaluation mode. Where its directions are free vectors, the point to which one leads
            from the prototype stands for the text feature.
    Returns:
        Along the text features from the origin, (frames, C); along their way from the prototype, (frames, C); labels,
        (frames,), -1 normal.
    """
    prototype, directions = (t.cpu().numpy() for t in (model.prototype, model.directions))
    text = (
        directions if model.config.likelihood == "cosine" else directions + prototype
    )  # cosine: they are not re-centred
    measures = [
        partial(lengths_along, origin=origin, directions=text - origin) for origin in (0 * prototype, prototype)
    ]
    before, after = (score_videos(measure, videos, features) for measure in measures)
    labels = np.concatenate([s.labels for s in before.values()])
    return *(np.concatenate([s.p_class for s in scores.values()]) for scores in (before, after)), labels
