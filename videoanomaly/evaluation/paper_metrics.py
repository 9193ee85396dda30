"""The paper's metrics (arXiv:2310.02835, Sec. 4.1): AUC and AP of frames, and their means over classes.

Shapes: N frames of all videos, C anomaly classes.
"""

from typing import Any

import numpy as np


def auc_ap(scores: np.ndarray, positive: np.ndarray) -> dict[str, float | None]:
    """Area under ROC and average precision of one score, as scikit-learn's; None with one kind of frame alone.

    Args:
        scores: (N,), finite.
        positive: (N,) bool.
    """
    if positive.all() or not positive.any():
        return {"AUC": None, "AP": None}
    levels, gains = np.unique(scores[positive], return_counts=True)  # ascending; positives with each score
    negatives = np.sort(scores[~positive])
    at_or_above, above = (len(negatives) - np.searchsorted(negatives, levels, side) for side in ("left", "right"))
    true = gains[::-1].cumsum()[::-1]  # positives at or above each level
    wins = (gains * (len(negatives) - (at_or_above + above) / 2)).sum()  # pairs in the right order, ties half
    return {
        "AUC": float(wins / (true[0] * len(negatives))),
        "AP": float((gains * (true / (true + at_or_above))).sum() / true[0]),
    }


def is_class(labels: np.ndarray, c: int) -> np.ndarray:
    """Frames of a class, (N,) bool, by labels as `metrics` takes them."""
    return labels[:, c] if labels.ndim == 2 else labels == c


def is_anomalous(labels: np.ndarray) -> np.ndarray:
    """Frames of any class, (N,) bool."""
    return labels.max(axis=1) if labels.ndim == 2 else labels >= 0


def metrics(p_A: np.ndarray, p_class: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Frame-level metrics over all frames of all videos, in [0, 1].

    AUC and AP tell anomalous from normal frames by p_A. Per class, frames of the class are positive, all others,
    anomalous or not, negative, and the score is p_class; mAUC and mAP are means over the classes that occur.

    Args:
        p_A: (N,).
        p_class: (N, C).
        labels: (N,), -1 for normal frames, else the class; or, where frames show several classes at once, (N, C) bool.
        classes: C names.
    Returns:
        AUC, AP, mAUC, mAP, frames, anomalous_frames, and per_class[name] with AUC, AP, frames. A value that does not
        exist, as of a class without frames, is None.
    """
    per_class: dict[str, dict] = {
        name: auc_ap(p_class[:, c], is_class(labels, c)) | {"frames": int(is_class(labels, c).sum())}
        for c, name in enumerate(classes)
    }
    anomalous = is_anomalous(labels)
    result: dict[str, Any] = dict(auc_ap(p_A, anomalous))
    for key in ("AUC", "AP"):
        present = [values[key] for values in per_class.values() if values[key] is not None]
        result[f"m{key}"] = float(np.mean(present)) if present else None
    return result | {"frames": len(labels), "anomalous_frames": int(anomalous.sum()), "per_class": per_class}
