"""Tests of evaluation/paper_metrics.py against slow definitions."""

import numpy as np
import pytest

from videoanomaly.evaluation.paper_metrics import metrics


def slow_auc(scores, positive) -> float:
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return sum(wins) / len(wins)


def slow_ap(scores, positive) -> float:
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        hits = scores >= threshold
        recall = (positive & hits).sum() / positive.sum()
        total += (recall - recall_before) * (positive & hits).sum() / hits.sum()
        recall_before = recall
    return total


def test_metrics_equal_slow_definitions_with_ties_and_an_absent_class():
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 2], size=80, p=[0.6, 0.2, 0.2])
    p_class = rng.integers(0, 6, (80, 3)) / 20  # many ties
    result = metrics(p_class.sum(axis=1), p_class, labels, ("fire", "riot", "fall"))
    assert result["AUC"] == pytest.approx(slow_auc(p_class.sum(axis=1), labels >= 0))
    assert result["AP"] == pytest.approx(slow_ap(p_class.sum(axis=1), labels >= 0))
    aucs = [slow_auc(p_class[:, c], labels == c) for c in (0, 2)]
    assert [result["per_class"][name]["AUC"] for name in ("fire", "fall")] == pytest.approx(aucs)
    assert result["mAUC"] == pytest.approx(np.mean(aucs))
    assert result["mAP"] == pytest.approx(np.mean([slow_ap(p_class[:, c], labels == c) for c in (0, 2)]))
    assert result["per_class"]["riot"] == {"AUC": None, "AP": None, "frames": 0}
    assert result["frames"] == 80 and result["anomalous_frames"] == int((labels >= 0).sum())


def test_without_any_anomalous_frame_no_metric_exists():
    result = metrics(np.ones(5), np.ones((5, 1)), np.full(5, -1), ("fire",))
    assert [result[key] for key in ("AUC", "AP", "mAUC", "mAP")] == [None] * 4
