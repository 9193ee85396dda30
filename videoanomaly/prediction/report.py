"""The page of a video (report.html) and the list of several (report_index.html), filled in.

Shapes: N frames of a video, C anomaly classes.
"""

import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes

import numpy as np

from videoanomaly.event_rule import MERGE_GAP, MIN_LENGTH
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction.events import count
from videoanomaly.video.decoding import BROKEN, VideoFile
from videoanomaly.video.frame_clock import clock
from videoanomaly.video.key_frames import KeyFrame

HERE = Path(__file__).parent
EMBEDDED_BYTES = 64 * 2**20  # a larger video is linked, not put into the page
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".ogv": "video/ogg",
}
SPARK_POINTS = 160
INDEX_ROW = """<li class="{{kind}}"><a href="{{link}}/report.html"><span class="picture">{{picture}}</span>
<span class="name">{{name}}</span><span class="facts">{{facts}}</span>{{spark}}<span class="best">{{best}}</span>\
</a></li>"""


def base64_text(data: bytes) -> str:
    """Bytes as base64 in ASCII."""
    return base64.b64encode(data).decode()


def relative_url(path: Path, folder: Path) -> str:
    """A link from a page in `folder` to a file."""
    try:
        return quote_from_bytes(os.fsencode(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()))
    except ValueError:  # Windows: another drive
        return path.absolute().as_uri()


def codec_of(video: Path) -> str:
    """FFmpeg's name of the codec of the pictures."""
    try:
        with VideoFile(video) as file:
            return file.codec
    except BROKEN:
        return "unknown codec"


def video_data(video: Path | None, folder: Path) -> dict | None:
    """What the page plays: the file itself up to a size, else a link to it; nothing of a folder of pictures."""
    if video is None or video.is_dir():
        return None
    kind, size = MEDIA_TYPES.get(video.suffix.lower(), "video/mp4"), video.stat().st_size
    embedded = size <= EMBEDDED_BYTES
    source = f"data:{kind};base64,{base64_text(video.read_bytes())}" if embedded else relative_url(video, folder)
    return {
        "src": source,
        "type": kind,
        "embedded": embedded,
        "bytes": size,
        "codec": codec_of(video),
        "suffix": video.suffix,
    }


def fill(template: str, values: dict[str, str]) -> str:
    """The template with each {{name}} replaced, in one pass: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def script_json(data: Any) -> str:
    """JSON that can stand in a <script> element: no `<`, so nothing in it ends the element."""
    return json.dumps(data).replace("<", "\\u003c")


def script_hash(template: str) -> str:
    """For the page's Content-Security-Policy, so that no script but the template's own runs."""
    script = re.search(r"<script>(.*?)</script>", template, re.S)
    assert script, "the template has a script"
    return f"sha256-{base64_text(hashlib.sha256(script[1].encode()).digest())}"


def page(
    result: dict, scores: FrameScores, video: Path | None, pictures: list[KeyFrame], folder: Path, checkpoint: str
) -> str:
    """report.html: everything in one file, which needs no network.

    Args:
        result: As in events.json.
        scores: Of all frames.
        video: The file, if there is one.
        pictures: Key frames, ascending.
        folder: Where the page will lie.
        checkpoint: Name of the checkpoint, for the reader.
    """
    template = (HERE / "report.html").read_text(encoding="utf-8")
    data = {key: result[key] for key in ("video", "fps", "duration", "threshold", "classes", "notes", "jumps")} | {
        "checkpoint": checkpoint,
        "merge_gap": MERGE_GAP,
        "min_length": MIN_LENGTH,
        "longest_shown": scores.longest_shown,
        "source": video_data(video, folder),
        "p_A": base64_text(scores.p_A.astype("<f4").tobytes()),  # exact, so that the page finds the very same events
        "p_class": base64_text(np.round(scores.p_class * 65535).astype("<u2").tobytes()),
        "times": base64_text(scores.times.astype("<f8").tobytes()),
        "pictures": [{"time": p.time, "src": f"data:image/jpeg;base64,{base64_text(p.jpeg)}"} for p in pictures],
    }
    values = {"title": html.escape(result["video"]), "data": script_json(data), "script": script_hash(template)}
    return fill(template, values | {"events": event_table(result)})


def event_table(result: dict) -> str:
    """The events of a video for readers that run no scripts.

    Args:
        result: As in events.json.
    """
    rows = "\n".join(
        f"<tr><td>{event['start_time'][:-2]} – {event['end_time'][:-2]}</td>"
        f"<td>{html.escape(event['class'].replace('_', ' '))}</td><td>{event['confidence']:.2f}</td></tr>"
        for event in result["events"]
    )
    if not rows:
        return f"<p>No events; the highest p_A is {result['highest_p_A']:.2f}.</p>"
    return f"<table>\n<tr><th>Time</th><th>Class</th><th>Confidence</th></tr>\n{rows}\n</table>"


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


def index_row(name: str, result: dict, out: Path) -> str:
    """The line of a video, whose events.json is `result` and whose files lie in out/name."""
    link, has_events = quote(name, errors="surrogateescape"), bool(result["events"])
    has_picture = (out / name / "key_frame.jpg").is_file()
    values = {
        "name": html.escape(result["video"]),
        "link": link,
        "spark": sparkline(out / name / "scores.npz"),
        "kind": "hit" if has_events else "quiet",
        "facts": f"{clock(result['duration'])[:-4]}, {count(len(result['events']), 'event')}"
        + (", not all of it can be decoded" if result.get("damage") else ""),
        "picture": f'<img src="{link}/key_frame.jpg" alt="" loading="lazy">' if has_picture else "",
        "best": f"highest p_A {result['highest_p_A']:.2f}",
    }
    if has_events:
        best = max(result["events"], key=lambda event: event["confidence"])
        values["best"] = (
            f"<b>{html.escape(best['class'].replace('_', ' '))}</b> {best['confidence']:.2f} "
            f"<small>at {best['start_time'][:-4]}</small>"
        )
    return fill(INDEX_ROW, values)


def index(results: dict[str, dict], failed: dict[str, str], out: Path) -> str:
    """index.html: all videos, that of the surest event first, then those without events by their highest p_A.

    Args:
        results: events.json of each video by name.
        failed: Why each of the others could not be read.
        out: Folder of the page.
    """

    def rank(item: tuple[str, dict]) -> tuple[float, float]:
        return max((event["confidence"] for event in item[1]["events"]), default=0), item[1]["highest_p_A"]

    rows = [index_row(name, result, out) for name, result in sorted(results.items(), key=rank, reverse=True)]
    broken = "".join(f"<li><b>{html.escape(name)}</b> {html.escape(why)}</li>" for name, why in failed.items())
    with_events = sum(bool(result["events"]) for result in results.values())
    return fill(
        (HERE / "report_index.html").read_text(encoding="utf-8"),
        {
            "rows": "\n".join(rows),
            "summary": f"{count(len(results), 'video')}, {with_events} with events",
            "failed": f'<h2>Could not be read</h2><ul class="failed">{broken}</ul>' if failed else "",
        },
    )
