"""Simple rules to hold a learned recogniser against, on the same features.

Shapes: N feature rows of a video, crops per row, D feature size, C anomaly classes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from anomalyclip import Rows, VideoModel
from videoanomaly.data.annotations import Video, VideoLists
from videoanomaly.data.features import FeatureFolder
from videoanomaly.evaluation.scoring import frame_metrics, score_videos


def distance_to_prototype(rows: np.ndarray, prototype: np.ndarray) -> np.ndarray:
    """Distance of each row (N, crops, D) to the normality prototype (D,), mean over the crops, (N,)."""
    return np.linalg.norm(np.asarray(rows, dtype=np.float32) - prototype, axis=-1).mean(axis=1)


class FrameLogisticRegression:
    """Logistic regression of single rows on their video's label, as if every frame of an abnormal video were abnormal.

    Args:
        videos: Training videos.
        features: Their feature folder.
        num_classes: C.
        rows_per_video: Evenly spaced rows that a video contributes, so that long videos do not outvote short ones.
    """

    def __init__(self, videos: Sequence[Video], features: FeatureFolder, num_classes: int, rows_per_video: int = 32):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        picked = [self.pick(features.open(v.name), rows_per_video) for v in videos]
        labels = np.repeat([v.label for v in videos], [len(rows) for rows in picked])
        self.num_classes = num_classes
        self.pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.pipeline.fit(np.concatenate(picked), labels)

    @staticmethod
    def pick(rows: Rows, num_rows: int) -> np.ndarray:
        index = np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).round().astype(int)
        return np.asarray(rows[index], dtype=np.float32).mean(axis=1)  # (num_rows, D)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p_A (N,) and p_class (N, C) of rows (N, crops, D)."""
        probs = self.pipeline.predict_proba(np.asarray(rows, dtype=np.float32).mean(axis=1))
        p_class = np.zeros((len(rows), self.num_classes))
        seen = self.pipeline.classes_ >= 0
        p_class[:, self.pipeline.classes_[seen]] = probs[:, seen]
        return p_class.sum(axis=1), p_class


def evaluate_rules(lists: VideoLists, model: VideoModel, features: FeatureFolder) -> dict[str, dict]:
    """Metrics of the two simple rules, on the same videos and features; the second needs abnormal training videos."""
    prototype = model.prototype.cpu().numpy()
    rules: dict[str, Callable] = {"distance to prototype": lambda rows: (distance_to_prototype(rows, prototype), None)}
    if any(video.label >= 0 for video in lists.train):
        regression = FrameLogisticRegression(lists.train, features, len(lists.classes))
        rules["logistic regression"] = regression.predict
    return {
        name: frame_metrics(score_videos(rule, lists.test, features), lists.classes) for name, rule in rules.items()
    }
