"""The page of one event: clip, curve, classes, facts, and what somebody says of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from videoanomaly.runtime.console import duration
from videoanomaly.watching.store.event_store import EventStore
from videoanomaly.watching.web.event_list import NORMAL, buttons, verdict
from videoanomaly.watching.web.markup import (
    Html,
    bar,
    curve_chart,
    joined,
    markup,
    moment,
    share,
    shown_name,
    size_text,
    stamped,
)
from videoanomaly.watching.web.page_frame import View, options

LONGEST_COMMENT = 2000  # characters


def recording(event: Mapping[str, Any]) -> Html:
    """Its clip, or its snapshot and why there is no clip."""
    snapshot = f"/events/{event['id']}/snapshot.jpg?{event['peak_time']:.0f}" if event["has_snapshot"] else ""
    if event["clip"]:
        return markup(
            '<video id="clip" controls preload="metadata" playsinline{{poster}} src="/events/{{id}}/clip.mp4"></video>'
            '<p><a href="/events/{{id}}/clip.mp4?download=1" download>Download the clip</a> ({{size}})'
            '<span id="unplayable" hidden>: this browser does not play it</span></p>',
            id=event["id"],
            poster=markup(' poster="{{at}}"', at=snapshot) if snapshot else None,
            size=size_text(event["clip_bytes"]),
        )
    picture = markup('<img src="{{at}}" alt="The moment of the highest p_A">', at=snapshot) if snapshot else None
    why = f"No clip: {event['clip_note']}" if event["clip_note"] else "No clip"
    why = "The clip comes when the event has ended" if event["is_open"] else why
    return markup('<div class="still">{{picture}}</div><p>{{why}}</p>', picture=picture, why=why)


def class_bars(event: Mapping[str, Any]) -> Html:
    return joined(
        markup(
            "<dt>{{name}}</dt><dd>{{bar}} {{p}}</dd>",
            name=shown_name(found["class"]),
            bar=bar(found["p_class"]),
            p=share(found["p_class"]),
        )
        for found in event["classes"]
    )


def event_facts(event: Mapping[str, Any]) -> Html:
    rows: dict[str, object] = {
        "Camera": markup('<a href="/?camera={{name}}#events">{{name}}</a>', name=event["camera"]),
        "Began": moment(event["start"]),
        "Ended": "still going on" if event["is_open"] else moment(event["end"]),
    }
    if not event["is_open"]:
        rows["Length"] = duration(event["end"] - event["start"])
        if event["reason"] not in ("", "ended"):
            rows["End"] = event["reason"]
    rows |= {
        "Mean p_A": share(event["p_A"]),
        "Highest p_A": markup("{{p}} at {{time}}", p=share(event["peak"]), time=moment(event["peak_time"])),
        "Threshold": markup("{{p}} <small>{{rule}}</small>", p=share(event["threshold"]), rule=event["threshold_rule"]),
        "Model (SHA-256)": markup('<span class="hash">{{model}}</span>', model=event["model"][:16]),
    }
    return joined(markup("<dt>{{name}}</dt><dd>{{value}}</dd>", name=name, value=value) for name, value in rows.items())


def label_choice(event: Mapping[str, Any], classes: Iterable[str]) -> Html:
    """What it was instead, for an event that is wrong."""
    chosen = [event["label"] or NORMAL]
    return markup(
        '<p class="label"><label>It was <select form="post" name="label">{{labels}}</select></label> '
        '<label>or a new class <input form="post" name="new_label" maxlength="60" autocomplete="off"></label> '
        '<button form="post" formaction="/events/{{id}}/mark" name="mark" value="wrong" data-focus="label">'
        "Wrong, it was this</button></p>",
        id=event["id"],
        labels=options([NORMAL, *classes], chosen),
    )


def comment_form(event: Mapping[str, Any]) -> Html:
    return markup(
        '<label for="text">Comment</label><textarea id="text" form="post" name="comment" rows="3" maxlength="{{most}}">'
        '\n{{comment}}</textarea><button form="post" formaction="/events/{{id}}/comment" '
        'data-focus="save">Save the comment</button>',
        id=event["id"],
        comment=event["comment"],
        most=LONGEST_COMMENT,
    )


def event_view(store: EventStore, id: str, classes: Iterable[str]) -> View:
    """The parts of an event's page; none if it is gone."""
    event = store.event(id)
    if event is None:
        return {"parts": {"title": stamped(Html('<h2 id="title">This event is gone</h2>'))}}
    now = Html(' <span class="now">now</span>') if event["is_open"] else None
    name = shown_name(event["class"])
    said = verdict(event)
    pieces = {
        "title": markup('<h2 id="title">{{name}} <small>{{camera}}</small>{{now}}</h2>',
                        name=name, camera=event["camera"], now=now),
        "recording": markup('<div id="recording">{{it}}</div>', it=recording(event)),
        "curve": markup('<figure id="curve">{{it}}<figcaption>p_A, 0 to 1, from {{start}} on; the dashed line is the '
                        "threshold</figcaption></figure>", it=curve_chart(event["curve"], event["threshold"]),
                        start=moment(event["curve_start"])),
        "classes": markup('<dl id="classes" class="bars">{{it}}</dl>', it=class_bars(event)),
        "facts": markup('<dl id="facts">{{it}}</dl>', it=event_facts(event)),
        "marks": markup('<div id="marks"><p class="buttons">{{it}} <span>{{said}}</span></p></div>',
                        it=buttons(event, has_words=True), said=said),
        "label": markup('<div id="label">{{it}}</div>', it=label_choice(event, classes)),
        "comment": markup('<div id="comment">{{it}}</div>', it=comment_form(event)),
    }  # fmt: skip
    return {"parts": {key: stamped(piece) for key, piece in pieces.items()}}


def event_body(view: View, older: str | None) -> Html:
    """The page of an event.

    Args:
        older: The id of the event before it.
    """
    next_one = markup('<a href="/events/{{id}}" rel="next">Older event</a>', id=older) if older else None
    return markup(
        '<nav aria-label="Events"><a href="/#events">All events</a> {{next}}</nav>{{title}}<div class="event-page">'
        '<div>{{recording}}{{curve}}</div><div><section aria-label="What somebody says"><h3>Is this right?</h3>'
        "{{marks}}{{label}}{{comment}}</section><h3>Classes (mean probability)</h3>{{classes}}<h3>Event</h3>{{facts}}"
        "</div></div>",
        next=next_one,
        **{key: fragment.html for key, fragment in view["parts"].items()},
    )
