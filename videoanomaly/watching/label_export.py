"""Marked events -> folders of clips by their class, as `train.py --dataset custom --root OUT` takes them.

OUT/Fire/door_20260131T183000Z_ID.mp4   OUT/Normal/yard_20260131T190000Z_ID.mp4
"""

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from videoanomaly.runtime.console import InputError, as_text, note
from videoanomaly.runtime.files import check_inside, write_atomically
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web.markup import utc

NORMAL = "Normal"
LABEL = re.compile(r"[^\W_][\w -]{0,59}")  # the name of a folder on every system
SPLITS = {"train", "training", "test", "testing"}  # folders that train.py takes for something else than a class
ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
EXPORTED = re.compile(rf".+_(?P<id>{ID})\.\w+")
AT_ONCE = 500  # events read


class Exported(NamedTuple):
    """What became of the marked events."""

    written: int  # clips
    there: int  # that an earlier export wrote
    removed: int  # that an earlier export wrote and whose mark is another now
    without_clip: dict[str, str]  # ids of events that have none, and why
    counts: dict[str, int]  # clips now there by class


def as_label(text: str) -> str | None:
    """The class of a label as a folder has it; None where it cannot be one."""
    label = "_".join(unicodedata.normalize("NFC", text).split())
    return label if LABEL.fullmatch(label) and label.casefold() not in SPLITS else None


def class_of_event(event: Mapping[str, Any]) -> str | None:
    """What a marked event shows; "wrong" without a label is Normal."""
    return as_label(event["class"] if event["mark"] == "right" else event["label"] or NORMAL)


def events_of(store: EventStore, mark: str | None) -> Iterator[dict[str, Any]]:
    """All with a mark ("": with none), the newest first."""
    before = None
    while found := store.events(mark=mark, before=before, limit=AT_ONCE):
        yield from found
        before = found[-1]["id"]


def export_labels(store: EventStore, out: Path, tell: Callable[[str], None] = note) -> Exported:
    """Copies the clips of marked events into a folder for each class, and tells what it did.

    It can be repeated: what is there is not written again, a clip whose mark has changed moves, one whose mark was
    taken back goes. Clips of events that the store no longer holds stay, as does whatever else is in the folder.

    Raises:
        InputError: If the folder cannot be written, is that of the store, or another export is at work in it.
    """
    out = Path(out)
    if out.resolve().is_relative_to(store.clips.resolve()) or store.clips.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {as_text(str(out))}: found the folder of the recordings, expected another")
    with lock_folder(out):
        done = export_into(store, out)
    report(done, out, tell)
    return done


def export_into(store: EventStore, out: Path) -> Exported:
    present = exported_files(out)
    marked = [event for mark in ("right", "wrong") for event in events_of(store, mark)]
    wanted, without_clip = wanted_files(store, out, marked)
    removed = 0
    for id in {event["id"] for event in events_of(store, "")} | wanted.keys():
        for path in present.get(id, []):
            if path != wanted.get(id, (None, None))[1]:
                path.unlink(missing_ok=True)
                removed += 1
    written = [copy(source, target) for source, target in wanted.values()]
    counts: dict[str, int] = {}
    for path in sorted(path for paths in exported_files(out).values() for path in paths):
        counts[path.parent.name] = counts.get(path.parent.name, 0) + 1
    return Exported(sum(written), len(written) - sum(written), removed, without_clip, counts)


def exported_files(out: Path) -> dict[str, list[Path]]:
    """What earlier exports wrote, by the id of its event."""
    found: dict[str, list[Path]] = {}
    for path in out.glob("*/*"):
        if match := EXPORTED.fullmatch(path.name):
            found.setdefault(match["id"], []).append(path)
    return found


def wanted_files(
    store: EventStore, out: Path, marked: list[dict[str, Any]]
) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """Clips and where they go, by the id of their event; and why others have none."""
    wanted, missing = {}, {}
    for event in marked:
        label, clip = class_of_event(event), store.clips / event["clip"] if event["clip"] else None
        if label is None:
            missing[event["id"]] = f"{event['label'] or event['class']} cannot be the name of a folder"
        elif clip is None or not clip.is_file():
            missing[event["id"]] = event["clip_note"] or ("the event goes on" if event["is_open"] else "it has no clip")
        else:
            check_inside(clip, store.clips)
            name = f"{event['camera']}_{utc(event['start']):%Y%m%dT%H%M%SZ}_{event['id']}{clip.suffix}"
            wanted[event["id"]] = clip, out / label / name
    return wanted, missing


def copy(source: Path, target: Path) -> bool:
    """Whether it had to be written; clips do not change, so one of the same size is the same."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return False
    with open(source, "rb") as file:
        write_atomically(target, lambda copied: shutil.copyfileobj(file, copied))
    return True


def report(done: Exported, out: Path, tell: Callable[[str], None]) -> None:
    classes = ", ".join(f"{count} of {name}" for name, count in sorted(done.counts.items())) or "none"
    changed = f", {done.removed} removed whose mark has changed" if done.removed else ""
    tell(f"{out}: {done.written} clips written, {done.there} were there{changed}; now {classes}")
    for id, why in sorted(done.without_clip.items()):
        tell(f"event {id}: left out, {why}")
