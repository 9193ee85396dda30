"""Events in a folder: watch.db holds them, their snapshots and the messages on them; clips/ holds the clips.

An event and its messages are committed before a call returns. A call that cannot be committed, the disk being full,
raises a StoreError, and can be made again as it was.
"""

import json
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videoanomaly.runtime.console import InputError
from videoanomaly.watching.store import messages, retention
from videoanomaly.watching.store.database import Database

LONGEST_CURVE = 2000  # points; a longer one is thinned, so that an event of a day can be stored every few seconds
# the database's history: step n leads from version n to n + 1. A step that was once released is never changed
MIGRATIONS = (
    (
        """CREATE TABLE events (
            id TEXT PRIMARY KEY, camera TEXT NOT NULL, start REAL NOT NULL, end REAL NOT NULL,
            is_open INTEGER NOT NULL DEFAULT 1, reason TEXT NOT NULL DEFAULT '',
            classes TEXT NOT NULL, class TEXT NOT NULL, p_class REAL NOT NULL,
            p_A REAL NOT NULL, peak REAL NOT NULL, peak_time REAL NOT NULL, curve_start REAL NOT NULL,
            curve_rate REAL NOT NULL, model TEXT NOT NULL, threshold REAL NOT NULL, threshold_rule TEXT NOT NULL,
            clip TEXT, clip_bytes INTEGER NOT NULL DEFAULT 0, clip_note TEXT NOT NULL DEFAULT '',
            starred INTEGER NOT NULL DEFAULT 0, comment TEXT NOT NULL DEFAULT '', mark TEXT, label TEXT)""",
        "CREATE INDEX events_by_start ON events (start)",
        "CREATE INDEX open_events ON events (id) WHERE is_open",
        # apart from the events, so that lists need not read past them
        "CREATE TABLE curves (event TEXT PRIMARY KEY REFERENCES events ON DELETE CASCADE, points BLOB NOT NULL)",
        "CREATE TABLE snapshots (event TEXT PRIMARY KEY REFERENCES events ON DELETE CASCADE, jpeg BLOB NOT NULL)",
    ),
    (
        "ALTER TABLE events ADD COLUMN message_count INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE messages (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, camera TEXT NOT NULL, event TEXT NOT NULL,
            body TEXT NOT NULL, created REAL NOT NULL)""",
        "CREATE INDEX messages_by_camera ON messages (sink, camera, sequence)",
        "CREATE INDEX messages_by_event ON messages (event)",
        "CREATE INDEX messages_by_age ON messages (created)",
        """CREATE TABLE sinks (
            name TEXT PRIMARY KEY, delivered INTEGER NOT NULL DEFAULT 0, given_up INTEGER NOT NULL DEFAULT 0)""",
    ),
)
LISTED = "events.*, EXISTS (SELECT 1 FROM snapshots WHERE event = id) AS has_snapshot"
TRUE_OR_FALSE = ("is_open", "starred", "has_snapshot")


class Progress(NamedTuple):
    """What is known of an event at some moment. Times are seconds since 1970."""

    end: float  # so far
    classes: list[dict]  # the three highest, best first: {"class": str, "p_class": float}
    p_A: float  # mean
    peak: float  # highest p_A
    peak_time: float
    curve: np.ndarray  # p_A from curve_start on, (n,), float32
    curve_start: float
    curve_rate: float  # points a second


class NewEvent(NamedTuple):
    """One that begins."""

    camera: str
    start: float  # seconds since 1970
    progress: Progress
    model: str  # SHA-256 of the checkpoint
    threshold: float
    threshold_rule: str  # where it comes from


class EventStore:
    """All events, for any thread.

    Args:
        folder: Where they are; made if need be.
    Raises:
        InputError: If the folder cannot be written, or its database is damaged, of a newer version or not ours.
    """

    def __init__(self, folder: Path):
        self.folder, self.clips = folder, folder / "clips"
        try:
            self.clips.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.clips}: cannot be made ({error.strerror}), expected a folder to write in"
            ) from error
        self.database = Database(folder / "watch.db", MIGRATIONS)
        self.changed, self.version = threading.Condition(), 0  # the version grows with each change
        self.sinks: tuple[str, ...] = ()
        self.page_url = ""  # what links in messages begin with; without there are none

    def set_sinks(self, names: Iterable[str]) -> None:
        """Who gets messages on changes from now on; those that wait for others stay until they are too old."""
        self.sinks = tuple(names)

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that others hear of once it is committed."""
        with self.database.writing() as connection:
            yield connection
        self.wake()

    def wake(self) -> None:
        """Whoever waits for a change looks again."""
        with self.changed:
            self.version += 1
            self.changed.notify_all()

    def wait_for_change(self, version: int, seconds: float) -> int:
        """The version, once it is another than this one, or after so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.version != version, seconds)
            return self.version

    # ---------------------------------------------------------------- the life of an event

    def begin(self, event: NewEvent) -> str:
        """Stores a new event and its messages; its id, which is higher than all before it."""
        with self.changing() as connection:
            id = next_id(connection.execute("SELECT max(id) FROM events").fetchone()[0])
            values = {
                "id": id, "camera": event.camera, "start": event.start, "model": event.model,
                "threshold": event.threshold, "threshold_rule": event.threshold_rule, **columns(event.progress),
            }  # fmt: skip
            sql = f"INSERT INTO events ({', '.join(values)}) VALUES ({messages.marks(values)})"
            connection.execute(sql, tuple(values.values()))
            self.follow(connection, id, event.progress.curve, "begin")
        return id

    def update(self, id: str, progress: Progress, message: bool = True) -> None:
        """What is known of an open event now; without `message` nobody is told."""
        with self.changing() as connection:
            change(connection, id, columns(progress), "AND is_open")
            self.follow(connection, id, progress.curve, "update" if message else None)

    def end(self, id: str, progress: Progress, reason: str = "ended") -> None:
        """Ends an open event."""
        with self.changing() as connection:
            change(connection, id, columns(progress) | {"is_open": 0, "reason": reason}, "AND is_open")
            self.follow(connection, id, progress.curve, "end")

    def follow(self, connection: sqlite3.Connection, id: str, curve: np.ndarray, kind: str | None) -> None:
        """What goes with a change of an event: its curve, and messages."""
        points = thin(np.asarray(curve))[0].astype("<f4").tobytes()
        connection.execute("INSERT OR REPLACE INTO curves VALUES (?, ?)", (id, points))
        if kind:
            messages.write(connection, id, kind, self.sinks, self.page_url)

    def close_open(self) -> list[str]:
        """Ends what a killed program left open, at the last known end, with messages; their ids."""
        with self.changing() as connection:
            ids = [row["id"] for row in connection.execute("SELECT id FROM events WHERE is_open ORDER BY id")]
            for id in ids:
                change(connection, id, {"is_open": 0, "reason": "interrupted"})
                messages.write(connection, id, "end", self.sinks, self.page_url)
        return ids

    def set_snapshot(self, id: str, jpeg: bytes) -> None:
        """The picture at the peak; takes the place of an earlier one. Of an event that is gone nothing is stored."""
        with self.changing() as connection:
            sql = "INSERT OR REPLACE INTO snapshots SELECT id, ? FROM events WHERE id = ?"
            connection.execute(sql, (jpeg, id))

    def set_clip(self, id: str, name: str | None, size: int, note: str = "") -> None:
        """The file below `clips` and its bytes, or why there is none. Of an event that is gone nothing is stored."""
        with self.changing() as connection:
            sql = "UPDATE events SET clip = ?, clip_bytes = ?, clip_note = ? WHERE id = ?"
            connection.execute(sql, (name, size, note, id))

    # ---------------------------------------------------------------- what people say of it; KeyError if it is gone

    def set_star(self, id: str, starred: bool) -> None:
        with self.changing() as connection:
            change(connection, id, {"starred": starred})

    def set_comment(self, id: str, text: str) -> None:
        with self.changing() as connection:
            change(connection, id, {"comment": text})

    def set_mark(self, id: str, mark: str | None, label: str | None) -> None:
        """Whether it is "right" or "wrong", and what it is instead: "Normal" or a class."""
        with self.changing() as connection:
            change(connection, id, {"mark": mark, "label": label})

    # ---------------------------------------------------------------- reading

    def event(self, id: str) -> dict[str, Any] | None:
        """All that is stored of an event but its snapshot; None if it is gone."""
        sql = f"SELECT {LISTED}, points FROM events LEFT JOIN curves ON event = id WHERE id = ?"
        rows = [from_row(row) for row in self.database.read(sql, (id,))]
        for row in rows:
            row["curve"] = np.frombuffer(row.pop("points") or b"", "<f4").tolist()
        return rows[0] if rows else None

    def events(
        self,
        *,
        cameras: Iterable[str] = (),
        classes: Iterable[str] = (),
        since: float | None = None,
        until: float | None = None,
        starred: bool | None = None,
        mark: str | None = None,
        text: str = "",
        before: str | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Newest first, without curves.

        Args:
            cameras, classes: One of these; none given: any.
            since, until: Not over before, not begun after; seconds since 1970.
            mark: "right", "wrong", or "" for events without.
            text: Part of the comment; of A to Z the case does not matter.
            before: The id behind which to go on, that of the last event of the page before.
        """
        wanted: list[tuple[str, tuple]] = []
        for column, names in (("camera", tuple(cameras)), ("class", tuple(classes))):
            wanted += [(f"{column} IN ({messages.marks(names)})", names)] if names else []
        for term, value in (
            ("end >= ?", since), ("start <= ?", until), ("starred = ?", starred), ("ifnull(mark, '') = ?", mark),
            ("instr(lower(comment), lower(?))", text or None), ("id < ?", before),
        ):  # fmt: skip
            wanted += [(term, (value,))] if value is not None else []
        terms = " AND ".join(term for term, _ in wanted) or "1"
        sql = f"SELECT {LISTED} FROM events WHERE {terms} ORDER BY id DESC LIMIT ?"
        return [from_row(row) for row in self.database.read(sql, (*(v for _, vs in wanted for v in vs), limit))]

    def counts(self) -> dict[str, int]:
        """How many events are `stored`, `open`, `starred`, and marked `right` and `wrong`."""
        terms = "count(*), sum(is_open), sum(starred), sum(mark = 'right'), sum(mark = 'wrong')"
        found = self.database.read(f"SELECT {terms} FROM events")[0]
        return {name: value or 0 for name, value in zip(("stored", "open", "starred", "right", "wrong"), found)}

    def snapshot(self, id: str) -> bytes | None:
        rows = self.database.read("SELECT jpeg FROM snapshots WHERE event = ?", (id,))
        return rows[0]["jpeg"] if rows else None

    def backlog(self) -> dict[str, dict[str, Any]]:
        """By sink: how many messages are `waiting`, `oldest` (seconds since 1970), `given_up` and `delivered`."""
        return messages.backlog(self.database, self.sinks)

    def prune(self, days: float, gigabytes: float) -> tuple[int, int]:
        """See `retention.prune`."""
        removed = retention.prune(self.database, self.clips, days, gigabytes)
        if removed[0]:
            self.wake()
        return removed

    def close(self) -> None:
        self.database.close()


def next_id(last: str | None) -> str:
    """A UUID of version 7 (RFC 9562), with the time in front; higher than the last one, also if the clock went back."""
    time_and_count = int(time.time() * 1000) << 12
    if last:
        before = uuid.UUID(last).int
        time_and_count = max(time_and_count, (before >> 80 << 12 | before >> 64 & 0xFFF) + 1)
    milliseconds, count = time_and_count >> 12, time_and_count & 0xFFF
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | count << 64 | 2 << 62 | secrets.randbits(62)))


def thin(curve: np.ndarray) -> tuple[np.ndarray, int]:
    """At most LONGEST_CURVE points, each the highest of so many, the second result."""
    step = -(-len(curve) // LONGEST_CURVE) or 1
    return np.maximum.reduceat(curve, np.arange(0, len(curve), step)) if step > 1 else curve, step


def columns(progress: Progress) -> dict[str, Any]:
    """Of the table of events, but for the curve."""
    numbers = ("end", "p_A", "peak", "peak_time", "curve_start")
    return {name: float(getattr(progress, name)) for name in numbers} | progress.classes[0] | {
        "classes": json.dumps(progress.classes), "curve_rate": progress.curve_rate / thin(progress.curve)[1],
    }  # fmt: skip


def change(connection: sqlite3.Connection, id: str, values: dict[str, Any], condition: str = "") -> None:
    """Sets columns of an event; a KeyError if there is none such."""
    sql = f"UPDATE events SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ? {condition}"
    if not connection.execute(sql, (*values.values(), id)).rowcount:
        raise KeyError(id)


def from_row(row: sqlite3.Row) -> dict[str, Any]:
    """As plain values."""
    found = dict(row) | {name: bool(row[name]) for name in TRUE_OR_FALSE}
    return found | {"classes": json.loads(row["classes"])}
