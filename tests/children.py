"""Scripts in processes that are forked from one which has the libraries imported, so that a start takes milliseconds
instead of seconds. Where the start itself is tested, tests begin a new Python.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO

import pytest

from tests.places import ROOT, free_port

PRELOADED = "tests.children train evaluate predict extract_features ablate watch anomalyclip clip_model torch._dynamo"
PRELOADED += " sklearn.metrics videoanomaly.evaluation.evaluator videoanomaly.plots videoanomaly.prediction.api"
PRELOADED += " videoanomaly.training.epochs videoanomaly.live.service videoanomaly.watching.station"


@cache
def server() -> ForkServerContext:
    """One in each process of pytest, begun by the first child."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the server of Python 3.11 does not look into sys.path
        forkserver.ensure_running()
    return context


def serve(argv: list[str], cwd: str, environment: dict[str, str], streams: list[Connection]) -> None:
    """In a child: what `python *argv` does, with those streams for stdin, stdout and stderr."""
    multiprocessing.set_start_method("fork", force=True)  # as for users; else what it begins are the server's children
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
    for stream in {*streams}:
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    if argv[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *argv[2:]], ""
        exec(argv[1], {"__name__": "__main__"})  # noqa: S102  (a test's own)
    elif argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], cwd
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent.absolute())
        runpy.run_path(argv[0], run_name="__main__")


class Child:
    """As subprocess.Popen of `python *argv`, with pipes for stdout and stderr.

    Args:
        stdin: An open file (default: nothing comes).
        merged: Whether stderr goes where stdout goes.
        environment: Besides that of this process.
    """

    def __init__(
        self, *argv: str | Path, cwd: Path = ROOT, stdin: IO | None = None, merged: bool = False, **environment: str
    ):
        ours, theirs = zip(*[os.pipe() for _ in range(1 if merged else 2)])
        given = os.dup(stdin.fileno()) if stdin else os.open(os.devnull, os.O_RDONLY)
        streams = [Connection(given, writable=False), *(Connection(end, readable=False) for end in theirs)]
        words, env = [str(word) for word in argv], {**os.environ, **environment}
        self.process = server().Process(target=serve, args=(words, str(cwd), env, [*streams, *streams[1:]][:3]))
        self.process.start()
        for stream in streams:
            stream.close()
        self.stdout, *rest = (open(end) for end in ours)
        self.stderr = rest[0] if rest else None
        self.args, self.pid = words, self.process.pid
        atexit.register(self.kill)  # before multiprocessing waits for it

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, once it has ended."""
        printed, streams = ["", ""], [self.stdout, self.stderr]

        def read(i: int) -> None:
            if stream := streams[i]:
                printed[i] = stream.read()
                stream.close()

        threads = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(2)]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        return printed[0], printed[1]

    def send_signal(self, number: int) -> None:
        assert self.pid
        with suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*argv: str | Path, timeout: float = 300, **more) -> subprocess.CompletedProcess:
    """As subprocess.run of `python *argv`, with what it printed as text."""
    child = Child(*argv, **more)
    try:
        stdout, stderr = child.communicate(timeout)
    except BaseException:
        child.kill()
        raise
    return subprocess.CompletedProcess(child.args, child.returncode or 0, stdout, stderr)


class Ranks:
    """Two processes that work as one, as `places.torchrun` begins them: the first that fails ends the other."""

    def __init__(self, *argv: str | Path):
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        shared["MASTER_PORT"] = str(free_port())
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        self.children = [Child(*argv, merged=True, **shared, **rank) for rank in ranks]
        self.returncode = 0

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """What both printed, once they have ended."""
        printed = ["", ""]

        def follow(i: int) -> None:
            try:
                printed[i] = self.children[i].communicate(timeout)[0]
                status = self.children[i].returncode
            except subprocess.TimeoutExpired:
                status = 124
                self.children[i].kill()
            if status:
                self.returncode = self.returncode or status
                self.children[1 - i].send_signal(signal.SIGTERM)

        threads = [threading.Thread(target=follow, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return "".join(printed), None
