"""Tests of train.py, evaluate.py and rules.py: whole runs on a small synthetic data set in the `custom` layout."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import clip_model
import evaluate
import train
from anomalyclip import AnomalyCLIP
from tests.places import ROOT
from tests.synthetic import CLASSES, SMALL, equal, run, stop_in_the_third_epoch, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from videoanomaly import settings, winograd
from videoanomaly.evaluation.metrics import choose_threshold, false_alarm_rate
from videoanomaly.evaluation.paper_metrics import metrics
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.signals import stop_signals
from videoanomaly.training import epochs
from videoanomaly.training.epochs import learning_rate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """A checkpoint after 60 epochs, enough to find the planted classes."""
    out = tmp_path_factory.mktemp("run")
    run(dataset, out, "--epochs", "60", "--lr", "3e-3")
    return out / "last.pt"


@pytest.fixture(scope="module")
def evaluated(trained) -> Path:
    """The folder that the evaluation of that checkpoint writes."""
    evaluate.main(["--ckpt", str(trained), "--device", "cpu", "--rules", "--timelines", "3"])
    return trained.parent / "eval"


# ---- settings ----


def test_presets_are_the_papers():
    for name, expected in (
        ("shanghaitech", (256, 2, "both", 5e-4, 100)),
        ("ucfcrime", (256, 1, "features", 1e-5, 50)),
        ("xdviolence", (128, 1, "features", 5e-6, 50)),
    ):
        given, _ = train.parse_args(["--dataset", name, "--root", "x", "--out", "nowhere"])
        config = settings.make_config(given, ("a",), 512, None)
        assert (config.embed_dim, config.depth, config.temporal_input, given.lr, given.epochs) == expected
        assert (given.batch_size, config.topk, config.num_segments, config.num_frames) == (64, 3, 32, 16)


def test_every_switch_reaches_the_config():
    given = [
        "--num-ctx",
        "4",
        "--shared-ctx",
        "--directions",
        "frozen",
        "--likelihood",
        "cosine",
        "--selection",
        "magnitude",
        "--temporal",
        "mtn",
        "--temporal-input",
        "both",
        "--embed-dim",
        "64",
        "--depth",
        "3",
        "--mask-ratio",
        "0.5",
        "--variant",
        "released",
        "--lambdas",
        "sparse=0",
        "dir_top_normal=2.5",
    ]
    found, _ = train.parse_args(["--dataset", "ucfcrime", "--root", "x", "--out", "nowhere", *given])
    config = settings.make_config(found, ("a",), 512, 2048)
    assert (config.num_ctx, config.shared_ctx, config.directions, config.likelihood) == (4, True, "frozen", "cosine")
    assert (config.selection, config.temporal, config.temporal_input, config.embed_dim) == (
        "magnitude",
        "mtn",
        "both",
        64,
    )
    assert (config.depth, config.mask_ratio, config.variant, config.temporal_feature_dim) == (3, 0.5, "released", 2048)
    assert (config.lambda_sparse, config.lambda_dir_top_normal, config.lambda_smooth) == (0, 2.5, 8e-4)


def test_the_learning_rate_warms_up_over_a_tenth_and_ends_at_zero():
    rates = [learning_rate(step, 7, 20, 1.0, released=False) for step in range(140)]
    assert rates[13] == 1.0 and rates[139] == pytest.approx(0, abs=1e-12)
    assert rates[6] == pytest.approx(0.5)
    assert rates[76] == pytest.approx((1 + math.cos(math.pi * (77 / 7 - 2) / 18)) / 2)
    assert all(a < b for a, b in zip(rates[:13], rates[1:14])) and all(a > b for a, b in zip(rates[13:], rates[14:]))


def test_the_released_learning_rate_changes_by_epoch_and_starts_with_an_epoch_at_zero():
    rates = [learning_rate(step, 7, 20, 1.0, released=True) for step in range(140)]
    assert rates[:7] == [0] * 7 and rates[7:14] == [0.5] * 7 and rates[14:21] == [1.0] * 7
    assert rates[133:] == pytest.approx([(1 + math.cos(math.pi * 17 / 18)) / 2] * 7)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch-size", "7"], "--batch-size 7: expected an even number"),
        (["--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--num-heads", "0"], "num_heads must be at least 1"),
        (["--device", "tpu9"], "--device tpu9: "),
        (["--lr", "0"], "--lr 0.0: expected a positive number"),
        (["--lambdas", "speed=1"], "found loss 'speed', expected one of bottom_abnormal"),
        (["--lambdas", "sparse=much"], "found weight 'much', expected a number"),
        (["--topk", "7"], r"topk must be in \[1, 6\]"),
        (["--directions", "finetune", "--clip", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_options_are_named_before_any_work(dataset, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(dataset, tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_wrong_input_ends_the_script_with_one_line_and_status_2(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--dataset", "custom", "--root", str(tmp_path / "nothing")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "nothing" in result.stderr


# ---- training ----


def test_training_lowers_the_loss_and_logs_every_term(trained):
    records = [json.loads(line) for line in (trained.parent / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == list(range(1, 61))
    assert records[-1]["losses"]["total"] < records[0]["losses"]["total"] - 0.5
    assert {
        "dir_abnormal",
        "top_abnormal",
        "bottom_abnormal",
        "dir_normal",
        "top_normal",
        "sparse",
        "smooth",
        "total",
    } <= records[0]["losses"].keys()
    assert records[0]["seconds"] > 0


def test_four_epochs_equal_two_resumed_and_two_more_bit_for_bit(dataset, tmp_path, monkeypatch):
    whole = run(dataset, tmp_path / "whole", "--epochs", "4")
    stop_in_the_third_epoch(monkeypatch, lambda: run(dataset, tmp_path / "parts", "--epochs", "4"))
    resumed = run(dataset, tmp_path / "parts", "--epochs", "4", "--resume", "--workers", "2")
    for key in ("model", "optimizer", "rng", "epoch", "config", "lists"):
        assert equal(whole[key], resumed[key]), key
    losses = [
        [json.loads(line)["losses"] for line in (tmp_path / run_ / "log.jsonl").read_text().splitlines()]
        for run_ in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number, step", [(signal.SIGTERM, 6), (signal.SIGINT, 5), (signal.SIGINT, 8)])
def test_a_run_stopped_in_a_step_goes_on_at_the_next_bit_for_bit(dataset, tmp_path, monkeypatch, capsys, number, step):
    options = ("--epochs", "3", "--batch-size", "4")  # 4 steps an epoch
    whole = run(dataset, tmp_path / "whole", *options)
    steps, real = [], epochs.batch_losses
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def signal_in_a_step(training, batch):
        steps.append(batch["video_idx"].tolist())
        if len(steps) == step:
            signal.raise_signal(number)
        return real(training, batch)

    monkeypatch.setattr(epochs, "batch_losses", signal_in_a_step)
    arguments = [
        "--dataset",
        "custom",
        "--root",
        str(dataset),
        "--out",
        str(tmp_path / "parts"),
        "--directions",
        "direct",
        *SMALL,
    ]
    assert train.main([*arguments, *options]) == 128 + number
    assert f"stopped by {number.name}; go on with: python train.py --dataset custom" in capsys.readouterr().out
    stopped = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)
    assert (stopped["epoch"], stopped["begun"]["steps"]) == divmod(step, 4) and len(steps) == step
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    torch.rand(5)  # the state of the process must not matter
    resumed = run(dataset, tmp_path / "parts", *options, "--resume")
    assert len(steps) == 12  # none was done, nor its data read, twice
    for key in ("model", "optimizer", "rng", "epoch", "begun"):
        assert equal(whole[key], resumed[key]), key
    losses = [
        [json.loads(line)["losses"] for line in (tmp_path / run_ / "log.jsonl").read_text().splitlines()]
        for run_ in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_a_second_ctrl_c_stops_at_once_and_more_of_sigterm_change_nothing():
    with pytest.raises(KeyboardInterrupt), stop_signals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_equal_seeds_give_equal_models_and_others_do_not(dataset, tmp_path):
    a, b, c = (
        run(dataset, tmp_path / name, "--epochs", "1", "--seed", seed)["model"]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert equal(a, b) and not equal(a, c)


def test_a_finished_run_is_not_overwritten_nor_resumed_with_other_settings(dataset, tmp_path):
    run(dataset, tmp_path, "--epochs", "1")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match="last.pt: found the result of an earlier run; go on with --resume"):
        run(dataset, tmp_path, "--epochs", "1")
    with pytest.raises(InputError, match="found lr = 0.0005, expected 0.1 as given"):
        run(dataset, tmp_path, "--epochs", "1", "--lr", "0.1", "--resume")
    other = write_dataset(tmp_path / "other", encoder="another")
    with pytest.raises(InputError, match="found encoder = .*synthetic.*, expected .*another.* as given now"):
        run(other, tmp_path, "--epochs", "1", "--resume")
    renamed = write_dataset(tmp_path / "renamed")
    for path in renamed.glob("*.txt"):
        path.write_text(path.read_text().replace("fall", "drop"))
    with pytest.raises(InputError, match=r"last.pt: found classes = fall, expected drop as given now; resume"):
        run(renamed, tmp_path, "--epochs", "1", "--resume")
    (other / "train.txt").write_text("\n".join(sorted((other / "train.txt").read_text().split("\n"), reverse=True)))
    (other / "features" / "meta.json").write_text((dataset / "features" / "meta.json").read_text())
    with pytest.raises(InputError, match="found lists = other ones, expected the same as given now"):
        run(other, tmp_path, "--epochs", "1", "--resume")
    assert (tmp_path / "last.pt").read_bytes() == before


def test_clip_directions_are_trained_from_a_weights_file_and_evaluated_without_it(dataset, tmp_path):
    weights = tmp_path / "clip.pt"
    torch.save(tiny_clip_state_dict(), weights)
    checkpoint = run(
        dataset, tmp_path / "run", "--directions", "finetune", "--clip", str(weights), "--epochs", "2", "--lr", "1e-3"
    )
    assert not any("text_tower" in name for name in checkpoint["model"])
    clip = clip_model.load(weights)
    tuned = checkpoint["model"]["prompt_learner.text_projection"]
    assert 0 < float((tuned - clip.text_projection.detach()).abs().max()) < 0.1
    weights.unlink()
    evaluate.main(["--ckpt", str(tmp_path / "run" / "last.pt"), "--device", "cpu", "--timelines", "0"])
    assert (tmp_path / "run" / "eval" / "metrics.json").exists()


def test_prompts_of_another_clip_than_the_features_are_refused(tmp_path):
    weights = tmp_path / "clip.pt"
    torch.save(tiny_clip_state_dict(), weights)
    root = write_dataset(tmp_path / "data", encoder="clip ViT-B/32")
    meta = json.loads((root / "features" / "meta.json").read_text())
    for sha256 in ("0" * 64, clip_model.weights_hash(clip_model.load(weights).visual)):
        (root / "features" / "meta.json").write_text(json.dumps(meta | {"weights_sha256": sha256}))
        options = ("--directions", "frozen", "--clip", str(weights), "--epochs", "1")
        if sha256.startswith("0000"):
            with pytest.raises(InputError, match="its image tower did not make the features, clip ViT-B/32 did"):
                run(root, tmp_path / "run", *options)
            assert not (tmp_path / "run").exists()
        else:
            run(root, tmp_path / "run", *options)


def test_bfloat16_autocast_rounds_the_losses_a_little(dataset, tmp_path):
    losses = []
    for name, options in (("full", []), ("half", ["--amp"])):
        run(dataset, tmp_path / name, "--epochs", "1", *options)
        losses.append(json.loads((tmp_path / name / "log.jsonl").read_text())["losses"]["total"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_an_infinite_feature_is_named_with_its_video(tmp_path):
    root = write_dataset(tmp_path / "data")
    rows = np.load(root / "features" / "train12.npy")
    np.save(root / "features" / "train12.npy", rows * np.float16(np.inf))
    with pytest.raises(InputError, match="train12: found features that are infinite or not a number"):
        run(root, tmp_path / "run", "--epochs", "3")


def test_a_log_cut_off_before_its_checkpoint_is_trimmed(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    train.trim_log(tmp_path / "log.jsonl", 1)
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n'
    train.trim_log(tmp_path / "log.jsonl", 0)
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_the_stored_threshold_keeps_the_normal_training_videos_quiet(trained, dataset):
    checkpoint = torch.load(trained, weights_only=True)
    model = AnomalyCLIP.from_checkpoint(trained)
    normal = [
        model.predict(np.load(dataset / "features" / f"{name}.npy"))[0]
        for name, label, *_ in checkpoint["lists"]["train"]
        if label < 0
    ]
    expected = choose_threshold([SimpleNamespace(p_A=p) for p in normal], [-1] * len(normal), 25.0)
    # train.py has other convolutions (winograd.py), which move p_A by at most 1e-6 (test_winograd.py)
    assert checkpoint["threshold"] == pytest.approx(expected, abs=1e-6)
    assert false_alarm_rate(normal, [25.0] * len(normal), checkpoint["threshold"] + 1e-6) <= 1


# ---- evaluation ----


def test_evaluation_finds_the_planted_classes_and_writes_everything(trained, evaluated, dataset, capsys):
    out = evaluated
    results, scores = json.loads((out / "metrics.json").read_text()), np.load(out / "scores.npz")
    assert results["AUC"] > 0.8 and results["mAUC"] > 0.9 and results["videos"] == 16
    names = sorted({key.rsplit(".", 1)[0] for key in scores})
    assert len(names) == 16
    labels = []
    for name in names:  # truth read off the annotation file once more, by hand
        line = next(
            line for line in (dataset / "temporal_annotations.txt").read_text().splitlines() if line.startswith(name)
        )
        _, kind, start, end, *_ = line.split()
        frames = np.full(len(scores[f"{name}.p_A"]), -1)
        if kind != "Normal":
            frames[int(start) : int(end) + 1] = CLASSES.index(kind)
        labels.append(frames)
    p_A, p_class = (np.concatenate([scores[f"{name}.{key}"] for name in names]) for key in ("p_A", "p_class"))
    expected = metrics(p_A, p_class, np.concatenate(labels), CLASSES)
    assert all(results[key] == pytest.approx(expected[key], abs=1e-9) for key in ("AUC", "AP", "mAUC", "mAP"))
    assert results["per_class"]["fire"]["frames"] == expected["per_class"]["fire"]["frames"]
    for picture in ("roc.png", "pr.png", "confusion.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list((out / "timelines").glob("*.png"))) == 3
    evaluate.main(["--ckpt", str(trained), "--device", "cpu", "--timelines", "0", "--out", str(out / "again")])
    printed = capsys.readouterr().out
    assert f"{100 * results['AUC']:.2f}" in printed and str(out / "again") in printed
    assert np.array_equal(np.load(out / "again" / "scores.npz")["test08.p_A"], scores["test08.p_A"])


def test_the_simple_rules_are_what_they_say(trained, evaluated, dataset):
    results = json.loads((evaluated / "metrics.json").read_text())["rules"]
    model = AnomalyCLIP.from_checkpoint(trained)
    checkpoint = torch.load(trained, weights_only=True)
    scores, labels = [], []
    for name, label, intervals in checkpoint["lists"]["test"]:
        rows = np.load(dataset / "features" / f"{name}.npy").astype(np.float64)
        scores += [float(np.sqrt(((row - model.prototype.numpy()) ** 2).sum())) for row in rows]
        frames = np.full(len(rows), -1)
        for start, end in intervals:
            frames[start:end] = label
        labels += frames.tolist()
    expected = metrics(np.array(scores), np.zeros((len(scores), 2)), np.array(labels), CLASSES)["AUC"]
    assert results["distance to prototype"]["AUC"] == pytest.approx(expected, abs=1e-6)
    assert results["logistic regression"]["AUC"] > 0.85  # the planted problem is a linear one
    assert results["logistic regression"]["mAUC"] > 0.9


def test_features_of_snippets_are_scored_by_frame(tmp_path):
    root = write_dataset(tmp_path / "data", frames_per_feature=5)
    run(root, tmp_path / "run", "--epochs", "1")
    evaluate.main(["--ckpt", str(tmp_path / "run" / "last.pt"), "--device", "cpu", "--timelines", "0"])
    scores = np.load(tmp_path / "run" / "eval" / "scores.npz")
    rows = np.load(root / "features" / "test08.npy")
    p_A = scores["test08.p_A"]
    assert len(p_A) == len(rows) * 5 - 2  # as meta.json says, not a multiple of five
    model = AnomalyCLIP.from_checkpoint(tmp_path / "run" / "last.pt")
    winograd.accelerate(model)  # as evaluate.py does
    p_rows, _ = model.predict(rows)
    assert np.array_equal(p_A, np.repeat(p_rows, 5)[:-2])


def test_the_temporal_model_can_have_features_of_its_own(dataset, tmp_path):
    other = write_dataset(tmp_path / "i3d", dim=10, encoder="i3d")
    checkpoint = run(dataset, tmp_path / "run", "--epochs", "1", "--temporal-features", str(other))
    assert checkpoint["config"]["temporal_feature_dim"] == 10
    assert checkpoint["model"]["temporal_model.projection.weight"].shape == (16, 10)
    assert float(checkpoint["model"]["temporal_prototype"].abs().max()) > 0
    ckpt = ["--ckpt", str(tmp_path / "run" / "last.pt"), "--device", "cpu", "--timelines", "0"]
    evaluate.main(ckpt)
    short = write_dataset(tmp_path / "short", dim=10, encoder="i3d")
    np.save(short / "features" / "test03.npy", np.load(short / "features" / "test03.npy")[:9])
    with pytest.raises(InputError, match="found 9 rows for 9 frames of test03, expected rows for"):
        evaluate.main([*ckpt, "--temporal-features", str(short)])
    wide = write_dataset(tmp_path / "wide")
    (wide / "features" / "meta.json").unlink()
    with pytest.raises(InputError, match="found features of 64 values, expected 10"):
        evaluate.main([*ckpt, "--temporal-features", str(wide)])


def test_temporal_features_of_a_model_that_has_none_are_refused(trained, dataset):
    with pytest.raises(InputError, match="found features of 64 values, expected None"):
        evaluate.main(["--ckpt", str(trained), "--temporal-features", str(dataset)])


def test_rows_that_cannot_hold_the_annotated_anomalies_are_refused(tmp_path):
    root = write_dataset(tmp_path / "data", frames_per_feature=5)
    (root / "features" / "meta.json").unlink()
    with pytest.raises(InputError, match="an anomaly starts at frame .*; see --frames-per-feature and --crops"):
        run(root, tmp_path / "run", "--epochs", "1")


def test_features_of_another_encoder_are_refused(trained, tmp_path):
    other = write_dataset(tmp_path / "data", encoder="another")
    with pytest.raises(InputError, match="found features of .*another.*, expected those of the training, .*synthetic"):
        evaluate.main(["--ckpt", str(trained), "--features", str(other), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "x.pt").write_text("no")
    with pytest.raises(InputError, match="x.pt: found .* expected a checkpoint of train.py"):
        evaluate.main(["--ckpt", str(tmp_path / "x.pt")])
