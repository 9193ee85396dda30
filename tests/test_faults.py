"""Tests of run_folder.py: scripts that are killed, stopped by a signal and started twice, and what they leave behind.

Two kill train.py and extract_features.py with SIGKILL at NUM_KILLS random moments each, going on every time.
The children are forked from a server that has torch loaded, so that a start takes milliseconds; every write takes 5 ms
longer there, so that many kills fall into it.
"""

import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import train
from tests.children import server
from tests.places import ROOT
from tests.synthetic import arguments, equal, write_dataset
from tests.videos import write_video
from videoanomaly.runtime import run_folder
from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.runtime.files import write_atomically

NUM_KILLS, NUM_WRITING = 30, 3  # at least so many kills, of them in the middle of a file
ENCODER = """
import time
import numpy as np
import torch

class Sleepy:
    dim = 5
    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float()
    def encode(self, images):
        time.sleep(0.004)
        return images.flatten(1)[:, :5] / 256 + images.mean(dim=(1, 2, 3))[:, None]
"""
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")


# ---- helpers ----


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def call_script(module: str, argv: list[str], write_seconds: float) -> None:
    """In a child: the script's main, silent, in one thread, and with every file's writing taking so much longer."""
    sys.stdout = sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # of the loader's workers, as for users; else the server's children
    fsync = os.fsync

    def slow_fsync(descriptor):
        time.sleep(write_seconds)
        fsync(descriptor)

    os.fsync = slow_fsync
    sys.exit(__import__(module).main(argv))


@pytest.fixture(scope="module")
def start():
    """Starts a script in a child process that is forked from one with everything imported."""

    def start(module: str, argv: list[str], write_seconds: float = 0.005):
        child = server().Process(target=call_script, args=(module, argv, write_seconds))
        child.start()
        return child

    return start


def finish(child) -> int:
    child.join(120)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def kill_and_go_on(begin, check, folders, longest: float) -> int:
    """Kills runs at random moments; each folder's run is gone on with until it ends, which `check` looks at.

    On a slow machine, where too few kills meet a write, more come, and later after the start.

    Args:
        begin: Starts the script in a folder and returns the child.
        check: Looks at a folder with a finished run.
        folders: Yields new folders.
        longest: The first kill comes at most so many seconds after the start.
    Returns:
        The kills that left a half-written file.
    """
    rng, out, num_killed, num_writing = random.Random(0), next(folders), 0, 0
    while num_killed < NUM_KILLS or num_writing < NUM_WRITING and num_killed < 5 * NUM_KILLS:
        child = begin(out)
        child.join(rng.uniform(0, longest * max(1, num_killed / NUM_KILLS)))
        child.kill()
        child.join()
        if child.exitcode == 0:
            check(out)
            out = next(folders)
            continue
        assert child.exitcode == -signal.SIGKILL, f"ended with {child.exitcode} by itself"
        num_killed += 1
        num_writing += bool(temporary_files(out))
    assert finish(begin(out)) == 0
    check(out)
    return num_writing


@contextmanager
def running(argv: list[str], cwd: Path):
    """A script as a user starts it, in one thread as the children above, in a process group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *argv],
        cwd=cwd,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition, what: str) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.005)


def load(out: Path) -> dict:
    return torch.load(out / "last.pt", weights_only=True)


def losses(out: Path) -> list[dict]:
    return [json.loads(line)["losses"] for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_training(out: Path, expected: Path) -> None:
    found, whole = load(out), load(expected)
    for key in ("model", "optimizer", "rng", "epoch", "config", "lists"):
        assert equal(found[key], whole[key]), key
    assert losses(out) == losses(expected)
    assert sorted(content(out)) == ["last.pt", "log.jsonl", "previous.pt", "settings.json", "training.json"]


# ---- killed ----


@pytest.mark.slow
@needs_posix
def test_training_that_is_killed_30_times_ends_with_the_weights_of_an_undisturbed_one(dataset, tmp_path, start):
    def begin(out):
        return start("train", arguments(dataset, out, "--epochs", "24", "--resume"), write_seconds=0.02)

    assert finish(begin(tmp_path / "whole")) == 0
    folders = (tmp_path / str(i) for i in range(1000))
    began = time.monotonic()
    num_writing = kill_and_go_on(begin, lambda out: assert_same_training(out, tmp_path / "whole"), folders, longest=1.0)
    print(
        f"training: {NUM_KILLS} kills, {num_writing} in the middle of a file, {len(list(tmp_path.iterdir())) - 1} "
        f"runs, {time.monotonic() - began:.0f} s"
    )
    assert num_writing >= NUM_WRITING


@pytest.mark.slow
@needs_posix
def test_extraction_that_is_killed_30_times_ends_with_the_files_of_an_undisturbed_one(tmp_path, start):
    (tmp_path / "encoder.py").write_text(ENCODER)
    for i in range(8):
        write_video(tmp_path / "videos" / f"{'ab'[i % 2]}" / f"{i}.mp4", num_frames=10 + i, codec="mpeg4", seed=i)

    def begin(out):
        return start(
            "extract_features",
            [
                "--videos",
                str(tmp_path / "videos"),
                "--out",
                str(out),
                "--encoder",
                f"{tmp_path / 'encoder.py'}:Sleepy",
                "--workers",
                "2",
                "--batch",
                "4",
            ],
            write_seconds=0.015,
        )  # it writes few files: with less, few kills come while it does

    def check(out):
        files, expected = content(out), content(tmp_path / "whole")
        files.pop(".lock", None), expected.pop(".lock", None)
        assert files == expected and not temporary_files(out)

    assert finish(begin(tmp_path / "whole")) == 0
    assert len(content(tmp_path / "whole")) >= 9
    (tmp_path / "runs").mkdir()
    began, folders = time.monotonic(), (tmp_path / "runs" / str(i) for i in range(1000))
    num_writing = kill_and_go_on(begin, check, folders, longest=0.6)
    print(
        f"extraction: {NUM_KILLS} kills, {num_writing} in the middle of a file, "
        f"{len(list((tmp_path / 'runs').iterdir()))} runs, {time.monotonic() - began:.0f} s"
    )
    assert num_writing >= NUM_WRITING


def test_only_what_atomic_writing_leaves_is_removed_from_the_folder(tmp_path):
    """Nothing of another run, which may be at work in a folder of its own below."""
    ours = {".lock", *(f"{folder}.{'0a' * 16}.tmp" for folder in ("", "timelines/", "timelines/Arson/"))}
    others = {".notes.tmp", f"{'0a' * 16}.tmp", f".{'0g' * 16}.tmp", "row-0/.lock", f"row-0/.{'0a' * 16}.tmp"}
    for name in ours | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with run_folder.lock_folder(tmp_path):
        assert content(tmp_path).keys() == others | {".lock"}
    assert content(tmp_path).keys() == others


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["evaluate", "predict", "extract_features", "ablate", "train"])
def test_a_signal_outside_of_the_steps_stops_any_script_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, module, number
):
    script = __import__(module)

    def stop(*args, **kwargs):
        out = tmp_path / "out"
        with run_folder.lock_folder(out):
            write_atomically(out / "file", lambda file: signal.raise_signal(number))

    monkeypatch.setattr(script, "parse_args", stop)
    with pytest.raises(SystemExit) as exit_:
        run_script(script.main)
    assert exit_.value.code == 128 + number and capsys.readouterr().err == "stopped\n"
    assert not content(tmp_path) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---- stopped ----


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize("number, workers", [(signal.SIGINT, "2"), (signal.SIGTERM, "2")])
def test_a_stopped_script_tells_the_command_that_goes_on(dataset, tmp_path, start, number, workers):
    """The signal goes to the whole group, as from a terminal, a batch system or `timeout`."""
    options = arguments(dataset, Path("a run"), "--epochs", "40")
    place = options.index("--workers")  # given twice it would be told once
    options = [*options[:place], *options[place + 2 :], "--workers", workers]
    whole = start("train", arguments(dataset, tmp_path / "whole", "--epochs", "40"), write_seconds=0)
    with running([str(ROOT / "train.py"), *options], tmp_path) as process:
        wait_until((tmp_path / "a run" / "last.pt").exists, "a checkpoint")
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and errors == ""
    assert 0 < len(losses(tmp_path / "a run")) < 40
    command = shlex.split(re.search(rf"stopped by {number.name}; go on with: (.*)\n\Z", output)[1])
    assert command == [sys.executable, str(ROOT / "train.py"), *options, "--resume"]
    with running(command[1:], tmp_path) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert finish(whole) == 0
    assert_same_training(tmp_path / "a run", tmp_path / "whole")


# ---- two at once ----


@pytest.mark.slow
@needs_posix
def test_a_second_run_in_the_folder_refuses_until_the_first_is_gone(dataset, tmp_path, start):
    out = tmp_path / "run"
    argv = arguments(dataset, out, "--epochs", "300", "--resume")
    first = start("train", [*argv, "--workers", "1"])
    wait_until((out / "last.pt").exists, "a checkpoint")
    before = len(losses(out))
    with pytest.raises(InputError, match=rf"--out {re.escape(str(out))}: found another run at work in this folder"):
        train.main(argv)
    wait_until(lambda: len(losses(out)) > before, "another epoch")
    assert first.is_alive()
    first.kill()  # its worker lives some seconds longer, and must not keep the lock
    first.join()
    with run_folder.lock_folder(out):
        assert load(out)["epoch"] >= before


def test_a_run_that_writes_nothing_leaves_no_new_folder_and_takes_none_away(tmp_path):
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(KeyError), run_folder.lock_folder(folder):
            raise KeyError
    assert not (tmp_path / "new").exists() and tmp_path.exists()
    with run_folder.lock_folder(tmp_path / "kept"):
        (tmp_path / "kept" / "result").write_text("x")
    assert (tmp_path / "kept" / "result").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--out .*file/run: cannot be written \(Not a directory\), expected a folder"):
        with run_folder.lock_folder(tmp_path / "file" / "run"):
            pass


@needs_posix
def test_where_the_file_system_has_no_locks_runs_go_on_without(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "lockf", no_locks)
    with run_folder.lock_folder(tmp_path / "run"):
        assert (tmp_path / "run").exists()
