"""A checkpoint in use: the CLIP that it finds, the recogniser in Python, where a result comes from."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import clip_model
import predict
import train
from tests.synthetic import SMALL, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import write_clip
from videoanomaly import clip_weights
from videoanomaly.clip_weights import find_clip
from videoanomaly.runtime.console import InputError
from videoanomaly.weights.checkpoints import load_model


class Trained:
    """A training in a folder of its own with a CLIP that a relative path names: root/weights/own.pt, root/runs/x."""

    def __init__(self, root: Path):
        self.root, self.clip = root, root / "weights" / "own.pt"
        self.clip.parent.mkdir(parents=True)
        torch.save(tiny_clip_state_dict(), self.clip)
        write_dataset(root / "data", encoder="clip embed 64, width 64, patch 8, resolution 32")
        meta = root / "data" / "features" / "meta.json"
        visual = clip_model.load(self.clip).visual
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"weights_sha256": clip_model.weights_hash(visual)}))
        words = ["--dataset", "custom", "--root", "data", "--out", "runs/x", "--clip", "weights/own.pt", *SMALL]
        before = Path.cwd()
        os.chdir(root)
        try:
            train.main([*words, "--directions", "finetune", "--shared-ctx", "--epochs", "1"])
        finally:
            os.chdir(before)

    def copy(self, root: Path) -> Path:
        """Another one in `root`, which may be changed; its checkpoint."""
        shutil.copytree(self.root, root)
        return root / "runs" / "x" / "last.pt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained") / "project")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of weights, and no network."""
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *given, **how: 1 / 0)
    return tmp_path / "cache"


def save_other(path: Path) -> None:
    """Another CLIP of the same sizes, in a file of the same size."""
    state = tiny_clip_state_dict()
    torch.save(state | {"visual.proj": state["visual.proj"] + 1}, path)


def find(ckpt: Path) -> None:
    """Both ways in which a CLIP is asked for."""
    checkpoint, _ = load_model(str(ckpt))
    hashes = {True: checkpoint["encoder"]["weights_sha256"], False: checkpoint["clip_sha256"]}
    for image_tower, expected in hashes.items():
        clip = find_clip(str(ckpt), checkpoint, expected, image_tower=image_tower)
        assert clip_model.weights_hash(clip.visual if image_tower else clip) == expected


def test_a_checkpoint_finds_its_clip_from_any_folder_and_where_the_project_was_moved(
    trained, cache, tmp_path, monkeypatch
):
    ckpt = trained.copy(tmp_path / "moved")
    find(ckpt)
    monkeypatch.chdir(trained.root)  # the run's folder alone was moved
    find(Path(shutil.copytree(ckpt.parent, tmp_path / "a" / "run")) / "last.pt")


@pytest.mark.parametrize("place", ["beside/own.pt", "beside/clip.pt", "beside/renamed.pt", "weights/renamed.pt"])
def test_clip_is_found_beside_the_checkpoint_and_by_its_size_under_another_name(trained, cache, tmp_path, place):
    ckpt, (where, name) = trained.copy(tmp_path / "moved"), place.split("/")
    found = {"beside": ckpt.parent, "weights": tmp_path / "moved" / "weights"}[where] / name
    os.replace(tmp_path / "moved" / "weights" / "own.pt", found)
    find(ckpt)


@pytest.mark.parametrize("known", [True, False])
def test_clip_is_found_by_its_hash_in_the_cache(trained, cache, tmp_path, monkeypatch, known):
    ckpt = trained.copy(tmp_path / "moved")
    if not known:
        torch.save(torch.load(ckpt, weights_only=True) | {"clip_bytes": None}, ckpt)
    cache.mkdir()
    save_other(cache / "a.pt")
    (cache / "big.pt").write_bytes(b"0" * 10**6)
    os.replace(tmp_path / "moved" / "weights" / "own.pt", cache / "some-name.pt")
    read, real = [], clip_model.load
    monkeypatch.setattr(clip_weights.clip_model, "load", lambda path: read.append(Path(path).name) or real(path))
    find(ckpt)
    assert ("big.pt" in read) is not known  # where the size is known no other file is read


def test_another_file_of_that_name_is_passed_over_and_the_error_tells_all_that_was_looked_for(
    trained, cache, tmp_path, monkeypatch
):
    ckpt = trained.copy(tmp_path / "moved")
    for path in (tmp_path / "moved" / "weights" / "own.pt", ckpt.parent / "own.pt"):
        save_other(path)
    (ckpt.parent / "clip.pt").write_text("no weights")
    monkeypatch.chdir(tmp_path)
    video = str(write_clip(tmp_path / "v.mp4", 5))
    words = ["--ckpt", str(ckpt), video, "--out", "out", "--device", "cpu"]
    for more, part in (([], "whose image tower has"), (["--classes", "smoke"], "with")):
        with pytest.raises(
            InputError, match=f"^{re.escape(str(ckpt))}: found no CLIP {part} weights_sha256 "
        ) as caught:
            predict.main([*words, *more])
        text = str(caught.value)
        assert text.count("own.pt: another CLIP, weights_sha256 ") == 2 and text.endswith("; give --clip FILE")
        assert "neither 'weights/own.pt' (from here" in text and f"{cache}; passed over" in text
        assert f"{ckpt.parent}/clip.pt: no torch file" in text and text.isprintable()
    predict.main([*words, "--clip", str(trained.clip)])


def test_a_hostile_name_of_clip_is_shown_harmlessly_and_no_pipe_is_read(trained, cache, tmp_path):
    ckpt = trained.copy(tmp_path / "moved")
    (tmp_path / "moved" / "weights" / "own.pt").unlink()
    os.mkfifo(ckpt.parent / "pipe")
    stored = torch.load(ckpt, weights_only=True)
    for name in (f"{ckpt.parent}/pipe", "/dev/zero", "a\n\x1b[2J\u202e", "x" * 4000, "rtsp://u:p@h/x"):
        torch.save(stored | {"settings": stored["settings"] | {"clip": name}}, ckpt)
        with pytest.raises(InputError, match="give --clip FILE$") as caught:
            find(ckpt)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("name", "shown"),
    [("Colours", "give --encoder FILE.py:Colours$"), ("x; rm -rf ~", "give --encoder FILE.py:CLASS$")],
)
def test_an_encoder_that_is_code_is_never_run_because_a_checkpoint_names_it(
    planted, tmp_path, monkeypatch, name, shown
):
    stored = torch.load(planted.checkpoint, weights_only=True)
    torch.save(stored | {"encoder": stored["encoder"] | {"encoder": name}}, tmp_path / "x.pt")
    shutil.copy(planted.root / "colours.py", tmp_path / f"{name.partition(' ')[0]}.py")
    monkeypatch.chdir(tmp_path)
    video = str(write_clip(tmp_path / "v.mp4", 5))
    with pytest.raises(InputError, match=shown):
        predict.main(["--ckpt", "x.pt", video, "--out", "out", "--device", "cpu"])
