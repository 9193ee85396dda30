"""Tests of what predict.py says of its threshold, and of results that are cut anew, replaced or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
from tests.videos import BLUE, RED, write_clip
from videoanomaly import operating_curve
from videoanomaly.event_rule import EventSettings, cut_events
from videoanomaly.operating_curve import Watched
from videoanomaly.prediction import operating_point, predictor, recogniser, results, work
from videoanomaly.runtime.console import InputError


def read_events(folder: Path) -> dict:
    return json.loads((folder / "events.json").read_text())


# ---- thresholds


def made_curve(hours: float = 2.0, alarms: int = 4) -> operating_curve.OperatingCurve:
    """Of normal videos with an alarm each, up to 0.3, 0.4, ..., and an abnormal one up to 0.9."""
    videos, bump = [], np.zeros(round(hours * 3600 / alarms))
    bump[20:25] = 1.0
    for i in range(alarms):
        videos.append(Watched(-1, (0.3 + 0.1 * i) * bump, bump[:, None], 1.0))
    return operating_curve.measure([*videos, Watched(0, 0.9 * bump, bump[:, None], 1.0)])


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
    assert curve.false_alarms[curve.thresholds == threshold] == 0 and 0.5 < threshold < 0.9
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
    loud = made_curve()._replace(false_alarms=np.full(5, 8))
    with pytest.raises(InputError, match="found at least 4 per hour at every threshold"):
        operating_point.threshold_of_rate("x.pt", loud, 3)


def test_what_no_normal_video_tells_is_null_in_json(planted):
    recogniser_ = recogniser.load(recogniser.PredictionOptions(planted.checkpoint, "cpu", threshold=0.5))
    curve = made_curve()._replace(num_normal=0, normal_hours=0.0)
    found = results.operating(recogniser_._replace(curve=curve))
    assert found and found["false_alarms_per_hour_interval"] is found["false_alarms_per_hour"] is None
    json.dumps(found, allow_nan=False)


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


# ---- results that are cut anew, replaced or refused


def contents(folder: Path) -> dict[str, object]:
    """Bytes of all files by name; what is dated is left out: of scores.npz all but the arrays, of events.json where it
    comes from.
    """
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    files["events.json"] = {name: value for name, value in read_events(folder).items() if name != "provenance"}
    with np.load(folder / "scores.npz") as arrays:
        return files | {"scores.npz": {name: arrays[name].tolist() for name in arrays}}


def no_encoder(*_):
    raise AssertionError("encodes")


@pytest.fixture
def exact(monkeypatch):
    """Scores of the same features are the same: they round otherwise where an array lies otherwise in memory."""
    original, known = work.score_rows, {}

    def score_rows(*args, **kwargs):
        key = args[2].tobytes()
        known[key] = known[key] if key in known else original(*args, **kwargs)
        return known[key]

    for module in (predictor, work):
        monkeypatch.setattr(module, "score_rows", score_rows)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("video") / "v.mp4", 120, [(20, 50, RED), (60, 70, BLUE), (82, 110, BLUE)])


@pytest.mark.parametrize("others", [[], ["--annotate", "--explain"]])
def test_other_event_settings_give_what_a_fresh_run_gives_without_encoding(
    exact, planted, coloured, tmp_path, monkeypatch, others, capsys
):
    command = [*planted.options, str(coloured), *others, "--out"]
    cut_otherwise = ["--threshold", "0.3", "--min-length", "0.2", "--merge-gap", "0", "--hysteresis", "0.9"]
    assert predict.main([*command, str(tmp_path / "fresh"), *cut_otherwise]) == 0
    assert predict.main([*command, str(tmp_path / "again")]) == 0
    before, scores = contents(tmp_path / "again"), (tmp_path / "again" / "scores.npz").stat()
    assert len(read_events(tmp_path / "fresh")["events"]) == 3 != len(read_events(tmp_path / "again")["events"])
    capsys.readouterr()
    monkeypatch.setattr(predictor, "encoded", no_encoder)
    assert predict.main([*command, str(tmp_path / "again"), *cut_otherwise]) == 0
    assert (
        "1 of 1 videos done, 0 were there, 0 skipped; 1 cut anew from their scores; 0 frames" in capsys.readouterr().out
    )
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh") != before
    assert (tmp_path / "again" / "scores.npz").stat() == scores
    if not others:
        assert predict.main([*command, str(tmp_path / "again")]) == 0 and contents(tmp_path / "again") == before


def test_side_files_come_and_go_without_encoding(planted, coloured, tmp_path, monkeypatch):
    command = [*planted.options, str(coloured), "--out", str(tmp_path)]
    predict.main([*command, "--explain"])
    usual = {path.name for path in tmp_path.iterdir()} - {"explain.txt", "explain.json"}
    monkeypatch.setattr(predictor, "encoded", no_encoder)
    predict.main([*command, "--annotate"])
    assert {path.name for path in tmp_path.iterdir()} == usual | {"annotated.mp4"}
    predict.main(command)
    assert {path.name for path in tmp_path.iterdir()} == usual
    with pytest.raises(AssertionError, match="encodes"):  # the Selector's likelihood is not in scores.npz
        predict.main([*command, "--explain"])


def damage(folder: Path, kind: str) -> None:
    """Makes a folder's scores.npz useless in some way."""
    path = folder / "scores.npz"
    with np.load(path) as found:
        arrays = dict(found)
    if kind == "bytes":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "gone":
        path.unlink()
    elif kind == "older":
        np.savez(path, **{name: x for name, x in arrays.items() if name != "origin"})
    elif kind == "frames":
        np.savez(path, **arrays | {"p_A": arrays["p_A"][:-1]})
    else:  # of another video, or of another checkpoint
        origin = json.loads(str(arrays["origin"]))
        origin["settings"] |= {"source": ["w.mp4", 1, 1]} if kind == "video" else {"checkpoint": "0"}
        np.savez(path, **arrays | {"origin": np.array(json.dumps(origin))})


@pytest.mark.parametrize("kind", ["bytes", "cut", "gone", "older", "frames", "video", "checkpoint"])
def test_scores_that_are_damaged_or_anothers_are_made_again(
    planted, coloured, tmp_path_factory, tmp_path, monkeypatch, kind
):
    command = [*planted.options, str(coloured), "--out", str(tmp_path)]
    done = tmp_path_factory.getbasetemp() / "done"
    if not done.exists():
        predict.main([*command[:-1], str(done)])
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    damage(tmp_path, kind)
    encoded, original = [], predictor.encoded
    monkeypatch.setattr(predictor, "encoded", lambda *args: encoded.append(1) or original(*args))
    predict.main([*command, "--threshold", "0.3"])
    assert encoded == [1] and read_events(tmp_path)["threshold"] == 0.3
    expected, found = contents(done)["scores.npz"], contents(tmp_path)["scores.npz"]
    for name in ("p_A", "p_class", "time"):
        np.testing.assert_allclose(found[name], expected[name], atol=4e-6)  # 24 bits, see test_predict.py
    assert found["origin"] == expected["origin"]


def test_a_run_that_was_killed_while_it_wrote_goes_on_from_its_scores(planted, coloured, tmp_path, monkeypatch):
    command = [*planted.options, str(coloured), "--out", str(tmp_path)]
    predict.main(command)
    expected, original = contents(tmp_path), work.write_results
    (tmp_path / "events.json").write_text("[]")  # whatever stands there
    monkeypatch.setattr(predictor, "encoded", no_encoder)
    predict.main(command)
    assert contents(tmp_path) == expected and original is work.write_results


def test_results_of_another_video_are_not_overwritten_in_silence(planted, tmp_path, monkeypatch):
    for name in ("cam1/rec.mp4", "cam2/rec.mp4", "other.mp4"):
        write_clip(tmp_path / name, 30 + len(name), [])
    first, second, third = (tmp_path / name for name in ("cam1/rec.mp4", "cam2/rec.mp4", "other.mp4"))
    alone, folder = ["--out", str(tmp_path / "alone")], ["--out", str(tmp_path / "folder")]
    predict.main([*planted.options, str(first), *alone])
    predict.main([*planted.options, str(first.parent), *folder])
    monkeypatch.setattr(predictor, "encoded", no_encoder)
    for sources, out, owner in ((second, alone, first), (third, alone, first), (second.parent, folder, first)):
        with pytest.raises(InputError) as error:
            predict.main([*planted.options, str(sources), *out])
        assert f"found the results of {owner}, expected none or those of {tmp_path}" in str(error.value)
    monkeypatch.undo()
    assert predict.main([*planted.options, str(second), *alone, "--force"]) == 0
    assert read_events(tmp_path / "alone")["path"] == str(second)
    second.rename(tmp_path / "rec.mp4")  # the same video in another place
    monkeypatch.setattr(predictor, "encoded", no_encoder)
    assert predict.main([*planted.options, str(tmp_path / "rec.mp4"), *alone, "--threshold", "0.3"]) == 0
    monkeypatch.undo()
    write_clip(tmp_path / "rec.mp4", 60)  # another video in the same place
    assert predict.main([*planted.options, str(tmp_path / "rec.mp4"), *alone]) == 0
    assert read_events(tmp_path / "alone")["frames"] == 60


def test_results_of_other_features_are_not_overwritten_in_silence(planted, tmp_path):
    one, other, *_ = sorted(planted.features.glob("*.npy"))
    command = ["--ckpt", planted.checkpoint, "--device", "cpu", "--out", str(tmp_path), "--features"]
    predict.main([*command, str(one)])
    with pytest.raises(InputError, match=f"found the results of {one}, expected none or those of {other}"):
        predict.main([*command, str(other)])
    assert predict.main([*command, str(other), "--force"]) == 0


def test_pictures_of_an_earlier_video_go_where_features_have_none(planted, coloured, tmp_path):
    predict.main([*planted.options, str(coloured), "--out", str(tmp_path)])
    assert {"key_frame.jpg", "event_pictures.jpg"} <= {path.name for path in tmp_path.iterdir()}
    features = str(min(planted.features.glob("*.npy")))
    predict.main([*planted.options[:2], "--device", "cpu", "--out", str(tmp_path), "--features", features, "--force"])
    assert {path.name for path in tmp_path.glob("*.jpg")} == set()


def test_results_of_older_versions_tell_the_name_alone(planted, tmp_path):
    video, command = write_clip(tmp_path / "v.mp4", 30), [*planted.options, "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    older = {"settings": {"source": ["v.mp4", 1, 2]}, "video": "v", "events": []}
    (tmp_path / "out" / "events.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match="found the results of v.mp4, expected none or those of"):
        predict.main([*command, str(write_clip(tmp_path / "w.mp4", 30))])
    assert predict.main([*command, str(video)]) == 0 and read_events(tmp_path / "out")["frames"] == 30
