"""Tests of evaluate.py with several checkpoints, and of tables.py, scoring.py, key_frames.py and plots.py."""

import csv
import html
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import sklearn.metrics
import torch

import evaluate
from tests.synthetic import equal, run, write_dataset
from videoanomaly import plots
from videoanomaly.data.annotations import Video, VideoLists
from videoanomaly.evaluation import evaluator, scoring, tables
from videoanomaly.operating_curve import Watched, measure
from videoanomaly.runtime import files
from videoanomaly.runtime.console import InputError, as_text
from videoanomaly.video import key_frames


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two checkpoints of different seeds and the folder with their common tables."""
    root = tmp_path_factory.mktemp("evaluate")
    dataset = write_dataset(root / "data")
    checkpoints = [str(root / seed / "last.pt") for seed in "01"]
    for seed in "01":
        run(dataset, root / seed, "--epochs", "2", "--seed", seed)
    files = [option for kind in ("json", "csv", "markdown") for option in (f"--{kind}", str(root / f"all.{kind}"))]
    evaluate.main(
        [
            "--ckpt",
            *checkpoints,
            "--out",
            str(root / "out"),
            "--device",
            "cpu",
            "--timelines",
            "1",
            "--bootstrap",
            "50",
            "--vadclip-map",
            *files,
        ]
    )
    return root, checkpoints


def test_several_checkpoints_get_a_folder_each_and_common_tables(runs):
    root, checkpoints = runs
    results = json.loads((root / "all.json").read_text())
    assert list(results) == checkpoints
    for i, name in enumerate(checkpoints):
        assert results[name] == json.loads((root / "out" / str(i) / "metrics.json").read_text())
    rows = list(csv.reader((root / "all.csv").open()))
    assert rows[0] == ["metric", *checkpoints]
    cells = {row[0]: row[1:] for row in rows[1:]}
    assert [float(cell) for cell in cells["AUC"]] == [results[name]["AUC"] for name in checkpoints]
    assert [float(cell) for cell in cells["intervals.per_class.fire.AUC.low"]] == [
        results[name]["intervals"]["per_class"]["fire"]["AUC"][0] for name in checkpoints
    ]
    aucs = [100 * results[name]["AUC"] for name in checkpoints]
    assert (root / "out" / "recognition.png").read_bytes().startswith(b"\x89PNG")
    assert (
        f"| mean | {statistics.mean(aucs):.2f} ± {statistics.stdev(aucs):.2f} |" in (root / "all.markdown").read_text()
    )


def test_results_hold_intervals_events_and_operating_points(runs):
    root, checkpoints = runs
    result = json.loads((root / "out" / "0" / "metrics.json").read_text())
    low, high = result["intervals"]["AUC"]
    assert low < result["AUC"] < high
    assert result["intervals"]["per_class"]["fall"]["videos"] == 4
    assert result["events"]["per_class"]["fire"]["events"] == 4 and 0 <= result["events"]["mAP"] <= 1
    assert result["operation"]["events"] == 8 and result["operation"]["normal_hours"] > 0
    assert set(result["vadclip"]) >= {"mAP", "mAP@0.5"}
    for picture in ("class_auc.png", "class_ap.png", "reliability.png"):
        assert (root / "out" / "0" / picture).read_bytes().startswith(b"\x89PNG")


def test_what_the_folds_promised_stands_beside_what_was_met(runs, tmp_path, capsys):
    root, checkpoints = runs
    bump = np.repeat([0.0, 0.8, 0.0], 30).astype(np.float32)
    videos = [Watched(label, bump * size, bump[:, None], 1.0) for label, size in ((-1, 1), (-1, 0.1), (0, 1), (0, 0.5))]
    curve = measure(videos)
    stored = torch.load(checkpoints[0], weights_only=True)
    torch.save(stored | {"threshold": 0.3, "operating_curve": curve.to_plain()}, tmp_path / "last.pt")
    options = ["--device", "cpu", "--bootstrap", "2", "--timelines", "0", "--csv", str(tmp_path / "all.csv")]
    evaluate.main(["--ckpt", str(tmp_path / "last.pt"), *options])
    promised = json.loads((tmp_path / "eval" / "metrics.json").read_text())["promised"]
    assert promised == json.loads(json.dumps(curve.at(0.3))) and promised["false_alarms_per_hour"] == 20
    low, high = promised["false_alarms_per_hour_interval"]
    assert f"20.000 [{low:.3f}, {high:.3f}]" in capsys.readouterr().out
    assert f"promised.false_alarms_per_hour_interval.low,{low}" in (tmp_path / "all.csv").read_text()
    assert "promised" not in json.loads((root / "out" / "0" / "metrics.json").read_text())  # trained without folds


def test_the_numbers_are_there_even_where_no_picture_can_be_drawn(runs, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(evaluator, "draw_all", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate.main(["--ckpt", runs[1][0], "--out", str(tmp_path), "--device", "cpu", "--bootstrap", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "scores.npz"]


ODD_NAMES = ["$\\foo$", "\\$x$", "a$b", "$" * 9, "{x}_^", "f" * 1000, "\\frac{", "事故", "%s%d"]


@pytest.mark.filterwarnings("ignore")  # fonts and room for a thousand letters
def test_pictures_show_any_name_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    p_class = rng.dirichlet(np.ones(len(ODD_NAMES)), 60).astype(np.float32)
    p_A, labels = rng.random(60).astype(np.float32), np.arange(60) % (len(ODD_NAMES) + 1) - 1
    lists = VideoLists(tuple(ODD_NAMES), [], [Video("a$b/$\\foo$", 0)])
    scores = {"a$b/$\\foo$": scoring.Scores(p_A, p_class, labels)}
    found = scoring.all_metrics(scores, lists.classes, [25.0], threshold=0.5, num_draws=2)
    evaluator.draw_all(tmp_path, found, scores, lists, num_timelines=1, videos=None)
    plots.recognition_bars(tmp_path / "runs.png", {"a$b$/last.pt": found | {"system": "rtfm"}})
    assert len(list(tmp_path.rglob("*.png"))) == 8


def test_cells_that_a_spreadsheet_would_compute_get_an_apostrophe():
    odd = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", " =1", "\t=1", "＝1", "－1"]
    assert [files.csv_cell(text) for text in odd] == [f"'{text}" for text in odd]
    assert [files.csv_cell(text) for text in ("fire", "a=1", "", "1-2")] == ["fire", "a=1", "", "1-2"]
    header, *_ = csv.reader(tables.to_csv({"=x/last.pt": {"AUC": 0.5}}).splitlines())
    assert header == ["metric", "'=x/last.pt"]


def test_an_absent_class_is_absent_in_every_table():
    class_values = {"AUC": None, "AP": None, "frames": 0}
    results = {
        "AUC": 0.5,
        "AP": 0.25,
        "mAUC": None,
        "mAP": None,
        "frames": 9,
        "anomalous_frames": 0,
        "rules": {},
        "per_class": {"fire": class_values},
        "intervals": {
            "AUC": [0.4, 0.6],
            "AP": None,
            "mAUC": None,
            "mAP": None,
            "per_class": {"fire": {"AUC": None, "AP": None, "videos": 0}},
        },
        "events": {"mAP": None, "per_class": {"fire": {"AP": None}}},
        "operation": {"F1": None},
    }
    text = tables.summary(results)
    assert "50.00 [40.0, 60.0]" in text and text.count("absent") == 7
    assert "events.mAP,\n" in tables.to_csv({"a": results})
    assert tables.run_rows({"a": results, "b": results})[-1] == [
        "mean",
        "50.00 ± 0.00",
        "25.00 ± 0.00",
        "absent",
        "absent",
        "absent",
    ]


@pytest.mark.parametrize(
    "name", ["a|b", "|", "a\\|b", "a\\\\|b", "\\", "a\n|b", "\r\n", "<img src=x>", "R&D", "--> x", "事|故"]
)
def test_names_stay_in_their_cell_of_a_markdown_table(name):
    lines = tables.to_markdown([[["class", "AUC"], [name, "1"]]]).split("\n")
    assert len(lines) == 4 and lines[1] == "|---|---|"
    cells = re.findall(r"((?:\\.|[^\\|])*)\|", lines[2])  # a backslash takes the next letter, whatever it is, with it
    before, shown, number = (cell.strip() for cell in cells)
    assert (before, number) == ("", "1") and "<" not in lines[2]
    assert html.unescape(re.sub(r"\\(.)", r"\1", shown)) == as_text(name)


def test_key_frames_are_the_highest_of_each_stretch(tmp_path, capsys):
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(30):
            image = np.full((48, 64, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    p_A = np.zeros(30)
    p_A[[2, 9, 14]] = 1
    pictures = list(key_frames.read_frames(tmp_path / "v.mkv", key_frames.peak_frames(p_A, (), 3)))
    assert [i for i, _ in pictures] == [2, 14, 20]
    assert all(abs(float(np.asarray(image).mean()) - 8 * i) < 4 for i, image in pictures)
    assert evaluator.timeline_pictures(str(tmp_path), "missing", p_A) == []
    for stored, asked in (
        ("u\u0308", "\u00fc"),
        ("\u00f6", "o\u0308"),
    ):  # the accent written apart, on disk or in the list
        (tmp_path / f"{stored}.mkv").write_bytes((tmp_path / "v.mkv").read_bytes())
        assert len(evaluator.timeline_pictures(str(tmp_path), asked, p_A)) == 6
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert evaluator.timeline_pictures(str(tmp_path), "broken", p_A) == []
    assert "no key frames of" in capsys.readouterr().err
    plots.timeline(tmp_path / "t.png", "v", p_A, p_A[:, None] * 0.5, np.zeros((30, 1), bool), ("fire",), pictures)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_a_video_that_shows_several_classes_at_once_counts_for_each(tmp_path):
    root = write_dataset(tmp_path / "data")
    temporal = root / "temporal_annotations.txt"
    name, *_ = next(line.split() for line in temporal.read_text().splitlines() if " fire " in line)
    before = run(root, tmp_path / "a", "--epochs", "1")
    temporal.write_text(f"{temporal.read_text()}\n{name} fall 0 9")
    after = run(root, tmp_path / "b", "--epochs", "1")
    assert equal(before["model"], after["model"])
    options = ["--device", "cpu", "--bootstrap", "5", "--vadclip-map", "--rules", "--projections", "--timelines", "3"]
    results = []
    for folder in ("a", "b"):
        evaluate.main(["--ckpt", str(tmp_path / folder / "last.pt"), *options])
        results.append(json.loads((tmp_path / folder / "eval" / "metrics.json").read_text()))
        assert len(list((tmp_path / folder / "eval" / "timelines").iterdir())) == 3  # one of each class
    one, two = (r["per_class"] for r in results)
    assert two["fire"] == one["fire"] and two["fall"]["frames"] == one["fall"]["frames"] + 10
    assert (
        results[1]["events"]["per_class"]["fall"]["events"] == results[0]["events"]["per_class"]["fall"]["events"] + 1
    )
    assert results[0]["vadclip"] != results[1]["vadclip"] and results[0]["AP"] != results[1]["AP"]


@pytest.mark.parametrize("decimals", (1, 8))
def test_curves_and_their_areas_equal_scikit_learn(decimals):
    rng = np.random.default_rng(3)
    scores, positive = rng.random(400).round(decimals), rng.random(400) < 0.2
    x, y, area = plots.roc_curve(positive, scores)
    expected_x, expected_y, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    at = expected_x[1:-1]
    np.testing.assert_allclose(np.interp(at, x, y), np.interp(at, expected_x, expected_y), atol=1e-12)
    assert area == pytest.approx(sklearn.metrics.roc_auc_score(positive, scores), abs=1e-12)
    recall, precision, area = plots.pr_curve(positive, scores)
    expected = set(zip(*(v.round(9).tolist() for v in sklearn.metrics.precision_recall_curve(positive, scores)[1::-1])))
    assert set(zip(recall.round(9).tolist(), precision.round(9).tolist())) <= expected
    assert area == pytest.approx(sklearn.metrics.average_precision_score(positive, scores), abs=1e-12)


def test_a_picture_gets_the_points_that_it_can_show():
    y = np.linspace(0, 1, 10**6)
    shown = plots.visible(y**2, y)
    assert shown[[0, -1]].all() and shown.sum() < 10**4
    assert np.abs(np.interp(y, y[shown], y[shown] ** 2) - y**2).max() < 1 / 2000
    assert plots.visible(np.array([0, 0, 1.0]), np.array([0, 1.0, 1])).all()


def test_help_does_not_wait_for_numpy_and_torch():
    code = "import sys, evaluate; sys.exit(sorted({'numpy', 'torch', 'matplotlib'} & sys.modules.keys()) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(evaluate.__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(runs, tmp_path, monkeypatch):
    _, checkpoints = runs
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(evaluator, "evaluate_checkpoint", lambda *args: pytest.fail("work was done"))
    with pytest.raises(InputError, match="cannot be written"):
        evaluate.main(["--ckpt", checkpoints[0], "--out", str(tmp_path / "file" / "out")])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--bootstrap", "0"], "--bootstrap 0: expected at least 1"),
        (["--timelines", "-1"], "--timelines -1: expected at least 0"),
        (["--convert", "x.pt"], "--convert with them"),
        (["--fps", "0"], "--fps 0.0: expected a positive number"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        evaluate.main(["--ckpt", "x.pt", *options])
