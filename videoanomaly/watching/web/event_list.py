"""The list of events on the page, its filter, and the buttons that each event has.

Buttons stand outside of forms and name the one form of their page, `post`, which alone holds the session's token: so a
piece of HTML is the same for every viewer and can be sent to all of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from videoanomaly.runtime.console import duration
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web.event_filter import EventFilter
from videoanomaly.watching.web.markup import Fragment, Html, joined, markup, moment, share, shown_name, stamped, utc
from videoanomaly.watching.web.page_frame import View, icon, options, static

NORMAL = "Normal"


def when(event: Mapping[str, Any]) -> Html:
    """Begin and length."""
    length = "still going on" if event["is_open"] else duration(event["end"] - event["start"])
    return markup('{{start}}<span class="length">, {{length}}</span>', start=moment(event["start"]), length=length)


def thumbnail(event: Mapping[str, Any]) -> Html:
    if not event["has_snapshot"]:
        return Html('<span class="picture"></span>')
    return markup(
        '<span class="picture"><img src="/events/{{id}}/thumbnail.jpg?{{peak}}" alt="" loading="lazy" width="320" '
        'height="180"></span>',
        id=event["id"],
        peak=f"{event['peak_time']:.0f}",
    )


def button(
    event: Mapping[str, Any], field: str, value: str, glyph: str, label: str, is_pressed: bool, word: str
) -> Html:
    """One that keeps pressed, and sends `value`, or nothing to take that back.

    Args:
        label: What it does, for those who do not see it.
        word: Beside its picture; "": none.
    """
    return markup(
        '<button form="post" formaction="/events/{{id}}/{{path}}" name="{{field}}" value="{{value}}" '
        'class="mark {{glyph}}{{named}}" aria-pressed="{{pressed}}" aria-label="{{label}}" title="{{label}}" '
        'data-focus="{{glyph}}">{{icon}}{{word}}</button>',
        id=event["id"],
        path="star" if field == "starred" else field,
        field=field,
        value="" if is_pressed else value,
        pressed="true" if is_pressed else "false",
        label=label,
        glyph=glyph,
        named=" named" if word else "",
        icon=icon(glyph),
        word=word,
    )


def buttons(event: Mapping[str, Any], has_words: bool = False) -> Html:
    """Star, right, wrong; a second press takes it back."""
    name = shown_name(event["class"])
    rows = [
        ("starred", "1", "star", "Star", event["starred"]),
        ("mark", "right", "right", f"Right: {name}", event["mark"] == "right"),
        ("mark", "wrong", "wrong", f"Wrong: not {name}", event["mark"] == "wrong"),
    ]
    return joined(button(event, *row, row[2].capitalize() if has_words else "") for row in rows)


def verdict(event: Mapping[str, Any]) -> str:
    """What somebody said of the event."""
    if event["mark"] != "wrong":
        return "marked right" if event["mark"] == "right" else ""
    return f"marked wrong: {shown_name(event['label'] or NORMAL)}"


def event_row(event: Mapping[str, Any]) -> Fragment:
    comment = markup('<p class="comment">{{text}}</p>', text=event["comment"]) if event["comment"] else None
    said = verdict(event)
    return stamped(
        markup(
            '<li class="event{{open}}" data-key="{{id}}">{{picture}}<div class="what"><p class="class">'
            '<a href="/events/{{id}}" data-focus="open"><b>{{class}}</b></a> {{p_class}}{{now}}</p>'
            '<p><span class="place">{{camera}}</span>{{when}}</p>'
            '<p class="facts">p_A {{p_A}} on average, {{peak}} at its highest{{said}}</p>'
            '{{comment}}</div><div class="buttons">{{buttons}}</div></li>',
            **{
                "open": " open" if event["is_open"] else "",
                "id": event["id"],
                "picture": thumbnail(event),
                "class": shown_name(event["class"]),
                "p_class": share(event["p_class"]),
                "now": Html(' <span class="now">now</span>') if event["is_open"] else None,
                "camera": event["camera"],
                "when": when(event),
                "p_A": share(event["p_A"]),
                "peak": share(event["peak"]),
                "said": f" · {said}" if said else "",
                "comment": comment,
                "buttons": buttons(event),
            },
        )
    )


def events_view(store: EventStore, wanted: EventFilter) -> View:
    """The events of a filter, the newest first, and what stands below them."""
    events = store.events(**wanted.arguments())
    more = events[-1]["id"] if len(events) == wanted.limit else ""
    links = []
    if wanted.before:
        links.append(markup('<a href="/?{{query}}#events">Newest events</a>', query=wanted.query()))
    if more:
        query = urlencode([*wanted.pairs(), ("before", more)])
        links.append(markup('<a href="/?{{query}}#events" rel="next">Older events</a>', query=query))
    text = "" if events else "No event fits this filter." if wanted.pairs() else "No events yet."
    below = markup('<p id="more">{{text}} {{links}}</p>', text=text, links=Html(" · ".join(links)))
    return {"events": {event["id"]: event_row(event) for event in events}, "parts": {"more": stamped(below)}}


def filter_form(wanted: EventFilter, cameras: Iterable[str], classes: Iterable[str]) -> Html:
    """The form of the filter: a plain GET."""
    times = {"since": wanted.since, "until": wanted.until}
    return markup(
        static("filter.html"),
        cameras=options(cameras, wanted.cameras, "all"),
        classes=options(classes, wanted.classes, "all"),
        marks=options(["right", "wrong", "none"], [wanted.mark] if wanted.mark else [], "all"),
        starred=Html(" checked" if wanted.starred else ""),
        text=wanted.text,
        **{name: utc(value).strftime("%Y-%m-%dT%H:%M") if value else "" for name, value in times.items()},
        all=Html('<a href="/#events">All events</a>') if wanted.pairs() else None,
    )


def overview(cameras: View, events: View, form: Html) -> Html:
    """Cameras and the list of events."""
    return markup(
        '{{summary}}<section aria-labelledby="h-cameras"><h2 id="h-cameras">Cameras</h2><ul id="cameras">{{cards}}</ul>'
        '</section><section aria-labelledby="h-events"><h2 id="h-events">Events</h2>{{form}}'
        '<ol id="events">{{rows}}</ol>{{more}}<p class="keys" id="keys" hidden><kbd>j</kbd> next, <kbd>k</kbd> '
        "previous event, <kbd>Enter</kbd> opens it; <kbd>s</kbd> star, <kbd>r</kbd> right, <kbd>w</kbd> wrong</p>"
        "</section>",
        summary=cameras["parts"]["summary"].html,
        cards=joined(card.html for card in cameras["cameras"].values()),
        form=form,
        rows=joined(row.html for row in events["events"].values()),
        more=events["parts"]["more"].html,
    )
