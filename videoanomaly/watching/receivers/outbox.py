"""Delivers the messages of the event store, at least once and in order per camera, through outages and restarts.

Each receiver (sink) has one thread. What cannot be delivered now is tried again, later and later; meanwhile the other
messages of its camera wait, those of other cameras are tried as well. What is refused for good, or is too old when an
attempt fails, is given up. A message is in the database until its sink has confirmed it.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from videoanomaly.live.webhook import is_told
from videoanomaly.runtime.console import duration
from videoanomaly.watching.store import messages
from videoanomaly.watching.store.database import StoreError
from videoanomaly.watching.store.event_store import EventStore

BACK_OFF = (1.0, 60.0)  # seconds before the second attempt and at most before a further one, doubled each time
JITTER = 0.1  # share of a pause that chance adds, so that several services do not return at the same moment
AT_ONCE = 20  # messages of a camera read together
FAILURES_TOLD = 3  # in a row; fewer are no outage that a user needs to hear of
NOTE_EVERY = 600.0  # seconds between two notes on messages that were given up
LOOKING = 60.0  # seconds after which the database is read without being told of a change
REPLACING = 8.0  # seconds that a sink has to end what it sends when another takes its place


class NotDelivered(Exception):
    """Why a message was not confirmed; the text holds no secret.

    Args:
        reason: A few words.
        is_final: Whether it would be refused again.
    """

    def __init__(self, reason: str, is_final: bool):
        super().__init__(reason)
        self.reason, self.is_final = reason, is_final


class Sink(Protocol):
    """A receiver of messages."""

    name: str  # in the database: the same after a restart
    on_return: Callable[[], None]  # set by the outbox; the sink may call it when its receiver is there again

    def start(self) -> None:
        """From now on it is used, and no other of its name any more."""
        ...

    def send(self, message: dict[str, Any], key: str) -> None:
        """Returns when the receiver has confirmed the message, or raises, within seconds.

        Args:
            message: See `messages.content`.
            key: The same each time the message is sent, and of no other.
        Raises:
            NotDelivered: If it was not confirmed.
        """
        ...

    def close(self) -> None:
        """No more is sent."""
        ...


class Hold(NamedTuple):
    """A camera whose messages wait."""

    failures: int  # attempts in a row
    pause: float  # seconds
    until: float  # of the monotonic clock


class Delivery:
    """The thread of one sink; see `Outbox` for the arguments."""

    def __init__(
        self,
        store: EventStore,
        sink: Sink,
        give_up_after: float,
        tell: Callable[[str], None],
        back_off: tuple[float, float],
    ):
        self.store, self.sink, self.give_up_after, self.back_off = store, sink, give_up_after, back_off
        self.tell = lambda text: tell(f"{sink.name}: {text}")
        self.held: dict[str, Hold] = {}
        self.cameras: list[str] = []  # of which messages waited when this was last looked at
        self.has_failed = False  # since messages that are too old were last looked for
        self.gone: tuple[int, str] | None = None  # sequence and outcome of a message that is to be removed
        self.out_since: float | None = None  # of the monotonic clock: an outage that was told
        self.num_refused = self.num_old = 0
        self.next_note = 0.0
        self.finishing, self.stopping, self.is_back = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, name=f"outbox {sink.name}", daemon=True)
        sink.on_return = self.release

    # ---------------------------------------------------------------- called by other threads

    def release(self) -> None:
        """Tries at once what waits for a later attempt."""
        self.is_back.set()
        self.store.wake()

    def stop(self, event: threading.Event) -> None:
        """`finishing`: once nothing can be delivered any more; `stopping`: after the message that is being sent."""
        event.set()
        self.store.wake()

    # ---------------------------------------------------------------- its own thread

    def work(self) -> None:
        """Delivers until it is stopped."""
        while not self.stopping.is_set():
            version, seconds = self.store.version, 0.0
            try:
                if self.deliver_some():
                    continue
                seconds = self.seconds_to_wait()
            except StoreError as error:  # such as a full disk
                self.hold("", str(error))
                self.stopping.wait(self.held[""].pause)
            if self.finishing.is_set():
                break
            self.store.wait_for_change(version, seconds)
        self.tell_old(at_once=True)

    def seconds_to_wait(self) -> float:
        """Until a camera of which messages wait may be tried again."""
        until = [self.held[camera].until for camera in self.cameras if camera in self.held]
        return max(min(until) - time.monotonic(), 0) if until else LOOKING

    def deliver_some(self) -> bool:
        """A few messages of each camera that is not held; whether any went.

        Raises:
            StoreError: If the database cannot be read or written now.
        """
        self.remove()
        if "" in self.held:
            self.end_hold("")
        if self.is_back.is_set():
            self.is_back.clear()
            self.try_all()
        num_gone = 0
        self.cameras = messages.cameras(self.store.database, self.sink.name)
        for camera in self.cameras:
            if camera not in self.held or self.held[camera].until <= time.monotonic():
                num_gone += self.deliver_camera(camera)
        if self.has_failed:
            self.num_old += messages.give_up(self.store.database, self.give_up_after, [self.sink.name])
            self.has_failed = False
            self.tell_old()
        return num_gone > 0

    def deliver_camera(self, camera: str) -> int:
        """How many of a few messages of a camera are gone, up to the first that has to wait."""
        waiting = messages.waiting(self.store.database, self.sink.name, camera, AT_ONCE)
        for number, message in enumerate(waiting):
            if self.stopping.is_set() or not self.deliver(message):
                return number
        return len(waiting)

    def deliver(self, message: messages.Message) -> bool:
        """Whether the message is gone: delivered, or refused for good."""
        outcome = "delivered"
        try:
            self.sink.send(message.body, message.key)
        except Exception as error:
            found = error if isinstance(error, NotDelivered) else None
            reason = found.reason if found else type(error).__name__  # other texts may hold secrets
            if not found or not found.is_final:
                self.hold(message.camera, f"camera {message.camera}: {reason}")
                return False
            outcome = "given_up"
            self.tell_refused(reason)
        self.gone = message.sequence, outcome
        self.remove()
        if message.camera in self.held:
            self.end_hold(message.camera)
        return True

    def remove(self) -> None:
        """Takes the last message out of the database; if that fails it is not sent again, but removed later."""
        if self.gone:
            messages.remove(self.store.database, self.sink.name, *self.gone)
            self.gone = None

    def hold(self, camera: str, reason: str) -> None:
        """Lets a camera wait after a failed attempt, longer each time."""
        before, (first, longest) = self.held.get(camera), self.back_off
        failures, pause = (before.failures + 1, min(2 * before.pause, longest)) if before else (1, first)
        until = time.monotonic() + pause * (1 + JITTER * random.random())
        self.held[camera] = Hold(failures, pause, until)
        self.has_failed = True
        if failures >= FAILURES_TOLD and self.out_since is None:
            self.out_since = time.monotonic()
            self.tell(f"messages wait ({reason})")

    def end_hold(self, camera: str) -> None:
        """After an attempt that succeeded; others are tried again as well."""
        del self.held[camera]
        self.try_all()
        waiting = [hold for name, hold in self.held.items() if name in self.cameras]
        if self.out_since is not None and all(hold.failures < FAILURES_TOLD for hold in waiting):
            self.tell(f"messages are delivered again after {duration(time.monotonic() - self.out_since)}")
            self.out_since = None

    def try_all(self) -> None:
        self.held = {camera: hold._replace(until=0.0) for camera, hold in self.held.items()}

    def tell_refused(self, reason: str) -> None:
        self.num_refused += 1
        if is_told(self.num_refused):
            self.tell(f"messages refused, not sent again ({reason}): {self.num_refused} so far")

    def tell_old(self, at_once: bool = False) -> None:
        """That messages were given up; from time to time, as an outage lets one after the other grow too old."""
        if self.num_old and (at_once or time.monotonic() >= self.next_note):
            self.tell(f"{self.num_old} messages given up, older than {duration(self.give_up_after)}")
            self.num_old, self.next_note = 0, time.monotonic() + NOTE_EVERY


class Outbox:
    """All sinks and their threads.

    Args:
        store: Holds the messages; it writes them for these sinks from now on.
        sinks: Of different names.
        give_up_after: Seconds after which a message that fails is not tried again; `replace` takes another one over.
        tell: Gets lines for the user.
        back_off: First and longest pause after a failed attempt, seconds.
    """

    def __init__(
        self,
        store: EventStore,
        sinks: Sequence[Sink],
        give_up_after: float,
        tell: Callable[[str], None],
        back_off: tuple[float, float] = BACK_OFF,
    ):
        self.store, self.give_up_after, self.tell, self.back_off = store, give_up_after, tell, back_off
        self.deliveries: list[Delivery] = []
        self.first = list(sinks)
        store.set_sinks(sink.name for sink in sinks)

    def start(self) -> None:
        self.replace(self.first)

    def replace(self, sinks: Sequence[Sink]) -> None:
        """Goes on with other sinks; one that is there already stays at work, one that is not among them is closed.

        Messages that wait for a sink are delivered by the new one of its name; without one they wait until they are too
        old, in case it comes back.
        """
        self.store.set_sinks(sink.name for sink in sinks)
        left = [delivery for delivery in self.deliveries if delivery.sink not in sinks]
        kept = [delivery for delivery in self.deliveries if delivery.sink in sinks]
        for delivery in kept:
            delivery.give_up_after = self.give_up_after
        for delivery in left:
            delivery.stop(delivery.stopping)
        for delivery in left:
            delivery.thread.join(REPLACING)
            delivery.sink.close()
        at_work = [delivery.sink for delivery in kept]
        new = [
            Delivery(self.store, sink, self.give_up_after, self.tell, self.back_off)
            for sink in sinks
            if sink not in at_work
        ]
        self.deliveries = kept + new
        for delivery in kept:
            delivery.give_up_after = self.give_up_after
        for delivery in new:
            delivery.sink.start()
            delivery.thread.start()
        with suppress(StoreError):  # a full disk, which the deliveries tell
            num_old = messages.give_up(self.store.database, self.give_up_after, self.store.sinks, but=True)
            if num_old:
                self.tell(f"{num_old} messages given up: they were for receivers that the settings no longer name")

    def close(self, timeout: float = 3.0) -> None:
        """Delivers what can be delivered in so many seconds; the rest waits for the next start."""
        until = time.monotonic() + timeout
        for delivery in self.deliveries:
            delivery.stop(delivery.finishing)
        for delivery in self.deliveries:
            delivery.thread.join(max(until - time.monotonic(), 0))
            delivery.stop(delivery.stopping)
        for delivery in self.deliveries:
            delivery.sink.close()
