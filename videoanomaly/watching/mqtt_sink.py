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
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import paho.mqtt.client as mqtt

from videoanomaly.runtime.console import iso
from videoanomaly.watching.home_assistant import discovery, discovery_filter
from videoanomaly.watching.mqtt_link import BACK_OFF, Link
from videoanomaly.watching.outbox import NotDelivered
from videoanomaly.watching.watch_settings import Mqtt

READING = 2.0  # seconds to wait for retained messages; a broker may not let us read
CLOSING = 1.5  # seconds for the last words
STATES = ("state", "status", "snapshot")  # retained topics of a camera


class Guard(Link):
    """Keeps a camera's state ON while an event is open.

    Args:
        topic: Of the state.
        ended: Called with it when it is OFF, or nobody can be told.
    """

    def __init__(
        self, settings: Mqtt, camera: str, topic: str, ended: Callable[["Guard"], None], back_off: tuple[float, float]
    ):
        super().__init__(settings, f"{settings.base}/{camera}", (topic, "OFF"), lambda text: None, back_off)
        self.camera, self.topic, self.ended = camera, topic, ended
        self.is_on = self.is_confirmed = False  # the second: the broker has confirmed OFF

    def set(self, is_on: bool) -> None:
        with self.changed:
            self.is_on = is_on
            self.changed.notify_all()
        if is_on:
            self.start()

    def is_wanted(self) -> bool:
        return self.is_on and not self.closing

    def use(self) -> None:
        client, self.is_confirmed = self.client, False
        while self.is_wanted():
            self.publish(self.topic, "ON", retain=True)
            with self.changed:
                self.changed.wait_for(lambda: not self.is_wanted() or self.client is not client)
            if self.client is not client:
                return
            self.publish(self.topic, "OFF", retain=True)
            self.is_confirmed = not self.is_wanted()

    def go_on(self) -> bool:
        with self.changed:
            if not self.is_wanted():
                self.ended(self)
            return super().go_on()


class Main(Link):
    """Publishes retained messages so that the broker has what is `wanted`, and lets the outbox send.

    Args:
        filters: Where retained messages of ours may be.
        stale: Which of the retained messages that were found are to be cleared.
        is_left: Whether a topic is left to somebody else just now.
        on_ready: Called when a connection is ready for messages.
    """

    def __init__(
        self,
        settings: Mqtt,
        filters: Sequence[str],
        stale: Callable[[Mapping[str, bytes]], list[str]],
        is_left: Callable[[str], bool],
        on_ready: Callable[[], None],
        tell: Callable[[str], None],
        back_off: tuple[float, float],
    ):
        self.availability = f"{settings.base}/availability"
        super().__init__(settings, settings.base, (self.availability, "offline"), tell, back_off)
        self.marker_topic, self.marker = f"{settings.base}/check", b""
        self.filters, self.stale, self.is_left, self.on_ready = filters, stale, is_left, on_ready
        self.wanted: dict[str, bytes] = {}  # by topic; b"": no retained message
        self.pending: dict[str, None] = {}  # topics to publish, in this order
        self.found: dict[str, bytes] = {}  # on the broker
        self.is_read = False

    def want(self, topic: str, payload: str | bytes, is_there: bool = False) -> None:
        """From now on the topic has this retained message; `is_there`: the broker has it already."""
        payload = payload.encode() if isinstance(payload, str) else payload
        with self.changed:
            if self.wanted.get(topic) != payload:
                self.wanted[topic] = payload
                self.pending |= {} if is_there else {topic: None}
                self.changed.notify_all()

    def leave(self, topic: str) -> None:
        """Somebody else publishes it."""
        with self.changed:
            self.wanted.pop(topic, None)
            self.pending.pop(topic, None)

    def use(self) -> None:
        client = self.client
        if not client:
            return
        self.read_back(client)
        self.publish_pending()
        self.publish(self.availability, "online", retain=True)
        self.on_ready()
        while not self.closing and self.client is client:
            self.publish_pending()
            with self.changed:
                self.changed.wait_for(lambda: self.pending or self.closing or self.client is not client)
        if self.client is client:
            self.publish_pending()
            self.publish(self.availability, "offline", retain=True)

    def read_back(self, client: mqtt.Client) -> None:
        """Finds out what the broker has, and so what is to be published."""
        with self.changed:
            self.found, self.is_read, self.marker = {}, False, secrets.token_bytes(16)
        topics = [*self.filters, self.marker_topic]
        client.subscribe([(topic, 0) for topic in topics])
        client.publish(self.marker_topic, self.marker, qos=1)  # comes back behind all that is retained
        with self.changed:
            self.changed.wait_for(lambda: self.is_read or self.closing or self.client is not client, READING)
        client.unsubscribe(topics)
        with self.changed:
            differing = [topic for topic, payload in self.wanted.items() if self.found.get(topic, b"") != payload]
            stale = [topic for topic in self.stale(self.found) if topic not in self.wanted]
            self.wanted |= dict.fromkeys(stale, b"")
            self.pending, self.found = dict.fromkeys([*stale, *differing]), {}

    def on_message(self, client: mqtt.Client, data: Any, message: mqtt.MQTTMessage) -> None:
        with self.changed:
            if message.retain:
                self.found[message.topic] = bytes(message.payload)
            elif message.payload == self.marker:
                self.is_read = True
                self.changed.notify_all()

    def publish_pending(self) -> None:
        while (topic := next(iter(self.pending), None)) is not None:
            with self.changed:
                payload = self.wanted.get(topic)
                self.pending.pop(topic, None)
            if payload is None or self.is_left(topic):
                continue
            try:
                self.publish(topic, payload, retain=True)
            except NotDelivered as error:
                if not self.client:
                    raise
                self.tell_once(f"{topic}: not published: {error.reason}")  # too long or not allowed


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
        self.main = Main(
            settings, filters, self.stale, self.is_guarded, self.on_ready, lambda text: tell(f"mqtt: {text}"), back_off
        )
        self.set_cameras(cameras)
        self.main.start()

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
            guard = self.guards.get(topic) or Guard(self.settings, camera, topic, self.ended, self.back_off)
            self.guards[topic] = guard
            self.main.leave(topic)
            guard.set(True)
        elif topic in self.guards:
            self.guards[topic].set(False)

    def is_guarded(self, topic: str) -> bool:
        """Whether a state is, or is to be, ON."""
        return topic in self.guards and self.guards[topic].is_wanted()

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
