"""Events in SQLite: what is stored is there after a kill, on a full disk, after the clock went back; and what may go."""

import threading
import time
import uuid

import numpy as np
import pytest

from videoanomaly.watching import event_store, messages
from videoanomaly.watching.event_store import EventStore, NewEvent, Progress

DAY = 86400.0
NOW = 1_790_000_000.0


def progress(end=NOW + 2, name="Fighting", points=5, **changed):
    classes = [
        {"class": name, "p_class": 0.7},
        {"class": "Arson", "p_class": 0.2},
        {"class": "Robbery", "p_class": 0.1},
    ]
    curve = np.linspace(0.25, 0.75, points, dtype=np.float32)
    return Progress(end, classes, 0.5, 0.75, end - 1, curve, end - 2, 2.5)._replace(**changed)


def new_event(camera="yard", start=NOW, **changed):
    return NewEvent(camera, start, progress(start + 2, **changed), "c0ffee", 0.4, "--threshold")


@pytest.fixture
def store(tmp_path):
    store = EventStore(tmp_path)
    store.set_sinks(["hook", "mqtt"], "http://page.example/")
    yield store
    store.close()


def ended(store, camera="yard", start=NOW, clip: bytes | None = None, deliver=True, **changed) -> str:
    """The id of an event that is over."""
    id = store.begin(new_event(camera, start, **changed))
    store.end(id, progress(start + 3, **changed))
    if clip is not None:
        (store.clips / f"{id}.mp4").write_bytes(clip)
        store.set_clip(id, f"{id}.mp4", len(clip))
    if deliver:
        for sink in store.sinks:
            for message in messages.waiting(store.database, sink, limit=1000):
                messages.remove(store.database, sink, message.sequence, "delivered")
    return id


def bodies(store, sink="hook", limit=1000):
    return [message.body for message in messages.waiting(store.database, sink, limit=limit)]


def test_an_event_is_read_as_it_was_stored(store):
    id = store.begin(new_event())
    store.update(id, progress(NOW + 8, "Arson", p_A=np.float32(0.5), peak=np.float32(0.75)))
    assert store.event(id)["is_open"] is True
    store.end(id, progress(NOW + 9, "Robbery"))
    store.set_snapshot(id, b"first")
    store.set_snapshot(id, b"second")
    store.set_clip(id, "yard/x.mp4", 123, "cut")
    assert store.event(id) == {
        "id": id, "camera": "yard", "start": NOW, "end": NOW + 9, "is_open": False, "reason": "ended",
        "class": "Robbery", "p_class": 0.7, "classes": progress(name="Robbery").classes, "p_A": 0.5, "peak": 0.75,
        "peak_time": NOW + 8, "curve": [0.25, 0.375, 0.5, 0.625, 0.75], "curve_start": NOW + 7, "curve_rate": 2.5,
        "model": "c0ffee", "threshold": 0.4, "threshold_rule": "--threshold", "clip": "yard/x.mp4", "clip_bytes": 123,
        "clip_note": "cut", "has_snapshot": True, "starred": False, "comment": "", "mark": None, "label": None,
        "message_count": 3,
    }  # fmt: skip
    assert store.snapshot(id) == b"second"
    with pytest.raises(KeyError):
        store.end(id, progress())  # it has ended: nobody is told twice
    assert len(bodies(store)) == 3


def test_what_people_say_is_stored_and_an_event_that_is_gone_is_told(store):
    id = store.begin(new_event())
    store.set_star(id, True)
    store.set_comment(id, "a cat")
    store.set_mark(id, "wrong", "Normal")
    found = store.event(id)
    assert (found["starred"], found["comment"], found["mark"], found["label"]) == (True, "a cat", "wrong", "Normal")
    store.set_mark(id, None, None)
    assert store.event(id)["mark"] is None
    for call in (store.set_star, store.set_comment):
        with pytest.raises(KeyError):
            call("gone", "x")
    store.set_snapshot("gone", b"x")
    store.set_clip("gone", "x", 1)
    assert store.event("gone") is None and store.snapshot("gone") is None


def test_messages_tell_begin_updates_and_end_with_one_key_each(store):
    id = store.begin(new_event())
    store.update(id, progress(NOW + 5), message=False)
    store.update(id, progress(NOW + 6))
    store.end(id, progress(NOW + 7))
    found = bodies(store)
    assert [(b["kind"], b["number"], b["key"]) for b in found] == [
        ("begin", 1, f"{id}:1"), ("update", 2, f"{id}:2"), ("end", 3, f"{id}:3")
    ]  # fmt: skip
    begin, update, end = found
    assert begin["end"] is None and update["end"] is None and end["end"] == "2026-09-21T14:13:27.000+00:00"
    assert "reason" not in begin and end["reason"] == "ended"
    assert begin["start"] == "2026-09-21T14:13:20.000+00:00" and begin["camera"] == "yard" and begin["id"] == id
    assert (begin["class"], begin["p_class"], [o["class"] for o in begin["others"]]) == (
        "Fighting", 0.7, ["Arson", "Robbery"]
    )  # fmt: skip
    assert begin["links"]["event"] == f"http://page.example/events/{id}"
    assert (begin["model"], begin["threshold"], begin["confidence"]) == ("c0ffee", 0.4, 0.5)
    assert bodies(store, "mqtt") == found
    store.set_sinks(["hook"])
    store.begin(new_event())
    assert "links" not in bodies(store)[-1] and len(bodies(store, "mqtt")) == 3


def test_lists_are_filtered_and_come_page_by_page_newest_first(store):
    ids = [ended(store, f"c{n % 2}", NOW + 100 * n, name=("Arson", "Fighting")[n % 3 == 0]) for n in range(7)]
    store.set_star(ids[1], True)
    store.set_mark(ids[2], "wrong", "Normal")
    assert [e["id"] for e in store.events()] == ids[::-1]
    assert "curve" not in store.events()[0] and store.events()[0]["has_snapshot"] is False
    for wanted, given in (
        (ids[0::2], {"cameras": ["c0"]}),
        (ids, {"cameras": ["c0", "c1"]}),
        ([], {"cameras": ["c2"]}),
        (ids[0::3], {"classes": ["Fighting"]}),
        ([ids[6]], {"classes": ["Fighting"], "cameras": ["c0"], "since": NOW + 300}),
        (ids[3:], {"since": NOW + 300}),
        (ids[2:], {"since": NOW + 203}),  # not over before
        (ids[:4], {"until": NOW + 300}),
        ([ids[1]], {"starred": True}),
        ([ids[0], *ids[2:]], {"starred": False}),
        ([ids[2]], {"mark": "wrong"}),
        ([ids[0], ids[1], *ids[3:]], {"mark": ""}),
    ):
        assert [e["id"] for e in store.events(**given)] == wanted[::-1], given
    pages, before = [], None
    while page := store.events(before=before, limit=3):
        pages.append([e["id"] for e in page])
        before = page[-1]["id"]
    assert pages == [ids[:3:-1], ids[3:0:-1], ids[:1]]


def test_ids_are_uuids_of_version_7_and_grow_also_when_the_clock_goes_back(tmp_path, monkeypatch):
    clock = [time.time()]
    monkeypatch.setattr(event_store.time, "time", lambda: clock[0])
    ids = []
    for step in (0.0, 0.0, 5.0, -3600.0, 0.001, 0.0):
        clock[0] += step
        store = EventStore(tmp_path)  # as after a restart
        ids += [store.begin(new_event(start=clock[0])) for _ in range(3)]
        store.close()
    assert ids == sorted(set(ids)) and len(ids) == 18
    for id in ids:
        assert uuid.UUID(id).version == 7 and uuid.UUID(id).variant == uuid.RFC_4122
    assert uuid.UUID(ids[0]).int >> 80 == int((clock[0] + 3594.999) * 1000)
    many = [event_store.next_id(None)]
    for _ in range(5000):  # more than the 4096 of a millisecond
        many.append(event_store.next_id(many[-1]))
    assert many == sorted(set(many))


def test_a_curve_of_a_day_is_thinned_to_its_highest_points(store):
    curve = np.zeros(100_001, np.float32)
    curve[77_777] = 1
    id = store.begin(NewEvent("c", NOW, progress(curve=curve, curve_rate=15.0), "m", 0.5, "r"))
    found = store.event(id)
    step = 15 / found["curve_rate"]
    assert len(found["curve"]) <= event_store.LONGEST_CURVE and step == pytest.approx(51)
    assert max(found["curve"]) == 1 and found["curve"].index(1) == int(77_777 // step)


def test_an_event_that_a_kill_left_open_is_ended_at_its_last_known_end(store, tmp_path):
    first, second = store.begin(new_event()), store.begin(new_event("door"))
    store.update(second, progress(NOW + 30), message=False)
    store.close()
    again = EventStore(tmp_path)
    again.set_sinks(["hook"])
    assert again.close_open() == [first, second] and again.close_open() == []
    found = again.event(second)
    assert (found["is_open"], found["end"], found["reason"]) == (False, NOW + 30, "interrupted")
    assert [(b["id"], b["kind"], b["number"]) for b in bodies(again)][-2:] == [(first, "end", 2), (second, "end", 2)]
    assert bodies(again)[-1]["reason"] == "interrupted"
    again.close()


def test_a_change_is_heard_of_by_who_waits(store):
    version, heard = store.version, []
    waiter = threading.Thread(target=lambda: heard.append(store.wait_for_change(version, 30)))
    waiter.start()
    store.begin(new_event())
    waiter.join(30)
    assert heard == [store.version] and store.version > version
    assert store.wait_for_change(store.version, 0.01) == store.version
