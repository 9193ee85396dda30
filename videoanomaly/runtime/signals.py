"""Stopping in good order when a signal asks for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from videoanomaly.runtime.torchrun import rank_and_world

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Gives a list to look at after each step: the numbers of the signals that asked to stop since.

    Only the first Ctrl-C is a request, a second one interrupts at once. More of SIGTERM change nothing: `timeout` sends
    two, and nor do more of either under torchrun, which passes on what the terminal has sent to all processes already.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT and rank_and_world()[2] == 1:
            # also where a shell started us in the background, deaf to it
            signal.signal(number, signal.default_int_handler)

    try:
        for number in STOP_SIGNALS:
            signal.signal(number, receive)
        yield received
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, before[number])


@contextmanager
def hangups() -> Iterator[list[int]]:
    """A list that grows with each SIGHUP; Windows has none."""
    received: list[int] = []
    if not hasattr(signal, "SIGHUP"):
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGHUP, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """The first SIGTERM is a KeyboardInterrupt with its number; later ones leave the clearing up alone."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def obey_parent_alone(worker_id: int = 0) -> None:
    """For DataLoader workers: signals of the terminal or of a batch system reach them, too, and would end them before
    the step that waits for its data. The parent's SIGTERM, with which Python ends them, ends them at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows, where torch looks after SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_by_parent, daemon=True).start()


def end_by_parent() -> None:
    """Waits for the parent's SIGTERM, which is blocked in all threads, and ends the process."""
    parent = multiprocessing.parent_process()  # not getppid, which is a server where processes are not forked
    while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
