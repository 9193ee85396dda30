"""Tests of what predict.py says of its threshold, and of results that are cut anew, replaced or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
from videoanomaly import operating_curve
from videoanomaly.event_rule import EventSettings, cut_events
from videoanomaly.operating_curve import Watched
from videoanomaly.prediction import operating_point
from videoanomaly.runtime.console import InputError


def read_events(folder: Path) -> dict:
    return json.loads((folder / "events.json").read_text())


# ---- thresholds


def made_curve(hours: float = 2.0, alarms: int = 4) -> operating_curve.OperatingCurve:
    """Of a normal video with so many alarms, one up to 0.3, one up to 0.4, ..., and an abnormal one up to 0.9."""
    normal, abnormal = np.zeros(round(hours * 3600)), np.zeros(100)
    for i in range(alarms):
        normal[20 * i : 20 * i + 5] = 0.3 + 0.1 * i
    abnormal[20:40] = 0.9
    return operating_curve.measure(
        [Watched(-1, normal, normal[:, None], 1.0), Watched(0, abnormal, abnormal[:, None], 1.0)]
    )


@pytest.fixture(scope="module")
def with_curve(planted, tmp_path_factory):
    """A checkpoint that holds an operating curve and its best threshold."""
    stored, curve = torch.load(planted.checkpoint, weights_only=True), made_curve()
    path = tmp_path_factory.mktemp("curve") / "last.pt"
    torch.save(stored | {"threshold": curve.best_threshold(), "operating_curve": curve.to_plain()}, path)
    return ["--ckpt", str(path), "--features", str(next(planted.features.glob("*.npy"))), "--device", "cpu"]


def test_every_result_says_which_rule_gave_its_threshold(with_curve, planted, tmp_path, capsys):
    curve, stored = made_curve(), torch.load(planted.checkpoint, weights_only=True)["threshold"]
    older = ["--ckpt", planted.checkpoint, *with_curve[2:]]
    folds = "on held-out folds"
    for options, threshold, rule in (
        (with_curve, curve.best_threshold(), f"highest balanced accuracy by video {folds} of the training videos"),
        ([*with_curve, "--threshold", "0.25"], 0.25, "given as --threshold"),
        (
            [*with_curve, "--false-alarms-per-hour", "1"],
            curve.threshold_at(1),
            f"at most 1 false alarms per hour {folds}",
        ),
        (older, stored, "at most one false alarm per hour on training videos, which the model has seen"),
    ):
        predict.main([*options, "--out", str(tmp_path)])
        result = read_events(tmp_path)
        assert (result["threshold"], result["threshold_rule"]) == (threshold, rule)
        assert result["event_settings"] == EventSettings(threshold)._asdict()
        assert f"events begin at p_A {threshold:.4g}: {rule}\n" in capsys.readouterr().out
        assert bool(result["operating"]) == (options[1] == with_curve[1])
    predict.main([*with_curve, "--out", str(tmp_path), "--hysteresis", "0.8"])
    result = read_events(tmp_path)  # the curve knows the default events alone
    assert result["operating"] is None and result["threshold_rule"].endswith(
        "--hysteresis, --merge-gap and --min-length"
    )


def test_a_checkpoint_without_a_threshold_is_said_to_have_none():
    assert operating_point.choose_threshold("x.pt", {}, None, None, None) == (
        0.5,
        "0.5, since the checkpoint holds none",
    )
    assert (
        operating_point.choose_threshold("x.pt", {"threshold": 0.3}, made_curve(), None, None)[1]
        == operating_point.STORED
    )


def test_a_rate_that_the_footage_cannot_tell_is_said_with_what_it_can(capsys):
    curve = made_curve(hours=0.25, alarms=3)
    threshold, rule = operating_point.choose_threshold("x.pt", {}, curve, None, 1.0)
    assert curve.false_alarms[curve.thresholds == threshold] == 0 and threshold == pytest.approx(0.52)
    assert rule == "no false alarm in 0.25 h of normal video on held-out folds, which cannot tell 1 per hour"
    line = "--false-alarms-per-hour 1: 0.25 h of normal video on held-out folds cannot tell less than 4 per hour; "
    assert capsys.readouterr().err.startswith(line)
    assert operating_point.choose_threshold("x.pt", {}, curve, None, 4.0)[0] < threshold and not capsys.readouterr().err


def test_a_rate_that_no_curve_tells_is_refused(with_curve, planted, tmp_path):
    with pytest.raises(InputError, match=r"--false-alarms-per-hour 5: .* expected one of train.py --folds 5"):
        options = ["--ckpt", planted.checkpoint, *with_curve[2:], "--out", str(tmp_path / "out")]
        predict.main([*options, "--false-alarms-per-hour", "5"])
    assert not (tmp_path / "out").exists()
    no_normal = made_curve()._replace(num_normal=0, normal_hours=0.0)
    with pytest.raises(InputError, match="measured without normal videos"):
        operating_point.threshold_of_rate("x.pt", no_normal, 5)
    loud = made_curve()._replace(false_alarms=np.full(57, 8))
    with pytest.raises(InputError, match="found at least 4 per hour at every threshold"):
        operating_point.threshold_of_rate("x.pt", loud, 3)


def test_the_events_of_a_result_are_cut_by_the_options(with_curve, tmp_path):
    options = ["--threshold", "0.4", "--hysteresis", "0.9", "--min-length", "0.2", "--merge-gap", "0.1"]
    predict.main([*with_curve, "--out", str(tmp_path), *options])
    result = read_events(tmp_path)
    assert result["event_settings"] == {"threshold": 0.4, "low_share": 0.9, "merge_gap": 0.1, "min_length": 0.2}
    with np.load(tmp_path / "scores.npz") as scores:
        expected = cut_events(scores["p_A"], result["fps"], high=0.4, low=0.9 * 0.4, merge_gap=0.1, min_length=0.2)
        usual = cut_events(scores["p_A"], result["fps"], high=0.4)
    found = [[event["start_frame"], event["end_frame"]] for event in result["events"]]
    assert found == expected.intervals.tolist() != usual.intervals.tolist()
