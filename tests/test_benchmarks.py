"""The benchmarks; no test asserts a time."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from benchmarks import (
    __main__,
    archive_points,
    data_rows,
    development,
    growth,
    inputs,
    measure,
    model_rows,
    peers,
    points,
    video_rows,
)
from benchmarks.measure import Line, Setup, against, spread, take_turns
from videoanomaly.data.annotations import Video, frame_labels
from videoanomaly.runtime.console import InputError
from videoanomaly.settings import make_config

needs_peers = pytest.mark.skipif(
    not all(map(find_spec, ("clip", "axial_attention"))), reason="needs benchmarks/requirements.txt"
)


# ---- timing ----


def test_functions_take_turns_after_one_warm_up_each():
    calls = []
    results, seconds = take_turns({name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, 3, "cpu")
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # there and back
    assert results == {"a": 1, "b": 2}
    assert [len(s) for s in seconds.values()] == [3, 3] and min(map(min, seconds.values())) >= 0


def test_a_time_covers_the_call_and_nothing_else(monkeypatch):
    clock = iter(range(0, 100, 1))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    _, seconds = take_turns({"slow": lambda: [next(clock) for _ in range(4)], "fast": lambda: None}, 2, "cpu")
    assert seconds == {"slow": [5, 5], "fast": [1, 1]}


def test_spread_shows_median_and_range():
    assert spread([3.0, 1.0, 2.0], "ms", scale=1e3) == "2e+03 (1e+03-3e+03) ms"
    assert spread([0.5], "s") == "0.5 s"


def test_ratios_are_those_of_the_same_round_and_above_one_where_we_are_faster():
    line = against("w", "p", [1.0, 2.0, 4.0], [4.0, 6.0, 8.0], lambda s: "", 3)
    assert line.ratios == [4.0, 3.0, 2.0] and line.reached and line.goal == "3x"
    assert against("w", "p", [2.0], [4.0], lambda s: "", 3).reached is False


@pytest.mark.slow
def test_peak_memory_of_a_child_is_its_own():
    held = np.ones(2**27)  # 1 GiB
    assert measure.in_subprocess("benchmarks.measure", "peak_memory", "cpu") < held.nbytes < measure.peak_memory("cpu")


def test_a_failing_child_tells_its_last_line():
    with pytest.raises(RuntimeError, match="loads: json.decoder.JSONDecodeError: Expecting"):
        measure.in_subprocess("json", "loads", "{")


# ---- table ----


@pytest.mark.parametrize(
    "difference, wrong", [(None, False), (0.0, False), (1e-5, False), (1.1e-5, True), (math.nan, True)]
)
def test_a_difference_above_the_tolerance_or_nan_is_wrong(difference, wrong):
    assert Line("w", difference=difference, tolerance=1e-5).wrong is wrong


def test_table_has_a_row_for_each_line():
    lines = [
        against("work", "peer", [1.0], [2.0], lambda s: f"{s[0]:g} s", 1.5, difference=2.0, tolerance=1.0),
        Line("a | b", note="n"),
    ]
    table = __main__.markdown(lines, Setup(quick=True, rounds=1, device="cpu", folder=Path())).splitlines()
    assert table[4] == "| work | 1 s | peer: 2 s | 2 x | 1.5x: yes | 2.0e+00 (may 1) WRONG |  |"
    assert table[5] == "| a / b |  |  |  |  |  | n |"


def run(monkeypatch, tmp_path, row) -> tuple[int, str]:
    """Exit status and table of a run with `row` in the place of a real one."""
    monkeypatch.setitem(__main__.ROWS, "limits", row)
    status = __main__.main(["--quick", "--device", "cpu", "--rows", "limits", "--markdown", str(tmp_path / "table.md")])
    return status, (tmp_path / "table.md").read_text()


def test_a_wrong_answer_gives_status_1(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, lambda setup: [Line("good", difference=0.0)])[0] == 0
    status, table = run(monkeypatch, tmp_path, lambda setup: [Line("good"), Line("bad", difference=1.0)])
    assert status == 1 and "WRONG" in table


def test_a_row_that_fails_gives_status_1_and_says_why(monkeypatch, tmp_path):
    def row(setup):
        raise ValueError("no such thing")

    status, table = run(monkeypatch, tmp_path, row)
    assert status == 1 and "FAILED ValueError: no such thing" in table


def test_a_missing_peer_gives_a_line_that_says_what_to_install(monkeypatch, tmp_path):
    status, table = run(monkeypatch, tmp_path, lambda setup: peers.import_peer("no_such_module", "that-package"))
    assert status == 0 and "needs pip install that-package" in table


def test_one_missing_peer_leaves_the_others_in_the_row(monkeypatch, tmp_path):
    def none(state, sizes):
        raise peers.MissingPeer("pip install it")

    for name in ("open_clip_clip", "transformers_image_tower"):
        monkeypatch.setattr(peers, name, none)
    monkeypatch.setattr(peers, "openai_clip", lambda state, sizes: inputs.random_clip(sizes))
    status, table = run(monkeypatch, tmp_path, model_rows.image_fp32)
    assert status == 0 and table.count("needs pip install it") == 2 and "OpenAI: " in table


def test_bad_arguments_are_told():
    with pytest.raises(InputError, match="--rounds 0: expected at least 1"):
        __main__.parse_args(["--rounds", "0"])


def test_a_folder_without_videos_is_told_in_one_line(tmp_path):
    (tmp_path / "notes.txt").touch()
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="^--videos .*: found no video file, expected a folder with .*") as error:
            __main__.parse_args(["--videos", str(folder)])
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


# ---- rows ----


@pytest.mark.parametrize("row", ["loading", "bootstrap"])
def test_cheap_rows_agree_with_their_peers(row, capsys):
    assert __main__.main(["--quick", "--device", "cpu", "--rounds", "1", "--rows", row]) == 0
    table = capsys.readouterr().out
    assert "(may" in table and "FAILED" not in table


def test_rows_take_the_smallest_of_the_videos_in_a_folder(tmp_path):
    for name, size in (("a/long.mp4", 3), ("b/short.MP4", 1), ("middle.avi", 2), ("notes.txt", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    videos = __main__.parse_args(["--videos", str(tmp_path)]).videos
    assert [path.name for path in videos] == ["short.MP4", "middle.avi", "long.mp4"]
    for quick, taken in ((True, 1), (False, 2)):
        setup = Setup(quick=quick, rounds=1, device="cpu", folder=tmp_path, videos=videos)
        assert video_rows.sample_videos(setup) == list(videos[:taken])


def test_the_videos_of_a_folder_are_decoded(tmp_path, capsys):
    video_rows.made_video(tmp_path / "corridor.mp4", 20)
    options = ["--quick", "--device", "cpu", "--rounds", "1", "--videos", str(tmp_path)]
    assert __main__.main([*options, "--rows", "limits"]) == 0
    table = capsys.readouterr().out
    assert "corridor.mp4" in table and "FAILED" not in table


def test_bootstrap_row_notices_another_answer(monkeypatch):
    draws = peers.sklearn_draws
    monkeypatch.setattr(peers, "sklearn_draws", lambda *values: draws(*values) | {"AUC": [0.5, 0.5]})
    assert __main__.main(["--quick", "--device", "cpu", "--rounds", "1", "--rows", "bootstrap"]) == 1


def test_loading_row_notices_other_rows(monkeypatch):
    sample = peers.whole_file_sample
    monkeypatch.setattr(peers, "whole_file_sample", lambda *values: sample(*values) + np.float32(1e-3))
    assert __main__.main(["--quick", "--device", "cpu", "--rounds", "1", "--rows", "loading"]) == 1


@needs_peers
@pytest.mark.parametrize("training", [True, False])
def test_the_released_model_is_ours_with_the_same_weights(training):
    ours, theirs = (m.train(training) for m in inputs.make_pair(quick=True, device="cpu"))
    features = torch.randn(3, ours.config.num_segments, ours.config.num_frames, ours.config.feature_dim)
    for a, b in zip(ours(features)[:3], theirs(features)[:3]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@needs_peers
@pytest.mark.parametrize("row", ["text", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_rows_of_the_released_model_agree(row, monkeypatch, capsys):
    monkeypatch.setattr(data_rows, "in_subprocess", lambda *values: 0)
    assert __main__.main(["--quick", "--device", "cpu", "--rounds", "1", "--rows", row]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_loop_labels_are_the_frame_labels():
    video = Video("v", 3, ((2, 5), (7, 20)))
    assert peers.loop_labels(video, 9) == frame_labels(video, 9).tolist()


def test_lengths_have_the_mean_that_is_asked_for():
    assert inputs.video_lengths(290, 3826).sum() == pytest.approx(1_109_680, rel=1e-3)


def test_image_flops_are_those_of_vit_b16():
    assert model_rows.image_flops(inputs.VIT_B16) == pytest.approx(2 * 17.6e9, rel=0.01)  # 17.6 GMAC, timm's table


# ---- growth ----


def test_exponents_of_powers():
    assert growth.exponents([1, 10, 100], [3, 30, 3000]) == pytest.approx([1, 2])


def test_verdict_tells_where_growth_is_linear():
    text = growth.verdict([1, 10, 100, 1000, 10000], [5, 5, 50, 500, 50000])
    assert text == (
        "slower than the size from 1 to 10 (exponent 0.00); linear from 10 to 1,000 (exponent 1.00); "
        "faster than the size from 1,000 to 10,000 (exponent 2.00)"
    )


def test_growth_writes_a_table_and_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, "in_subprocess", lambda module, function, curve, count, *rest: (count / 1e3, 2**30))
    assert __main__.main(["--growth", str(tmp_path), "--device", "cpu"]) == 0
    table = (tmp_path / "growth.md").read_text()
    assert (
        "](growth.png)" in table
        and "| frames | 1,000 | 3,000 |" in table
        and "| hours | 1 | 3 | 10 |" in table
        and table.count("The time grows linear from") == len(growth.SIZES)
    )
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "curve, count",
    [
        *(("videos", 6), ("classes", 2), ("batch", 2), ("extract", 1)),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("search", "predict", "triage")),
        pytest.param("frames", 600, marks=pytest.mark.slow),
    ],
)
def test_each_curve_has_a_point(curve, count):
    module = archive_points if curve in growth.UNITS else points
    threads = torch.get_num_threads()
    seconds, peak = module.point(curve, count, True, "cpu", threads)
    assert seconds > 0 and peak > 2**20
    assert {*points.WORKS, *archive_points.WORKS} == {*growth.SIZES}


# ---- development ----


def test_variants_are_compared_on_the_same_worlds_and_finished_ones_not_run_again(monkeypatch, tmp_path, capsys):
    started = []

    def script(name, *words, log):
        started.append((name, *map(str, words)))
        if name == "evaluate.py":
            folder = words[3]
            folder.mkdir()
            value = 0.5 + 0.1 * ("beyond" in folder.parent.name) + 0.2 * folder.parent.name.startswith("w1")
            found = {"AUC": value, "mAUC": value, "events": {"mAP": value}}
            (folder / "metrics.json").write_text(json.dumps(found))

    monkeypatch.setattr(development, "script", script)
    monkeypatch.chdir(tmp_path)
    for world in ("w0", "w1"):
        (tmp_path / world).mkdir()
        (tmp_path / world / "world.json").write_text("{}")
    command = ["compare", "w0", "w1", "--seeds", "2", "--out", str(tmp_path), "--jobs", "1"]
    development.main(command)
    num_runs = 4 * len(development.VARIANTS)
    assert len(started) == 2 * num_runs and len({words[words.index("--out") + 1] for words in started}) == 2 * num_runs
    beyond = next(words for words in started if "--recipe" in words and words[0] == "train.py")
    assert beyond[beyond.index("--clip") + 1] == "w0/clip.pt" and beyond[-2:] == ("--epochs", "30")
    text = (tmp_path / "recipe.md").read_text()
    assert "| paper | 60.0 | 60.0 | 60.0 | +0.0 ± 0.0, +0.0 ± 0.0, +0.0 ± 0.0 |" in text
    assert "| beyond | 70.0 | 70.0 | 70.0 | +10.0 ± 0.0," in text and text in capsys.readouterr().out
    development.main(command)
    assert len(started) == 2 * num_runs
    monkeypatch.setitem(development.VARIANTS, "beyond", "--recipe beyond --epochs 31")
    with pytest.raises(InputError, match=r"options\.txt: found .*, as now; choose another --out"):
        development.main(command)


def test_a_development_world_needs_the_third_that_its_clip_has_not_seen(tmp_path):
    with pytest.raises(InputError, match="world: expected the weights of one CLIP and its --third"):
        development.main(["world", "clip.npz", "--out", str(tmp_path / "w")])


@pytest.mark.parametrize(
    "what, needed", [(["world", "no.npz", "--third", "0"], "no.npz"), (["compare", "w"], "w/world.json")]
)
def test_development_begins_with_what_is_there(what, needed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{needed}: found no such file"):
        development.main([*what, "--out", "out"])
    assert not list(tmp_path.iterdir())


def test_a_curve_whose_script_fails_has_no_point(tmp_path):
    with pytest.raises(RuntimeError, match=r"search\.py ended with status 2"):
        archive_points.start("search.py", "smoke", "--features", tmp_path / "none")


@pytest.mark.parametrize("model", ["anomalyclip", "rtfm", "actionclip"])
def test_what_is_compared_are_settings_of_train_py(model):
    own, *others = [
        train.parse_args(["--dataset", "custom", "--root", "x", "--model", model, *options.split()])[0]
        for options in development.variants_of(model).values()
    ]
    for settings in (own, *others):
        assert make_config(settings, ("a",), 8, None).num_frames == 2 and settings.batch_size == 32
    if model == "rtfm":
        assert own.lr == 1e-3 and [other.lr for other in others] == [3.33e-4, 3e-3, 1e-2, 1e-3]
        assert [other.epochs for other in others] == [None, None, None, 188]  # of 8 batches, 1,500 steps
    if model == "anomalyclip":
        assert {other.recipe for other in others} == {None, "beyond"} and {other.lr for other in others} == {1e-3}
