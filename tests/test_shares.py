"""Tests of predict.py by several processes: they find what one finds, and the next run does what a killed one left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import predict
from tests import children
from tests.places import ROOT, free_port, torchrun
from tests.videos import RED, write_camera


@pytest.fixture
def archive(tmp_path) -> Path:
    for i in range(5):
        write_camera(tmp_path / "in" / "xy"[i % 2] / f"{i}.mp4", 100 + 60 * i, [(60, 95, RED)] if i % 2 else [])
    return tmp_path / "in"


def read_all(out: Path) -> dict[str, dict]:
    """What does not depend on when and by which command it was made."""
    found = {path.relative_to(out).as_posix(): json.loads(path.read_text()) for path in out.rglob("events.json")}
    return {name: {k: v for k, v in result.items() if k != "provenance"} for name, result in found.items()}


def command(planted, archive: Path, out: Path, is_triage: bool) -> list[str]:
    videos = ["--triage", str(archive), "--budget", "10%"] if is_triage else [str(archive)]
    return [*planted.options, *videos, "--out", str(out), "--threshold", "0.5", "--workers", "1"]


def assert_same(found: Path, expected: Path) -> None:
    assert read_all(found) == read_all(expected) and len(read_all(found)) == 5
    for name in ("index.html", "events.csv"):
        assert (found / name).read_text() == (expected / name).read_text()


@pytest.mark.parametrize("is_triage", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_find_what_one_finds(planted, archive, tmp_path, is_triage):
    start = torchrun if is_triage else children.Ranks
    run = start("predict.py", *command(planted, archive, tmp_path / "two", is_triage))
    assert predict.main(command(planted, archive, tmp_path / "one", is_triage)) == 0
    printed = run.communicate(timeout=300)[0]
    assert run.returncode == 0 and printed.count("5 of 5 videos done, 0 were there, 0 skipped") == 1, printed
    assert_same(tmp_path / "two", tmp_path / "one")


SLOW = """
        import os, time
        while os.environ.get("RANK") == "1" and (batch_waits := os.path.exists(os.environ.get("FUSE", "none"))):
            time.sleep(0.02)
"""


def start(rank: int, port: int, words: list[str], **more: str) -> subprocess.Popen:
    """One of two processes, by a starter that lets the others live when one dies."""
    env = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = [sys.executable, str(ROOT / "predict.py"), *words]
    return subprocess.Popen(script, env=env | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("is_triage", [False, True])
def test_the_others_finish_when_one_is_killed_and_the_next_run_does_the_rest(
    planted, archive, tmp_path, capsys, is_triage
):
    assert predict.main(command(planted, archive, tmp_path / "one", is_triage)) == 0
    colours, fuse, out = tmp_path / "colours.py", tmp_path / "fuse", tmp_path / "two"
    text, port = Path(planted.options[3].rpartition(":")[0]).read_text(), free_port()
    place = "    def encode(self, images):"
    colours.write_text(text.replace(place, place + SLOW))
    fuse.touch()
    words = command(planted, archive, out, is_triage)
    words[3] = f"{colours}:Colours"
    first, second = (start(rank, port, words, FUSE=str(fuse)) for rank in (0, 1))
    made = "*.npz" if is_triage else "events.json"
    while not list(out.rglob(made)):
        assert first.poll() is None and second.poll() is None
        time.sleep(0.02)
    os.kill(second.pid, signal.SIGKILL)
    printed = first.communicate(timeout=300)[0]
    second.communicate(timeout=60)
    assert first.returncode == 1 and "a process ended before its work was done" in printed, printed
    assert "Traceback" not in printed
    done = read_all(out)
    assert is_triage or 0 < len(done) < 5 and (out / "index.html").exists()
    capsys.readouterr()
    assert predict.main(words) == 0
    assert f"{5 - len(done)} of 5 videos done, {len(done)} were there" in capsys.readouterr().out
    left = {name: {k: v for k, v in found.items() if k != "settings"} for name, found in read_all(out).items()}
    assert left.keys() == read_all(tmp_path / "one").keys()
    for name, expected in read_all(tmp_path / "one").items():
        assert left[name]["events"] == expected["events"] and left[name]["coverage"] == expected["coverage"]
