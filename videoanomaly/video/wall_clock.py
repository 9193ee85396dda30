"""When a recording began, by --start-time, by its file's name or by what the file tells of itself; else nobody knows.

What is doubtful is not guessed: half a date, two that differ, days that were not, clocks that were never set, hours
that a zone has twice or not at all.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

from videoanomaly.runtime.console import InputError

DATE = r"(?<!\d)((?:19|20)\d\d)[-_.]?(\d\d)[-_.]?(\d\d)"
STAMP = re.compile(  # 2024-05-01_12.00.00, 20240501120000, 2024_0501_120000, 20240501_120000123, 2024-05-01T12-00-00Z
    DATE + r"(\ at\ |[T_\ .-]{0,3})(\d\d)[-_.:]?(\d\d)[-_.:]?(\d\d)(?:[.,]?(\d{3}|\d{6}))?(?!\d)"
    r"(Z(?![A-Z0-9])|[+-]\d\d:?\d\d(?!\d))?(?![\ _]?[AP]\.?M(?![A-Z]))",
    re.IGNORECASE,
)
BETWEEN = re.compile(r"\s*[-_~]\s*|[\s_]?to[\s_]?", re.IGNORECASE)  # the start and the end of a recording in its name
SUFFIX = re.compile(r"\.(?:[a-z]\w{0,4}|26[45])$", re.IGNORECASE)
EPOCH = (  # seconds or milliseconds since 1970: the whole name, Frigate's clips, Xiaomi's and UniFi's files
    re.compile(r"(\d{10}|\d{13})(?:\.\d{1,6})?"),
    re.compile(r".*-(\d{10})\.\d{1,6}-[0-9a-z]+"),
    re.compile(r"\d\dM\d\dS_(\d{10})"),
    re.compile(r".*_rotating_(\d{13})"),
)
FOLDERS = (  # recorders whose folders tell the date, with the zone of their names
    (re.compile(r".*/(20\d\d)-(\d\d)-(\d\d)/(?:[^/]+/){0,4}(\d\d)\.(\d\d)\.(\d\d)-[\d.]{8}\[[^/]*"), None),  # Dahua
    (re.compile(r".*/(20\d\d)-(\d\d)-(\d\d)/(\d\d)/[^/]+/(\d\d)\.(\d\d)\.mp4"), UTC),  # Frigate
    (re.compile(r".*" + r"/(\d\d)" * 6 + r"/[^/]+"), None),  # ZoneMinder
)
FIRST_YEAR = 2001  # clocks that were never set begin in 1904, 1970, 1980 or 2000
LONGEST = timedelta(days=1)  # from the start in a name to the end in it
APPLE, CREATED = "com.apple.quicktime.creationdate", "creation_time"
SHORTEST_CHECK, SAME = 60.0, 2.0  # seconds; see `recorded_at`
FARTHEST, QUARTER, CLOSE = 14 * 3600, 900, 10  # seconds; see `agree`


class Start(NamedTuple):
    """When a recording began."""

    time: datetime  # with its zone
    zone: tzinfo | None  # in which times are shown; None is this machine's
    told_by: str

    def iso(self, seconds: float = 0.0) -> str:
        """ISO 8601 with zone, so many seconds later."""
        later = self.time.astimezone(UTC) + timedelta(seconds=seconds)
        return later.astimezone(self.zone).isoformat(timespec="milliseconds")


def read_zone(text: str) -> tzinfo:
    """Of Europe/Berlin, or of +02:00; an InputError if it is none."""
    try:
        if re.fullmatch(r"[+-]\d\d:?\d\d", text) and (zone := datetime.strptime(text, "%z").tzinfo):
            return zone
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise InputError(f"--time-zone {text}: expected a zone such as Europe/Berlin, UTC or +02:00") from None


def read_start(text: str, zone: tzinfo | None) -> Start:
    """What --start-time tells; an InputError if it is no time, or one that the zone has twice or not at all."""
    try:
        time = datetime.fromisoformat(text) if re.search(r"\d[T ]\d", text) else None
    except ValueError:
        time = None
    if time is None or not 1971 <= time.year <= 9000:
        raise InputError(
            f"--start-time {text}: expected a time such as 2024-05-01T12:00:00 or 2024-05-01T12:00:00+02:00"
        )
    if start := with_zone(time, zone, "--start-time"):
        return start
    raise InputError(
        f"--start-time {text}: that night the clocks change; expected a zone with it, such as {text}+02:00"
    )


def with_zone(time: datetime, zone: tzinfo | None, told_by: str) -> Start | None:
    """A time without a zone is one of `zone`, None this machine's; None where that has it twice or not at all."""
    if time.tzinfo:
        return Start(time, zone or time.tzinfo, told_by)
    folds = [time.replace(fold=fold) for fold in (0, 1)]
    early, late = (fold.replace(tzinfo=zone) if zone else fold.astimezone() for fold in folds)
    whose = "the zone of --time-zone" if zone else "this machine's zone"
    return Start(early, zone, f"{told_by}, in {whose}") if early.utcoffset() == late.utcoffset() else None


def is_likely(time: datetime) -> bool:
    """Whether a clock that was set can have shown it."""
    return time.year >= FIRST_YEAR and time.replace(tzinfo=time.tzinfo or UTC) < datetime.now(UTC) + timedelta(days=1)


def made_time(parts: Iterable[str], fraction: str = "", zone: tzinfo | None = None) -> datetime | None:
    """Of year, month, day, hour, minute and second in digits; None if there is no such time."""
    year, *others, second = map(int, parts)
    month, day, hour, minute = others
    try:
        return datetime(year + 2000 * (year < 100), month, day, hour, minute, second, int(fraction.ljust(6, "0")), zone)
    except ValueError:
        return None


def stamp_time(match: re.Match, name: str) -> datetime | None:
    """Of a match of STAMP; None if it is doubtful."""
    *date, gap, hour, minute, second, fraction, zone = match.groups()
    if zone and zone[0] == "-" and gap.upper() != "T":  # a channel, or a zone?
        if re.fullmatch(r"-(0[1-9]|1[0-2]):?[03]0", zone):
            return None
        zone = None
    try:
        offset = UTC if name.startswith("PXL_") else zone and datetime.strptime(zone.upper(), "%z").tzinfo
    except ValueError:
        return None
    return made_time([*date, hour, minute, second], fraction or "", offset or None)


def name_time(path: str) -> datetime | None:
    """The time in the name of a file, or in the folders of some recorders; None without one, or if it is doubtful.

    Without a zone it is that of the recorder's clock.

    Args:
        path: With its folders, "/" between them.
    """
    name = SUFFIX.sub("", path.rpartition("/")[2])
    matches = list(STAMP.finditer(name))
    times = [time for match in matches if (time := stamp_time(match, name))]
    if not matches:
        found = epoch_time(name) or folder_time(path)
        return found if found and is_likely(found) else None
    if len(times) < len(matches) or not all(map(is_likely, times)) or not is_range(name, matches, times):
        return None
    days = {made_time([*date, "0", "0", "0"]) for date in re.findall(DATE + r"(?!\d)", STAMP.sub("", name))} - {None}
    return times[0] if days <= {datetime(*times[0].timetuple()[:3])} else None


def is_range(name: str, matches: list[re.Match], times: list[datetime]) -> bool:
    """Whether it is one time, or a recording's start and its end."""
    if len(times) == 1:
        return True
    between = name[matches[0].end() : matches[-1].start()]
    together = len(times) == 2 and BETWEEN.fullmatch(between) and len({time.tzinfo for time in times}) == 1
    return bool(together) and timedelta(0) <= times[1] - times[0] <= LONGEST


def epoch_time(name: str) -> datetime | None:
    """Of the seconds since 1970 in a name that is made of them."""
    for pattern in EPOCH:
        if match := pattern.fullmatch(name):
            return datetime.fromtimestamp(int(match[1]) / (1000 if len(match[1]) == 13 else 1), UTC)
    return None


def folder_time(path: str) -> datetime | None:
    for pattern, zone in FOLDERS:
        if match := pattern.fullmatch(path):
            return made_time(match.groups(), zone=zone)
    return None


def tagged_time(text: str | None) -> datetime | None:
    """Of a tag of a file; None without one, or without a zone, or if it is doubtful."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo and is_likely(time) else None


def recorded_at(tags: Mapping[str, str], duration: float, changed: float) -> tuple[datetime, str] | None:
    """What a file tells of its start.

    Apple's date has the zone of the camera. The plain creation time of MP4 and the like is the start for some writers,
    the end, the local time or that of a later cut for others: it counts where the file was changed last just its length
    later, and so was written while it was recorded.
    """
    if dated := tagged_time(tags.get(APPLE)):
        return dated, "the file's creation date"
    created = tagged_time(tags.get(CREATED))
    if created and duration >= SHORTEST_CHECK and abs(created.timestamp() + duration - changed) <= SAME:
        return created, "the file's creation time, from which on it was written"
    return None


def find_start(
    path: str, tags: Mapping[str, str], duration: float, changed: float, zone: tzinfo | None = None
) -> Start | None:
    """When a recording began, if that is beyond doubt.

    Args:
        path: Of the file, with its folders, "/" between them.
        tags: That the file holds.
        duration: Seconds.
        changed: When the file was changed last, seconds since 1970.
        zone: Of names that tell none, and in which times are shown; None is this machine's.
    """
    named, told = name_time(path), recorded_at(tags, duration, changed)
    if told:
        return with_zone(told[0], zone, told[1]) if not named or agree(named, told[0]) else None
    return with_zone(named, zone, "file name") if named else None


def agree(named: datetime, told: datetime) -> bool:
    """Whether a name can tell the same time as a file; one without a zone is some quarters of an hour off UTC."""
    apart = (named.replace(tzinfo=named.tzinfo or UTC) - told).total_seconds()
    if not named.tzinfo and abs(apart) <= FARTHEST:
        apart -= QUARTER * round(apart / QUARTER)
    return abs(apart) <= CLOSE
