"""/healthz and /metrics of watch.py: when a camera counts as stale, and that each number is that of board and store."""

import json
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.watched import Client, add_event, make_board, serving, settings_of
from videoanomaly.watching.board import LATENCY_BOUNDS, CameraStatus
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web import monitoring
from videoanomaly.watching.web.monitoring import Health

NOW = 1e9


@pytest.fixture
def clock(monkeypatch):
    now = [NOW]
    monkeypatch.setattr(monitoring.time, "time", lambda: now[0])
    return now


def look(health: Health, seconds: float = 30) -> tuple[int, dict]:
    status, found = health.look(seconds)
    return status, found["stale"]


def test_cameras_whose_last_picture_is_too_old_are_named(clock):
    board = make_board("door", "yard", last_frame=NOW, since=NOW - 1000)
    health = Health(board)
    clock[0] += 30
    assert look(health) == (200, {})
    board.set("yard", state="away")
    clock[0] += 1
    board.set("door", last_frame=clock[0])
    assert look(health) == (503, {"yard": {"state": "away", "seconds_since_last_frame": 31.0}})
    board.set("yard", last_frame=clock[0])
    assert look(health) == (200, {})


def test_a_camera_that_starts_counts_from_its_start_whatever_it_tries(clock):
    board = make_board()
    board.add(CameraStatus("door", "x", since=NOW))
    health = Health(board)
    clock[0] += 29
    assert look(health) == (200, {})
    board.set("door", state="away", since=clock[0])  # it begins to flap
    clock[0] += 2
    assert look(health) == (503, {"door": {"state": "away", "seconds_since_last_frame": None}})
    board.remove("door")
    board.add(CameraStatus("door", "x", since=clock[0]))  # a reload
    assert look(health) == (200, {})


def test_outside_its_schedule_a_camera_is_not_stale_and_then_counts_anew(clock):
    board = make_board("door", last_frame=NOW, since=NOW, state="paused")
    health = Health(board)
    clock[0] += 5000
    assert look(health) == (200, {})
    board.set("door", state="connected", since=clock[0])
    clock[0] += 29
    assert look(health) == (200, {})
    clock[0] += 2
    assert look(health)[0] == 503


def test_health_is_sent_with_its_status(tmp_path):
    board, store = make_board("door", "yard"), EventStore(tmp_path)
    with serving(board, store, settings_of(tmp_path, stale_after=50.0)) as server:
        client = Client(server.port)
        answer = client.get("/healthz", accept="*/*")
        assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok", "cameras": 2, "stale": {}})
        board.set("yard", last_frame=time.time() - 60, since=time.time() - 100, state="frozen")
        server.app.page.health.started.clear()
        answer = client.get("/healthz", accept="*/*")
        found = json.loads(answer.body)
        assert answer.status == 503 and found["status"] == "stale" and list(found["stale"]) == ["yard"]
        assert found["stale"]["yard"]["seconds_since_last_frame"] == pytest.approx(60, abs=15)


def numbers(text: str) -> dict[tuple, float]:
    """Values by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix("videoanomaly_"), *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def test_metrics_are_those_of_board_and_store(tmp_path):
    board, store = make_board("door", "yard"), EventStore(tmp_path)
    store.set_sinks(["mqtt", "hook"])
    ids = [add_event(store) for _ in range(3)] + [add_event(store, is_open=True)]
    store.set_star(ids[0], True)
    store.set_mark(ids[1], "wrong", None)
    counts = {"frames": 900, "rows": 90, "encoded": 60, "reused": 20, "dropped": 10, "reconnects": 2}
    board.count("door", **counts)
    board.set("yard", state="away")
    for latency in (0.05, 0.1, 0.4, 99.0):
        board.scored("door", [0.5], latency)
    more = {"queue": 7.0}
    with serving(board, store, settings_of(tmp_path), gauges=lambda: more) as server:
        answer = Client(server.port).get("/metrics", accept="*/*")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        found = numbers(answer.text)
        openmetrics = Client(server.port).get("/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
    for key, value in counts.items():
        assert found[f"{key}_total", "door"] == value and found[f"{key}_total", "yard"] == 0
    assert found["state", "yard", "away"] == found["state", "door", "connected"] == 1
    assert sum(value for (name, *_), value in found.items() if name == "state") == 2
    buckets = {bound: found["latency_seconds_bucket", "door", str(bound)] for bound in LATENCY_BOUNDS}
    assert buckets == {bound: 2 if bound < 0.5 else 3 for bound in LATENCY_BOUNDS}
    assert found["latency_seconds_bucket", "door", "+Inf"] == found["latency_seconds_count", "door"] == 4
    assert found["latency_seconds_sum", "door"] == pytest.approx(99.55)
    assert found["outbox_waiting", "mqtt"] == 7 and 0 <= found["outbox_oldest_seconds", "hook"] < 3600
    assert found["outbox_given_up_total", "mqtt"] == found["outbox_delivered_total", "hook"] == 0
    kinds = {kind: found["events", kind] for kind in ("stored", "open", "starred", "right", "wrong")}
    assert kinds == {"stored": 4, "open": 1, "starred": 1, "right": 0, "wrong": 1}
    assert found["queue",] == 7
    assert found["process_resident_memory_bytes",] > 1e6


def test_an_empty_store_has_metrics_too(tmp_path):
    with serving(make_board(), EventStore(tmp_path), settings_of(tmp_path)) as server:
        found = numbers(Client(server.port).get("/metrics", accept="*/*").text)
    assert found["events", "stored"] == 0 and not [name for name, *_ in found if name.startswith("outbox")]
