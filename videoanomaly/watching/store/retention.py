"""What goes of the stored events when they are old or many: the oldest first, never what somebody may still need."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from videoanomaly.watching.store.database import Database, StoreError
from videoanomaly.watching.store.messages import marks

OVERHEAD = 1000  # bytes of an event besides clip, snapshot and curve
AT_ONCE = 200  # events removed in one transaction
STRAY_AGE = 2 * 3600.0  # seconds; a younger file may be a clip that is still being written
SIZES = f"""
    SELECT id, end, clip, clip_bytes + ifnull((SELECT length(jpeg) FROM snapshots WHERE event = id), 0)
        + ifnull((SELECT length(points) FROM curves WHERE event = id), 0) + {OVERHEAD} AS bytes,
        NOT starred AND NOT is_open AND NOT EXISTS (SELECT 1 FROM messages WHERE event = id) AS may_go
    FROM events"""


class Doomed(NamedTuple):
    """An event that goes."""

    id: str
    clip: str | None
    bytes: int


def prune(database: Database, clips: Path, days: float, gigabytes: float) -> tuple[int, int]:
    """Removes events that ended more than so many days ago, then the oldest until the rest fits into so many gigabytes.

    Events that are starred, open, or have messages waiting stay, whatever that costs. Clips go after their events, so
    that no event names a clip that is not there, but on a disk so full that the database cannot be written; a clip that
    a kill left behind goes as a file that no event names. The database keeps the room of what went for new events.

    Returns:
        How many events, and bytes.
    Raises:
        StoreError: If the disk is full, or the like.
    """
    remove_strays(database, clips)
    doomed = choose(database, days, gigabytes)
    removed = [remove(database, clips, doomed[i : i + AT_ONCE]) for i in range(0, len(doomed), AT_ONCE)]
    return sum(number for number, _ in removed), sum(size for _, size in removed)


def choose(database: Database, days: float, gigabytes: float) -> list[Doomed]:
    """Oldest first."""
    oldest, limit = time.time() - days * 86400, gigabytes * 1e9
    ((total,),) = database.read(f"SELECT ifnull(sum(bytes), 0) FROM ({SIZES})")
    doomed = []
    for row in database.read(
        f"SELECT * FROM ({SIZES}) WHERE may_go AND (end < ? OR ?) ORDER BY id", (oldest, total > limit)
    ):
        if row["end"] < oldest or total > limit:
            doomed.append(Doomed(row["id"], row["clip"], row["bytes"]))
            total -= row["bytes"]
    return doomed


def remove(database: Database, clips: Path, doomed: Sequence[Doomed]) -> tuple[int, int]:
    """A few events, and then their clips; how many, and bytes. One that was starred meanwhile stays."""
    try:
        gone = delete(database, doomed)
    except StoreError:  # on a full disk clips make room for what the database needs
        unlink(clips, doomed)
        gone = delete(database, doomed)
    unlink(clips, gone)
    return len(gone), sum(event.bytes for event in gone)


def delete(database: Database, doomed: Sequence[Doomed]) -> list[Doomed]:
    """Those that went."""
    ids = [event.id for event in doomed]
    with database.writing() as connection:
        sql = f"DELETE FROM events WHERE id IN ({marks(ids)}) AND NOT starred RETURNING id"
        gone = {id for (id,) in connection.execute(sql, ids).fetchall()}
    return [event for event in doomed if event.id in gone]


def unlink(clips: Path, events: Sequence[Doomed]) -> None:
    for event in events:
        if event.clip:
            with suppress(OSError):  # it is tried again as a stray
                (clips / event.clip).unlink(missing_ok=True)


def remove_strays(database: Database, clips: Path) -> None:
    """Files that no event names, but for young ones."""
    files = [path for path in clips.rglob("*") if path.is_file()]
    named = {clips / clip for (clip,) in database.read("SELECT clip FROM events WHERE clip IS NOT NULL")}
    for path in files:
        with suppress(OSError):
            if path not in named and abs(time.time() - path.stat().st_mtime) > STRAY_AGE:
                path.unlink()
