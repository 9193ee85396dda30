"""Pieces of HTML: whatever is put into one is escaped, unless it is HTML already; times, small charts, sizes.

A `Fragment` is a piece that a browser may hold already: its stamp tells whether it still is what the server would send.
"""

import html
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from videoanomaly.prediction.report_index import peaks

CURVE_POINTS = 400  # of an event; more cannot be told apart
STRIP_HEIGHT, CURVE_HEIGHT = 40, 160


class Html(str):
    """Text that is HTML already."""


class Fragment(NamedTuple):
    """A piece that has one element around it."""

    html: Html
    stamp: str  # another one where the piece is another; also that element's data-stamp


def markup(template: str, **values: object) -> Html:
    """The template with each {{name}} replaced, in one pass; what is no `Html` is escaped, None is nothing."""

    def put(match: re.Match) -> str:
        value = values[match[1]]
        return value if isinstance(value, Html) else "" if value is None else html.escape(str(value))

    return Html(re.sub(r"\{\{(\w+)\}\}", put, template))


def joined(pieces: Iterable[Html]) -> Html:
    return Html("".join(pieces))


def stamped(piece: Html, stamp: str | None = None) -> Fragment:
    """A piece with its stamp; one of its own where it has to be sent again for other reasons than its text."""
    stamp = f"{zlib.crc32(piece.encode('utf-8', 'replace')):x}" if stamp is None else stamp
    return Fragment(Html(re.sub(r"\A<\w+", lambda m: f'{m[0]} data-stamp="{html.escape(stamp)}"', piece)), stamp)


def shown_name(name: str) -> str:
    """A class as texts show it."""
    return name.replace("_", " ")


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def moment(seconds: float) -> Html:
    """A time since 1970 in UTC; page.js turns it into the viewer's local time."""
    time = utc(seconds)
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC")
    return markup('<time datetime="{{time}}">{{shown}}</time>', time=time.isoformat(timespec="seconds"), shown=shown)


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def share(value: float | None) -> str:
    """A p_A or p_class to read."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def bar(value: float) -> Html:
    """A share in [0, 1] as a bar; the number stands beside it."""
    width = f"{100 * min(max(value, 0.0), 1.0):.1f}"
    return markup(
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="all" width="100" height="4"/><rect class="part" width="{{width}}" height="4"/></svg>',
        width=width,
    )


@lru_cache(maxsize=512)  # it changes every ten seconds, and is asked for every second
def strip_chart(values: tuple[float | None, ...], threshold: float) -> Html:
    """The last hour of a camera as one thin bar a step; what reaches the threshold has another colour."""
    known = [(x, value) for x, value in enumerate(values) if value is not None]

    def bars(kind: str, those: list[tuple[int, float]]) -> Html:
        path = "".join(f"M{x} {STRIP_HEIGHT}v-{max(value * STRIP_HEIGHT, 0.5):.1f}" for x, value in those)
        return markup('<path class="{{kind}}" d="{{path}}"/>', kind=kind, path=path) if those else Html()

    highest = max((value for _, value in known), default=None)
    label = "no row was scored in the last hour" if highest is None else f"highest p_A of the last hour: {highest:.2f}"
    return markup(
        '<svg class="strip" viewBox="-0.5 0 {{width}} {{height}}" preserveAspectRatio="none" role="img" '
        'aria-label="{{label}}">{{low}}{{high}}<path class="threshold" d="M-0.5 {{y}}h{{width}}"/></svg>',
        width=max(len(values), 1),
        height=STRIP_HEIGHT,
        label=label,
        low=bars("low", [(x, value) for x, value in known if value < threshold]),
        high=bars("high", [(x, value) for x, value in known if value >= threshold]),
        y=f"{(1 - threshold) * STRIP_HEIGHT:.1f}",
    )


def curve_chart(curve: Sequence[float], threshold: float) -> Html:
    """p_A of an event as a line, with its threshold; nothing of an event without a curve."""
    points = np.nan_to_num(np.asarray(curve, np.float32))
    if not len(points):
        return Html()
    high = peaks(points, CURVE_POINTS)
    step = 1000 / len(high)
    line = " ".join(f"{(i + 0.5) * step:.1f},{(1 - value) * CURVE_HEIGHT:.1f}" for i, value in enumerate(high))
    return markup(
        '<svg class="curve" viewBox="0 0 1000 {{height}}" preserveAspectRatio="none" role="img" '
        'aria-label="p_A of the event, at most {{most}}"><polygon points="{{left}},{{height}} {{line}} {{right}},'
        '{{height}}"/><polyline points="{{line}}"/><path class="threshold" d="M0 {{y}}h1000"/></svg>',
        height=CURVE_HEIGHT,
        most=share(float(points.max())),
        left=f"{0.5 * step:.1f}",
        right=f"{1000 - 0.5 * step:.1f}",
        line=line,
        y=f"{(1 - threshold) * CURVE_HEIGHT:.1f}",
    )
