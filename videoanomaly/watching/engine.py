"""One encoder and one model for all cameras: pictures of several in one batch, whenever the device is free.

Cameras have their turns one after the other, a row each, so that none waits for another's backlog; a batch holds as
many as take half a second. Where the device cannot take all rows, each camera gets the same share of it, or less if it
asks for less: its thread then leaves rows out at even distances (`Camera.spacing`).

Shapes: D feature size.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from anomalyclip import VideoModel
from videoanomaly.live.watcher import GAP, Watch, predict_together
from videoanomaly.video.encoders import Encoder
from videoanomaly.video.encoding import stack_inputs, to_float16
from videoanomaly.watching.board import Board
from videoanomaly.watching.camera import Camera, Look
from videoanomaly.watching.camera_events import CameraEvents

SHARE_EVERY = 1.0  # seconds between two looks at how the device's time is shared
LONGEST_STEP = 0.5  # seconds of a batch: more rows would wait for each other on a slow device
FIRST_BATCH = 4  # rows of the first one, when nothing is known
SPARE = 0.95  # of the device's time that is given away
REMEMBERED = 5.0  # seconds of work by which the device's speed is known, however long ago it did it
BACKLOG = 1  # rows that wait at most of a camera that cannot have all of its own: older ones would only be late


class Seat(NamedTuple):
    """A camera and what it has of its own."""

    camera: Camera
    events: CameraEvents
    watches: list[Watch]  # one, once its rate is known

    def watch(self, model: VideoModel, crops: int) -> Watch:
        """Made with the first row."""
        if not self.watches:
            events, name = self.events, self.camera.name
            how = {"rate": self.camera.rate, "settings": events.settings, "num_crops": crops}
            told = {"tell": events.tell, "seen": events.seen, "say": lambda text: events.say(f"{name}: {text}")}
            self.watches.append(Watch(model, **how, **told))
        return self.watches[0]


def fair_shares(wanted: Sequence[float], capacity: float) -> list[float]:
    """How much of a capacity each gets: all the same, but nobody more than it wants (max-min fairness)."""
    shares, left = [0.0] * len(wanted), capacity
    for rank, i in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        shares[i] = min(wanted[i], left / (len(wanted) - rank))
        left -= shares[i]
    return shares


class Engine:
    """Encodes and scores what cameras have.

    Args:
        model: In evaluation mode.
        encoder: That made its training features.
        batch: Pictures given to the encoder at once.
        board: Where scores are shown.
    """

    def __init__(self, model: VideoModel, encoder: Encoder, batch: int, board: Board):
        self.model, self.encoder, self.batch, self.board = model, encoder, batch, board
        self.seats: dict[str, Seat] = {}
        self.waiting = threading.Event()  # there may be something to take
        self.order: deque[str] = deque()  # in which cameras have their turns, the next one first
        self.taken_at: dict[str, float] = {}  # when each camera last had something to take
        self.done = self.busy = 0.0  # rows encoded in the last seconds of work, and these seconds
        self.shared_at = time.monotonic()
        self.asked: dict[str, int] = {}  # rows that each camera would have had encoded
        self.last: dict[str, np.ndarray] = {}  # features of each camera's last row

    def add(self, camera: Camera, events: CameraEvents) -> None:
        self.seats[camera.name] = Seat(camera, events, [])
        self.order.append(camera.name)

    def remove(self, name: str) -> Seat:
        """Ends the camera's open event."""
        self.finish(self.seats[name])
        for known in (self.last, self.taken_at, self.asked):
            known.pop(name, None)
        self.order.remove(name)
        return self.seats.pop(name)

    def take(self) -> list[tuple[Seat, Look]]:
        """Rows of all cameras in turn: as many that are to be encoded as a batch holds, or as take a short while."""
        room = min(self.batch, max(LONGEST_STEP * self.done / self.busy, 1.0) if self.done else FIRST_BATCH)
        taken, num_empty = [], 0
        while room >= 1 and num_empty < len(self.order):
            seat = self.seats[self.order[0]]
            self.order.rotate(-1)
            if look := seat.camera.take():
                taken.append((seat, look))
                room -= look.inputs is not None
            num_empty = 0 if look else num_empty + 1
        return taken

    def step(self) -> bool:
        """Encodes and scores a batch, if anything waits; whether it did."""
        begun, taken = time.monotonic(), self.take()
        self.taken_at |= {seat.camera.name: begun for seat, _ in taken}
        self.end_gaps(begun)
        if begun - self.shared_at > SHARE_EVERY:
            self.share(begun)
        if not taken:
            return False
        ready: dict[str, Seat] = {}
        for (seat, look), row in zip(taken, self.encode(taken)):
            watch = seat.watch(self.model, self.encoder.crops)
            if seat.camera.name in ready and not watch.has_room(look.row):
                self.score([ready.pop(seat.camera.name)])
            seat.events.keep(look.row, look.picture)
            if watch.push(row, look.row, look.moment):
                ready[seat.camera.name] = seat
        self.score(list(ready.values()))
        if num_encoded := sum(look.inputs is not None for _, look in taken):
            self.done, self.busy = self.done + num_encoded, self.busy + time.monotonic() - begun
        return True

    def encode(self, taken: Sequence[tuple[Seat, Look]]) -> Iterable[np.ndarray]:
        """Yields a row of features for each, (crops, D), rounded as feature files are."""
        inputs = [look.inputs for _, look in taken if look.inputs is not None]
        on_cuda = "cuda" in str(getattr(self.encoder.model, "device", "cpu"))
        batches = [self.encoder.model.encode(images) for images in stack_inputs(inputs, self.batch, on_cuda)]
        rows = [row for batch in batches for row in to_float16(batch, self.encoder.description)]
        crops, place = self.encoder.crops, 0
        for seat, look in taken:
            if look.inputs is not None:
                self.last[seat.camera.name] = np.stack(rows[place : place + crops])
                place += crops
            yield self.last[seat.camera.name]

    def score(self, ready: Sequence[Seat]) -> None:
        """Runs the model for those whose newest rows are enough for it."""
        watches = [seat.watches[0] for seat in ready]
        for start in range(0, len(watches), self.batch):
            part = watches[start : start + self.batch]
            scores = predict_together(self.model, [watch.ring.newest() for watch in part])
            for seat, watch, (p_A, p_class) in zip(ready[start:], part, scores):
                new = p_A[-len(watch.arrivals) :]
                watch.take(p_A, p_class)
                self.board.scored(seat.camera.name, new, watch.latencies[-1])

    def end_gaps(self, now: float) -> None:
        """Ends the open events of cameras from which nothing has come for a while."""
        for name, seat in self.seats.items():
            if seat.watches and seat.watches[0].next_row is not None and now - self.taken_at[name] > GAP:
                self.finish(seat)

    def finish(self, seat: Seat) -> None:
        for watch in seat.watches:
            watch.finish()

    def share(self, now: float) -> None:
        """Tells each camera what the device can take of it, by what it took in the last seconds of work."""
        passed, self.shared_at = now - self.shared_at, now
        cameras = [seat.camera for seat in self.seats.values()]
        asked = {camera.name: camera.num_encoded + camera.num_left_out for camera in cameras}
        wanted = [max(asked[name] - self.asked.get(name, asked[name]), 0) / passed for name in asked]
        capacity, self.asked = SPARE * self.done / self.busy if self.done else math.inf, asked
        for camera, most, rate in zip(cameras, fair_shares(wanted, capacity), wanted):
            camera.spacing = 1 / most if 0 < most < rate else 0.0
            if camera.spacing:
                camera.catch_up(BACKLOG)
        kept = min(REMEMBERED / self.busy, 1.0) if self.busy else 1.0
        self.busy, self.done = kept * self.busy, kept * self.done
