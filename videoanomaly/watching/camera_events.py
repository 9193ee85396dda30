"""From the scores of one camera's rows to its events: what is stored of one, and when it is told.

Of the rows that have no scores yet, and of the highest score of a run, the pictures are kept, so that an event has a
snapshot of its peak. Curves of long events are thinned out, two neighbours to the higher one, so that they stay small.
"""

import io
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoanomaly.event_rule import Event, EventSettings, highest_classes
from videoanomaly.video.decoding import to_image
from videoanomaly.watching.camera import Camera
from videoanomaly.watching.store.database import StoreError
from videoanomaly.watching.store.event_store import EventStore, NewEvent, Progress

BEFORE = 5.0  # seconds of an event's curve before it
MOST_POINTS = 1024  # of a curve
QUALITY = 85  # of a snapshot's JPEG
MOST_OWED = 1000  # events that wait until they can be stored; of more the oldest are lost


class Shown(Protocol):
    """What shows the state of cameras elsewhere, such as MqttSink."""

    def set_state(self, camera: str, event: dict | None) -> None: ...
    def set_snapshot(self, camera: str, jpeg: bytes) -> None: ...


class Curve:
    """Highest p_A of equal steps from a row on, at most MOST_POINTS of them."""

    def __init__(self, first: int):
        self.first, self.step, self.values = first, 1, []

    def add(self, row: int, p_A: float) -> None:
        place = (row - self.first) // self.step
        self.values += [0.0] * (place + 1 - len(self.values))
        self.values[place] = max(self.values[place], p_A)
        if len(self.values) > MOST_POINTS:
            padded = np.array(self.values + [0.0] * (len(self.values) % 2), np.float32)
            self.values, self.step = padded.reshape(-1, 2).max(axis=1).tolist(), 2 * self.step


class CameraEvents:
    """The events of a camera.

    Args:
        camera: Whose rows they are.
        classes: C names.
        settings: Of the event rule.
        rule: Where its threshold comes from.
        model: Hash of the checkpoint.
        store: Where events are written before anything is sent.
        shown: What else shows its state.
        update_every: Seconds between two messages on an event that goes on.
        say: Takes lines for the log.
    """

    def __init__(
        self,
        camera: Camera,
        classes: Sequence[str],
        settings: EventSettings,
        *,
        rule: str,
        model: str,
        store: EventStore,
        shown: Sequence[Shown],
        update_every: float,
        say: Callable[[str], object],
    ):
        self.camera, self.classes, self.settings, self.rule, self.model = camera, classes, settings, rule, model
        self.store, self.shown, self.update_every, self.say = store, shown, update_every, say
        # what could not be stored yet: ends of events, by id, and whole events
        self.owed: deque[tuple[str | NewEvent, Progress]] = deque(maxlen=MOST_OWED)
        self.unstored: NewEvent | None = None  # the open event, while it cannot be stored
        self.clock = 0.0  # seconds since 1970 less those of time.monotonic(), when the open event began
        self.recent: deque[tuple[int, float]] = deque(maxlen=4096)  # rows and their p_A
        self.pictures: dict[int, av.VideoFrame] = {}  # of rows without scores
        self.peak: tuple[float, int, av.VideoFrame | None] | None = None  # of the run: p_A, row, picture
        self.curve = Curve(0)
        self.id: str | None = None  # of the open event, once it is stored
        self.told = 0.0  # when it was told last, time.monotonic()
        self.drawn = 0.0  # p_A of its snapshot
        self.reformatter = VideoReformatter()

    def keep(self, row: int, picture: av.VideoFrame) -> None:
        """The picture of a row that has no score yet."""
        self.pictures[row] = picture

    def seen(self, row: int, p_A: float, p_class: np.ndarray) -> None:
        """A row's scores, see `Watch`."""
        picture = self.pictures.pop(row, None)
        for late in [r for r in self.pictures if r < row]:  # rows that were forgotten at a gap
            del self.pictures[late]
        self.recent.append((row, p_A))
        if self.id:
            self.curve.add(row, p_A)
        if p_A < self.settings.low and not self.id:
            self.peak = None
        elif self.peak is None or p_A > self.peak[0]:  # repeated rows have no picture: that of the run stays
            self.peak = (p_A, row, picture or (self.peak[2] if self.peak else None))

    def tell(self, kind: str, number: int, event: Event, latency: float) -> None:
        """News of the open event, see `Watch`; what cannot be stored, the disk being full, is tried again."""
        try:
            self.follow(kind, event)
        except StoreError as error:
            self.say(str(error))

    def follow(self, kind: str, event: Event) -> None:
        if not (self.id or self.unstored):
            self.clock = time.time() - time.monotonic()
        progress = self.progress(event)
        if kind == "end":
            self.end(event)
        elif self.id is None:
            wanted = self.camera.settings.classes
            if not wanted or progress.classes[0]["class"] in wanted:
                self.begin(event)
        elif time.monotonic() - self.told >= self.update_every:
            self.told = time.monotonic()
            self.store.update(self.id, progress)
            self.draw(self.id)

    def wall(self, row: int) -> float:
        """When a row's picture was taken, seconds since 1970 by the system's clock as it was when the event began."""
        return self.clock + self.camera.moment(row)

    def progress(self, event: Event) -> Progress:
        """What is known of it."""
        p_A, row, _ = self.peak or (event.p_A, event.start, None)
        return Progress(
            end=self.wall(event.end),
            classes=highest_classes(event.p_class, self.classes),
            p_A=event.p_A,
            peak=p_A,
            peak_time=self.wall(row),
            curve=np.array(self.curve.values, np.float32),
            curve_start=self.wall(self.curve.first),
            curve_rate=self.camera.rate / self.curve.step,
        )

    def begin(self, event: Event) -> None:
        """Stores the event, which tells it, and begins its clip and its curve."""
        camera = self.camera
        rows = [(row, p_A) for row, p_A in self.recent if row >= event.start - BEFORE * camera.rate]
        self.curve = Curve(rows[0][0] if rows else event.start)
        for row, p_A in rows:
            self.curve.add(row, p_A)
        start, progress = self.wall(event.start), self.progress(event)
        self.unstored = NewEvent(camera.name, start, progress, self.model, self.settings.threshold, self.rule)
        self.pay()
        self.id, self.told, self.drawn = self.store.begin(self.unstored), time.monotonic(), 0.0
        self.unstored = None
        camera.board.set(camera.name, event=self.id)
        if camera.recorder:
            camera.recorder.begin(self.id, camera.moment(event.start))
        self.show(self.store.event(self.id))
        self.draw(self.id)

    def end(self, event: Event) -> None:
        """Ends it everywhere, also where that cannot be stored yet."""
        camera, id, stored = self.camera, self.id, self.id or self.unstored
        if stored:  # its class was asked for
            self.owed.append((stored, self.progress(event)))
        self.id = self.unstored = None
        try:
            if id:
                if camera.recorder:
                    camera.recorder.end(id, camera.moment(event.end))
                camera.board.set(camera.name, event=None)
                self.show(None)
                self.draw(id)
        finally:
            self.peak = None
        self.pay()

    def pay(self) -> None:
        """Stores what is not stored yet."""
        while self.owed:
            event, progress = self.owed[0]
            if isinstance(event, NewEvent):
                event = self.store.begin(event)
                self.owed[0] = event, progress
                self.store.set_clip(event, None, 0, "the event could not be stored in time")
            with suppress(KeyError):  # somebody removed it
                self.store.end(event, progress)
            self.owed.popleft()

    def show(self, event: dict | None) -> None:
        for shown in self.shown:
            shown.set_state(self.camera.name, event)

    def show_again(self) -> None:
        """The open event, to what shows states since it began."""
        if self.id:
            self.show(self.store.event(self.id))

    def draw(self, id: str) -> None:
        """The snapshot, if the peak is higher than that of the one before."""
        if self.peak is None or self.peak[2] is None or self.peak[0] <= self.drawn:
            return
        self.drawn, file = self.peak[0], io.BytesIO()
        to_image(self.peak[2], self.reformatter).save(file, "JPEG", quality=QUALITY)
        self.store.set_snapshot(id, file.getvalue())
        for shown in self.shown:
            shown.set_snapshot(self.camera.name, file.getvalue())
