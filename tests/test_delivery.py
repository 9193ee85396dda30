"""The outbox and webhooks: real receivers that fail in all ways, outages, kills, a full disk."""

import json
import random
import signal
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import children
from tests.places import free_port
from tests.stored_events import begin, new_event, progress, small_disk, wait_until
from videoanomaly.live import webhook
from videoanomaly.runtime.console import InputError
from videoanomaly.watching.receivers import outbox as outbox_
from videoanomaly.watching.receivers.outbox import NotDelivered, Outbox
from videoanomaly.watching.receivers.webhook_sink import WebhookSink
from videoanomaly.watching.store import messages
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.watch_settings import WebhookSettings

QUICK = (0.01, 0.05)  # seconds: back-off
FOR_EVER = 1e6  # seconds


class Receiver:
    """An HTTP server that can go away and come back; `answer(body)` gives a status, an address to go to, or None: it
    hangs. `taken` are the bodies that it answered with 200.
    """

    def __init__(self, answer=lambda body: 200):
        self.answer, self.bodies, self.taken, self.headers, self.hung = answer, [], [], [], threading.Event()
        self.port = free_port()
        self.url, self.server = f"http://127.0.0.1:{self.port}/hook", None

    def handler(self):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                self.headers.append(dict(handler.headers))
                self.bodies.append(body)
                status = self.answer(body)
                if status is None:
                    self.hung.wait(20)
                    return
                if status == 200:
                    self.taken.append(body)
                handler.send_response(status if isinstance(status, int) else 307)
                if isinstance(status, str):
                    handler.send_header("Location", status)
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(handler, *_):
                pass

        return Handler

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.hung.set()
        self.server.shutdown()
        self.server.server_close()

    def sink(self, **settings):
        return WebhookSink(WebhookSettings(**{"name": "hook", "url": self.url, **settings}))

    def keys(self):
        return [body["key"] for body in self.taken]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def store(tmp_path):
    store = EventStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def told():
    return []


@pytest.fixture
def make(store, told):
    """Outboxes that are closed at the end."""
    made = []

    def make(*sinks, give_up_after=FOR_EVER, back_off=QUICK):
        made.append(Outbox(store, sinks, give_up_after, told.append, back_off))
        return made[-1]

    yield make
    for outbox in made:
        outbox.close(0)


def waiting(store, name="webhook.hook"):
    return store.backlog()[name]["waiting"]


def test_begin_update_and_end_arrive_in_order_with_their_key_and_token(store, make):
    with Receiver() as receiver:
        make(receiver.sink(token="T0KEN")).start()
        (id,) = begin(store)
        store.update(id, progress())
        store.end(id, progress())
        wait_until(lambda: not waiting(store))
    assert [(b["kind"], b["id"]) for b in receiver.taken] == [("begin", id), ("update", id), ("end", id)]
    assert [h["Idempotency-Key"] for h in receiver.headers] == [f"{id}:{n}" for n in (1, 2, 3)] == receiver.keys()
    assert {h["Authorization"] for h in receiver.headers} == {"Bearer T0KEN"}
    assert {h["Content-Type"] for h in receiver.headers} == {"application/json"}
    assert store.backlog() == {"webhook.hook": {"waiting": 0, "oldest": None, "given_up": 0, "delivered": 3}}


@pytest.mark.parametrize("trouble", [500, 503, 429, 408, 404, 401, 302, "http://localhost:1/", None])
def test_what_may_yet_be_taken_is_sent_again_the_same_with_the_same_key(store, make, monkeypatch, trouble):
    monkeypatch.setattr(webhook, "TIMEOUT", 0.1 if trouble is None else 5.0)
    answers = [trouble, trouble, 200]
    with Receiver(lambda body: answers.pop(0) if answers else 200) as receiver:
        make(receiver.sink()).start()
        ids = begin(store, count=2)
        wait_until(lambda: not waiting(store))
    assert receiver.keys() == [f"{id}:1" for id in ids]
    assert len(receiver.bodies) == 4 and receiver.bodies[0] == receiver.bodies[1] == receiver.bodies[2]
    assert len({h["Idempotency-Key"] for h in receiver.headers[:3]}) == 1


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_is_refused_for_good_is_left_out_with_a_note_and_the_next_goes_on(store, make, told, status):
    with Receiver(lambda body: status if body["class"] == "Arson" else 200) as receiver:
        make(receiver.sink()).start()
        refused, taken = store.begin(new_event(name="Arson")), store.begin(new_event())
        wait_until(lambda: not waiting(store))
    assert receiver.keys() == [f"{taken}:1"] and [b["id"] for b in receiver.bodies] == [refused, taken]
    assert told == [f"webhook.hook: messages refused, not sent again (HTTP status {status}): 1 so far"]
    assert store.backlog()["webhook.hook"] == {"waiting": 0, "oldest": None, "given_up": 1, "delivered": 1}


def test_a_near_redirect_is_followed_without_the_token(store, make):
    with Receiver() as target, Receiver(lambda body: target.url) as first:
        make(first.sink(token="T0KEN")).start()
        (id,) = begin(store)
        wait_until(lambda: not waiting(store))
    assert target.keys() == [f"{id}:1"] and "Authorization" not in target.headers[0]
    assert target.headers[0]["Idempotency-Key"] == f"{id}:1"


def test_a_camera_whose_messages_fail_waits_and_the_others_go_on(store, make, told):
    is_broken = [True]
    with Receiver(lambda body: 500 if body["camera"] == "bad" and is_broken[0] else 200) as receiver:
        make(receiver.sink()).start()
        bad, good = [], []
        for _ in range(20):
            bad, good = bad + begin(store, "bad"), good + begin(store, "good")
        wait_until(lambda: len(receiver.taken) == 20)
        assert [b["id"] for b in receiver.taken] == good
        wait_until(lambda: len([b for b in receiver.bodies if b["id"] == bad[0]]) > 4)
        assert {b["id"] for b in receiver.bodies if b["camera"] == "bad"} == {bad[0]}  # none overtakes it
        is_broken[0] = False
        wait_until(lambda: not waiting(store))
    assert [b["id"] for b in receiver.taken[20:]] == bad
    assert told[0] == "webhook.hook: messages wait (camera bad: HTTP status 500)"
    assert len(told) == 2 and told[1].startswith("webhook.hook: messages are delivered again after ")


def test_a_long_outage_is_told_once_and_all_arrive_in_order_afterwards(store, make, told):
    receiver = Receiver()
    make(receiver.sink()).start()
    ids = {camera: begin(store, camera, 300) for camera in ("a", "b", "c")}
    wait_until(lambda: told)
    assert told == ["webhook.hook: messages wait (camera a: Connection refused)"]
    assert waiting(store) == 900 and store.backlog()["webhook.hook"]["oldest"] <= time.time()
    with receiver:
        begun = time.monotonic()
        wait_until(lambda: not waiting(store), 120)
        print(f"drained {900 / (time.monotonic() - begun):.0f} messages/s")
        wait_until(lambda: len(told) == 2)
    for camera, expected in ids.items():
        assert [b["id"] for b in receiver.taken if b["camera"] == camera] == expected
    assert len(receiver.taken) == 900


def test_no_more_than_a_few_messages_are_read_at_once(store, make, monkeypatch):
    sizes = []
    read = messages.waiting

    def watched(*given):
        sizes.append(len(read(*given)))
        return read(*given)

    monkeypatch.setattr(messages, "waiting", watched)
    with Receiver() as receiver:
        outbox = make(receiver.sink())
        begin(store, count=100)
        outbox.start()
        wait_until(lambda: not waiting(store))
    assert max(sizes) == outbox_.AT_ONCE and len(receiver.taken) == 100


def test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_success(store, told):
    delivery = outbox_.Delivery(store, Receiver().sink(), FOR_EVER, told.append, (1.0, 6.0))
    pauses = []
    for _ in range(5):
        before = time.monotonic()
        delivery.hold("yard", "x")
        pauses.append(delivery.held["yard"].pause)
        assert pauses[-1] <= delivery.held["yard"].until - before < 1.2 * pauses[-1] + 1
    assert pauses == [1, 2, 4, 6, 6] and told == ["webhook.hook: messages wait (x)"]
    delivery.hold("door", "x")
    delivery.end_hold("yard")
    assert delivery.held["door"].until == 0  # the receiver is there again: nobody waits any longer
    delivery.hold("yard", "x")
    assert delivery.held["yard"].pause == 1


def test_what_fails_and_is_too_old_is_given_up_with_one_note(store, make, told):
    receiver = Receiver()
    outbox = make(receiver.sink(), give_up_after=1.0)
    begin(store, count=50)
    time.sleep(1)  # all are older than that now
    outbox.start()
    wait_until(lambda: store.backlog()["webhook.hook"]["given_up"] == 50)
    outbox.close()
    assert [line for line in told if "given up" in line] == ["webhook.hook: 50 messages given up, older than 1 s"]
    assert waiting(store) == 0
    with receiver:
        make(receiver.sink()).start()
        (id,) = begin(store)
        wait_until(lambda: not waiting(store))
    assert receiver.keys() == [f"{id}:1"]


def test_old_messages_are_delivered_all_the_same_if_the_first_attempt_succeeds(store, make):
    with Receiver() as receiver:
        outbox = make(receiver.sink(), give_up_after=0.01)
        begin(store, count=5)
        time.sleep(0.05)  # they are older than that now
        outbox.start()
        wait_until(lambda: not waiting(store))
    assert len(receiver.taken) == 5


def test_the_age_of_a_message_counts_from_now_when_the_clock_went_back(store, monkeypatch):
    store.set_sinks(["hook"])
    real = time.time
    monkeypatch.setattr(messages.time, "time", lambda: real() + 10**7)
    begin(store)
    monkeypatch.setattr(messages.time, "time", real)
    assert messages.give_up(store.database, 3600, ["hook"]) == 0
    assert store.backlog()["hook"]["oldest"] <= time.time()
    monkeypatch.setattr(messages.time, "time", lambda: real() + 3601)
    assert messages.give_up(store.database, 3600, ["hook"]) == 1


def test_messages_for_a_receiver_that_is_no_longer_named_stay_until_they_are_too_old(store, make, told):
    outbox = make(Receiver().sink(), give_up_after=2.0)
    begin(store, count=3)
    outbox.replace([])
    assert store.backlog()["webhook.hook"]["waiting"] == 3 and not told
    time.sleep(2)
    outbox.replace([])
    assert store.backlog()["webhook.hook"] == {"waiting": 0, "oldest": None, "given_up": 3, "delivered": 0}
    assert told == ["3 messages given up: they were for receivers that the settings no longer name"]


def test_replaced_sinks_lose_nothing_and_those_that_stay_are_left_alone(store, make):
    with Receiver() as kept, Receiver() as second:
        staying, dead = kept.sink(name="kept"), Receiver().sink()
        outbox = make(staying, dead)
        outbox.start()
        ids = begin(store, count=5)
        thread = outbox.deliveries[0].thread
        outbox.give_up_after = 7.0
        outbox.replace([staying, second.sink()])
        assert [delivery.give_up_after for delivery in outbox.deliveries] == [7.0, 7.0]
        ids += begin(store, count=5)
        wait_until(lambda: not any(found["waiting"] for found in store.backlog().values()))
        assert outbox.deliveries[0].thread is thread and thread.is_alive()
    assert kept.keys() == second.keys() == [f"{id}:1" for id in ids]


def test_closing_delivers_what_can_be_delivered_and_does_not_wait_for_what_hangs(store, make):
    with Receiver() as good, Receiver(lambda body: None) as hanging:
        outbox = make(good.sink(name="good"), hanging.sink())
        outbox.start()
        begin(store, count=30)
        wait_until(lambda: hanging.bodies)
        begun = time.monotonic()
        outbox.close(2.0)
        assert time.monotonic() - begun < 4
        assert len(good.taken) == 30 and waiting(store) == 30


def test_a_sink_that_breaks_in_its_own_way_is_tried_again_and_its_text_is_not_shown(store, make, told):
    class Broken:
        name, texts = "broken", []

        def start(self):
            pass

        def send(self, message, key):
            if len(self.texts) < 4:
                self.texts.append(key)
                raise ValueError("s3cret")

        def close(self):
            pass

    make(Broken()).start()
    begin(store)
    wait_until(lambda: not waiting(store, "broken"))
    assert told[0] == "broken: messages wait (camera yard: ValueError)" and "s3cret" not in str(told)


def test_no_secret_is_in_any_note_or_exception(store, make, told, monkeypatch):
    monkeypatch.setattr(webhook, "TIMEOUT", 0.2)
    answers = [500, None, 302, "http://localhost:1/s3cret", 400, 404]
    with Receiver(lambda body: answers[len(receiver.bodies) % len(answers)]) as receiver:
        url = receiver.url.replace("//", "//me:s3cret@") + "/s3cret?key=s3cret"
        sink = receiver.sink(url=url, token="s3cret-token")
        for _ in answers:
            with pytest.raises(NotDelivered) as caught:
                sink.send({"n": 1}, "k:1")
            assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        make(sink).start()
        begin(store, count=3)
        wait_until(lambda: store.backlog()["webhook.hook"]["given_up"] == 3, 60)
    with pytest.raises(NotDelivered) as caught:  # it is gone
        sink.send({"n": 1}, "k:1")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) and "s3cret" not in "".join(told)
    assert told
    for wrong in (
        {"url": "ftp://me:s3cret@host/"},
        {"url": "http://h/", "token": "s3cret\n"},
        {"url": "http://s3cret℀/"},
    ):
        with pytest.raises(InputError, match=r"\[webhook.hook\]: (url|token)") as caught:
            receiver.sink(**wrong)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_full_disk_is_told_and_a_message_that_was_taken_is_not_sent_again(tmp_path, told):
    with small_disk(tmp_path / "small") as place, Receiver() as receiver:
        store = EventStore(place)
        outbox = Outbox(store, [receiver.sink()], FOR_EVER, told.append, (0.05, 0.1))
        ids = begin(store, count=10)
        with open(place / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(512))
        outbox.start()
        wait_until(lambda: told)
        assert "watch.db: cannot be written" in told[0] and "\n" not in told[0]
        assert waiting(store) == 10 - store.backlog()["webhook.hook"]["delivered"] > 0
        (place / "filler").unlink()
        wait_until(lambda: not waiting(store))
        outbox.close()
        store.close()
    assert receiver.keys() == [f"{id}:1" for id in ids] and "delivered again" in told[-1]


SERVICE = """
import sys
from pathlib import Path
from tests.stored_events import new_event, progress
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.receivers.outbox import Outbox
from videoanomaly.watching.watch_settings import WebhookSettings
from videoanomaly.watching.receivers.webhook_sink import WebhookSink
store = EventStore(Path(sys.argv[1]))
outbox = Outbox(store, [WebhookSink(WebhookSettings("hook", sys.argv[2]))], 1e6, print, (0.01, 0.05))
store.close_open()
outbox.start()
print("ready", flush=True)
while True:
    ids = [store.begin(new_event(camera)) for camera in ("yard", "door")]
    for id in ids:
        store.update(id, progress())
        store.end(id, progress())
"""


def test_kills_at_random_moments_lose_no_event_that_was_sent_and_send_none_under_two_ids(store, tmp_path, told):
    chance = random.Random(1)
    store.close()
    answers = random.Random(2)
    with Receiver(lambda body: 500 if answers.random() < 0.1 else 200) as receiver:
        for _ in range(10):
            child = children.Child("-c", SERVICE, tmp_path / "store", receiver.url)
            assert child.stdout.readline() == "ready\n"
            timer = threading.Timer(chance.uniform(0, 0.4), child.send_signal, [signal.SIGKILL])
            timer.start()
            assert child.wait() == -signal.SIGKILL
            child.stdout.close()
        again = EventStore(tmp_path / "store")  # looks at the whole file
        outbox = Outbox(again, [receiver.sink()], FOR_EVER, told.append, QUICK)
        again.close_open()
        outbox.start()
        wait_until(lambda: not waiting(again), 120)
        outbox.close()
    stored = {event["id"]: event for event in again.events(limit=10**6)}
    by_key = {}
    for body in receiver.taken:
        assert by_key.setdefault(body["key"], body) == body  # a repetition is the same message
    assert len(stored) > 10 and {body["id"] for body in receiver.taken} == stored.keys()
    for camera in ("yard", "door"):
        first = [key for key, body in by_key.items() if body["camera"] == camera]  # in the order of arrival
        expected = [f"{id}:{n + 1}" for id in sorted(stored) if stored[id]["camera"] == camera
                    for n in range(stored[id]["message_count"])]  # fmt: skip
        assert first == expected
    print(f"{len(stored)} events, {len(receiver.taken)} messages, {len(receiver.taken) - len(by_key)} sent twice")
    again.close()
