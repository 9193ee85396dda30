"""The cameras on the page: state, rates, and p_A of the last hour."""

from collections.abc import Mapping, Sequence
from typing import Any

from videoanomaly.watching.board import Board
from videoanomaly.watching.web.markup import Fragment, Html, markup, moment, share, stamped, strip_chart
from videoanomaly.watching.web.page_frame import View

PROBLEMS = {"away", "frozen", "black"}
SILENT = {"starting", "away", "paused"}  # no row comes now


def camera_state(camera: Mapping[str, Any]) -> Html:
    """The state with its time, and why."""
    state = camera["state"]
    kind = "bad" if state in PROBLEMS else "good" if state == "connected" else "idle"
    detail = markup(" ({{detail}})", detail=camera["detail"]) if camera["detail"] else None
    return markup(
        '<p class="state {{kind}}"><b>{{state}}</b> since {{since}}{{detail}}</p>',
        kind=kind,
        state=state,
        since=moment(camera["since"]),
        detail=detail,
    )


def camera_numbers(camera: Mapping[str, Any]) -> Html:
    """Rates and sizes, as far as they are known."""
    facts = []
    if camera["wanted_rows_per_second"] and camera["state"] not in SILENT:
        facts.append(f"{camera['rows_per_second']:.1f} of {camera['wanted_rows_per_second']:.1f} rows/s")
    if camera["width"]:
        facts.append(f"{camera['width']}×{camera['height']} {camera['codec']}".strip())
    if camera["dropped"]:
        facts.append(f"{camera['dropped']:,} row{'s' * (camera['dropped'] != 1)} dropped")
    if camera["reconnects"]:
        facts.append(f"{camera['reconnects']:,} reconnect{'s' * (camera['reconnects'] != 1)}")
    return markup('<p class="facts">{{facts}}</p>', facts=" · ".join(facts)) if facts else Html()


def camera_facts(camera: Mapping[str, Any]) -> Fragment:
    """What changes all the time."""
    event = None
    if camera["event"]:
        event = markup('<a class="now" href="/events/{{id}}">event now</a>', id=camera["event"])
    return stamped(
        markup(
            '<div id="facts-{{name}}" class="about">{{state}}<p class="p_A">p_A <b>{{p_A}}</b> '
            "<small>threshold {{threshold}}</small> {{event}}</p>{{numbers}}</div>",
            name=camera["name"],
            state=camera_state(camera),
            p_A=share(None if camera["state"] in SILENT else camera["p_A"]),
            threshold=share(camera["threshold"]),
            event=event,
            numbers=camera_numbers(camera),
        )
    )


def camera_strip(camera: Mapping[str, Any], strip: Sequence[float | None]) -> Fragment:
    return stamped(
        markup(
            '<div id="strip-{{name}}">{{chart}}</div>',
            name=camera["name"],
            chart=strip_chart(tuple(strip), camera["threshold"]),
        )
    )


def camera_card(camera: Mapping[str, Any], facts: Fragment, strip: Fragment) -> Fragment:
    """The card of a camera; its parts are updated by themselves."""
    name = camera["name"]
    return stamped(
        markup(
            '<li class="camera" data-key="{{name}}"><h3><a href="/?camera={{name}}#events">{{name}}</a></h3>'
            '{{strip}}<p class="axis"><span>1 hour ago</span><span>now</span></p>{{facts}}</li>',
            name=name,
            strip=strip.html,
            facts=facts.html,
        ),
        stamp=f"camera-{name}",
    )


def summary(cameras: Sequence[Mapping[str, Any]]) -> Fragment:
    count, connected = len(cameras), sum(camera["state"] == "connected" for camera in cameras)
    at_work = sum(camera["event"] is not None for camera in cameras)
    words = [f"{count} camera{'s' * (count != 1)}", f"{connected} connected"]
    words += [f"{at_work} with an event now"] if at_work else []
    return stamped(markup('<p id="summary">{{text}}</p>', text=", ".join(words)))


def cameras_view(board: Board) -> View:
    """All cameras."""
    cameras = board.snapshot()
    cards, parts = {}, {"summary": summary(cameras)}
    for camera in cameras:
        name = camera["name"]
        facts, strip = camera_facts(camera), camera_strip(camera, board.strip(name))
        cards[name] = camera_card(camera, facts, strip)
        parts |= {f"facts-{name}": facts, f"strip-{name}": strip}
    return {"cameras": cards, "parts": parts}
