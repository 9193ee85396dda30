"""The file that `watch.py` reads: TOML -> settings, checked, with secrets from the environment or from files.

A table of the file is one dataclass here, a key one of its fields: what is unknown, of another type or out of range is
told in one line. Wherever a text may stand, so may `{ env = "NAME" }` or `{ file = "PATH" }`, which gives its first
line; fields marked SECRET are never shown. Paths are relative to the file's folder.
"""

import math
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from videoanomaly.event_rule import EVENT_OPTIONS, LOW_SHARE, MERGE_GAP, MIN_LENGTH, check_event_options
from videoanomaly.runtime.addresses import LISTENING, STREAMS, WEBHOOKS, check_address, is_address
from videoanomaly.runtime.console import InputError, as_text
from videoanomaly.runtime.precision import AUTO, check_precision
from videoanomaly.watching.schedule import read_schedule

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # of a camera or webhook: part of topics, files and addresses
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Table = TypeVar("Table")


def option(default: Any = MISSING, least: float | None = None, most: float = math.inf, secret: bool = False) -> Any:
    """A field with its range, for numbers, ends included."""
    return field(default=default, repr=not secret, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class CameraSettings:
    """`[camera.NAME]`"""

    name: str
    url: str = option(secret=True)  # rtsp://, http://, a file, or the number of a camera of this machine
    user: str | None = option(None, secret=True)
    password: str | None = option(None, secret=True)
    threshold: float | None = None
    false_alarms_per_hour: float | None = None
    rows_per_second: float | None = option(None, least=0.01, most=1000)  # at most so many pictures are encoded
    classes: tuple[str, ...] = ()  # that are reported; none given: all
    mask: tuple[tuple[float, float], ...] = ()  # a polygon, (x, y) in [0, 1]; what lies outside is not looked at
    schedule: tuple[str, ...] = ()  # such as "mon-fri 18:00-06:00", local time; none given: always
    reuse_still: bool | None = None  # whether pictures that hardly differ share features; None: as in [events]
    frozen_after: float = option(60.0, least=1)  # seconds of one and the same picture
    recording: bool = True  # clips of events

    @property
    def address(self) -> str:
        """What to open, user and password included."""
        scheme, slashes, rest = self.url.partition("://")
        if self.user is None or not slashes:
            return self.url
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        return f"{scheme}://{quote(self.user, safe='')}{password}@{rest}"


@dataclass(frozen=True)
class EventOptions:
    """`[events]`: as predict.py has them, for every camera that has none of its own."""

    threshold: float | None = None
    false_alarms_per_hour: float | None = None
    hysteresis: float = LOW_SHARE
    merge_gap: float = MERGE_GAP
    min_length: float = MIN_LENGTH
    update_every: float = option(5.0, least=0.5)  # seconds between two messages on an event that goes on
    reuse_still: bool = True  # whether pictures that hardly differ share features
    pre_roll: float = option(5.0, least=0, most=60)  # seconds of a clip before its event
    post_roll: float = option(5.0, least=0, most=60)
    longest_clip: float = option(120.0, least=1, most=3600)  # seconds; the rest of a longer event is not recorded


@dataclass(frozen=True)
class Retention:
    """`[retention]`: what is older or more goes, the oldest first, but never what is starred."""

    days: float = option(30.0, least=0.01)
    gigabytes: float = option(20.0, least=0.001)


@dataclass(frozen=True)
class Page:
    """`[page]`"""

    host: str = "127.0.0.1"
    port: int = option(8080, least=0, most=65535)  # 0: any free one
    token: str | None = option(None, secret=True)
    stale_after: float = option(30.0, least=1)  # seconds without a picture after which /healthz says 503


@dataclass(frozen=True)
class WebhookSettings:
    """`[webhook.NAME]`"""

    name: str
    url: str = option(secret=True)
    token: str | None = option(None, secret=True)  # sent as `Authorization: Bearer`


@dataclass(frozen=True)
class Mqtt:
    """`[mqtt]`"""

    host: str
    port: int = option(1883, least=1, most=65535)
    user: str | None = option(None, secret=True)
    password: str | None = option(None, secret=True)
    tls: bool = False
    ca_file: str | None = None  # by default the system's authorities
    base: str = "videoanomaly"  # first level of all topics
    discovery: str | None = "homeassistant"  # Home Assistant's prefix; "": no discovery


@dataclass(frozen=True)
class Messages:
    """`[messages]`"""

    give_up_after_hours: float = option(168.0, least=0.001)
    page_url: str = ""  # what links to the page begin with, where others reach it elsewhere than at [page]


@dataclass(frozen=True)
class WatchSettings:
    """The whole file."""

    path: Path
    checkpoint: str
    folder: str  # of the database and the clips
    clip: str | None = None  # CLIP weights, as predict.py --clip
    encoder: str | None = None  # FILE.py:CLASS instead; THIS RUNS THE CODE IN THE FILE
    device: str | None = None
    precision: str = AUTO  # one of PRECISIONS
    batch: int = option(32, least=1)  # pictures given to the encoder at once
    fps: float | None = option(None, least=0.1, most=1000)  # of the training videos; None: the camera's own rate
    events: EventOptions = EventOptions()
    retention: Retention = Retention()
    page: Page = Page()
    messages: Messages = Messages()
    mqtt: Mqtt | None = None
    webhooks: tuple[WebhookSettings, ...] = ()
    cameras: tuple[CameraSettings, ...] = ()


TABLES = {"events": EventOptions, "retention": Retention, "page": Page, "messages": Messages, "mqtt": Mqtt}
NAMED = {"camera": ("cameras", CameraSettings), "webhook": ("webhooks", WebhookSettings)}
PATHS = ("checkpoint", "folder", "encoder", "ca_file")  # which are relative to the folder of the file
MAY_BE_PATHS = ("clip", "url")  # which are, where such a file is there


def read_settings(path: str | Path) -> WatchSettings:
    """The settings of a file.

    Raises:
        InputError: One line: the file, the key, what was found and what was expected; never a secret.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a TOML file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        where = re.search(r"\(at [^)]*\)", str(error))  # the rest of the text may hold a secret
        raise InputError(f"{path}: is no TOML {where[0] if where else ''}".rstrip()) from None
    given: dict[str, Any] = {"path": path}
    for name, kind in TABLES.items():
        if name in content:
            given[name] = read_table(f"{path}, [{name}]", kind, as_table(f"{path}, [{name}]", content.pop(name)), path)
    for name, (plural, kind) in NAMED.items():
        tables = as_table(f"{path}, [{name}]", content.pop(name, {}))
        given[plural] = tuple(read_named(path, name, kind, key, value) for key, value in tables.items())
    settings = read_table(str(path), WatchSettings, content, path, given)
    check_settings(settings)
    return settings


def read_named(path: Path, name: str, kind: type[Table], key: str, value: object) -> Table:
    """A table `[camera.KEY]` or `[webhook.KEY]`."""
    where = f"{path}, [{name}.{as_text(key)}]"
    if not NAME.fullmatch(key):
        raise InputError(f"{where}: expected a name of up to 40 letters, digits, - and _, a letter or digit first")
    return read_table(where, kind, as_table(where, value), path, {"name": key})


def as_table(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {kind_of(value)}, expected a table")
    return value


def kind_of(value: object) -> str:
    names = {bool: "true or false", str: "a text", list: "a list", dict: "a table"}
    return names.get(type(value), f"a {type(value).__name__}")


def read_table(
    where: str, kind: type[Table], table: dict[str, Any], path: Path, given: dict[str, Any] | None = None
) -> Table:
    """The dataclass of a table; `given` holds the fields that are not its keys."""
    given = given or {}
    nested = {*TABLES, *(plural for plural, _ in NAMED.values()), "path", "name"} if kind is WatchSettings else {"name"}
    known: dict[str, Field] = {f.name: f for f in fields(kind) if f.name not in nested}  # pyright: ignore
    for key in table.keys() - known.keys():
        raise InputError(f"{where}: found the key {as_text(key)}, expected one of {', '.join(known)}")
    found: dict[str, Any] = {
        key: read_value(f"{where}: {key}", known[key], value, path.parent) for key, value in table.items()
    }
    for name, f in known.items():
        if name not in found and f.default is MISSING:
            raise InputError(f"{where}: {name} is missing")
    for name in found.keys() & {*PATHS, *MAY_BE_PATHS}:
        below = path.parent / Path(found[name]).expanduser()
        if name in PATHS or kind is not WebhookSettings and below.is_file():
            found[name] = str(below)
    return kind(**given, **found)  # pyright: ignore[reportReturnType]


def read_value(where: str, f: Field, value: object, folder: Path) -> object:
    """A key's value as its field has it."""
    kind = str(f.type).removesuffix(" | None") if isinstance(f.type, str) else str(f.type)
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind).removesuffix(" | None")
    if kind == "str" and isinstance(value, dict):
        value = read_secret(where, value, folder)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    readers: dict[str, tuple[type, Callable[[Any], object]]] = {
        "str": (str, str), "int": (int, int), "float": (float, float), "bool": (bool, bool),
    }  # fmt: skip
    if kind.startswith("tuple[str"):
        return read_texts(where, value)
    if kind.startswith("tuple[tuple"):
        return read_polygon(where, value)
    if type(value) is not readers[kind][0]:
        raise InputError(f"{where}: found {kind_of(value)}, expected {kind_of(readers[kind][0]())}")
    if kind in ("int", "float"):
        check_range(where, f, value)
    return value


def check_range(where: str, f: Field, value: Any) -> None:
    least, most = f.metadata.get("least"), f.metadata.get("most", math.inf)
    if not math.isfinite(value) or least is not None and not least <= value <= most:
        upto = "" if most == math.inf else f", at most {most:g}"
        raise InputError(
            f"{where}: found {value:g}, expected {'a number' if least is None else f'at least {least:g}'}{upto}"
        )


def read_secret(where: str, table: dict[str, Any], folder: Path) -> str:
    """The text that `{ env = "NAME" }` or `{ file = "PATH" }` stands for."""
    if len(table) != 1 or not {"env", "file"} & table.keys() or not all(isinstance(v, str) for v in table.values()):
        raise InputError(f'{where}: expected a text, {{ env = "NAME" }} or {{ file = "PATH" }}')
    if "env" in table:
        if table["env"] not in os.environ:
            raise InputError(f"{where}: the environment has no variable {as_text(table['env'])}, expected one")
        return os.environ[table["env"]]
    path = folder / Path(table["file"]).expanduser()
    try:
        return path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise InputError(f"{where}: {path} cannot be read ({reason})") from None


def read_texts(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where}: found {kind_of(value)}, expected a list of texts")
    return tuple(value)


def read_polygon(where: str, value: object) -> tuple[tuple[float, float], ...]:
    points = value if isinstance(value, list) else []
    good = [p for p in points if isinstance(p, list) and len(p) == 2 and all(is_share(x) for x in p)]
    if len(good) < 3 or len(good) < len(points):
        raise InputError(f"{where}: expected at least three points [x, y] in [0, 1], shares of width and height")
    return tuple((float(x), float(y)) for x, y in good)


def is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def check_settings(settings: WatchSettings) -> None:
    """What single keys do not show."""
    path, page = settings.path, settings.page
    check_precision(f"{path}: precision", settings.precision)
    if not settings.cameras:
        raise InputError(f"{path}: found no camera, expected at least one table [camera.NAME]")
    check_events(f"{path}, [events]", settings.events, settings.events)
    for camera in settings.cameras:
        check_camera(f"{path}, [camera.{camera.name}]", camera, settings.events)
    for hook in settings.webhooks:
        check_address(f"{path}, [webhook.{hook.name}]: url", hook.url, WEBHOOKS)
    if page.host not in LOOPBACK and not page.token:
        raise InputError(f"{path}, [page]: {page.host} can be reached by others, expected a token")
    if page.token is not None and len(page.token) < 16:
        raise InputError(f"{path}, [page]: token: found {len(page.token)} characters, expected at least 16")
    if settings.mqtt and re.search(r"[#+\s]|^/|/$|^$", settings.mqtt.base):
        raise InputError(f"{path}, [mqtt]: base: expected levels of a topic without #, + and blanks")


def check_events(where: str, own: CameraSettings | EventOptions, events: EventOptions) -> None:
    """Thresholds and the like, as predict.py takes them."""
    try:
        check_event_options(
            own.threshold, own.false_alarms_per_hour, events.hysteresis, events.merge_gap, events.min_length
        )
    except InputError as error:
        raise InputError(f"{where}: {as_keys(error)}") from None


def as_keys(error: InputError) -> str:
    """What it says, with keys of the file where it names options of predict.py."""
    return re.sub(
        r"--([a-z-]+)", lambda m: key if (key := m[1].replace("-", "_")) in EVENT_OPTIONS else m[0], str(error)
    )


def check_camera(where: str, camera: CameraSettings, events: EventOptions) -> None:
    if is_address(camera.url):
        check_address(f"{where}: url", camera.address, STREAMS, LISTENING)
    check_events(where, camera, events)
    read_schedule(f"{where}: schedule", camera.schedule)
