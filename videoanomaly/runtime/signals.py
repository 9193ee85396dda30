"""Stopping in good order when a signal asks for it."""

import signal
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


def survive_one_signal(worker_id: int = 0) -> None:
    """For DataLoader workers: Ctrl-C reaches them, too, and would end them before the step that waits for its data."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))
