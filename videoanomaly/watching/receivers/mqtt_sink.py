"""Messages and states by MQTT, below BASE/CAMERA/:

- events: each message of the outbox as JSON, not retained.
- state: ON while an event is open, else OFF; retained. ON goes over a connection of its own, made for the event, whose
  last will is OFF: whoever dies, the broker or we, nothing stays ON.
- status: what the camera does, as JSON; snapshot: the last event's JPEG. Both are retained.

BASE/availability is online or, by last will, offline. After each connect the broker's retained messages are read first:
only what differs is published, and what is left of cameras that are no longer there is cleared. Therefore every service
of a broker needs a BASE of its own.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from videoanomaly.runtime.console import iso
from videoanomaly.watching.receivers.home_assistant import discovery, discovery_filter
from videoanomaly.watching.receivers.mqtt_link import BACK_OFF
from videoanomaly.watching.receivers.mqtt_states import Guard, Main
from videoanomaly.watching.watch_settings import Mqtt

CLOSING = 1.5  # seconds for the last words
STATES = ("state", "status", "snapshot")  # retained topics of a camera


class MqttSink:
    """A `Sink` that shows states of cameras as well; no call waits for the broker.

    Args:
        settings: The broker.
        cameras: Their names.
        tell: Gets lines for the user.
        back_off: First and longest pause between two attempts to connect, seconds.
    Raises:
        InputError: If the settings can never be right.
    """

    name = "mqtt"

    def __init__(
        self,
        settings: Mqtt,
        cameras: Iterable[str],
        tell: Callable[[str], None],
        back_off: tuple[float, float] = BACK_OFF,
    ):
        self.settings, self.back_off = settings, back_off
        self.cameras: set[str] = set()
        self.guards: dict[str, Guard] = {}  # by topic
        filters = [f"{settings.base}/+/{what}" for what in STATES]
        filters += [discovery_filter(settings.discovery, settings.base)] if settings.discovery else []
        self.main = Main(settings, filters, self.stale, self.on_ready, lambda text: tell(f"mqtt: {text}"), back_off)
        self.set_cameras(cameras)

    def start(self) -> None:
        """Connects; not before, as an earlier sink may still have the connections of the same names."""
        self.main.start()
        for guard in self.guards.values():
            guard.set(guard.is_on)

    def on_return(self) -> None:
        """The outbox puts its own in this place."""

    def on_ready(self) -> None:
        for guard in list(self.guards.values()):
            guard.hurry()
        self.on_return()

    def topic(self, camera: str, what: str) -> str:
        return f"{self.settings.base}/{camera}/{what}"

    # ---------------------------------------------------------------- messages

    def send(self, message: dict[str, Any], key: str) -> None:
        """See `Sink`; the key is in the message."""
        self.main.publish(self.topic(message["camera"], "events"), json.dumps(message))

    def close(self) -> None:
        """Says that nobody is watching any more: all is OFF, and the service offline."""
        until = time.monotonic() + CLOSING
        for guard in list(self.guards.values()):
            guard.close(0)
        for guard in list(self.guards.values()):
            guard.close(max(until - time.monotonic(), 0))
        self.main.close(CLOSING)

    # ---------------------------------------------------------------- states

    def set_state(self, camera: str, event: Mapping[str, Any] | None) -> None:
        """ON while there is an event, OFF without."""
        topic = self.topic(camera, "state")
        if event is not None and camera in self.cameras:
            guard = self.guards.get(topic) or self.make_guard(camera, topic)
            self.guards[topic] = guard
            guard.set(True, start=self.main.thread is not None)
            self.main.leave(topic)  # behind it, as an earlier event may just have ended
        elif topic in self.guards:
            self.guards[topic].set(False)

    def make_guard(self, camera: str, topic: str) -> Guard:
        return Guard(self.settings, camera, topic, self.main.take, self.ended, self.back_off)

    def ended(self, guard: Guard) -> None:
        """A guard is at its end: the state is OFF, or nothing if the camera is no longer there."""
        is_there = guard.camera in self.cameras
        self.main.leave(guard.topic)  # whatever was wanted before
        self.main.want(guard.topic, "OFF" if is_there else b"", guard.is_confirmed and is_there)

    def set_status(self, camera: str, state: str, since: float, detail: str = "") -> None:
        """What a camera does, since when (seconds since 1970), and why."""
        if camera in self.cameras:
            status = json.dumps({"state": state, "since": iso(since), "detail": detail})
            self.main.want(self.topic(camera, "status"), status)

    def set_snapshot(self, camera: str, jpeg: bytes) -> None:
        """The picture of the last event."""
        if camera in self.cameras:
            self.main.want(self.topic(camera, "snapshot"), jpeg)

    def set_cameras(self, cameras: Iterable[str]) -> None:
        """Which cameras there are; retained messages of others are cleared."""
        before, self.cameras = self.cameras, set(cameras)
        for camera in sorted(before - self.cameras):
            self.set_state(camera, None)
            for topic in [self.topic(camera, what) for what in STATES] + list(self.discovery(camera)):
                self.main.want(topic, b"")
        for camera in sorted(self.cameras - before):
            for topic, payload in self.discovery(camera).items():
                self.main.want(topic, payload)
            self.main.want(self.topic(camera, "state"), "OFF")

    def discovery(self, camera: str) -> dict[str, str]:
        """Retained messages for Home Assistant, by topic."""
        prefix = self.settings.discovery
        return discovery(prefix, self.settings.base, camera) if prefix else {}

    def stale(self, found: Mapping[str, bytes]) -> list[str]:
        """Topics of cameras that are gone, which show that they are ours by a status as we write it."""
        gone = {
            camera
            for topic, payload in found.items()
            for camera in [topic.removeprefix(f"{self.settings.base}/").removesuffix("/status")]
            if topic == self.topic(camera, "status") and camera not in self.cameras and is_status(payload)
        }
        states = [self.topic(camera, what) for camera in gone for what in STATES]
        others = [topic for topic in found if not topic.startswith(f"{self.settings.base}/")]  # of discovery: ours
        return [topic for topic in states if topic in found] + others


def is_status(payload: bytes) -> bool:
    """Whether `set_status` wrote it."""
    try:
        found = json.loads(payload)
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() == {"state", "since", "detail"}
