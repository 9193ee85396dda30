"""Events in SQLite: what is stored is there after a kill, on a full disk, after the clock went back; what may go."""

import json
import os
import random
import signal
import sqlite3
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from tests import children
from tests.stored_events import NOW, new_event, progress, small_disk
from videoanomaly.runtime.console import InputError
from videoanomaly.watching.store import event_store, messages, retention
from videoanomaly.watching.store.database import Database, StoreError
from videoanomaly.watching.store.event_store import MIGRATIONS, EventStore, NewEvent

DAY = 86400.0


@pytest.fixture
def store(tmp_path):
    store = EventStore(tmp_path)
    store.set_sinks(["hook", "mqtt"])
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
            for message in messages.waiting(store.database, sink, camera, 1000):
                messages.remove(store.database, sink, message.sequence, "delivered")
    return id


def bodies(store, sink="hook", limit=1000):
    found = [
        m for c in messages.cameras(store.database, sink) for m in messages.waiting(store.database, sink, c, limit)
    ]
    return [message.body for message in sorted(found)]


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
    store.page_url = "http://page.example/"
    id = store.begin(new_event())
    store.update(id, progress(NOW + 5), message=False)
    store.update(id, progress(NOW + 6))
    store.end(id, progress(NOW + 7))
    found = bodies(store)
    assert [(b["kind"], b["number"], b["key"]) for b in found] == [
        ("begin", 1, f"{id}:1"), ("update", 2, f"{id}:2"), ("end", 3, f"{id}:3")
    ]  # fmt: skip
    begin, update, end = found
    assert begin["end"] is None and update["end"] is None and end["end"] == "2023-11-14T22:13:27.000+00:00"
    assert "reason" not in begin and end["reason"] == "ended"
    assert begin["start"] == "2023-11-14T22:13:20.000+00:00" and begin["camera"] == "yard" and begin["id"] == id
    assert (begin["class"], begin["p_class"], [o["class"] for o in begin["others"]]) == (
        "Fighting", 0.7, ["Arson", "Robbery"]
    )  # fmt: skip
    assert begin["links"]["event"] == f"http://page.example/events/{id}"
    assert (begin["model"], begin["threshold"], begin["confidence"]) == ("c0ffee", 0.4, 0.5)
    assert bodies(store, "mqtt") == found
    store.set_sinks(["hook"])
    store.page_url = ""
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


# ---------------------------------------------------------------- retention


def test_old_events_go_with_their_clips_but_never_what_is_starred_open_or_undelivered(store):
    now = time.time()
    old, starred, waiting, open_, young = (
        ended(store, start=now - 3 * DAY, clip=b"x" * 100),
        ended(store, start=now - 3 * DAY, clip=b"x"),
        ended(store, start=now - 3 * DAY, clip=b"x", deliver=False),
        store.begin(new_event(start=now - 3 * DAY)),
        None,
    )
    for message in messages.waiting(store.database, "hook", "yard", 100):
        if message.body["id"] == open_:
            messages.remove(store.database, "hook", message.sequence, "delivered")
    store.set_star(starred, True)
    young = ended(store, start=now - DAY, clip=b"x", deliver=False)
    events, size = store.prune(2, 1)
    assert events == 1 and 100 < size < 5000
    assert [e["id"] for e in store.events()] == sorted([starred, waiting, open_, young], reverse=True)
    assert {path.stem for path in store.clips.iterdir()} == {starred, waiting, young}
    for table in ("curves", "snapshots"):  # go with their event
        assert not store.database.read(f"SELECT 1 FROM {table} WHERE event = ?", (old,))
    store.set_star(starred, False)
    assert store.prune(2, 1)[0] == 1 and store.prune(2, 1) == (0, 0)
    assert store.event(starred) is None


def test_beyond_the_bytes_the_oldest_go_until_the_rest_fits(store):
    ids = [ended(store, start=NOW + n, clip=b"x" * 100_000) for n in range(6)]
    store.set_star(ids[0], True)
    store.set_snapshot(ids[5], b"x" * 100_000)
    assert store.prune(10**5, 710_000 / 1e9) == (0, 0)
    events, size = store.prune(10**5, 420_000 / 1e9)
    assert events == 3 and 300_000 < size < 310_000
    assert [e["id"] for e in store.events()] == [ids[5], ids[4], ids[0]]
    assert store.prune(10**5, 1e-9)[0] == 2 and [e["id"] for e in store.events()] == [ids[0]]


def test_new_events_take_the_room_of_those_that_went(store):
    sizes = []
    for _ in range(3):
        for n in range(20):
            store.set_snapshot(ended(store, start=NOW + n), os.urandom(50_000))
        store.prune(10**5, 1e-9)
        assert not store.events()
        store.database.read("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append(os.path.getsize(store.folder / "watch.db"))
    assert 10**6 < sizes[0] and sizes[2] <= 1.1 * sizes[0]


def test_clips_that_no_event_names_go_once_they_are_not_being_written(store):
    kept = ended(store, clip=b"x")
    old = time.time() - 2 * retention.STRAY_AGE
    for name in (f"{kept}.mp4", "stray.mp4", "yard/stray.mp4", "yard/named.mp4", "new.mp4"):
        path = store.clips / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        if name != "new.mp4":
            os.utime(path, (old, old))
    store.set_clip(ended(store, start=NOW + 1), "yard/named.mp4", 1)
    store.prune(10**5, 1)
    left = {str(path.relative_to(store.clips)) for path in store.clips.rglob("*.mp4")}
    assert left == {f"{kept}.mp4", "yard/named.mp4", "new.mp4"}


def test_an_event_that_is_starred_while_others_are_removed_keeps_its_clip(store):
    id = ended(store, clip=b"x")
    doomed = retention.choose(store.database, 0, 1)
    assert [event.id for event in doomed] == [id]
    store.set_star(id, True)
    assert retention.remove(store.database, store.clips, doomed) == (0, 0)
    assert store.event(id) and (store.clips / f"{id}.mp4").exists()


# ---------------------------------------------------------------- the file itself


def test_a_database_of_each_earlier_version_is_brought_up_to_date_with_all_it_holds(tmp_path):
    path = tmp_path / "watch.db"
    path.touch()  # as a kill at the first start leaves it
    EventStore(tmp_path).close()
    for version in range(1, len(MIGRATIONS)):
        path.unlink()
        database = Database(path, MIGRATIONS[:version])
        with database.writing() as connection:
            connection.execute(
                "INSERT INTO events (id, camera, start, end, classes, class, p_class, p_A, peak, peak_time, "
                "curve_start, curve_rate, model, threshold, threshold_rule) "
                "VALUES (?, 'yard', 1, 2, ?, 'Arson', 0.5, 0.5, 0.5, 1, 0, 1, 'm', 0.5, 'r')",
                (event_store.next_id(None), json.dumps([{"class": "Arson", "p_class": 0.5}])),
            )
        database.close()
        store = EventStore(tmp_path)
        store.set_sinks(["hook"])
        (id,) = store.close_open()
        assert store.event(id)["class"] == "Arson" and [b["kind"] for b in bodies(store)] == ["end"]
        assert store.database.version() == len(MIGRATIONS)
        store.close()


def test_a_migration_that_fails_changes_nothing(tmp_path):
    path = tmp_path / "x.db"
    Database(path, [["CREATE TABLE a (x)", "INSERT INTO a VALUES (1)"]]).close()
    with pytest.raises(InputError, match="cannot be used"):
        Database(path, [[], ["DROP TABLE a", "CREATE TABLE b (x)", "no SQL"]])
    database = Database(path, [[]])
    assert [row["x"] for row in database.read("SELECT x FROM a")] == [1]
    database.close()


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def make_newer(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_foreign(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name)")
    connection.close()


def break_header(path):
    path.write_bytes(b"no database at all".ljust(4096, b"!"))


def break_middle(path):
    content = bytearray(path.read_bytes())
    assert len(content) > 3 * 4096
    content[2 * 4096 : 3 * 4096] = os.urandom(4096)
    path.write_bytes(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: 3 * 4096 + 100])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (make_newer, "found version 99, expected at most 2: a newer watch.py"),
        (make_foreign, "is a database of another program"),
        (break_header, "is damaged .*expected a whole database.*nothing was deleted. Move it away"),
        (break_middle, "is damaged .*expected a whole database.*nothing was deleted. Move it away"),
        (cut_off, "is damaged .*expected a whole database.*nothing was deleted. Move it away"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_in_one_line_and_left_alone(tmp_path, spoil, message):
    store = EventStore(tmp_path)
    for n in range(20):
        ended(store, start=NOW + n)
    store.close()
    spoil(tmp_path / "watch.db")
    before = all_bytes(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        EventStore(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / "watch.db") in str(caught.value)
    assert all_bytes(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="clips: cannot be made .*expected a folder"):
        EventStore(tmp_path / "file")
    (tmp_path / "watch.db").mkdir()
    with pytest.raises(InputError, match="watch.db: cannot be used"):
        EventStore(tmp_path)


def test_a_full_disk_is_told_and_nothing_that_was_stored_is_lost(tmp_path):
    with small_disk(tmp_path / "small") as place:
        store = EventStore(place)
        store.set_sinks(["hook"])
        ids = [ended(store, clip=b"x" * 200_000)]
        with pytest.raises(StoreError, match="watch.db: cannot be written") as caught:
            for n in range(10_000):
                ids.append(store.begin(new_event(start=NOW + n)))
        assert "\n" not in str(caught.value) and len(ids) > 10
        assert {e["id"] for e in store.events(limit=10**6)} == set(ids)
        assert len(bodies(store, limit=10**6)) == len(ids) - 1
        with pytest.raises(StoreError):
            store.set_snapshot(ids[0], b"x" * 500_000)
        assert store.prune(0.001, 1)[0] == 1  # the clip goes first, and with the room it leaves its event
        id = store.begin(new_event())  # goes on as before
        store.close()
        again = EventStore(place)
        assert {e["id"] for e in again.events(limit=10**6)} == {*ids[1:], id}
        again.close()


# ---------------------------------------------------------------- kills

WRITER = """
import sys
from pathlib import Path
from tests.stored_events import new_event, progress
from videoanomaly.watching.store.event_store import EventStore
store = EventStore(Path(sys.argv[1]))
store.set_sinks(["hook", "mqtt"])
for id in store.close_open():
    print("ended", id, flush=True)
while True:
    ids = [store.begin(new_event(camera)) for camera in ("yard", "door")]
    for id in ids:
        print("begun", id, flush=True)
        store.set_snapshot(id, bytes(50_000))
        store.update(id, progress())
        store.end(id, progress())
        print("ended", id, flush=True)
"""


def test_a_kill_at_any_moment_loses_no_event_that_was_begun_and_leaves_the_database_whole(tmp_path):
    chance, begun, over = random.Random(0), [], []
    for _ in range(12):
        child = children.Child("-c", WRITER, tmp_path)
        lines = [child.stdout.readline()]  # at work from here on
        timer = threading.Timer(chance.uniform(0, 0.3), child.send_signal, [signal.SIGKILL])
        timer.start()
        lines += child.stdout.readlines()
        assert child.wait() == -signal.SIGKILL
        for word, id in (line.split() for line in lines if line.endswith("\n")):
            (begun if word == "begun" else over).append(id)
    store = EventStore(tmp_path)  # looks at the whole file
    store.set_sinks(["hook", "mqtt"])
    over += store.close_open()
    found = {e["id"]: e for e in store.events(limit=10**6)}
    assert len(begun) > 12 and set(begun) <= found.keys() and len(begun) == len(set(begun))
    assert begun == sorted(begun) and not any(e["is_open"] for e in found.values())
    for sink in store.sinks:
        sent = [(b["id"], b["number"], b["kind"]) for b in bodies(store, sink, 10**6)]
        assert len(sent) == len(set(sent))
        for id in found:
            kinds = [(number, kind) for found_id, number, kind in sent if found_id == id]
            assert kinds in ([(1, "begin"), (2, "update"), (3, "end")], [(1, "begin"), (2, "end")])
    store.close()
