"""The two kinds of connection that keep retained messages true: one for a camera's ON, one for all the rest."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paho.mqtt.client as mqtt

from videoanomaly.watching.receivers.mqtt_link import TIMEOUT, Link
from videoanomaly.watching.receivers.outbox import NotDelivered
from videoanomaly.watching.watch_settings import Mqtt

READING = 2.0  # seconds to wait for retained messages; a broker may not let us read


class Guard(Link):
    """Keeps a camera's state ON while an event is open.

    Args:
        topic: Of the state.
        take: Called with the topic before ON is published, so that no OFF of another connection comes behind it.
        ended: Called with it when it is OFF, or nobody can be told.
    """

    def __init__(
        self,
        settings: Mqtt,
        camera: str,
        topic: str,
        take: Callable[[str], None],
        ended: Callable[["Guard"], None],
        back_off: tuple[float, float],
    ):
        super().__init__(settings, f"{settings.base}/{camera}", (topic, "OFF"), lambda text: None, back_off)
        self.camera, self.topic, self.take, self.ended = camera, topic, take, ended
        self.is_on = self.is_confirmed = False  # the second: the broker has confirmed OFF

    def set(self, is_on: bool, start: bool = True) -> None:
        with self.changed:
            self.is_on = is_on
            self.changed.notify_all()
        if is_on and start:
            self.start()

    def is_wanted(self) -> bool:
        return self.is_on and not self.closing

    def use(self) -> None:
        client, self.is_confirmed = self.client, False
        while self.is_wanted():
            self.take(self.topic)
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
        on_ready: Called when a connection is ready for messages.
    """

    def __init__(
        self,
        settings: Mqtt,
        filters: Sequence[str],
        stale: Callable[[Mapping[str, bytes]], list[str]],
        on_ready: Callable[[], None],
        tell: Callable[[str], None],
        back_off: tuple[float, float],
    ):
        self.availability = f"{settings.base}/availability"
        super().__init__(settings, settings.base, (self.availability, "offline"), tell, back_off)
        self.marker_topic, self.marker = f"{settings.base}/check", b""
        self.filters, self.stale, self.on_ready = filters, stale, on_ready
        self.wanted: dict[str, bytes] = {}  # by topic; b"": no retained message
        self.pending: dict[str, None] = {}  # topics to publish, in this order
        self.found: dict[str, bytes] = {}  # on the broker
        self.is_read = False
        self.under_way = ""  # the topic that is being published

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

    def take(self, topic: str) -> None:
        """Leaves it, and waits until nothing of ours is under way to it."""
        self.leave(topic)
        with self.changed:
            self.changed.wait_for(lambda: self.under_way != topic, TIMEOUT)

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
                self.pending.pop(topic, None)
                payload = self.wanted.get(topic)
                if payload is None:  # left to somebody else
                    continue
                self.under_way = topic
            try:
                self.publish(topic, payload, retain=True)
            except NotDelivered as error:
                if not self.client:
                    raise
                self.tell_once(f"{topic}: not published: {error.reason}")  # too long or not allowed
            finally:
                with self.changed:
                    self.under_way = ""
                    self.changed.notify_all()
