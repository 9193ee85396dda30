"""One function in several processes: what comes back, errors, signals, and that no process is left over."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.places import ROOT
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.side_by_side import side_by_side

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def whereabouts(item: int) -> tuple[int, int, str, bool]:
    return item * item, os.getpid(), os.environ["OMP_NUM_THREADS"], sys.stderr.isatty()


def fail(item: Exception) -> None:
    raise item


def be_killed(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever(folder: Path, item: int) -> None:
    """Leaves its process's number in the folder."""
    (folder / "new").write_text(str(os.getpid()))
    (folder / "new").rename(folder / "pid")
    threading.Event().wait()


def written(path: Path) -> int:
    """The number in a file, once it is there."""
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    """Whether a process ends; one that is another's child and was not asked for counts as ended."""
    deadline, status = time.monotonic() + 120, Path(f"/proc/{pid}/status")
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in status.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_each_item_is_done_once_by_processes_with_their_share_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = dict(side_by_side(whereabouts, range(5), 2, 3, []))
    assert {item: square for item, (square, *_) in found.items()} == {i: i * i for i in range(5)}
    processes = {pid for _, pid, *_ in found.values()}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes
    assert {(threads, bars) for _, _, threads, bars in found.values()} == {("3", False)}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert all(is_gone(pid) for pid in processes)


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (InputError("a.npy: found x"), InputError, "^a.npy: found x$"),
        (FileNotFoundError(2, "No such file"), FileNotFoundError, "No such file"),
        (KeyError("a"), RuntimeError, r"(?s)Traceback .* in fail\n.*KeyError: 'a'"),
    ],
)
def test_an_error_is_raised_here_as_it_was_there(error, kind, message):
    with pytest.raises(kind, match=message):
        list(side_by_side(fail, [error], 1, 1, []))


@needs_posix
def test_a_process_that_is_killed_is_told():
    with pytest.raises(
        ChildProcessError, match=r"ended from outside \(status -9\), as where memory runs out; --workers 0"
    ):
        list(side_by_side(be_killed, [1], 1, 1, []))


@needs_posix
def test_a_signal_ends_them_all(tmp_path):
    signals, pids = [], []

    def ask():
        pids.append(written(tmp_path / "pid"))
        signals.append(signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    assert list(side_by_side(partial(wait_for_ever, tmp_path), [1, 2], 1, 1, signals)) == []
    thread.join()
    assert is_gone(pids[0])


PARENT = """
import signal, sys
from functools import partial
from pathlib import Path
from tests.test_side_by_side import wait_for_ever
from videoanomaly.runtime.side_by_side import side_by_side
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background deaf to it
    list(side_by_side(partial(wait_for_ever, Path(sys.argv[1])), [1], 1, 1, []))
"""


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_none_outlives_the_process_that_began_it(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    pid = written(tmp_path / "pid")
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.kill()
    told = parent.communicate()[1]
    assert is_gone(pid) and told.count("Traceback") == (number == signal.SIGINT)  # the parent's own
