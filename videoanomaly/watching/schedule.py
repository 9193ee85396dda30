"""When a camera is looked at: lines such as "mon-fri 18:00-06:00", in the machine's local time."""

import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import NamedTuple

from videoanomaly.runtime.console import InputError, as_text

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LINE = re.compile(r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?(?P<start>[\d:]{4,5})-(?P<end>[\d:]{4,5})")


class Hours(NamedTuple):
    """From `start` to `end` on some days; the end is the next day's where it is not later."""

    days: frozenset[int]  # 0: Monday; on which it starts
    start: time
    end: time

    def __contains__(self, moment: datetime) -> bool:
        now, today, yesterday = moment.time(), moment.weekday(), (moment - timedelta(days=1)).weekday()
        if self.start < self.end:
            return today in self.days and self.start <= now < self.end
        return today in self.days and now >= self.start or yesterday in self.days and now < self.end


def read_schedule(where: str, lines: Sequence[str]) -> tuple[Hours, ...]:
    """The hours of some lines.

    Raises:
        InputError: If one is of another form.
    """
    return tuple(read_line(where, line) for line in lines)


def read_line(where: str, line: str) -> Hours:
    found = LINE.fullmatch(line.strip().lower())
    try:
        if not found:
            raise ValueError
        first, last = found["first"] or "mon", found["last"] or found["first"] or "sun"
        start, end = (DAYS.index(day) for day in (first, last))
        days = frozenset((start + i) % 7 for i in range((end - start) % 7 + 1))
        return Hours(days, read_time(found["start"]), read_time(found["end"]))
    except ValueError:
        expected = 'expected such as "mon-fri 18:00-06:00" or "08:00-20:00"'
        raise InputError(f"{where}: found {as_text(line)!r}, {expected}") from None


def read_time(text: str) -> time:
    """24:00 is the end of the day."""
    hours, minutes = map(int, text.split(":"))
    return time(hours % 24 if (hours, minutes) == (24, 0) else hours, minutes)


def is_open(schedule: Sequence[Hours], moment: datetime) -> bool:
    """Whether a camera is looked at; without hours always."""
    return not schedule or any(moment in hours for hours in schedule)
