"""Tests of weights/: what is written, kept and noticed of a checkpoint, and what one may hand out."""

import copy
import math
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import predict
import train
from tests.synthetic import arguments, equal, run, stop_in_the_third_epoch, write_dataset
from videoanomaly.operating_curve import Watched, measure
from videoanomaly.runtime.console import InputError
from videoanomaly.weights import checkpoints
from videoanomaly.weights.checkpoints import load_model, write_checkpoint
from videoanomaly.weights.reading import damage, read_checkpoint


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory) -> tuple[bytes, dict]:
    """The bytes of a small run's last.pt, and its content."""
    out = tmp_path_factory.mktemp("run")
    checkpoint = run(dataset, out, "--epochs", "1", "--temporal", "mlp")
    return (out / "last.pt").read_bytes(), checkpoint


# ---- changed bytes


def changed(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([content[place] ^ value]) + content[place + 1 :]


def test_any_changed_byte_of_a_checkpoint_is_noticed(made, tmp_path):
    (content, _), path, rng = made, tmp_path / "last.pt", random.Random(0)
    path.write_bytes(content)
    assert damage(path) is None
    ends = [*range(64), *range(len(content) - 300, len(content))]  # headers, the archive's directory, seal and hash
    for place in [*ends, *rng.sample(range(len(content)), 200)]:
        path.write_bytes(changed(content, place, 1 << rng.randrange(8)))
        with pytest.raises(ValueError, match=r"last\.pt: .*, expected a checkpoint of train.py"):
            read_checkpoint(path)
    for length in (0, 1, len(content) // 2, len(content) - 71, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="expected a checkpoint of train.py"):
            read_checkpoint(path)
    for worse in (content[:5000] + bytes(4096) + content[9096:], content + b"\n", content[1:]):
        path.write_bytes(worse)
        with pytest.raises(ValueError, match="expected a checkpoint of train.py"):
            read_checkpoint(path)


def test_every_changed_byte_of_a_members_content_is_noticed_in_files_of_torch_save(made, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(made[1], path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        places = [member.header_offset + 200 for member in archive.infolist() if member.file_size > 200]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="x.pt: is damaged at .*, expected a checkpoint"):
            read_checkpoint(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="x.pt: is damaged"):
        read_checkpoint(path)


def test_an_archive_that_unpacks_to_everything_is_refused_before_it_does(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**24))
    with pytest.raises(ValueError, match="x.pt: unpacks to more than 10 times its size"):
        read_checkpoint(tmp_path / "x.pt")


def test_files_that_are_no_checkpoint_are_named(made, tmp_path):
    with pytest.raises(ValueError, match="x.pt: no such file, expected a checkpoint of train.py"):
        read_checkpoint(tmp_path / "x.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt: found .* on reading, expected a checkpoint of train.py"):
        read_checkpoint(tmp_path / "text.pt")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: found a file without config, epoch, format, model, expected"):
        read_checkpoint(tmp_path / "other.pt", "epoch")
    torch.save(made[1] | {"format": 99}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="new.pt: found checkpoint format 99 of a newer version, expected 1"):
        read_checkpoint(tmp_path / "new.pt")


def test_every_script_refuses_a_damaged_checkpoint(made, dataset, tmp_path):
    path, out = tmp_path / "run" / "last.pt", ["--out", str(tmp_path / "out")]
    path.parent.mkdir()
    path.write_bytes(changed(made[0], len(made[0]) // 2, 1))
    features = str(dataset / "features" / "test00.npy")
    for call in (
        lambda: evaluate.main(["--ckpt", str(path), *out]),
        lambda: predict.main(["--ckpt", str(path), "--features", features, *out]),
        lambda: predict.main(["--ckpt", str(path), "--export", str(tmp_path / "model.pt2")]),
        lambda: run(dataset, path.parent, "--epochs", "2", "--temporal", "mlp", "--resume"),
    ):
        with pytest.raises(InputError, match="last.pt: is damaged: its hash is another, expected a checkpoint"):
            call()


def test_checkpoints_of_before_there_were_hashes_are_read(made, tmp_path):
    for name, options in (("zip.pt", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        torch.save(made[1], tmp_path / name, **options)
        assert equal(load_model(str(tmp_path / name))[0], made[1])


# ---- the one before


DAMAGES = {
    "a bit": lambda path: path.write_bytes(changed(path.read_bytes(), path.stat().st_size // 2, 1)),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(dataset, tmp_path, monkeypatch, capsys, kind):
    whole = run(dataset, tmp_path / "whole", "--epochs", "4")
    stop_in_the_third_epoch(monkeypatch, lambda: run(dataset, tmp_path / "parts", "--epochs", "4"))
    last, previous = tmp_path / "parts" / "last.pt", tmp_path / "parts" / "previous.pt"
    assert [torch.load(path, weights_only=True)["epoch"] for path in (previous, last)] == [1, 2]
    DAMAGES[kind](last)
    with pytest.raises(InputError, match="found the result of an earlier run; go on with --resume"):
        run(dataset, tmp_path / "parts", "--epochs", "4")
    capsys.readouterr()
    resumed = run(dataset, tmp_path / "parts", "--epochs", "4", "--resume")
    told = [line for line in capsys.readouterr().err.splitlines() if "previous.pt" in line]
    assert len(told) == 1 and "goes on from" in told[0] and told[0].endswith("after 1 epochs")
    assert all(equal(whole[key], resumed[key]) for key in ("model", "optimizer", "rng", "epoch"))
    assert sorted(path.name for path in last.parent.glob("*.pt")) == ["last.pt", "previous.pt"]


def test_where_both_are_damaged_the_last_one_is_named(dataset, tmp_path):
    run(dataset, tmp_path, "--epochs", "2")
    for name in ("last.pt", "previous.pt"):
        DAMAGES["a bit"](tmp_path / name)
    with pytest.raises(InputError, match="last.pt: is damaged"):
        run(dataset, tmp_path, "--epochs", "2", "--resume")


def test_a_run_that_goes_on_reads_its_checkpoint_once(dataset, tmp_path, monkeypatch):
    first, read, real = run(dataset, tmp_path, "--epochs", "2"), [], checkpoints.read_checkpoint
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda *given: read.append(given[0]) or real(*given))
    assert equal(run(dataset, tmp_path, "--epochs", "2", "--resume")["model"], first["model"])
    assert read == [tmp_path / "last.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_a_damaged_checkpoint_never_takes_the_place_of_a_sound_one(made, tmp_path, monkeypatch, links):
    if not links:  # as on some file systems
        monkeypatch.setattr(checkpoints.os, "link", lambda *names: (_ for _ in ()).throw(PermissionError()))
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    checkpoints.keep(last)
    assert not previous.exists()  # there was none
    for epoch in range(3):
        checkpoints.keep(last)
        write_checkpoint(last, made[1] | {"epoch": epoch})
    DAMAGES["a bit"](last)
    checkpoints.keep(last)
    assert torch.load(previous, weights_only=True)["epoch"] == 1


# ---- numbers that became infinite


@pytest.mark.parametrize("part", ["weights", "optimizer"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_became_infinite_is_not_saved_and_what_was_saved_stays(dataset, tmp_path, monkeypatch, part, value):
    real, saved = train.train_epoch, []

    def spoil(training, epoch, begun, signals):
        done = real(training, epoch, begun, signals)
        if epoch == 2:
            saved.extend((tmp_path / name).read_bytes() for name in ("last.pt", "previous.pt"))
            parameter = next(iter(training.optimizer.state))
            spoiled = parameter if part == "weights" else training.optimizer.state[parameter]["exp_avg_sq"]
            spoiled.data.view(-1)[0] = value
        return done

    monkeypatch.setattr(train, "train_epoch", spoil)
    with pytest.raises(
        FloatingPointError, match="last.pt: not written, the .* numbers became infinite; what was saved"
    ):
        train.main(arguments(dataset, tmp_path, "--epochs", "4"))
    assert saved == [(tmp_path / name).read_bytes() for name in ("last.pt", "previous.pt")]


# ---- what a checkpoint hands out


def put(checkpoint: dict, value, *path) -> None:
    for name in path[:-1]:
        checkpoint = checkpoint[name]
    checkpoint[path[-1]] = value


VIDEO = ["a/b", 0, [[3, 9]]]
BUMP = np.repeat([0.0, 1.0, 0.0], 10)
CURVE = measure(
    [Watched(label, BUMP * peak, BUMP[:, None], 1.0) for label in (-1, 0) for peak in (0.9, 0.4)]
).to_plain()
BAD_CURVES = [
    *[("x", name) for name in CURVE],
    *[(None, name) for name in CURVE],
    *[(CURVE[name][:-1], name) for name in CURVE if isinstance(CURVE[name], list)],
    *[([math.nan, 0.5], "thresholds"), ([0.9, 0.5], "thresholds"), ([0.5, 1.5], "thresholds"), ([], "thresholds")],
    *[([99, 0], name) for name in ("normal_alarmed", "found", "named")],
    *[([value, 0], "false_alarms") for value in (-1, 0.5, "1", True)],
    *[(value, "dispersion", 0) for value in ([0.5, 1.0], [math.inf, 1.0], [1.0], None)],
    *[(value, name) for value in (-1, math.inf, "1") for name in ("num_normal", "num_abnormal", "normal_hours")],
    (0, "more"),
]
BAD_ENTRIES = [
    *[(value, "threshold") for value in (math.nan, -1, 1e9, math.inf, "0.5", [0.5], True, torch.ones(1))],
    (
        CURVE | {name: [] for name in CURVE if isinstance(CURVE[name], list)} | {"dispersion": [[]] * 4},
        "operating_curve",
    ),
    *[(value, "operating_curve") for value in ("x", [], {}, 3, {"thresholds": [0.5]})],
    *[(value, "frames_per_feature") for value in (-3, 0, "a", 2**40, 1.5, math.nan, True)],
    *[(value, "epoch") for value in (-1, "a", None, 1e99, 10**30)],
    *[(value, "settings") for value in ([], None, "x", {}, {"root": "x"})],
    *[(value, "settings", "root") for value in (3, ["x"], "a\0b", "x" * 10**6)],
    *[(value, "settings", "crops") for value in (0, -1, None, "1", 10**9)],
    *[(value, "settings", "frames_per_feature") for value in (-1, "a", 2**62, 0.5)],
    *[(value, "settings", "dataset") for value in (["demo"], 3)],
    *[(value, "encoder") for value in ("x", [], {}, {"encoder": "clip"}, 3)],
    *[(value, "encoder", "encoder") for value in (3, None, "clip \x1b[2J", "a\nb")],
    *[(value, "encoder", "crops") for value in (0, "ten", 10**9)],
    *[(value, "encoder", "jpeg") for value in (0, 101, "95")],
    *[(value, "lists") for value in ([], None, {}, {"classes": ["fire"], "train": [], "test": []})],
    *[(value, "lists", "test") for value in (None, {}, [3], ["abc"])],
    *[(value, "lists", "test", 0) for value in (VIDEO[:2], ["a/b", 99, []], ["a/b", -2, []], ["a/b", "fire", []])],
    *[(["a/b", 0, [[1, 9]], value], "lists", "test", 0) for value in (None, [], [99], [-1], ["fire"], [0, 0])],
    *[(["a/b", 0, value], "lists", "test", 0) for value in (None, [3], [["a", "b"]], [[9, 3]], [[-3, 9]], [[1, 2, 3]])],
    *[
        ([value, 0, []], "lists", "test", 0)
        for value in ("../x", "/x", "a/../../x", "", "a\x1b[2J", "a\nb", "\ud800", 3)
    ],
    *[([value, 0, []], "lists", "train", 0) for value in ("../../../x/test016", "/elsewhere/test028", "train01")],
    *[(value, "lists", "classes") for value in (["fire"], ["fall", "fire"], [3, 4], None)],
    *[(value, "lists", "num_frames") for value in ([], {"a": -1}, {"a": "x"})],
    *[(value, "clip_sha256") for value in (3, ["x"])],
    *[(value, "begun") for value in (None, {}, {"steps": -1, "sums": {}, "seconds": 0.0})],
    ({"steps": 1, "sums": {"total": "x"}, "seconds": 0.0}, "begun"),
    *[(value, "system") for value in ("x", 3, ["rtfm"])],
    *[(value, "format") for value in ("1", None, 99)],
]


@pytest.mark.parametrize("case", BAD_ENTRIES, ids=lambda case: ".".join(map(str, case[1:])) + f" {case[0]!a:.20}")
def test_an_entry_of_another_type_or_range_is_one_line(made, tmp_path, case):
    checkpoint, path = copy.deepcopy(made[1]), tmp_path / "x.pt"
    put(checkpoint, *case)
    write_checkpoint(path, checkpoint)
    with pytest.raises(InputError, match=r"x\.pt: .*(found|expected|config|system)") as caught:
        load_model(str(path))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("case", BAD_CURVES, ids=lambda case: ".".join(map(str, case[1:])) + f" {case[0]!a:.20}")
def test_a_damaged_operating_curve_is_one_line(made, tmp_path, case):
    checkpoint, path = made[1] | {"operating_curve": copy.deepcopy(CURVE)}, tmp_path / "x.pt"
    write_checkpoint(path, checkpoint)
    load_model(str(path))
    put(checkpoint["operating_curve"], *case)
    write_checkpoint(path, checkpoint)
    with pytest.raises(
        InputError, match=r"x\.pt: found operating_curve = .*, expected what thresholds did on held-out"
    ):
        load_model(str(path))


def test_resuming_looks_at_the_entries_and_at_the_optimizer(made, dataset, tmp_path):
    first = next(iter(made[1]["optimizer"]["state"]))
    for case in (
        ({"steps": -1, "sums": {}, "seconds": 0.0}, "begun"),
        (torch.ones(3), "optimizer", "state", first, "exp_avg"),
        ([], "optimizer", "param_groups"),
        (None, "optimizer"),
        ({"cpu": torch.ones(3), "cuda": None}, "rng"),
        (None, "rng"),
        ({}, "model"),
    ):
        checkpoint = copy.deepcopy(made[1])
        put(checkpoint, *case)
        write_checkpoint(tmp_path / "last.pt", checkpoint)
        with pytest.raises(InputError) as caught:
            run(dataset, tmp_path, "--epochs", "1", "--temporal", "mlp", "--resume")
        assert len(str(caught.value).splitlines()) == 1
