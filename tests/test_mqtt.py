"""MQTT with a real broker: what is ON is open, whoever dies; what comes back is told the present state once."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import traceback

import pytest

from tests.brokers import BLINKER, CLIENT, Broker, Listener, OldBroker, kill, needs_mosquitto, retained
from tests.children import Child
from tests.stored_events import begin, progress, wait_until
from videoanomaly.runtime.console import InputError
from videoanomaly.watching.receivers import mqtt_link
from videoanomaly.watching.receivers.mqtt_sink import MqttSink
from videoanomaly.watching.receivers.outbox import NotDelivered, Outbox
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import Mqtt

pytestmark = needs_mosquitto
QUICK = (0.05, 0.2)  # seconds: back-off
STATE, STATUS, SNAPSHOT, EVENTS = (f"watch/yard/{what}" for what in ("state", "status", "snapshot", "events"))
AVAILABILITY = "watch/availability"


def settings(broker, **changed):
    return Mqtt(**{"host": "127.0.0.1", "port": broker.port, "base": "watch", "discovery": "", **changed})


@pytest.fixture
def told():
    return []


@pytest.fixture
def make(told):
    """Sinks, started unless an outbox does it; they are closed at the end."""
    made = []

    def make(broker, cameras=("yard", "door"), start=True, **changed):
        made.append(MqttSink(settings(broker, **changed), cameras, told.append, QUICK))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path / "broker") as broker:
        yield broker


def shows(broker, topic, payload, password=None):
    """A condition: what a new subscriber gets of a topic."""
    payload = payload.encode() if isinstance(payload, str) else payload
    return lambda: retained(broker, password).get(topic) == payload


def test_states_are_retained_and_events_are_not(broker, make, tmp_path):
    store = EventStore(tmp_path / "store")
    sink = make(broker, start=False)
    outbox = Outbox(store, [sink], 1e6, print, QUICK)
    with Listener(broker) as listener:
        outbox.start()
        wait_until(lambda: "online" in listener.on(AVAILABILITY))
        sink.set_status("yard", "connected", 1_700_000_000.0, "h264")
        (id,) = begin(store)
        sink.set_state("yard", {"id": id})
        sink.set_snapshot("yard", b"\xff\xd8picture")
        wait_until(lambda: "ON" in listener.on(STATE))
        assert shows(broker, STATE, "ON")()
        store.end(id, progress())
        sink.set_state("yard", None)
        wait_until(lambda: len(listener.on(EVENTS)) == 2 and listener.on(STATE)[-1] == "OFF")
        assert [json.loads(text)["key"] for text in listener.on(EVENTS)] == [f"{id}:1", f"{id}:2"]
        assert listener.on(STATE) == ["OFF", "ON", "OFF"]
    wait_until(shows(broker, SNAPSHOT, b"\xff\xd8picture"))
    found = retained(broker)
    assert json.loads(found.pop(STATUS)) == {
        "state": "connected", "since": "2023-11-14T22:13:20.000+00:00", "detail": "h264"
    }  # fmt: skip
    assert found == {
        STATE: b"OFF", "watch/door/state": b"OFF", SNAPSHOT: b"\xff\xd8picture", AVAILABILITY: b"online"
    }  # fmt: skip
    outbox.close()
    assert retained(broker)[AVAILABILITY] == b"offline"
    assert store.backlog()["mqtt"]["delivered"] == 2
    store.close()


def test_a_sink_that_is_closed_while_an_event_is_open_leaves_nothing_on(broker, make):
    sink = make(broker)
    sink.set_state("yard", {})
    wait_until(shows(broker, STATE, "ON"))
    sink.close()
    assert retained(broker)[STATE] == b"OFF" and retained(broker)[AVAILABILITY] == b"offline"


def test_nothing_stays_on_after_kills_at_random_moments(broker):
    chance, num_on = random.Random(0), 0
    for _ in range(8):
        child = Child("-c", BLINKER, str(broker.port))
        with Listener(broker) as listener:
            wait_until(lambda: ("watch/yard/state", b"ON", False) in listener.heard)
            time.sleep(chance.uniform(0, 0.1))
            kill(child)
            wait_until(lambda: listener.on(AVAILABILITY)[-1:] == ["offline"] and listener.on(STATE)[-1:] == ["OFF"])
            num_on += listener.on(STATE).count("ON")
        assert retained(broker)[STATE] == b"OFF"
    assert num_on > 8


@pytest.fixture
def start_client():
    """Starts services whose camera is ON; they are killed at the end."""
    children = []

    def start_client(broker):
        children.append(Child("-c", CLIENT, str(broker.port)))
        wait_until(lambda: retained(broker).get(STATE) == b"ON" and retained(broker).get(AVAILABILITY) == b"online")
        return children[-1]

    yield start_client
    for child in children:
        kill(child)


def test_nothing_stays_on_after_the_service_was_killed(broker, start_client):
    with Listener(broker) as listener:
        for _ in range(3):
            kill(start_client(broker))
            wait_until(lambda: listener.on(STATE)[-1] == "OFF" and listener.on(AVAILABILITY)[-1] == "offline")
            assert retained(broker)[STATE] == b"OFF"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_on_after_service_and_broker_were_killed(tmp_path, make, start_client, how):
    with Broker(tmp_path / "broker", persistent=True) as broker:
        child = start_client(broker)
        wait_until(lambda: (tmp_path / "broker" / "mosquitto.db").exists())
        os.kill(child.pid, signal.SIGSTOP)  # neither notices that the other goes
        broker.stop(how)
        kill(child)
        broker.start()
        make(broker)  # the service comes back
        wait_until(shows(broker, STATE, "OFF"))
        wait_until(shows(broker, AVAILABILITY, "online"))


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_broker_that_comes_back_gets_the_present_states(tmp_path, make, persistent, how):
    with Broker(tmp_path / "broker", persistent) as broker:
        sink = make(broker)
        sink.set_state("yard", {})
        sink.set_state("door", {})
        sink.set_snapshot("yard", b"first")
        wait_until(lambda: [retained(broker).get(t) for t in (STATE, "watch/door/state")] == [b"ON", b"ON"])
        wait_until(shows(broker, SNAPSHOT, b"first"))
        broker.stop(how)
        begun = time.monotonic()
        sink.set_state("door", None)  # ends while the broker is away
        sink.set_snapshot("yard", b"second")
        sink.set_status("yard", "away", 1.0)
        assert time.monotonic() - begun < 1  # nobody waits for the broker
        broker.start()
        wait_until(lambda: [retained(broker).get(t) for t in (STATE, "watch/door/state")] == [b"ON", b"OFF"])
        wait_until(shows(broker, SNAPSHOT, b"second"))
        wait_until(shows(broker, AVAILABILITY, "online"))
        sink.set_state("yard", None)
        wait_until(shows(broker, STATE, "OFF"))


def test_an_event_is_shown_at_once_when_the_broker_is_back(broker, make):
    sink = make(broker)
    wait_until(shows(broker, AVAILABILITY, "online"))
    broker.stop()
    sink.back_off = (1e6, 1e6)  # of the camera's connection: no second attempt by itself
    sink.set_state("yard", {})
    wait_until(lambda: sink.guards[STATE].failures == 1)
    broker.start()
    wait_until(shows(broker, STATE, "ON"))


def test_a_subscriber_that_comes_back_gets_the_present_state_once_and_no_old_event(broker, make, tmp_path):
    store = EventStore(tmp_path / "store")
    sink = make(broker, start=False)
    outbox = Outbox(store, [sink], 1e6, print, QUICK)
    outbox.start()
    ids = begin(store, count=3)
    sink.set_state("yard", {})
    wait_until(lambda: store.backlog()["mqtt"]["delivered"] == 3)
    wait_until(shows(broker, STATE, "ON"))
    with Listener(broker) as listener:
        wait_until(lambda: listener.on(STATE))
        store.end(ids[0], progress())
        wait_until(lambda: listener.on(EVENTS))
        assert listener.on(STATE) == ["ON"] and [json.loads(e)["kind"] for e in listener.on(EVENTS)] == ["end"]
    outbox.close()
    store.close()


def test_a_service_that_comes_back_repeats_no_state_that_the_broker_still_has(broker, make):
    first = make(broker, discovery="ha")
    first.set_snapshot("yard", b"picture")
    wait_until(shows(broker, SNAPSHOT, b"picture"))
    first.close()
    with Listener(broker) as listener:
        second = make(broker, discovery="ha")
        second.set_snapshot("yard", b"picture")
        wait_until(lambda: AVAILABILITY in [topic for topic, _, is_old in listener.heard if not is_old])
        new = {topic for topic, _, is_old in listener.heard if not is_old}
    assert new == {AVAILABILITY, "watch/check"}


def test_an_event_that_begins_while_states_are_published_is_on_in_the_end(broker, make):
    for n in range(30):
        with Listener(broker, topics=STATE) as listener:
            sink = make(broker)
            wait_until(lambda: sink.main.client or n % 2)
            time.sleep(n / 10_000)
            sink.set_state("yard", {})
            wait_until(lambda: "ON" in listener.on(STATE) and shows(broker, AVAILABILITY, "online")())
            assert listener.on(STATE)[-1] == "ON"
            sink.close()


def test_on_waits_for_an_off_that_is_under_way(broker, make):
    sink = make(broker)
    wait_until(shows(broker, AVAILABILITY, "online"))
    with sink.main.changed:
        sink.main.under_way = STATE
    with Listener(broker, topics=STATE) as listener:
        sink.set_state("yard", {})
        wait_until(lambda: sink.guards[STATE].client)
        time.sleep(0.1)
        assert listener.on(STATE) == ["OFF"]
        with sink.main.changed:
            sink.main.under_way = ""
            sink.main.changed.notify_all()
        wait_until(lambda: listener.on(STATE) == ["OFF", "ON"])


def test_a_sink_that_takes_the_place_of_another_does_so_without_a_fight(broker, make, tmp_path, told):
    store = EventStore(tmp_path / "store")
    first = make(broker, start=False)
    outbox = Outbox(store, [first], 1e6, told.append, QUICK)
    outbox.start()
    wait_until(shows(broker, AVAILABILITY, "online"))
    first.set_state("yard", {})
    wait_until(shows(broker, STATE, "ON"))
    with Listener(broker) as listener:
        second = make(broker, start=False, cameras=["yard"])
        second.set_state("yard", {})  # the event goes on
        outbox.replace([second])
        (id,) = begin(store)
        wait_until(lambda: listener.on(EVENTS) and len(listener.on(AVAILABILITY)) > 2 and len(listener.on(STATE)) > 2)
        assert listener.on(AVAILABILITY) == ["online", "offline", "online"]
        assert listener.on(STATE) == ["ON", "OFF", "ON"]
    outbox.close()
    store.close()
    assert not told


def test_quick_changes_end_in_the_last_state(broker, make):
    sink = make(broker)
    for _ in range(20):
        for camera in ("yard", "door"):
            sink.set_state(camera, {})
            sink.set_state(camera, None)
    sink.set_state("door", {})
    wait_until(lambda: [retained(broker).get(t) for t in (STATE, "watch/door/state")] == [b"OFF", b"ON"])
    time.sleep(0.3)  # nothing comes late
    assert [retained(broker).get(t) for t in (STATE, "watch/door/state")] == [b"OFF", b"ON"]


def test_cameras_that_go_are_cleared_also_those_that_went_while_the_service_was_stopped(broker, make):
    sink = make(broker, ["yard", "door", "roof"], discovery="ha")
    for camera in ("yard", "door", "roof"):
        sink.set_status(camera, "connected", 1.0)
        sink.set_snapshot(camera, b"x")
    sink.set_state("door", {})
    wait_until(shows(broker, "watch/door/state", "ON"))
    wait_until(shows(broker, "watch/roof/snapshot", "x"))
    sink.set_cameras(["yard", "roof"])
    wait_until(lambda: not [topic for topic in retained(broker) if "door" in topic])
    sink.set_state("door", {})  # is no longer there
    sink.close()
    other = {"other/x/status": b'{"state": "connected", "since": "", "detail": ""}', "watch/lamp/status": b"{}"}
    with Listener(broker) as listener:
        for topic, payload in other.items():
            listener.client.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)
    make(broker, ["yard"], discovery="ha")
    wait_until(lambda: not [topic for topic in retained(broker) if "roof" in topic])
    found = retained(broker)
    assert other.items() <= found.items()  # what is not ours stays
    assert {topic for topic in found if topic.startswith("watch/yard")} == {STATE, STATUS, SNAPSHOT}
    assert len([topic for topic in found if topic.startswith("ha/")]) == 4
    assert not [topic for topic in found if "door" in topic]


def test_home_assistant_finds_each_camera_with_state_status_class_and_picture(broker, make):
    make(broker, discovery="homeassistant", base="site/watch")
    wait_until(lambda: len([t for t in retained(broker) if t.startswith("homeassistant/")]) == 8)
    found = {t: json.loads(p) for t, p in retained(broker).items() if t.startswith("homeassistant/")}
    assert sorted(t for t in found if "yard" in t) == [
        "homeassistant/binary_sensor/site_watch/yard_state/config",
        "homeassistant/image/site_watch/yard_snapshot/config",
        "homeassistant/sensor/site_watch/yard_class/config",
        "homeassistant/sensor/site_watch/yard_status/config",
    ]
    state = found["homeassistant/binary_sensor/site_watch/yard_state/config"]
    assert state["state_topic"] == "site/watch/yard/state"
    assert [a["topic"] for a in state["availability"]] == ["site/watch/availability", "site/watch/yard/status"]
    image = found["homeassistant/image/site_watch/yard_snapshot/config"]
    assert (image["image_topic"], image["content_type"]) == ("site/watch/yard/snapshot", "image/jpeg")
    assert len({entity["unique_id"] for entity in found.values()}) == 8
    devices = {topic: entity["device"]["identifiers"] for topic, entity in found.items()}
    assert {tuple(d) for t, d in devices.items() if "yard" in t} == {("site_watch_yard",)}


# ---------------------------------------------------------------- messages through outages


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_messages_survive_an_outage_of_the_broker_in_order_and_none_is_lost(broker, make, tmp_path, told, how):
    store = EventStore(tmp_path / "store")
    sink = make(broker, start=False)
    outbox = Outbox(store, [sink], 1e6, told.append, QUICK)
    outbox.start()
    ids = {"yard": begin(store, count=50), "door": begin(store, "door", 50)}
    broker.stop(how)  # at some moment of the delivery
    for camera in ids:
        ids[camera] += begin(store, camera, 200)
    wait_until(lambda: len(told) >= 2)
    delivered = store.backlog()["mqtt"]["delivered"]
    broker.start()
    with Listener(broker, topics="watch/+/events") as listener:
        begun = time.monotonic()
        wait_until(lambda: not store.backlog()["mqtt"]["waiting"], 60)
        print(f"drained {(500 - delivered) / (time.monotonic() - begun):.0f} messages/s")
        assert store.backlog()["mqtt"]["delivered"] == 500
        late = [json.loads(payload) for _, payload, _ in listener.heard]
    for camera, expected in ids.items():
        got = [body["id"] for body in late if body["camera"] == camera]
        assert got == expected[len(expected) - len(got) :] and got
    wait_until(lambda: len(told) == 4)
    told.sort()
    assert told[0].startswith("mqtt: connected to the broker again after ")
    assert told[1].startswith("mqtt: messages are delivered again after ")
    assert told[2].startswith("mqtt: messages wait (camera ")
    assert told[3] == "mqtt: no connection to the broker (Connection refused)"
    outbox.close()
    store.close()


def test_a_broker_that_hangs_is_left_and_found_again(broker, make, tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt_link, "TIMEOUT", 0.5)
    store = EventStore(tmp_path / "store")
    sink = make(broker, start=False)
    outbox = Outbox(store, [sink], 1e6, print, QUICK)
    outbox.start()
    begin(store)
    wait_until(lambda: store.backlog()["mqtt"]["delivered"] == 1)
    wait_until(shows(broker, AVAILABILITY, "online"))
    client = sink.main.client
    broker.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(NotDelivered, match="does not answer|no connection|broke"):
            sink.send({"camera": "yard"}, "k:1")
        assert sink.main.client is not client  # it would be sent behind newer ones
        begin(store)
        sink.set_state("yard", {})
        time.sleep(1)
        assert store.backlog()["mqtt"]["waiting"] == 1
    finally:
        broker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: store.backlog()["mqtt"]["delivered"] == 2)
    wait_until(shows(broker, STATE, "ON"))
    outbox.close()
    store.close()


def test_connections_that_come_and_go_leave_no_thread_and_no_file_open(broker, make):
    sink = make(broker)
    wait_until(shows(broker, AVAILABILITY, "online"))
    counts = []
    for _ in range(12):
        sink.set_state("yard", {})
        wait_until(lambda: sink.guards[STATE].client)
        sink.set_state("yard", None)
        wait_until(lambda: not sink.guards[STATE].thread)
        counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    wait_until(lambda: threading.active_count() <= counts[1][0])
    assert len(os.listdir("/proc/self/fd")) <= counts[1][1] + 2


# ---------------------------------------------------------------- who may connect, and how


def test_a_password_is_needed_where_the_broker_wants_one_and_is_never_shown(tmp_path, make, told):
    with Broker(tmp_path / "broker", password="s3cret") as broker:
        wrong = make(broker, user="me", password="s3cret-but-wrong")
        wait_until(lambda: told)
        assert told == ["mqtt: no connection to the broker (Not authorized)"]
        with pytest.raises(NotDelivered, match="Not authorized") as caught:
            wrong.send({"camera": "yard"}, "k:1")
        assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + repr(wrong.settings)
        wrong.close()
        right = make(broker, user="me", password="s3cret")
        right.set_state("yard", {})
        wait_until(shows(broker, STATE, "ON", "s3cret"))


def test_what_the_broker_does_not_allow_waits_and_is_told(tmp_path, make, told):
    folder = tmp_path / "acl"
    folder.mkdir()
    (folder / "acl").write_text("topic write watch/availability\ntopic write watch/+/state\n")
    with Broker(tmp_path / "broker", more=f"acl_file {folder / 'acl'}") as broker:
        sink = make(broker)
        wait_until(lambda: sink.main.client)
        with pytest.raises(NotDelivered, match="refused it: Not authorized") as caught:
            sink.send({"camera": "yard"}, "k:1")
        assert not caught.value.is_final  # the broker may yet be told to allow it
        sink.set_status("yard", "connected", 1.0)
        wait_until(lambda: told)
        assert told == [f"mqtt: {STATUS}: not published: the broker refused it: Not authorized"]


def test_a_picture_that_is_too_long_for_the_broker_does_not_cost_the_connection(tmp_path, make, told):
    with Broker(tmp_path / "broker", more="max_packet_size 5000") as broker:
        sink = make(broker)
        sink.set_snapshot("yard", b"x" * 6000)
        wait_until(lambda: told)
        assert told == [f"mqtt: {SNAPSHOT}: not published: too long for the broker, which takes 5000 bytes"]
        sink.set_state("yard", {})
        wait_until(shows(broker, STATE, "ON"))
        assert retained(broker)[AVAILABILITY] == b"online"


def test_two_services_of_one_name_are_told(broker, make, told):
    make(broker)
    make(broker)
    wait_until(lambda: "does another service use the same `base`?" in "".join(told))


def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_3_1_1(broker, make):
    old = OldBroker(broker)
    sink = make(old)
    sink.set_state("yard", {})
    wait_until(shows(broker, STATE, "ON"))
    wait_until(shows(broker, AVAILABILITY, "online"))
    sink.send({"camera": "yard"}, "k:1")
    assert old.refused == 2  # once for each connection
    sink.set_state("yard", None)
    wait_until(shows(broker, STATE, "OFF"))


def test_authorities_that_cannot_be_read_are_told(broker, make, tmp_path):
    with pytest.raises(InputError, match="ca_file .*none.pem: cannot be used"):
        make(broker, tls=True, ca_file=str(tmp_path / "none.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InputError, match="ca_file .*bad.pem: cannot be used"):
        make(broker, tls=True, ca_file=str(tmp_path / "bad.pem"))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_an_encrypted_connection_wants_a_known_authority(tmp_path, make, told):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    with Broker(tmp_path / "broker", more=f"certfile {certificate}\nkeyfile {key}") as broker:
        stranger = make(broker, tls=True)
        wait_until(lambda: told)
        assert "CERTIFICATE_VERIFY_FAILED" in told[0] and "\n" not in told[0]
        stranger.close()
        sink = make(broker, tls=True, ca_file=str(certificate))
        wait_until(lambda: sink.main.client)
        sink.send({"camera": "yard"}, "k:1")
