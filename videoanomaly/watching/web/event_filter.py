"""Which events a list shows: the query of an address <-> what the store is asked."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

PAGE = 50  # events at once
MARKS = {"right": "right", "wrong": "wrong", "none": ""}  # as an address names them: as the store does
ID = re.compile(r"[0-9a-f-]{1,40}")
LATEST = 4e9  # seconds since 1970; far away, and a year that every system can show
LONGEST = 100  # characters of a value, and values of a key


class FilterError(ValueError):
    """A query that means nothing, in one line."""


class EventFilter(NamedTuple):
    """All of it; nothing given: all events."""

    cameras: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    since: float | None = None  # seconds since 1970
    until: float | None = None
    starred: bool = False
    mark: str = ""  # of MARKS
    text: str = ""  # part of the comment
    before: str = ""  # the id behind which the list goes on
    limit: int = PAGE

    def arguments(self) -> dict[str, Any]:
        """Of `EventStore.events`."""
        return {
            "cameras": self.cameras,
            "classes": self.classes,
            "since": self.since,
            "until": self.until,
            "starred": self.starred or None,
            "mark": MARKS.get(self.mark),
            "text": self.text,
            "before": self.before or None,
            "limit": self.limit,
        }

    def pairs(self) -> list[tuple[str, str]]:
        """As an address has it, without the place in the list."""
        found = [("camera", name) for name in self.cameras] + [("class", name) for name in self.classes]
        found += [(name, time_text(value)) for name, value in (("since", self.since), ("until", self.until)) if value]
        found += [("starred", "1")] if self.starred else []
        return found + [(name, value) for name, value in (("mark", self.mark), ("text", self.text)) if value]

    def query(self) -> str:
        return urlencode(self.pairs())


def time_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def read_time(name: str, text: str) -> float | None:
    """A time of a form, in UTC unless it tells its zone; None of an empty one."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if not 0 <= seconds < LATEST:
            raise ValueError
        return seconds
    except ValueError:
        raise FilterError(f"{name}: expected a time such as 2026-01-31T18:30, in UTC") from None


def read_filter(pairs: Iterable[tuple[str, str]]) -> EventFilter:
    """The filter of a query; what it does not know is left alone.

    Raises:
        FilterError: If a value means nothing.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if value and len(value) <= LONGEST and len(given.setdefault(name, [])) < LONGEST:
            given[name].append(value)
    last = {name: values[-1] for name, values in given.items()}
    if (mark := last.get("mark", "")) not in ("", *MARKS):
        raise FilterError(f"mark: expected one of {', '.join(MARKS)}")
    if (before := last.get("before", "")) and not ID.fullmatch(before):
        raise FilterError("before: expected the id of an event")
    if not (limit := last.get("limit", str(PAGE))).isdecimal() or not 1 <= int(limit) <= 1000:
        raise FilterError("limit: expected 1 to 1000")
    return EventFilter(
        tuple(given.get("camera", ())),
        tuple(given.get("class", ())),
        read_time("since", last.get("since", "")),
        read_time("until", last.get("until", "")),
        bool(last.get("starred")),
        mark,
        last.get("text", ""),
        before,
        int(limit),
    )
