"""A real MQTT broker, mosquitto, and a client that listens to it."""

import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.places import free_port

mqtt = pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt (requirements-watch.txt)")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
needs_mosquitto = pytest.mark.skipif(not MOSQUITTO, reason="needs mosquitto (apt install mosquitto)")
# services in processes of their own, for ports on the command line: ON for ever, and on and off
CLIENT = """
import sys, time
from videoanomaly.watching.receivers.mqtt_sink import MqttSink
from videoanomaly.watching.watch_settings import Mqtt
sink = MqttSink(Mqtt("127.0.0.1", int(sys.argv[1]), base="watch", discovery=""), ["yard", "door"], print, (0.05, 0.2))
sink.start()
sink.set_state("yard", {})
time.sleep(600)
"""
BLINKER = """
import random, sys, time
from videoanomaly.watching.receivers.mqtt_sink import MqttSink
from videoanomaly.watching.watch_settings import Mqtt
sink = MqttSink(Mqtt("127.0.0.1", int(sys.argv[1]), base="watch", discovery=""), ["yard"], print, (0.05, 0.2))
sink.start()
while True:
    sink.set_state("yard", {})
    time.sleep(random.random() / 50)
    sink.set_state("yard", None)
    time.sleep(random.random() / 50)
"""


def kill(child):
    child.kill()
    child.wait()


class Broker:
    """mosquitto on a port of its own, which can be stopped, killed and started again.

    Args:
        folder: For its files.
        persistent: Whether it keeps retained messages over a restart, also over a kill.
        password: Of the user "me"; None: anybody may.
        more: Further lines of its configuration.
    """

    def __init__(self, folder: Path, persistent=False, password: str | None = None, more=""):
        folder.mkdir(parents=True)
        self.port = free_port()
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(password is None).lower()}", "log_type none"]
        lines.append("user root")  # if started by root it would become one who may not read the folder
        if persistent:
            lines += ["persistence true", f"persistence_location {folder}/", "autosave_on_changes true"]
            lines += ["autosave_interval 1"]
        if password is not None:
            (folder / "users").touch(0o644)
            subprocess.run(["mosquitto_passwd", "-b", folder / "users", "me", password], check=True)
            lines.append(f"password_file {folder / 'users'}")
        self.config, self.process = folder / "mosquitto.conf", None
        self.config.write_text("\n".join([*lines, more, ""]))

    def start(self) -> "Broker":
        assert MOSQUITTO
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", self.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                threading.Event().wait(0.01)
        raise AssertionError("mosquitto has ended")

    def stop(self, how=signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop(signal.SIGKILL)


class OldBroker:
    """Passes on to a real broker what is MQTT 3.1.1, and refuses MQTT 5 as old brokers do."""

    def __init__(self, broker):
        self.broker, self.refused = broker, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            first = connection.recv(4096)
            if first[first.index(b"MQTT") + 4] == 5:
                self.refused += 1
                connection.sendall(b"\x20\x02\x00\x01")
                connection.close()
                continue
            other = socket.create_connection(("127.0.0.1", self.broker.port))
            other.sendall(first)
            for source, target in ((connection, other), (other, connection)):
                threading.Thread(target=self.pump, args=(source, target), daemon=True).start()

    def pump(self, source, target):
        with suppress(OSError):  # either side may be gone
            while data := source.recv(4096):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


class Listener:
    """A subscriber to everything; `heard` is what came, as (topic, payload, whether it was a retained one)."""

    def __init__(self, broker: Broker, password: str | None = None, topics="#"):
        self.heard: list[tuple[str, bytes, bool]] = []
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        if password is not None:
            self.client.username_pw_set("me", password)
        ready = threading.Event()
        self.client.on_connect = lambda *_: self.client.subscribe(topics, 1)
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = lambda _, __, message: self.heard.append(
            (message.topic, message.payload, bool(message.retain))
        )
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert ready.wait(20)

    def on(self, topic: str) -> list[str]:
        """Texts that came on a topic."""
        return [payload.decode() for found, payload, _ in self.heard if found == topic]

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def retained(broker: Broker, password: str | None = None) -> dict[str, bytes]:
    """The retained messages of a broker, by topic, as a new subscriber gets them."""
    with Listener(broker, password) as listener:
        listener.client.publish("end-of-retained", b"", qos=1)
        while not listener.on("end-of-retained"):
            threading.Event().wait(0.005)
        return {topic: payload for topic, payload, is_retained in listener.heard if is_retained}
