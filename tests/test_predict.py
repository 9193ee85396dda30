"""Tests of predict.py, events.py, annotated_video.py and export.py on small videos whose anomalies are colours."""

import csv
import json
import os
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import av
import numpy as np
import pytest
import torch

import evaluate
import extract_features
import predict
from anomalyclip import AnomalyCLIP
from tests.places import REFERENCE, REFERENCE_DATA, ROOT, needs_reference
from tests.videos import BLUE, RED, write_clip
from videoanomaly import frame_scores, winograd
from videoanomaly.evaluation import evaluator, tables
from videoanomaly.event_rule import cut_events
from videoanomaly.prediction import events, explain, results, work
from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.video import encoding
from videoanomaly.weights import checkpoints

FILES = {"report.html", "events.json", "events.csv", "events.vtt", "scores.npz", "timeline.png", "key_frame.jpg"} | {
    "event_pictures.jpg"
}


def read_events(folder: Path) -> dict:
    return json.loads((folder / "events.json").read_text())


# ---- videos


def test_a_video_gives_its_events_with_names_and_times_in_every_file(planted, tmp_path, capsys):
    video = write_clip(tmp_path / "v.mp4", 200, [(50, 90, RED), (140, 180, BLUE)])
    assert predict.main([*planted.options, str(video), "--out", str(tmp_path / "out"), "--threshold", "0.5"]) == 0
    result = read_events(tmp_path / "out")
    assert [event["class"] for event in result["events"]] == ["fire", "fall"]
    for event, (start, end) in zip(result["events"], [(50, 90), (140, 180)]):
        assert abs(event["start_frame"] - start) <= 2 and abs(event["end_frame"] - end) <= 2
        assert [event["start"], event["end"]] == pytest.approx([event["start_frame"] / 25, event["end_frame"] / 25])
    assert result["frames"] == 200 and result["fps"] == 25
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    rows = list(csv.DictReader((tmp_path / "out" / "events.csv").open()))
    assert [row["class"] for row in rows] == ["fire", "fall"] and rows[0]["second"] == "fall" and rows[0]["third"] == ""
    assert float(rows[0]["start_seconds"]) == pytest.approx(result["events"][0]["start"], abs=5e-4)
    assert rows[0]["start_hms"] == events.clock(result["events"][0]["start"])
    cues = re.findall(r"(\S+) --> (\S+)\n(.*)\n", (tmp_path / "out" / "events.vtt").read_text())
    assert [(start, end) for start, end, _ in cues] == [(row["start_hms"], row["end_hms"]) for row in rows]
    assert "2 events" in capsys.readouterr().out


def test_scores_equal_those_of_the_features_that_extract_features_writes(planted_spaced, tmp_path):
    video = write_clip(tmp_path / "v.mp4", 101)
    extract_features.main(
        [
            "--videos",
            str(video),
            "--out",
            str(tmp_path / "features"),
            "--encoder",
            planted_spaced.options[3],
            "--device",
            "cpu",
            "--stride",
            "2",
        ]
    )
    p_A, p_class = AnomalyCLIP.from_checkpoint(planted_spaced.checkpoint).predict(
        np.load(tmp_path / "features" / "v.npy")
    )
    predict.main([*planted_spaced.options, str(video), "--out", str(tmp_path / "a")])
    predict.main(
        [*planted_spaced.options, "--features", str(tmp_path / "features" / "v.npy"), "--out", str(tmp_path / "b")]
    )
    for folder in "ab":
        with np.load(tmp_path / folder / "scores.npz") as found:
            # float32 sums of at most 64 terms, added up in another order where a batch is another: 64 * 2^-24
            assert np.allclose(found["p_A"], p_A[np.arange(101) // 2], rtol=0, atol=4e-6)
            assert np.allclose(found["p_class"], p_class[np.arange(101) // 2], rtol=0, atol=4e-6)
            assert np.allclose(found["time"], np.arange(101) / 25, atol=1e-6)


def test_times_are_those_of_the_container_where_the_rate_varies(planted, tmp_path):
    times = np.cumsum(np.where(np.arange(100) < 40, 0.04, 0.1)) - 0.04
    video = write_clip(tmp_path / "v.mkv", 100, [(50, 75, RED)], times)
    predict.main([*planted.options, str(video), "--out", str(tmp_path / "out"), "--threshold", "0.5"])
    with np.load(tmp_path / "out" / "scores.npz") as found:
        assert np.allclose(found["time"], times, atol=2e-3)
    (event,) = read_events(tmp_path / "out")["events"]
    assert (
        event["start"] == pytest.approx(times[event["start_frame"]], abs=2e-3) and abs(event["start_frame"] - 50) <= 2
    )
    assert event["end"] == pytest.approx(times[event["end_frame"]], abs=2e-3)


def test_a_stride_encodes_fewer_frames_and_finds_the_same_event(planted_spaced, tmp_path, monkeypatch):
    from videoanomaly.video import encoding

    encoded, original = [], encoding.to_float16
    monkeypatch.setattr(encoding, "to_float16", lambda x, name: encoded.append(len(x)) or original(x, name))
    video = write_clip(tmp_path / "v.mp4", 120, [(48, 80, RED)])
    found = []
    for stride in ("2", "8"):
        predict.main(
            [
                *planted_spaced.options,
                str(video),
                "--out",
                str(tmp_path / stride),
                "--stride",
                stride,
                "--threshold",
                "0.5",
            ]
        )
        found.append(read_events(tmp_path / stride)["events"])
        encoded.append("end")
    rows = "".join(f" {n}" for n in encoded).split(" end")
    assert sum(map(int, rows[0].split())) == 60 and sum(map(int, rows[1].split())) == 15
    (one,), (other,) = found
    assert one["class"] == other["class"] == "fire" and abs(one["start_frame"] - other["start_frame"]) <= 8


def test_interpolation_is_linear_and_holds_the_last_row():
    features = np.array([[0.0], [4.0], [8.0]], np.float16)  # of frames 0, 4, 8
    rows = encoding.interpolate(features, 4, 2, 12)
    assert rows[:, 0].tolist() == [0, 2, 4, 6, 8, 8] and rows.dtype == np.float16
    crops = encoding.interpolate(np.stack([features, features + 1], axis=1), 4, 3, 9)
    assert crops[:, 1, 0].tolist() == [1, 4, 7] and encoding.interpolate(features, 4, 4, 12) is features


def test_a_folder_names_broken_videos_goes_on_and_lists_the_surest_first(planted, tmp_path, capsys):
    write_clip(tmp_path / "in" / "quiet.mp4", 60, [])
    write_clip(tmp_path / "in" / "sub" / "<i>fire&.mp4", 100)
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video")
    command = [*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threshold", "0.5"]
    assert predict.main(command) == 1
    told = capsys.readouterr()
    assert "skipped" in told.err and "broken.mp4" in told.err and "2 of 3 videos done" in told.out
    index = (tmp_path / "out" / "index.html").read_text()
    assert index.index("&lt;i&gt;fire&amp;") < index.index('"name">quiet') < index.index("<b>broken</b>")
    assert "<i>fire" not in index
    links = re.findall(r'href="([^"]+)"', index)
    assert links[:2] == ["#videos", "#failed"] or links[:2] == ["#failed", "#videos"]
    files = [unquote(link.partition("#")[0]) for link in links[2:]]
    assert files == [files[0], files[0], "quiet/report.html"]  # the event, its video and the one without
    assert all((tmp_path / "out" / file).is_file() for file in files)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("report.html")}
    assert predict.main(command) == 1 and "0 of 3 videos done, 2 were there, 1 skipped" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert predict.main([*command[:-1], "0.6"]) == 1 and "2 of 3 videos done, 0 were there" in capsys.readouterr().out
    assert predict.main([*command[:-1], "0.6", "--force"]) == 1
    assert "2 of 3 videos done, 0 were there" in capsys.readouterr().out
    (tmp_path / "out" / "quiet" / "events.json").unlink()  # as if killed on the way
    assert predict.main([*command[:-1], "0.6"]) == 1 and "1 of 3 videos done, 1 were there" in capsys.readouterr().out


def damaged(path: Path) -> Path:
    """A video of 100 frames with a hole of bytes, so that some of its frames are lost."""
    write_clip(path, 100, [(50, 75, RED)])
    data = bytearray(path.read_bytes())
    middle = data.find(b"mdat") + (path.stat().st_size - data.find(b"mdat")) // 3
    data[middle : middle + 400] = bytes(range(200)) * 2
    path.write_bytes(data)
    return path


def test_of_a_damaged_video_all_else_is_scored_and_the_place_is_told(planted, tmp_path, capsys):
    damaged(tmp_path / "in" / "hit.mp4")
    cut = write_clip(tmp_path / "in" / "cut.mkv", 100, [(50, 75, RED)])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 8 // 10])
    assert (
        predict.main([*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threshold", "0.5"])
        == 0
    )
    told, index = capsys.readouterr().err, (tmp_path / "out" / "index.html").read_text()
    for name in ("hit", "cut"):
        result, page = read_events(tmp_path / "out" / name), (tmp_path / "out" / name / "report.html").read_text()
        (damage,), (note,), (event,) = result["damage"], result["notes"], result["events"]
        assert 40 < result["frames"] < 100 and damage["end"] > damage["start"] + 0.03 and note in told and note in page
        assert event["start"] == pytest.approx(2, abs=0.2)
        assert note.startswith(f"cannot be decoded: {events.clock(damage['start'])} to {events.clock(damage['end'])} (")
    assert index.count("not all of it can be decoded") == 2


@pytest.mark.parametrize("where", ["work.score_rows", "plots.timeline", "annotated_video.write_video", "report.page"])
def test_whatever_fails_with_one_video_the_others_are_done(planted, tmp_path, capsys, monkeypatch, where):
    module = getattr(results, where.split(".")[0], None) or work
    original, name = getattr(module, where.split(".")[1]), where.split(".")[1]

    def failing(*args, **kwargs):
        texts = [value["video"] if isinstance(value, dict) else value for value in (*args, *kwargs.values())]
        if any("bad" in str(text) for text in texts if isinstance(text, str | Path)):
            raise ZeroDivisionError("no such luck")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    for video in ("a", "bad", "z"):
        write_clip(tmp_path / "in" / f"{video}.mp4", 30)
    options = [*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    options += ["--annotate"] * where.startswith("annotated_video")
    assert predict.main(options) == 1
    assert f"skipped {tmp_path / 'in' / 'bad.mp4'}: ZeroDivisionError: no such luck" in capsys.readouterr().err
    assert "no such luck" in (tmp_path / "out" / "index.html").read_text()
    assert [(tmp_path / "out" / video / "events.json").exists() for video in ("a", "bad", "z")] == [True, False, True]


def test_a_full_disk_ends_the_run(planted, tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(f"{path}: cannot be written (No space left on device)") from OSError(
            28, "No space left on device"
        )

    monkeypatch.setattr(results, "write_atomically", full)
    write_clip(tmp_path / "in" / "a.mp4", 30)
    with pytest.raises(OSError, match="No space left"):
        predict.main([*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out")])


def test_names_that_are_no_text_or_look_like_formulas_do_no_harm(planted, tmp_path, capsys):
    names = [os.fsdecode(b"\xff\n\x1b.mp4"), r"$\frac$.mp4", " -->.mp4"]
    (tmp_path / "in").mkdir()
    for name in names:
        write_clip(tmp_path / "w.mp4", 3).rename(tmp_path / "in" / name)
    assert predict.main([*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert (
        r"\xff" in told
        and "\x1b" not in told
        and r"\xff" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    )


HOSTILE = ("\x1b[2J", "\x07", "\nerror: forged", "\r", "\x9b2J", "\u202egpj", "\u2028", "事", os.fsdecode(b"\xff"))


def lines_shown(out: str) -> list[str]:
    """Lines of a terminal, in which nothing but letters and line ends may be."""
    assert all(line.isprintable() or "\N{REPLACEMENT CHARACTER}" in line for line in out.split("\n"))
    assert not set(out) & set("\x1b\x07\r\x9b\u202e\u2028")
    return out.splitlines()


@pytest.mark.parametrize("name", HOSTILE)
def test_videos_that_cannot_be_read_are_named_without_control_characters(planted, tmp_path, capfd, name):
    folder = tmp_path / f"in{name}"
    folder.mkdir()
    (folder / f"a{name}.mp4").write_bytes(b"no video")
    extract = ["--videos", str(folder), "--encoder", planted.options[3], "--device", "cpu"]
    assert predict.main([*planted.options, str(folder), "--out", str(tmp_path / f"out{name}")]) == 1
    assert extract_features.main([*extract, "--out", str(tmp_path / f"features{name}")]) == 1
    assert evaluator.timeline_pictures(str(folder), f"a{name}", np.zeros(9)) == []
    told = capfd.readouterr()
    assert len(lines_shown(told.out)) == 3 and len(lines_shown(told.err)) == 3, told
    for script in (predict, extract_features):
        with pytest.raises(SystemExit, match="2"):
            run_script(
                lambda: script.main(
                    [*planted.options, str(folder / "none"), "--out", str(tmp_path / "o")]
                    if script is predict
                    else [*extract, "--videos", str(folder / "none"), "--out", str(tmp_path / "o")]
                )
            )
        assert len(lines_shown(capfd.readouterr().err)) == 1


def test_classes_are_shown_without_control_characters():
    name = "\x1b[2J\nx"
    segment = {"start": 0.0, "end": 1.0, "likelihood": 0.0, "p_class": 0.5, "p_A": 0.5}
    assert len(lines_shown(explain.segments_text({name: [segment]}))) == 3
    assert len(lines_shown(explain.words_text({name: [[{"word": "w", "distance": 1.0}]]}))) == 2
    assert len(lines_shown(tables.align([["class", "AUC"], [name, "1"]]))) == 2


def test_results_within_the_input_folder_are_no_input(planted, tmp_path, capsys):
    write_clip(tmp_path / "in" / "v.mp4", 30)
    command = [*planted.options, str(tmp_path / "in"), "--out", str(tmp_path / "in" / "out"), "--annotate"]
    assert predict.main(command) == 0 and predict.main(command) == 0
    assert "0 of 1 videos done, 1 were there" in capsys.readouterr().out


def test_the_threshold_is_the_checkpoints_own_unless_given(planted, tmp_path):
    feature = str(next(planted.features.glob("*.npy")))
    stored = torch.load(planted.checkpoint, weights_only=True)
    for options, expected in (([], stored["threshold"]), (["--threshold", "0.25"], 0.25)):
        predict.main(
            ["--ckpt", planted.checkpoint, "--features", feature, "--out", str(tmp_path), "--device", "cpu", *options]
        )
        assert read_events(tmp_path)["threshold"] == expected
    del stored["threshold"]  # as older checkpoints are
    torch.save(stored, tmp_path / "old.pt")
    predict.main(["--ckpt", str(tmp_path / "old.pt"), "--features", feature, "--out", str(tmp_path), "--device", "cpu"])
    assert read_events(tmp_path)["threshold"] == 0.5


def test_checkpoints_that_do_not_hold_the_spacing_take_it_from_the_features_folder(planted_spaced, tmp_path):
    stored = torch.load(planted_spaced.checkpoint, weights_only=True)
    assert stored.pop("frames_per_feature") == checkpoints.frames_per_feature(stored) == 2
    stored["settings"] |= {"features": str(tmp_path / "gone"), "root": str(tmp_path / "gone")}
    assert checkpoints.frames_per_feature(stored) == 1


@needs_reference
@pytest.mark.parametrize(
    "converted, precision, tolerance", [(False, "float32", 5e-6), (True, "float32", 5e-6), (True, "bfloat16", 5e-3)]
)
def test_released_checkpoints_give_the_scores_of_the_released_code(tmp_path, converted, precision, tolerance):
    options = ["--ckpt", str(REFERENCE / "last.ckpt"), "--dataset", "ucfcrime", "--root", REFERENCE_DATA]
    if converted:
        evaluate.main([*options, "--convert", str(tmp_path / "ours.pt")])
        options = ["--ckpt", str(tmp_path / "ours.pt")]
    paths = sorted(Path(REFERENCE_DATA).rglob("*_x264.npy"))[:2]
    options += ["--features", *map(str, paths), "--fps", "30", "--device", "cpu", "--precision", precision]
    predict.main([*options, "--out", str(tmp_path / "out")])
    expected = np.load(REFERENCE / "expected.npz")
    compared = [name for name in (path.stem for path in paths) if f"{name}.scores" in expected]
    for name in compared:
        with np.load(tmp_path / "out" / name / "scores.npz") as found:
            assert np.abs(found["p_A"] - expected[f"{name}.scores"]).max() <= tolerance
    assert compared and (tmp_path / "out" / "index.html").is_file()


def test_a_temporal_model_with_features_of_its_own_takes_them_from_a_folder(tmp_path):
    from tests.synthetic import run, write_dataset

    one, other = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b", dim=32)
    run(one, tmp_path / "run", "--epochs", "1", "--temporal-features", str(other / "features"))
    options = ["--ckpt", str(tmp_path / "run" / "last.pt"), "--device", "cpu", "--out", str(tmp_path / "out")]
    options += ["--precision", "float32"]
    with pytest.raises(InputError, match="expected --features and --temporal-features"):
        predict.main([*options, str(write_clip(tmp_path / "v.mp4", 3))])
    predict.main(
        [*options, "--features", str(one / "features" / "test00.npy"), "--temporal-features", str(other / "features")]
    )
    model = AnomalyCLIP.from_checkpoint(tmp_path / "run" / "last.pt")
    winograd.accelerate(model)  # as predict.py does
    p_A, _ = model.predict(*(np.load(root / "features" / "test00.npy") for root in (one, other)))
    with np.load(tmp_path / "out" / "scores.npz") as found:
        assert np.array_equal(found["p_A"], p_A)


def test_the_annotated_copy_has_every_frame_at_its_time_and_shows_the_event(planted, tmp_path):
    times = np.cumsum(np.where(np.arange(100) < 40, 0.04, 0.1)) - 0.04
    video = write_clip(tmp_path / "v.mkv", 100, [(50, 75, RED)], times)
    predict.main([*planted.options, str(video), "--out", str(tmp_path / "out"), "--threshold", "0.5", "--annotate"])
    with av.open(str(tmp_path / "out" / "annotated.mp4")) as container:
        stream = container.streams.video[0]
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264" and stream.width == 512 and stream.height > 512
    assert np.allclose([time for time, _ in frames], times, atol=2e-3)
    corner = [image[14:30, 10:60].max() for _, image in frames]  # the label is brighter than what it covers
    assert corner[60] > 200 and corner[60] > corner[20]
    playhead = [int(image[-30:-12].astype(int)[..., 0].mean(0).argmax()) for _, image in frames]
    assert playhead[90] > playhead[10]


# ---- events


def test_events_are_those_of_cut_events_named_by_their_highest_mean():
    rng = np.random.default_rng(1)
    p_A = np.convolve(rng.random(900), np.ones(30) / 30, "same").astype(np.float32)
    p_class = (p_A[:, None] * rng.dirichlet(np.ones(4), 900)).astype(np.float32)
    scores = frame_scores.FrameScores(p_A, p_class, np.arange(900) / 25, 25.0)
    found = events.find_events(scores, ("a", "b", "c", "d"), 0.55)
    expected = cut_events(p_A, 25.0, high=0.55)
    assert [[e["start_frame"], e["end_frame"]] for e in found] == expected.intervals.tolist() and len(found) > 0
    assert np.allclose([e["confidence"] for e in found], expected.scores)
    for event in found:
        means = dict(zip("abcd", p_class[event["start_frame"] : event["end_frame"]].mean(0)))
        ranking = sorted(means, key=means.get, reverse=True)
        assert [event["class"], *(other["class"] for other in event["others"])] == ranking[:3]


def test_clock_carries_over():
    assert [events.clock(s) for s in (0, 59.9996, 3599.9999, 3661.5, -1)] == [
        "00:00:00.000",
        "00:01:00.000",
        "01:00:00.000",
        "01:01:01.500",
        "00:00:00.000",
    ]


def test_classes_are_no_formulas_in_tables():
    scores = frame_scores.FrameScores(
        np.ones(50, np.float32), np.ones((50, 3), np.float32) / 3, np.arange(50) / 25, 25.0
    )
    found = events.find_events(scores, ("=cmd|' /C calc'!A0", "@SUM(1)", "+1"), 0.5)
    row = next(csv.DictReader(events.to_csv(found).splitlines()))
    assert {row[name][:2] for name in ("class", "second", "third")} == {"'=", "'@", "'+"}
    assert found[0]["class"][0] != "'"  # JSON and pages show names as they are


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\x0b", "\x85", "\u2028", "\u2029"])
def test_subtitles_escape_names(end):
    event = {"start_time": "a", "end_time": "b", "class": f"x{end}--> <i>&|", "confidence": 0.5}
    assert events.to_vtt([event] * 2).endswith("\n\n2\na --> b\nx --&gt; &lt;i&gt;&amp;| 50%\n")


# ---- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "found nothing to work on"),
        (["v.mp4"], "--out is missing"),
        (["v.mp4", "--live", "0"], "found videos and live"),
        (["v.mp4", "--out", "o", "--threshold", "0"], "--threshold 0.0"),
        (["v.mp4", "--out", "o", "--threshold", "0.5", "--false-alarms-per-hour", "1"], "expected one of them"),
        (["v.mp4", "--out", "o", "--false-alarms-per-hour", "0"], "--false-alarms-per-hour 0.0: expected"),
        (["--live", "0", "--false-alarms-per-hour", "nan"], "--false-alarms-per-hour nan: expected"),
        (["v.mp4", "--out", "o", "--hysteresis", "1.5"], "--hysteresis 1.5: expected"),
        (["v.mp4", "--out", "o", "--hysteresis", "0"], "--hysteresis 0.0: expected"),
        (["--live", "0", "--min-length", "-1"], "--min-length -1.0: expected seconds"),
        (["v.mp4", "--out", "o", "--merge-gap", "inf"], "--merge-gap inf: expected seconds"),
        (["--live", "0", "--time-zone", "UTC"], "--start-time and --time-zone tell when videos began"),
        (["v.mp4", "--out", "o", "--time-zone", "Mars"], "--time-zone Mars: expected a zone"),
        (["v.mp4", "--out", "o", "--start-time", "noon"], "--start-time noon: expected a time"),
        (["v.mp4", "--out", "o", "--stride", "0"], "--stride 0"),
        (["--features", "x.npy", "--out", "o", "--fps", "nan"], "--fps nan"),
        (["--features", "x.npy", "--out", "o", "--annotate"], "--annotate"),
        (["v.mp4", "--out", "o", "--webhook", "http://x"], "--webhook goes"),
        (["--export", "model.txt"], "ends in .onnx or .pt2"),
        (["v.mp4", "--out", "o", "--dataset", "ucfcrime"], "--dataset and --root"),
        (["v.mp4", "--out", __file__], "found a file"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        predict.main(["--ckpt", "missing.pt", *options])


def test_what_does_not_go_with_the_checkpoint_is_told(planted, planted_spaced, tmp_path):
    video, out = str(write_clip(tmp_path / "v.mp4", 5)), ["--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(InputError, match="was trained with features of Colours.*give --encoder FILE.py:Colours"):
        predict.main(["--ckpt", planted.checkpoint, video, *out])
    with pytest.raises(InputError, match="--stride 1: expected at least 2"):
        predict.main([*planted_spaced.options, video, *out, "--stride", "1"])
    stored = torch.load(planted.checkpoint, weights_only=True)
    stored["encoder"] |= {"weights_sha256": "0" * 64}
    torch.save(stored, tmp_path / "other.pt")
    with pytest.raises(InputError, match="its weights did not make the features of .*other.pt"):
        predict.main(["--ckpt", str(tmp_path / "other.pt"), *planted.options[2:], video, *out])
    code = (planted.root / "colours.py").read_text()
    code = code.replace("dim = 64", "dim = 32").replace("return features", "return features[:, :32]")
    (tmp_path / "wide.py").write_text(code)
    with pytest.raises(InputError, match="makes features of 32 values, expected 64"):
        predict.main(["--ckpt", planted.checkpoint, "--encoder", f"{tmp_path / 'wide.py'}:Colours", video, *out])
    with pytest.raises(InputError, match="nothing there"):
        predict.main([*planted.options, str(tmp_path / "absent"), *out])
    np.save(tmp_path / "x.npy", np.zeros((10, 64), np.float16))
    with pytest.raises(InputError, match="nothing tells its frame rate, expected --fps"):
        predict.main(["--ckpt", planted.checkpoint, "--features", str(tmp_path / "x.npy"), *out])
    np.save(tmp_path / "x.npy", np.zeros((10, 32), np.float16))
    with pytest.raises(InputError, match="features of size 32|features of 32 values"):
        predict.main(["--ckpt", planted.checkpoint, "--features", str(tmp_path / "x.npy"), "--fps", "25", *out])
    assert not (tmp_path / "out").exists()


def test_features_with_an_axis_too_many_are_told_and_crops_are_said(planted, tmp_path, capsys):
    rows = np.load(planted.features / "test00.npy")
    for name, array in (
        ("batch", rows[None]),
        ("front", np.stack([rows] * 10)),
        ("crops", np.stack([rows] * 10, axis=1)),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    options = ["--ckpt", planted.checkpoint, "--fps", "25", "--out", str(tmp_path / "out"), "--device", "cpu"]
    for name in ("batch", "front"):
        with pytest.raises(
            InputError, match=rf"{name}.npy: found an array \(10?, {len(rows)}, 64\), expected \(N, 64\)"
        ):
            predict.main([*options, "--features", str(tmp_path / f"{name}.npy")])
    predict.main([*options, "--features", str(tmp_path / "crops.npy")])
    assert f"({len(rows)}, 10, 64), read as {len(rows)} rows of 10 crops each" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "events.json").read_text())["frames"] == len(rows)


def test_two_videos_of_one_name_are_told(planted, tmp_path):
    for folder in "ab":
        write_clip(tmp_path / folder / "v.mp4", 3)
    with pytest.raises(InputError, match="would both give v"):
        predict.main([*planted.options, str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])


# ---- export


def with_relative_features(checkpoint, path):
    """The same model, but what it sees are features, also less their median, through other weights."""
    entries = torch.load(checkpoint, weights_only=True)
    entries["config"]["temporal_input"] = "relative"
    weight = entries["model"]["temporal_model.projection.weight"]
    weight = torch.randn(len(weight), 2 * entries["config"]["feature_dim"], generator=torch.Generator().manual_seed(0))
    entries["model"]["temporal_model.projection.weight"] = 0.1 * weight
    torch.save(entries, path)
    return path


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_the_exported_model_agrees(planted, tmp_path, suffix, capsys):
    path = tmp_path / f"model.{suffix}"
    checkpoint = planted.checkpoint
    if suffix == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        checkpoint = str(with_relative_features(checkpoint, tmp_path / "relative.pt"))
    assert predict.main(["--ckpt", checkpoint, "--export", str(path), "--device", "cpu"]) == 0
    model = AnomalyCLIP.from_checkpoint(checkpoint)
    S, F, D = model.config.num_segments, model.config.num_frames, model.config.feature_dim
    if suffix == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run_model(passes):
            return session.run(["p_A", "p_class"], {"features": passes})
    else:
        program = torch.export.load(path).module()

        def run_model(passes):
            return [x.detach().numpy() for x in program(torch.from_numpy(passes))]

    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (tmp_path / "score.py").write_text(re.search(r"```python\n(def .*?)```", page, re.S)[1])
    score_video = runpy.run_path(str(tmp_path / "score.py"), {"np": np})["score_video"]
    for num_rows in (1, S * F - 1, S * F, S * F + 1, 5 * S * F + 7):  # of no, one and several passes
        features = np.random.default_rng(num_rows).normal(size=(num_rows, D)).astype(np.float32)
        found, expected = score_video(run_model, features, S, F), model.predict(features)
        for ours, theirs in zip(found, expected):  # 24 bits, through layers that add thousands of products
            assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-4
    assert sorted({*os.listdir(tmp_path)} - {"relative.pt"}) == [path.name, "score.py"]
    assert f"features (passes, {S}, {F}, {D})" in capsys.readouterr().out
