"""What a run writes of all its videos: index.html, events.csv, and the small pictures that the list of events shows.

E events of a video.
"""

import csv
import html
import io
import math
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from videoanomaly.prediction.events import to_csv
from videoanomaly.prediction.report import HERE, fill, script_hash
from videoanomaly.runtime.console import count
from videoanomaly.runtime.files import csv_cell, write_atomically
from videoanomaly.video.frame_clock import clock
from videoanomaly.video.key_frames import NUM_EVENT_PICTURES, KeyFrame

SPARK_POINTS = 160
EVENT_PICTURES = "event_pictures.jpg"  # of a video's surest events, one below the other in the order of time
TILE = (160, 96)  # pixels of each
VIDEO_ROW = """<li class="{{kind}}"><a href="{{link}}/report.html"><span class="picture">{{picture}}</span>
<span class="name">{{name}}</span><span class="facts">{{facts}}</span>{{spark}}<span class="best">{{best}}</span>\
</a></li>"""
EVENT_ROW = """<tr data-time="{{rank}}"><td class="picture">{{picture}}</td><td class="name">{{name}}</td>\
<td><a href="{{link}}">{{when}}</a>{{wall}}</td><td><b>{{class}}</b> {{p_class}}</td>\
<td>{{confidence}}</td></tr>"""


def peaks(p: np.ndarray, num_points: int) -> np.ndarray:
    """The maximum of each of up to num_points equal parts of p, (N,), so that no peak is lost."""
    return np.maximum.reduceat(p, np.linspace(0, len(p), min(num_points, len(p)), endpoint=False).astype(int))


def sparkline(scores_file: Path) -> str:
    """p_A of a scores.npz as a small SVG; nothing without such a file."""
    try:
        with np.load(scores_file, allow_pickle=False) as arrays:
            high = peaks(arrays["p_A"], SPARK_POINTS)
    except (OSError, ValueError, KeyError):
        return ""
    points = " ".join(f"{100 * (i + 0.5) / len(high):.2f},{30 - 28 * p:.1f}" for i, p in enumerate(high))
    return (
        f'<svg class="spark" viewBox="0 0 100 32" preserveAspectRatio="none" aria-hidden="true"><polygon '
        f'points="0,32 {points} 100,32"/><polyline points="{points}"/></svg>'
    )


def pictured(events: list[dict]) -> list[int]:
    """Numbers of the events that have a picture in EVENT_PICTURES, in its order: those that key_frames looks for."""
    surest = sorted(range(len(events)), key=lambda i: -events[i]["confidence"])[:NUM_EVENT_PICTURES]
    return sorted(surest)


def write_event_pictures(folder: Path, events: list[dict], pictures: list[KeyFrame]) -> None:
    """EVENT_PICTURES of a video; an earlier one goes where there are no pictures.

    Args:
        events: As events.find_events gives them.
        pictures: Key frames; an event without one of its own, since the video broke off, takes the nearest.
    """
    if not (events and pictures):
        (folder / EVENT_PICTURES).unlink(missing_ok=True)
        return
    shown = pictured(events)
    sheet = Image.new("RGB", (TILE[0], TILE[1] * len(shown)))
    for k, event in enumerate(events[i] for i in shown):
        inside = [picture for picture in pictures if event["start"] <= picture.time < event["end"]]
        nearest = min(pictures, key=lambda picture: abs(picture.time - event["start"]))
        best = max(inside, key=lambda picture: picture.score, default=nearest)
        sheet.paste(ImageOps.fit(Image.open(io.BytesIO(best.jpeg)), TILE), (0, k * TILE[1]))
    write_atomically(folder / EVENT_PICTURES, lambda file: sheet.save(file, "JPEG", quality=75))


def combined_csv(results: dict[str, dict]) -> str:
    """All events of all videos: the video, the columns of its own events.csv, and a link to its report."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["video", *next(csv.reader([to_csv([])])), "report"])
    for name, result in sorted(results.items()):
        _, *rows = csv.reader(io.StringIO(to_csv(result["events"])))
        for row, event in zip(rows, result["events"]):
            writer.writerow([csv_cell(result.get("path") or result["video"]), *row, report_link(name, event)])
    return file.getvalue()


def report_link(name: str, event: dict) -> str:
    """From the folder of all videos to the time of an event on its page."""
    return f"{quote(name, errors='surrogateescape')}/report.html#t={event['start']:.3f}"


def image(address: str, tile: tuple[int, int] | None = None) -> str:
    """A picture, loaded where it comes into view; with a tile (number, of how many), that one of a sheet."""
    style = f' style="--k:{tile[0]};--n:{tile[1]}"' if tile else ""
    return f'<img src="{address}" alt="" loading="lazy"{style}>'


def video_row(name: str, result: dict, out: Path) -> str:
    """The line of a video, whose events.json is `result` and whose files lie in out/name."""
    link, has_events = quote(name, errors="surrogateescape"), bool(result["events"])
    has_picture = (out / name / "key_frame.jpg").is_file()
    values = {
        "name": html.escape(result["video"]),
        "link": link,
        "spark": sparkline(out / name / "scores.npz"),
        "kind": "hit" if has_events else "quiet",
        "facts": f"{clock(result['duration'])[:-4]}, {count(len(result['events']), 'event')}"
        + (", not all of it can be decoded" if result.get("damage") else "")
        + (f", {covered['share']:.1%} looked at fully" if (covered := result.get("coverage")) else ""),
        "picture": image(f"{link}/key_frame.jpg") if has_picture else "",
        "best": f"highest p_A {result['highest_p_A']:.2f}",
    }
    if has_events:
        best = max(result["events"], key=lambda event: event["confidence"])
        values["best"] = (
            f"<b>{html.escape(best['class'].replace('_', ' '))}</b> {best['confidence']:.2f} "
            f"<small>at {best['start_time'][:-4]}</small>"
        )
    return fill(VIDEO_ROW, values)


def event_rows(name: str, result: dict, out: Path) -> list[dict]:
    """What the lines of a video's events show; "order" sorts them by time."""
    events, link = result["events"], quote(name, errors="surrogateescape")
    shown = pictured(events) if (out / name / EVENT_PICTURES).is_file() else []
    key_frame = image(f"{link}/key_frame.jpg") if (out / name / "key_frame.jpg").is_file() else ""
    rows = []
    for i, event in enumerate(events):
        tile = (shown.index(i), len(shown)) if i in shown else None
        wall = event.get("start_wall")
        when = datetime.fromisoformat(wall) if wall else None
        rows.append(
            {
                "order": (when.timestamp() if when else math.inf, result["video"], event["start"]),  # unknown ones last
                "sure": event["confidence"],
                "picture": image(f"{link}/{EVENT_PICTURES}", tile) if tile else key_frame,
                "name": html.escape(result["video"]),
                "link": html.escape(report_link(name, event)),
                "when": f"{event['start_time'][:-4]} – {event['end_time'][:-4]}",
                "wall": f"<small>{when.isoformat(' ', 'seconds')}</small>" if when else "",
                "class": html.escape(event["class"].replace("_", " ")),
                "p_class": f"{event['p_class']:.2f}",
                "confidence": f"{event['confidence']:.2f}",
            }
        )
    return rows


def covered_text(results: dict[str, dict]) -> str:
    """What share of all videos was looked at fully, by their length; nothing where it is all."""
    total = sum(result["duration"] for result in results.values())
    if not total or not any(result.get("coverage") for result in results.values()):
        return ""
    seen = sum((result.get("coverage") or {"share": 1})["share"] * result["duration"] for result in results.values())
    return f"; {seen / total:.1%} of {total / 3600:.2f} h looked at fully"


def index(results: dict[str, dict], failed: dict[str, str], out: Path) -> str:
    """index.html: all events, the surest first; then all videos, that of the surest event first, then those without
    events by their highest p_A.

    Args:
        results: events.json of each video by name.
        failed: Why each of the others could not be read.
        out: Folder of the page.
    """

    def rank(item: tuple[str, dict]) -> tuple[float, float]:
        return max((event["confidence"] for event in item[1]["events"]), default=0), item[1]["highest_p_A"]

    template = (HERE / "report_index.html").read_text(encoding="utf-8")
    events = [row for name, result in results.items() for row in event_rows(name, result, out)]
    for number, row in enumerate(sorted(events, key=lambda row: row["order"])):
        row["rank"] = str(number)
    events.sort(key=lambda row: -row["sure"])
    videos = [video_row(name, result, out) for name, result in sorted(results.items(), key=rank, reverse=True)]
    broken = "".join(f"<li><b>{html.escape(name)}</b> {html.escape(why)}</li>" for name, why in failed.items())
    with_events = sum(bool(result["events"]) for result in results.values())
    damaged = sum(bool(result.get("damage")) for result in results.values())
    summary = f"{count(len(events), 'event')}; {count(len(results), 'video')}, {with_events} with events"
    rules = {
        f"Threshold {r['threshold']:.4g}: {r['threshold_rule']}." for r in results.values() if "threshold_rule" in r
    }
    return fill(
        template,
        {
            "script": script_hash(template),
            "events": "\n".join(fill(EVENT_ROW, row) for row in events),
            "none": "" if events else "<p>No events.</p>",
            "videos": "\n".join(videos),
            "summary": summary + (f", {damaged} not decoded wholly" if damaged else "") + covered_text(results),
            "trouble": f', <a href="#failed">{len(failed)} could not be read</a>' if failed else "",
            "rule": html.escape(" ".join(sorted(rules))),
            "failed": f'<h2 id="failed">Could not be read</h2><ul class="failed">{broken}</ul>' if failed else "",
        },
    )
