"""Tests of released.py: a checkpoint of the authors' code (random weights) gives the numbers that their code gave."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
from tests.places import REFERENCE, REFERENCE_DATA, needs_reference
from videoanomaly.runtime.console import InputError
from videoanomaly.weights.released import load, read_state

NORMAL_ID = 7


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("released")
    options = [
        "--ckpt",
        str(REFERENCE / "last.ckpt"),
        "--dataset",
        "ucfcrime",
        "--root",
        REFERENCE_DATA,
        "--device",
        "cpu",
    ]
    evaluate.main([*options, "--out", str(out), "--timelines", "0"])
    evaluate.main([*options, "--convert", str(out / "ours.pt")])
    return out


@needs_reference
def test_scores_of_every_frame_equal_those_of_the_released_code(evaluated):
    ours, expected = np.load(evaluated / "scores.npz"), np.load(REFERENCE / "expected.npz")
    names = sorted({key.rsplit(".", 1)[0] for key in ours})
    assert len(names) == 12
    for name in names:
        video = name.split("/")[-1]
        assert np.abs(ours[f"{name}.p_A"] - expected[f"{video}.scores"]).max() <= 5e-6
        assert np.abs(ours[f"{name}.p_class"] - expected[f"{video}.class_probs"]).max() <= 5e-6


@needs_reference
def test_metrics_equal_those_of_the_released_code(evaluated):
    ours = json.loads((evaluated / "metrics.json").read_text())
    expected = json.loads((REFERENCE / "expected_metrics.json").read_text())
    theirs, exact = expected["metrics"], expected["scikit_learn_float64"]
    for key, name in (("AUC", "auc_roc"), ("AP", "auc_pr"), ("mAUC", "mean_mc_auroc"), ("mAP", "mean_mc_aupr")):
        assert ours[key] == pytest.approx(theirs[name], abs=1e-5)
    classes = [name for i, name in enumerate(expected["class_names"]) if i != NORMAL_ID]
    for key, name in (("AUC", "mc_auroc"), ("AP", "mc_aupr")):
        values = [v for i, v in enumerate(exact[name]) if i != NORMAL_ID]
        for c, value in zip(classes, values):
            assert ours["per_class"][c][key] == (None if value is None else pytest.approx(value, abs=1e-5))


@needs_reference
def test_a_converted_checkpoint_evaluates_to_the_same_numbers(evaluated):
    out = evaluated / "converted"
    evaluate.main(["--ckpt", str(evaluated / "ours.pt"), "--out", str(out), "--device", "cpu", "--timelines", "0"])
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (evaluated, out))
    assert before == after


@needs_reference
def test_without_its_side_file_the_prototype_is_computed(tmp_path):
    os.symlink(REFERENCE / "last.ckpt", tmp_path / "last.ckpt")
    checkpoint = load(tmp_path / "last.ckpt", "ucfcrime", REFERENCE_DATA, None)
    prototype = checkpoint["model"]["prototype"]
    assert checkpoint["settings"]["dataset"] == "ucfcrime"  # tells --vadclip-map which of its two rules to follow
    assert (prototype - torch.load(REFERENCE / "ncentroid.pt", weights_only=True)).abs().max() <= 1e-6


@needs_reference
def test_a_checkpoint_of_another_data_set_is_refused(tmp_path):
    lists = {
        "train.txt": "a_label_A\nb_label_G",
        "test.txt": "c_label_A\nd_label_G",
        "annotations.txt": "d_label_G 0 3",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        InputError, match="last.ckpt: found state does not fit .* expected the authors' model for xdviolence"
    ):
        load(REFERENCE / "last.ckpt", "xdviolence", str(tmp_path), None)


class Command:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_a_command_runs_nothing(tmp_path):
    content = {
        "state_dict": {"net.prompt_learner.ctx": torch.zeros(2, 2)},
        "epoch": 1,
        "callbacks": Command(tmp_path / "ran"),
    }
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({k: v for k, v in content.items() if k != "state_dict"}))
    with pytest.raises(
        InputError, match="x.ckpt: found KeyError .*state_dict.*, expected a checkpoint of the authors' code"
    ):
        read_state(tmp_path / "x.ckpt")
    torch.save(content, tmp_path / "y.ckpt")
    read_state(tmp_path / "y.ckpt")  # its tensors are read, the command becomes an inert object
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"no zip")
    with pytest.raises(InputError, match="x.ckpt: found BadZipFile .*, expected a checkpoint of the authors' code"):
        read_state(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="--dataset and --root go together"):
        evaluate.main(["--ckpt", "x", "--dataset", "ucfcrime"])
