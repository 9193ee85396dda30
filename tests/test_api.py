"""A checkpoint in use: the CLIP that it finds, the recogniser in Python, where a result comes from."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip_model
import evaluate
import predict
import train
from tests.synthetic import SMALL, run, stop_in_the_third_epoch, write_dataset
from tests.tiny_clip import tiny_clip_state_dict
from tests.videos import BLUE, RED, our_frames, write_clip
from videoanomaly import Recogniser, __version__, clip_weights
from videoanomaly.clip_weights import find_clip
from videoanomaly.evaluation import evaluator
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction.api import Result
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.provenance import command_line, commit_of
from videoanomaly.video import encoders
from videoanomaly.weights.checkpoints import load_model, write_checkpoint


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "made")


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


# ---- where something comes from


def check_provenance(found: dict, checkpoint: dict, command: str) -> None:
    age = datetime.now(UTC) - datetime.fromisoformat(found["date"])
    assert 0 <= age.total_seconds() < 3600 and found["date"].endswith("+00:00")
    assert (found["code"], found["torch"]) == (__version__, torch.__version__.partition("+")[0])
    assert (found["encoder"], found["encoder_sha256"]) == tuple(
        checkpoint["encoder"][k] for k in ("encoder", "weights_sha256")
    )
    assert found["command"] == command and str(Path.cwd()) not in str(found)


def test_a_checkpoint_and_a_result_tell_what_made_them_and_no_folder_of_this_machine(
    trained, cache, tmp_path, monkeypatch, capsys
):
    ckpt = trained.copy(tmp_path / "moved")
    monkeypatch.chdir(ckpt.parents[2])
    checkpoint = torch.load(ckpt, weights_only=True)
    command = "train.py --dataset custom --root data --out runs/x --clip weights/own.pt"
    found = checkpoint["provenance"]
    check_provenance(found, checkpoint, found["command"])
    assert found["command"].startswith(command)
    video = str(write_clip(tmp_path / "v.mp4", 5))
    predict.main(["--ckpt", str(ckpt), video, "--out", "out", "--device", "cpu"])
    result = json.loads(Path("out/events.json").read_text())["provenance"]
    check_provenance(result, checkpoint, "predict.py --ckpt .../last.pt .../v.mp4 --out out --device cpu")
    assert result["checkpoint"] == "last.pt" and result["checkpoint_sha256"] == Recogniser.load(ckpt).loaded.sha256
    monkeypatch.setattr(evaluator, "draw_all", lambda *given, **how: None)
    evaluate.main(["--ckpt", str(ckpt), "--device", "cpu", "--bootstrap", "2"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("made by "))
    assert f"code {__version__}, " in line and line.endswith(found["command"])
    assert f"encoder_sha256 {found['encoder_sha256'][:12]}, " in line


def test_a_run_that_goes_on_keeps_where_it_began(dataset, tmp_path, monkeypatch):
    stop_in_the_third_epoch(monkeypatch, lambda: run(dataset, tmp_path, "--epochs", "3"))
    stopped = torch.load(tmp_path / "last.pt", weights_only=True)
    ended = run(dataset, tmp_path, "--epochs", "3", "--resume")
    assert (stopped["epoch"], ended["epoch"]) == (2, 3) and ended["provenance"] == stopped["provenance"]


@pytest.mark.parametrize(
    "value", ["x", {"code": 3}, {"a\nb": "c"}, {"code": "\x1b[2J"}, {"code": "x" * 5000}, [], None]
)
def test_provenance_in_a_checkpoint_is_text_that_a_terminal_can_show(planted, tmp_path, value):
    write_checkpoint(tmp_path / "x.pt", torch.load(planted.checkpoint, weights_only=True) | {"provenance": value})
    with pytest.raises(InputError, match="x.pt: found provenance = .*, expected texts by name"):
        load_model(str(tmp_path / "x.pt"))


def test_a_command_line_is_told_without_secrets_and_folders():
    words = ["--live", "rtsp://me:secret@cam/x?key=secret", "--webhook=https://u:secret@h/p", "--out=/home/me/out"]
    words += ["/a/b c.mp4", "C:\\Users\\me\\d.mp4", "e/f.mp4", "a\x1b[2J"]
    shown = command_line("predict.py", words)
    assert "secret" not in shown and "/home" not in shown and "Users" not in shown and shown.isprintable()
    assert shown.startswith(
        "predict.py --live rtsp://cam/x --webhook=https://h/p --out=.../out '.../b c.mp4' .../d.mp4"
    )


def test_the_commit_is_read_from_files_of_git_without_git(tmp_path):
    def git(*words: str) -> str:
        who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
        command = ["git", "-C", str(tmp_path / "r"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | who).stdout.strip()

    if not shutil.which("git"):
        pytest.skip("needs git to make a repository")
    (tmp_path / "r").mkdir()
    assert commit_of(tmp_path / "r") is None
    git("init", "-q", "-b", "a/b")
    assert commit_of(tmp_path / "r") is None  # no commit yet
    git("commit", "-q", "--allow-empty", "-m", "x")
    commit = git("rev-parse", "HEAD")
    assert commit_of(tmp_path / "r") == commit
    git("worktree", "add", "-q", "-b", "c", str(tmp_path / "w"))
    git("pack-refs", "--all")
    assert commit_of(tmp_path / "r") == commit_of(tmp_path / "w") == commit
    git("checkout", "-q", "--detach")
    assert commit_of(tmp_path / "r") == commit
    (tmp_path / "r" / ".git" / "HEAD").write_text("\x1b[2J")
    assert commit_of(tmp_path / "r") is None


# ---- TensorBoard


def test_tensorboard_gets_losses_learning_rate_and_the_evaluations_numbers(dataset, tmp_path, monkeypatch):
    written: dict = {}

    class SummaryWriter:
        def __init__(self, folder):
            written["folder"] = folder

        def add_scalar(self, name, value, step):
            written.setdefault(step, {})[name] = value

        def flush(self):
            written["flushed"] = max(step for step in written if isinstance(step, int))

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(train, "evaluate_checkpoint", lambda *given: {"AUC": 62.5, "frames": 3, "per_class": {}})
    run(dataset, tmp_path / "run", "--epochs", "2", "--tensorboard", "board", "--evaluate")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for record in log:
        found = {name: value for name, value in written[record["epoch"]].items() if not name.startswith("test/")}
        losses = {f"loss/{name}": value for name, value in record["losses"].items()}
        assert found == losses | {"learning rate": record["lr"]}
    assert {name: value for name, value in written[2].items() if name.startswith("test/")} == {"test/AUC": 62.5}
    assert (written["folder"], written["flushed"]) == ("board", 2)


def test_without_tensorboard_one_line_tells_how_to_install_it_before_any_work(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        InputError, match="^--tensorboard: cannot be used .*; pip install tensorboard, or leave it out$"
    ):
        run(dataset, tmp_path / "run", "--epochs", "1", "--tensorboard", str(tmp_path / "board"))
    assert not list(tmp_path.iterdir())
