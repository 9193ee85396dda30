"""A checkpoint in use: the CLIP that it finds, the recogniser in Python, where a result comes from."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip_model
import predict
import train
from tests.synthetic import SMALL, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import BLUE, RED, our_frames, write_clip
from videoanomaly import Recogniser, clip_weights
from videoanomaly.clip_weights import find_clip
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction.api import Result
from videoanomaly.runtime.console import InputError
from videoanomaly.video import encoders
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


# ---- from Python


def load(planted, **options) -> Recogniser:
    return Recogniser.load(planted.checkpoint, encoder=planted.options[3], device="cpu", **options)


def test_three_lines_give_what_the_command_writes(planted, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "v.mp4", 150, [(30, 70, RED), (100, 140, BLUE)])
    predict.main([*planted.options, str(path), "--out", str(tmp_path / "out")])
    loaded, real = [], encoders.load_encoder
    monkeypatch.setattr(encoders, "load_encoder", lambda *given: loaded.append(given) or real(*given))

    recogniser = load(planted)
    result = recogniser(path)
    assert recogniser(str(path)).events == result.events and len(loaded) == 1  # the encoder is read once

    written = json.loads((tmp_path / "out" / "events.json").read_text())
    assert [event["class"] for event in result.events] == ["fire", "fall"]
    for event, other in zip(result.events, written["events"], strict=True):
        assert event == {name: other[name] for name in event}
    assert (result.name, result.fps) == ("v", written["fps"])
    assert result.threshold == recogniser.threshold == written["threshold"]
    assert [*result.classes] == [*recogniser.classes] == written["classes"]
    with np.load(tmp_path / "out" / "scores.npz") as arrays:
        for name, values in (("p_A", result.p_A), ("p_class", result.p_class), ("time", result.times)):
            assert np.array_equal(values, arrays[name])
    assert "last.pt: anomalyclip, 2 classes, threshold " in repr(recogniser)


@pytest.mark.parametrize("kind", ["array", "pictures", "batches", "times"])
def test_frames_of_another_decoder_give_what_the_video_gives(planted_spaced, tmp_path, kind):
    path = write_clip(tmp_path / "v.mp4", 101, [(30, 70, RED)])
    recogniser, made = load(planted_spaced, threshold=0.5, batch=7), np.stack(our_frames(path))
    expected, frames, how = recogniser(path), made, {"fps": 25}
    if kind == "pictures":
        frames = [Image.fromarray(frame) for frame in made]
    elif kind == "batches":
        frames = (made[i : i + 10] for i in range(0, 101, 10))
    elif kind == "times":
        times: list[float] = []
        how = {"times": times}
        frames = (times.append(i / 25) or frame for i, frame in enumerate(made))
    found = recogniser.from_frames(frames, name="v", **how)
    assert found.events == expected.events and len(found.events) == 1
    assert np.array_equal(found.p_A, expected.p_A) and np.array_equal(found.p_class, expected.p_class)
    assert np.allclose(found.times, expected.times) and found.fps == expected.fps


def test_frames_need_as_many_rows_as_the_stride_says(planted_spaced, tmp_path):
    path = write_clip(tmp_path / "v.mp4", 60)
    recogniser = load(planted_spaced, stride=4)
    found = recogniser.from_frames(our_frames(path), fps=25)
    assert np.array_equal(found.p_A, recogniser(path).p_A) and len(found.p_A) == 60


GREY = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "how", "message"),
    [
        (GREY, {}, "nothing tells when its frames are shown, expected fps= or times="),
        (GREY, {"fps": 0}, "fps 0: expected a positive number"),
        (GREY / 255, {"fps": 25}, r"found an array \(8, 8, 3\) of float64, expected uint8"),
        (GREY[..., 0], {"fps": 25}, r"found an array \(3, 8, 8\) of uint8, expected"),
        (GREY[:0], {"fps": 25}, "found no frames, expected some"),
        ([], {"fps": 25}, "found no frames, expected some"),
        (GREY, {"times": [0, 1]}, r"found times of shape \(2,\), expected 3, one a frame, ascending"),
        (GREY, {"times": [0, 2, 1]}, "expected 3, one a frame, ascending"),
        ("video.mp4", {"fps": 25}, "found a str, expected uint8 arrays"),
        ([3], {"fps": 25}, "found a int, expected uint8 arrays"),
    ],
)
def test_what_are_no_frames_is_one_line(planted, frames, how, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(planted).from_frames(frames, **how)
    assert "\n" not in str(caught.value)


def test_bad_input_in_python_is_the_command_s_one_line(planted, planted_spaced, tmp_path):
    for options, message in (
        ({"threshold": 2}, "--threshold 2: expected a number above 0"),
        ({"stride": 0}, "--stride 0: expected at least 1"),
        ({"batch": 0}, "--batch 0: expected at least 1"),
        ({"classes": ["a", "A"]}, "found a name twice"),
        ({"classes": "smoke"}, "found --directions direct"),
        ({"clip": "rtsp://me:secret@host/x"}, "clip: found the address rtsp://host/x, expected a file"),
    ):
        with pytest.raises(ValueError, match=message):
            load(planted, **options)
    with pytest.raises(ValueError, match="--stride 1: expected at least 2, the spacing"):
        load(planted_spaced, stride=1)
    with pytest.raises(ValueError, match="absent.mp4: No such file"):
        load(planted)(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="video: found the address rtsp://host/x, expected a file") as caught:
        load(planted)("rtsp://me:secret@host/x")
    assert "secret" not in str(caught.value)


def test_a_notebook_shows_the_timeline_and_the_table_of_events_escaped():
    name, times = "<script>alert(1)</script>", np.arange(50) / 25
    scores = FrameScores(np.linspace(0, 1, 50), np.ones((50, 1)), times, 25.0)
    event = {"start": 1.0, "end": 2.0, "start_time": "00:00:01.000", "end_time": "00:00:02.000"}
    event |= {"class": f"{name} & more", "confidence": 0.75}
    shown = Result(name, (name,), 0.5, [event] * 150, [f"note {name}"], scores)._repr_html_()
    assert "<script" not in shown and shown.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 1 + 150 + 100 + 1
    assert shown.count("<rect") == 150 and "and 50 events more" in shown and "<polyline" in shown
    assert 'x="300.0" y="103" height="9" width="300.0"' in shown  # the second of two seconds
    assert "the highest p_A is 1.00" in Result("v", (), 0.5, [], [], scores)._repr_html_()
