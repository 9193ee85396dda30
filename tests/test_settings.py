"""Tests of settings.py: the settings of each system on each data set, as checkpoints hold them."""

import json
from dataclasses import replace

import pytest

import train
from tests.places import ROOT
from videoanomaly.data.annotations import Video, VideoLists
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.features import FeatureFolder
from videoanomaly.data.training_data import TrainingData
from videoanomaly.runtime.console import InputError
from videoanomaly.settings import BEYOND, make_config, resolve
from videoanomaly.systems.catalogue import SYSTEMS

REFERENCE = json.loads((ROOT / "tests" / "reference" / "settings.json").read_text())

for d in DATASETS:  # neither of the two is trained
    REFERENCE["own"][f"{d} gaussian"] = REFERENCE["own"][f"{d} clip-zeroshot"] | {"directions": "direct"}


def some_data(dataset, folder) -> TrainingData:
    """63 abnormal and 175 normal videos, a row for every second frame."""
    videos = [Video(str(i), 0 if i < 63 else -1) for i in range(238)]
    features = FeatureFolder(folder, frames_per_feature=2)
    return TrainingData(DATASETS[dataset], VideoLists(("a",), videos, []), features, None)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_settings_are_those_of_checkpoints_that_are_there(dataset, system, tmp_path):
    """What is None is left out."""
    settings, _ = train.parse_args(["--dataset", dataset, "--root", "x", "--out", "nowhere", "--model", system])
    settings = settings.for_data(some_data(dataset, tmp_path))
    found = {name: value for name, value in settings.asdict().items() if value is not None}
    named = {"dataset": dataset, "model": system, "root": "x", "out": "nowhere"}
    assert found == REFERENCE["common"] | REFERENCE["own"][f"{dataset} {system}"] | named


def test_what_is_given_goes_before_the_systems_own_which_goes_before_the_data_sets():
    names = dict.fromkeys(train.parse_args(["--dataset", "demo", "--out", "x"])[0].asdict())
    given = names | {"dataset": "demo", "model": "rtfm", "lambdas": [], "crops": 1, "seed": 0, "workers": 0}
    settings = resolve(DATASETS["demo"], SYSTEMS["rtfm"], given)
    assert (settings.lr, settings.batch_size) == (1e-3, 32)  # RTFM's, which is the demo's, too; the demo's
    assert resolve(DATASETS["custom"], SYSTEMS["sultani"], given | {"model": "sultani", "root": "x"}).lr == 0.01
    assert resolve(DATASETS["demo"], SYSTEMS["rtfm"], given | {"lr": 0.5}).lr == 0.5


def configs(*words: str):
    settings, _ = train.parse_args(["--dataset", "demo", "--out", "x", *words])
    return settings, make_config(settings, ("a",), 8, None)


def test_a_recipe_goes_before_the_data_sets_settings_and_what_is_given_before_it():
    (paper, plain), (same, _) = configs(), configs("--recipe", "paper")
    assert paper.asdict() == same.asdict() and plain.directions == "finetune"
    settings, config = configs("--recipe", "beyond")
    assert (settings.epochs, paper.epochs, settings.lr) == (30, 15, paper.lr)
    assert config == replace(plain, directions="ensemble", **BEYOND["with text"])
    _, config = configs("--recipe", "beyond", "--directions", "direct")
    assert config == replace(plain, directions="direct", **BEYOND["without"])
    settings, _ = train.parse_args(["--dataset", "shanghaitech", "--root", "x", "--recipe", "beyond"])
    assert make_config(settings, ("a",), 8, None).temporal_input == "relative"  # the data set's own is "both"
    given = "--directions frozen --smoothing 0 --temporal-input features --lambdas top_normal=0.7".split()
    settings, config = configs("--recipe", "beyond", "--epochs", "3", *given)
    assert settings.epochs == 3 and config == replace(plain, directions="frozen", lambda_top_normal=0.7)
    with pytest.raises(InputError, match="--recipe: found with --model rtfm"):
        train.parse_args(["--dataset", "demo", "--out", "x", "--model", "rtfm", "--recipe", "beyond"])


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "gaussian"])
def test_every_system_may_smooth_its_scores(system, tmp_path):
    settings, _ = train.parse_args(["--dataset", "demo", "--out", "x", "--model", system, "--smoothing", "0.5"])
    assert make_config(settings.for_data(some_data("demo", tmp_path)), ("a", "b"), 128, None).smoothing == 0.5


def test_names_and_numbers_that_no_model_can_have_are_named():
    settings, _ = train.parse_args(["--dataset", "demo", "--out", "x"])
    with pytest.raises(InputError, match="classes must be names of plain text, up to 1000 characters, got 'fire"):
        make_config(settings, ("fire\x1b[2J",), 8, None)
    settings, _ = train.parse_args(["--dataset", "demo", "--out", "x", "--lambdas", "top_normal=nan"])
    with pytest.raises(InputError, match="lambda_top_normal must be a finite number, got nan"):
        make_config(settings, ("fire",), 8, None)
