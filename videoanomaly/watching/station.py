"""The whole service: cameras, engine, store, messages, page; its start, its reloading and its end."""

import itertools
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av.logging

from videoanomaly.event_rule import EventSettings
from videoanomaly.live.service import warm_up
from videoanomaly.prediction.api import Recogniser
from videoanomaly.runtime import systemd
from videoanomaly.runtime.console import InputError, note
from videoanomaly.runtime.signals import stop_signals
from videoanomaly.watching.board import Board, CameraStatus
from videoanomaly.watching.camera import Camera
from videoanomaly.watching.camera_events import CameraEvents
from videoanomaly.watching.clips import Recorder
from videoanomaly.watching.engine import Engine
from videoanomaly.watching.journal import Journal
from videoanomaly.watching.plans import Plan, make_plans
from videoanomaly.watching.receivers.mqtt_sink import MqttSink
from videoanomaly.watching.receivers.outbox import Outbox, Sink
from videoanomaly.watching.receivers.webhook_sink import WebhookSink
from videoanomaly.watching.store.database import StoreError
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import Mqtt, WatchSettings, WebhookSettings, read_settings
from videoanomaly.watching.web.page import PageServer

TICK = 1.0  # seconds between two looks at all cameras
PRUNE_EVERY = 600.0  # seconds
RESTART_AFTER = 30.0  # seconds until a camera whose thread ended is begun anew
STUCK = 60.0  # seconds of one batch after which systemd is no longer told that all is well
# settings that need a restart
KEPT = ("checkpoint", "clip", "encoder", "device", "precision", "folder", "batch", "fps")


class Station:
    """Watches cameras until a signal comes.

    Args:
        settings: As they were read.
        recogniser: With the checkpoint and its encoder.
    Raises:
        InputError: If the settings cannot be followed.
    """

    def __init__(self, settings: WatchSettings, recogniser: Recogniser):
        self.settings, self.recogniser, self.plans = settings, recogniser, make_plans(settings, recogniser)
        self.board, self.journal = Board(), Journal()
        self.store = EventStore(Path(settings.folder))
        encoder = recogniser.encoder
        self.engine = Engine(recogniser.loaded.model, encoder, settings.batch, self.board)
        self.engine.done, self.engine.busy = 1.0, warm_up(recogniser.loaded.model, encoder.model)
        self.shown: list[MqttSink] = []  # what shows states of cameras besides the board
        self.receivers: dict[WebhookSettings | Mqtt, Sink] = {}
        self.store.page_url = settings.messages.page_url
        self.outbox = Outbox(self.store, self.sinks(), settings.messages.give_up_after_hours * 3600, self.journal.say)
        told = {"gauges": self.gauges, "tell": self.journal.say}
        self.page = PageServer(self.board, self.store, settings, recogniser.classes, **told)
        self.gone: list[CameraEvents] = []  # of cameras that are no longer watched
        self.ended_at: dict[str, float] = {}  # cameras whose threads are gone, and since when
        self.alive_at = self.counted_at = time.monotonic()
        self.counts: dict[str, float] = {}
        self.stopping = threading.Event()

    # -- parts --

    def sinks(self) -> list[Sink]:
        """The receivers of the settings; those that are as they were are the same."""
        settings, before = self.settings, self.receivers
        named = [*settings.webhooks, *([settings.mqtt] if settings.mqtt else [])]
        self.receivers = {key: before[key] if key in before else self.make_sink(key) for key in named}
        self.shown[:] = [sink for sink in self.receivers.values() if isinstance(sink, MqttSink)]
        return list(self.receivers.values())

    def make_sink(self, settings: WebhookSettings | Mqtt) -> Sink:
        if isinstance(settings, WebhookSettings):
            return WebhookSink(settings)
        return MqttSink(settings, [camera.name for camera in self.settings.cameras], self.journal.say)

    def add_camera(self, plan: Plan) -> None:
        """Begins to watch one."""
        camera, loaded, events = plan.settings, self.recogniser.loaded, self.settings.events
        still = events.reuse_still if camera.reuse_still is None else camera.reuse_still
        recorder = Recorder(
            self.store.clips, camera.name, pre_roll=events.pre_roll, post_roll=events.post_roll,
            longest=events.longest_clip, done=self.keep_clip,
        )  # fmt: skip
        fps = self.settings.fps and self.settings.fps / loaded.spacing
        thread = Camera(
            camera, plan.source, fps, loaded.spacing, encoder=self.recogniser.encoder, reuse_still=still,
            board=self.board, recorder=recorder if camera.recording else None, wake=self.engine.waiting.set,
        )  # fmt: skip
        self.board.add(CameraStatus(camera.name, plan.source.name, threshold=plan.threshold))
        self.engine.add(thread, self.events_of(thread, plan))
        thread.start()

    def events_of(self, camera: Camera, plan: Plan) -> CameraEvents:
        options, loaded = self.settings.events, self.recogniser.loaded
        settings = EventSettings(plan.threshold, options.hysteresis, options.merge_gap, options.min_length)
        return CameraEvents(
            camera, self.recogniser.classes, settings, rule=plan.rule, model=loaded.sha256, store=self.store,
            shown=self.shown, update_every=options.update_every, say=self.journal.say,
        )  # fmt: skip

    def keep_clip(self, event: str, name: str | None, size: int, why: str) -> None:
        try:
            self.store.set_clip(event, name, size, why)
        except StoreError as error:
            self.journal.say(str(error))

    def remove_camera(self, name: str) -> None:
        """Ends its event and its thread; what it recorded is kept."""
        camera = self.engine.seats[name].camera
        camera.stopping.set()
        self.gone.append(self.engine.remove(name).events)
        if camera.recorder:
            camera.recorder.close()
        self.board.remove(name)
        self.ended_at.pop(name, None)

    # -- life --

    def run(self, reloads: list[int]) -> int:
        """Returns the exit status: 128 and the number of the signal that ended it. `reloads` is from `hangups`."""
        av.logging.set_level(None)  # FFmpeg's lines hold addresses
        with stop_signals() as signals:
            try:
                self.start()
                while not signals:
                    self.turn(reloads)
            finally:
                self.stop()
        return 128 + signals[0]

    def start(self) -> None:
        """Begins everything.

        Raises:
            InputError: If the page cannot be served.
        """
        self.page.start()
        for id in self.store.close_open():
            self.journal.say(f"event {id} ended when the program did")
        self.outbox.start()
        note(f"page: http://{self.settings.page.host}:{self.page.port}")
        for plan in self.plans.values():
            self.add_camera(plan)
        for work in (self.tick_on, self.prune_on):
            threading.Thread(target=work, daemon=True).start()
        systemd.notify("READY=1")

    def turn(self, reloads: list[int]) -> None:
        """One batch, or a short wait for one."""
        self.alive_at = time.monotonic()
        if reloads:
            reloads.clear()
            self.reload()
        self.engine.waiting.clear()
        if not self.engine.step():
            self.engine.waiting.wait(0.1)
        self.restart_ended()
        for events in [*self.gone, *(seat.events for seat in self.engine.seats.values())]:
            with suppress(StoreError):  # said when it happened
                events.pay()
        self.gone = [events for events in self.gone if events.owed]

    def stop(self) -> None:
        """Ends open events, finishes clips, sends what can be sent, within seconds."""
        systemd.notify("STOPPING=1")
        self.stopping.set()
        cameras = [seat.camera for seat in self.engine.seats.values()]
        for camera in cameras:
            camera.stopping.set()
        for camera in cameras:
            with suppress(StoreError):
                self.remove_camera(camera.name)
        self.page.stop()
        self.outbox.close(1.5)
        until = time.monotonic() + 1.0
        for camera in cameras:  # a thread that ends with the interpreter while it computes would abort it
            camera.join(max(until - time.monotonic(), 0))
        self.journal.flush()
        self.store.close()

    def restart_ended(self) -> None:
        """Cameras whose threads ended for another reason than the end of a file are begun anew after a while."""
        for name, seat in list(self.engine.seats.items()):
            if not seat.camera.ended.is_set() or seat.camera.source.ends:
                continue
            now, since = time.monotonic(), self.ended_at.setdefault(name, time.monotonic())
            if now - since > RESTART_AFTER:
                self.remove_camera(name)
                self.add_camera(self.plans[name])

    def reload(self) -> None:
        """Reads the file again; if something is wrong with it all stays as it is, and one line says so."""
        systemd.reloading()
        try:
            self.follow(read_settings(self.settings.path))
        except InputError as error:
            note(f"not reloaded: {error}")
        else:
            note("reloaded")
        systemd.notify("READY=1")

    def follow(self, new: WatchSettings) -> None:
        """Takes other settings; cameras that are as they were go on undisturbed.

        Raises:
            InputError: If they cannot be followed; then nothing has changed.
        """
        old, before = self.settings, self.plans
        changed = [name for name in KEPT if getattr(old, name) != getattr(new, name)]
        new = replace(new, **{name: getattr(old, name) for name in changed})
        plans = make_plans(new, self.recogniser)
        self.page.reload(new, self.recogniser.classes)
        if changed:
            note(f"{', '.join(changed)}: what changed there needs a restart")
        self.settings, self.plans = new, plans
        self.store.page_url = new.messages.page_url
        self.outbox.give_up_after = new.messages.give_up_after_hours * 3600
        self.outbox.replace(self.sinks())
        for shown in self.shown:
            shown.set_cameras(plans)
        for name, plan in before.items():
            if old.events != new.events or plan != plans.get(name):
                self.remove_camera(name)
                self.journal.forget(name)
        for name, plan in plans.items():
            if name in self.engine.seats:
                self.engine.seats[name].events.show_again()
            else:
                self.add_camera(plan)

    # -- beside it --

    def gauges(self) -> dict[str, float]:
        """Further numbers for /metrics."""
        return {"rows_waiting": sum(len(seat.camera.looks) for seat in list(self.engine.seats.values()))}

    def tick_on(self) -> None:
        """Every second: counts and states to where they are shown, life to systemd."""
        interval, alive = systemd.watchdog_interval(), 0.0
        while not self.stopping.wait(TICK):
            self.count()
            snapshot = self.board.snapshot()
            for shown, camera in itertools.product(self.shown, snapshot):
                shown.set_status(camera["name"], camera["state"], camera["since"], camera["detail"])
            self.journal.look(snapshot)
            now = time.monotonic()
            if interval and now - alive >= interval / 3 and now - self.alive_at < STUCK:
                systemd.notify("WATCHDOG=1")
                alive = now

    def count(self) -> None:
        """What the cameras did, and their rates over about the last ten seconds."""
        now = time.monotonic()
        passed, self.counted_at = now - self.counted_at, now
        for name, seat in list(self.engine.seats.items()):
            counts = seat.camera.counts()
            taken = counts["encoded"] + counts["reused"]
            new, self.counts[name] = taken - self.counts.get(name, 0.0), taken
            status = self.board.cameras.get(name)
            rate = status.rows_per_second if status else 0.0
            rate += min(passed / 10, 1) * (max(new, 0) / passed - rate)
            self.board.set(name, **counts, rows_per_second=round(rate, 2))

    def prune_on(self) -> None:
        """Removes what is old or too much, now and then."""
        wait = 5.0
        while not self.stopping.wait(wait):
            wait, limits = PRUNE_EVERY, self.settings.retention
            try:
                removed, size = self.store.prune(limits.days, limits.gigabytes)
            except StoreError as error:
                self.journal.say(str(error))
            else:
                if removed:
                    self.journal.say(f"{removed} old events removed, {size / 1e6:.1f} MB")
