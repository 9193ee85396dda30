"""Messages on events as rows of the database: written with their event, gone when they were delivered or given up.

One row for each receiver (sink). Rows are read a few at a time, however many wait.
"""

import json
import sqlite3
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from videoanomaly.runtime.console import iso
from videoanomaly.watching.store.database import Database


class Message(NamedTuple):
    """One that waits."""

    sequence: int  # the order in which they were written
    camera: str
    key: str  # the same each time it is sent
    body: dict[str, Any]


def content(event: Mapping[str, Any], kind: str, number: int, page_url: str) -> dict[str, Any]:
    """What is sent.

    Args:
        event: Its row.
        kind: "begin", "update" or "end".
        number: Of the message within the event, from 1.
        page_url: What links begin with; "": there are none.
    """
    best, *others = json.loads(event["classes"])
    found = {
        "kind": kind,
        "id": event["id"],
        "number": number,
        "key": f"{event['id']}:{number}",
        "camera": event["camera"],
        "time": iso(time.time()),
        "start": iso(event["start"]),
        "end": iso(event["end"]) if kind == "end" else None,
        "seen_until": iso(event["end"]),  # of the newest picture that this message knows of
        **best,
        "others": others,
        "confidence": round(event["p_A"], 4),
        "peak": round(event["peak"], 4),
        "peak_time": iso(event["peak_time"]),
        "threshold": event["threshold"],
        "threshold_rule": event["threshold_rule"],
        "model": event["model"],
    }
    if kind == "end":
        found["reason"] = event["reason"]
    if page_url:
        page = f"{page_url.rstrip('/')}/events/{event['id']}"
        found["links"] = {"event": page, "snapshot": f"{page}/snapshot.jpg", "clip": f"{page}/clip.mp4"}
    return found


def write(connection: sqlite3.Connection, id: str, kind: str, sinks: Collection[str], page_url: str) -> None:
    """The messages on a change of an event, in the transaction of the change."""
    connection.execute("UPDATE events SET message_count = message_count + 1 WHERE id = ?", (id,))
    event = connection.execute("SELECT * FROM events WHERE id = ?", (id,)).fetchone()
    body = json.dumps(content(event, kind, event["message_count"], page_url))
    connection.executemany(
        "INSERT INTO messages (sink, camera, event, body, created) VALUES (?, ?, ?, ?, ?)",
        [(sink, event["camera"], id, body, time.time()) for sink in sinks],
    )


def cameras(database: Database, sink: str) -> list[str]:
    """Those of which messages wait for a sink; one step of the index each, however many wait."""
    rows = database.read(
        "WITH RECURSIVE found(camera) AS (SELECT min(camera) FROM messages WHERE sink = ?1 UNION ALL "
        "SELECT (SELECT min(camera) FROM messages WHERE sink = ?1 AND camera > found.camera) FROM found "
        "WHERE camera IS NOT NULL) SELECT camera FROM found WHERE camera IS NOT NULL",
        (sink,),
    )
    return [row["camera"] for row in rows]


def waiting(database: Database, sink: str, camera: str, limit: int) -> list[Message]:
    """The oldest messages of a camera for a sink."""
    rows = database.read(
        "SELECT sequence, camera, body FROM messages WHERE sink = ? AND camera = ? ORDER BY sequence LIMIT ?",
        (sink, camera, limit),
    )
    bodies = [json.loads(row["body"]) for row in rows]
    return [Message(row["sequence"], row["camera"], body["key"], body) for row, body in zip(rows, bodies)]


def marks(values: Collection[object]) -> str:
    """Question marks of a query."""
    return ", ".join("?" * len(values))


def remove(database: Database, sink: str, sequence: int, outcome: str) -> None:
    """Takes away a message that was "delivered" or "given_up", and counts it."""
    with database.writing() as connection:
        connection.execute("DELETE FROM messages WHERE sequence = ? AND sink = ?", (sequence, sink))
        count(connection, sink, outcome)


def count(connection: sqlite3.Connection, sink: str, outcome: str, number: int = 1) -> None:
    connection.execute("INSERT OR IGNORE INTO sinks (name) VALUES (?)", (sink,))
    connection.execute(f"UPDATE sinks SET {outcome} = {outcome} + ? WHERE name = ?", (number, sink))


def give_up(database: Database, age: float, sinks: Collection[str], but: bool = False) -> int:
    """Takes away messages for some sinks, or for all `but` those, that are older than so many seconds.

    A message from the future, written before the clock was set back, is as old as this moment.

    Returns:
        How many there were.
    """
    now, which = time.time(), f"sink {'NOT ' * but}IN ({marks(sinks)})"
    with database.writing() as connection:
        connection.execute("UPDATE messages SET created = ? WHERE created > ?", (now, now))
        old = connection.execute(
            f"SELECT sink, count(*) FROM messages WHERE created < ? AND {which} GROUP BY sink", (now - age, *sinks)
        ).fetchall()
        connection.execute(f"DELETE FROM messages WHERE created < ? AND {which}", (now - age, *sinks))
        for sink, number in old:
            count(connection, sink, "given_up", number)
    return sum(number for _, number in old)


def backlog(database: Database, sinks: Collection[str]) -> dict[str, dict[str, Any]]:
    """What waits and what became of the rest, by sink; `sinks` are there even if they never had a message."""
    found = {sink: {"waiting": 0, "oldest": None, "given_up": 0, "delivered": 0} for sink in sinks}
    for sink, given_up, delivered in database.read("SELECT name, given_up, delivered FROM sinks"):
        found.setdefault(sink, {"waiting": 0, "oldest": None}).update(given_up=given_up, delivered=delivered)
    for sink, number, oldest in database.read("SELECT sink, count(*), min(created) FROM messages GROUP BY sink"):
        found.setdefault(sink, {"given_up": 0, "delivered": 0}).update(waiting=number, oldest=oldest)
    return found
