"""One function for several items at once, in processes that are begun for it and end with this one, however it ends."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from tqdm import tqdm

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.signals import STOP_SIGNALS

PATIENCE = 0.2  # seconds between two looks at the signals
TOLD = (InputError, OSError, FloatingPointError)  # errors that a script tells in one line
THREADS = "OMP_NUM_THREADS"  # what torch and NumPy read as they are imported

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(
    work: Callable[[T], R], items: Iterable[T], num_processes: int, num_threads: int, signals: list[int]
) -> Iterator[tuple[T, R]]:
    """Each item with `work(item)`, in the order in which they are done; none after the first signal.

    The processes are begun anew: a copy of one that has computed gradients can compute none. They know neither the
    random state of this one nor signals, and show no bars.

    Args:
        work: It, its items and results are pickled.
        num_threads: Of each process.
        signals: Those that have come, see `stop_signals`; all processes end with the first one.
    Raises:
        ChildProcessError: If a process was ended from outside.
        Exception: What `work` raises; other kinds than TOLD as a RuntimeError with their traceback.
    """
    context, left = multiprocessing.get_context("spawn"), iter(items)
    processes: dict[Connection, SpawnProcess] = {}
    busy: dict[Connection, T] = {}
    try:
        for item in itertools.islice(left, num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, work), daemon=True)
            with birth(num_threads):
                process.start()
            processes[ours] = process
            theirs.close()
            ours.send(item)
            busy[ours] = item
        while busy and not signals:
            for ours in wait([*busy], PATIENCE):
                assert isinstance(ours, Connection)
                yield busy.pop(ours), answer_of(ours, processes[ours])
                for item in itertools.islice(left, 1):
                    ours.send(item)
                    busy[ours] = item
    finally:
        for process in processes.values():
            process.kill()
            process.join()


@contextmanager
def birth(num_threads: int) -> Iterator[None]:
    """A process that is begun inside has that many threads, and never sees what a terminal sends to all; this one gets
    it a moment later.
    """
    threads, is_posix = os.environ.get(THREADS), hasattr(signal, "pthread_sigmask")
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if is_posix else set()
    os.environ[THREADS] = str(num_threads)
    try:
        yield
    finally:
        if threads is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = threads
        if is_posix:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def answer_of(connection: Connection, process: SpawnProcess) -> Any:
    """What a process sent back for its item."""
    try:
        result, error = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise ChildProcessError(
            f"a process was ended from outside (status {process.exitcode}), as where memory runs out; --workers 0 does "
            "all in one"
        ) from None
    if error is not None:
        raise error
    return result


def serve(connection: Connection, work: Callable) -> None:
    """A process's life: items come in, results or errors go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows; elsewhere it is blocked
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.stderr.isatty = lambda: False  # so that bars of several do not mix
    tqdm.set_lock(threading.RLock())  # the usual one is the system's, and is left over where a process is killed
    keep_freed_memory()
    with suppress(EOFError):  # the other end is gone
        while True:
            connection.send(tried(work, connection.recv()))


def tried(work: Callable[[T], R], item: T) -> tuple[R | None, Exception | None]:
    """What work returns, or the error that it raises."""
    try:
        return work(item), None
    except TOLD as error:
        return None, error
    except Exception:
        return None, RuntimeError(traceback.format_exc())


def end_with_parent() -> None:
    """Ends this process as soon as the one that began it is gone."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
