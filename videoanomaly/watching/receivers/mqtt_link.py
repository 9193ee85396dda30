"""A connection to an MQTT broker that is made again whenever it breaks, in a thread of its own.

Each attempt has a client of its own, so that nothing that a broken connection left unsent comes after newer things.
MQTT 5, or 3.1.1 where the broker knows no other.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from videoanomaly.runtime.console import InputError, duration
from videoanomaly.watching.receivers.outbox import FAILURES_TOLD, NotDelivered
from videoanomaly.watching.watch_settings import Mqtt

TIMEOUT = 5.0  # seconds for the broker to answer
KEEPALIVE = 20  # seconds; after half as long again the broker takes a silent client for gone, and publishes its will
BACK_OFF = (1.0, 30.0)  # seconds before the second attempt to connect and at most before a further one, doubled
STEADY = 10.0  # seconds that a connection has to last, so that the next pause is the first one again
SHORT_TOLD = 5  # connections in a row that broke before that
HEADER = 100  # bytes of a packet besides topic and payload, at most
UNSUPPORTED_VERSION = 0x84  # of MQTT's reason codes


class Link:
    """One connection; a subclass says in `use` what is done with it.

    Args:
        settings: The broker.
        client_id: Fixed: whoever connects with it takes the place of an earlier connection that the broker still has.
        will: Topic and retained payload that the broker publishes when this client is gone without a word.
        tell: Gets a line when it has failed for a while, and one when it is back.
        back_off: First and longest pause between two attempts, seconds.
    Raises:
        InputError: If the file of authorities cannot be used.
    """

    def __init__(
        self,
        settings: Mqtt,
        client_id: str,
        will: tuple[str, str],
        tell: Callable[[str], None],
        back_off: tuple[float, float],
    ):
        self.settings, self.client_id, self.will, self.tell, self.back_off = settings, client_id, will, tell, back_off
        self.security = make_security(settings)
        self.protocol = MQTTProtocolVersion.MQTTv5
        self.changed = threading.Condition()
        self.client: mqtt.Client | None = None  # while it is connected
        self.answer: bool | None = None  # of the broker to the attempt to connect
        self.refused: dict[int, str] = {}  # why messages were not taken, by their number in the connection
        self.longest_packet = 0  # bytes; 0: any
        self.reason = "not connected yet"
        self.failures, self.away_since = 0, 0.0  # attempts in a row; of the monotonic clock
        self.num_short = 0  # connections in a row that broke soon
        self.told: set[str] = set()  # lines that need not be repeated
        self.closing, self.hurried = False, False
        self.thread: threading.Thread | None = None

    # ---------------------------------------------------------------- for any thread

    def start(self) -> None:
        with self.changed:
            if not self.thread:
                self.thread = threading.Thread(target=self.run, name=f"mqtt {self.client_id}", daemon=True)
                self.thread.start()

    def hurry(self) -> None:
        """Tries to connect at once, as the broker is known to be there."""
        with self.changed:
            self.hurried = True
            self.changed.notify_all()

    def close(self, timeout: float) -> None:
        """Ends the connection in good order, in so many seconds."""
        with self.changed:
            self.closing, thread = True, self.thread
            self.changed.notify_all()
        if thread:
            thread.join(timeout)

    def publish(self, topic: str, payload: str | bytes, retain: bool = False) -> None:
        """Returns when the broker has confirmed it.

        Raises:
            NotDelivered: If it did not.
        """
        client = self.client
        if not client:
            raise NotDelivered(f"no connection to the broker: {self.reason}", False)
        if self.longest_packet and len(payload) + len(topic.encode()) + HEADER > self.longest_packet:
            raise NotDelivered(f"too long for the broker, which takes {self.longest_packet} bytes", True)
        info = client.publish(topic, payload, qos=1, retain=retain)
        try:
            self.wait_for(client, info)
        except (RuntimeError, ValueError):  # paho's; the connection broke just now
            raise NotDelivered("the connection to the broker broke", False) from None
        if reason := self.refused.pop(info.mid, None):
            raise NotDelivered(f"the broker refused it: {reason}", False)

    def wait_for(self, client: mqtt.Client, info: mqtt.MQTTMessageInfo) -> None:
        until = time.monotonic() + TIMEOUT
        while not info.is_published():
            if self.client is not client:
                raise NotDelivered("the connection to the broker broke", False)
            if time.monotonic() > until:
                self.lose(client, "the broker does not answer")  # or it might take this after newer messages
                raise NotDelivered(self.reason, False)
            info.wait_for_publish(0.2)

    # ---------------------------------------------------------------- its own thread

    def is_wanted(self) -> bool:
        """Whether there is something to connect for."""
        return not self.closing

    def use(self) -> None:
        """What is done with a connection; returns or raises NotDelivered when it is over."""
        raise NotImplementedError

    def run(self) -> None:
        """Connects again and again while it is wanted."""
        pause = 0.0
        while self.go_on():
            begun = time.monotonic()
            try:
                if self.connect():
                    self.use_and_end()
            except Exception as error:  # of paho, from what a broker should not send: no reason to give up for ever
                self.reason = type(error).__name__
            first, longest = self.back_off
            pause = first if not pause or time.monotonic() - begun > STEADY else min(2 * pause, longest)
            with self.changed:
                self.changed.wait_for(lambda: self.hurried or not self.is_wanted(), pause)
                self.hurried = False

    def go_on(self) -> bool:
        """Whether the thread goes on; if not, the next start makes another."""
        with self.changed:
            if not self.is_wanted():
                self.thread = None
            return self.is_wanted()

    def tell_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.tell(text)

    def connect(self) -> bool:
        """One attempt, and what a user hears of several."""
        is_connected = self.try_to_connect()
        if is_connected and self.failures >= FAILURES_TOLD:
            self.tell(f"connected to the broker again after {duration(time.monotonic() - self.away_since)}")
        if not is_connected and self.failures == 0:
            self.away_since = time.monotonic()
        self.failures = 0 if is_connected else self.failures + 1
        if self.failures == FAILURES_TOLD:
            self.tell(f"no connection to the broker ({self.reason})")
        return is_connected

    def try_to_connect(self) -> bool:
        self.answer, self.refused = None, {}
        client = self.make_client()
        try:
            client.connect(self.settings.host, self.settings.port, KEEPALIVE)
        except (OSError, ValueError) as error:
            self.reason = getattr(error, "strerror", None) or type(error).__name__
            return False
        client.loop_start()
        with self.changed:
            self.changed.wait_for(lambda: self.answer is not None or self.closing, TIMEOUT)
        if not self.answer:
            self.reason = self.reason if self.answer is False else "the broker does not answer"
            self.end(client)
        return bool(self.answer)

    def use_and_end(self) -> None:
        client, begun = self.client, time.monotonic()
        try:
            self.use()
        except NotDelivered as error:
            self.reason = error.reason
        finally:
            if client:
                self.end(client)
        self.num_short = self.num_short + 1 if time.monotonic() - begun < STEADY else 0
        if self.num_short >= SHORT_TOLD:
            self.tell_once(
                f"the connection to the broker breaks again and again ({self.reason}); does another service use the "
                "same `base`? Each needs its own"
            )

    def make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, self.client_id, protocol=self.protocol, reconnect_on_failure=False
        )
        client.connect_timeout = TIMEOUT
        client.will_set(self.will[0], self.will[1], qos=1, retain=True)
        if self.settings.user is not None:
            client.username_pw_set(self.settings.user, self.settings.password)
        if self.security:
            client.tls_set_context(self.security)
        client.on_socket_open = at_once
        client.on_connect, client.on_disconnect = self.on_connect, self.on_disconnect
        client.on_publish, client.on_message = self.on_publish, self.on_message
        return client

    def lose(self, client: mqtt.Client, reason: str) -> None:
        """The connection is no longer used."""
        with self.changed:
            if self.client is client:
                self.client, self.reason = None, reason
            self.changed.notify_all()

    def end(self, client: mqtt.Client) -> None:
        """Says good-bye, so that there is no will, and leaves nothing open, whatever the broker does."""
        connection = client.socket()
        client.disconnect()
        with self.changed:
            self.client = None if self.client is client else self.client
            self.changed.wait_for(lambda: client.socket() is None, 1.0)  # paho's thread ends with its socket
        if client.socket() is not None and isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # ---------------------------------------------------------------- called by paho's thread

    def on_connect(self, client: mqtt.Client, data: Any, flags: Any, code: Any, properties: Any) -> None:
        with self.changed:
            if code.is_failure:
                self.reason = str(code)
                if code.value == UNSUPPORTED_VERSION:
                    self.protocol = MQTTProtocolVersion.MQTTv311
            else:
                self.client, self.longest_packet = client, getattr(properties, "MaximumPacketSize", 0)
            self.answer = not code.is_failure
            self.changed.notify_all()

    def on_disconnect(self, client: mqtt.Client, data: Any, flags: Any, code: Any, properties: Any) -> None:
        with self.changed:
            if self.answer is None:
                self.answer, self.reason = False, str(code)
        self.lose(client, str(code))

    def on_publish(self, client: mqtt.Client, data: Any, mid: int, code: Any, properties: Any) -> None:
        if code.is_failure:
            self.refused[mid] = str(code)

    def on_message(self, client: mqtt.Client, data: Any, message: mqtt.MQTTMessage) -> None:
        """Of a topic that `use` asked for."""


def at_once(client: mqtt.Client, data: Any, connection: Any) -> None:
    """Small messages do not wait for larger ones (40 ms)."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def make_security(settings: Mqtt) -> ssl.SSLContext | None:
    """How the connection is encrypted, if it is."""
    if not settings.tls:
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise InputError(
            f"[mqtt]: ca_file {settings.ca_file}: cannot be used ({error.strerror}), expected certificates in PEM"
        ) from None
