"""The page of a video (report.html), filled in.

Shapes: N frames of a video, C anomaly classes, R rows of scores, each of some frames, G thresholds.
"""

import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np

from videoanomaly.event_rule import LOW_SHARE, MERGE_GAP, MIN_LENGTH
from videoanomaly.frame_scores import FrameScores
from videoanomaly.operating_curve import OperatingCurve
from videoanomaly.video.decoding import BROKEN, VideoFile
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
USUAL_RULE = {"low_share": LOW_SHARE, "merge_gap": MERGE_GAP, "min_length": MIN_LENGTH}
MOST_EXACT = 2**22  # values of p_class that take 16 bits each; of more they take 8
TIME_UNIT = 1e-6  # seconds; times nearer to a regular grid than this are on it


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


def row_spacing(scores: FrameScores) -> int:
    """Frames of a row: scores change at multiples of it alone."""
    changed = (np.diff(scores.p_A) != 0) | (np.diff(scores.p_class, axis=0) != 0).any(axis=1)
    return int(np.gcd.reduce(np.flatnonzero(changed) + 1)) or len(scores.p_A)


def score_data(scores: FrameScores) -> dict:
    """Scores by row, small enough for days of video.

    p_A is exact, so that the page finds the very same events. Of p_class any run of rows sums up to what it should
    within 1 / levels: what one row is rounded by, the next makes up for.
    """
    spacing = row_spacing(scores)
    p_class = np.clip(scores.p_class[::spacing], 0, 1).astype(np.float64)  # (R, C)
    levels = 65535 if p_class.size <= MOST_EXACT else 255
    p_class = np.diff(np.floor(np.cumsum(p_class * levels, axis=0) + 0.5), axis=0, prepend=0)
    return {
        "num_frames": len(scores.p_A),
        "spacing": spacing,
        "p_A": base64_text(scores.p_A[::spacing].astype("<f4").tobytes()),
        "p_class": base64_text(p_class.astype("<u2" if levels > 255 else "u1").tobytes()),
        "p_class_levels": levels,
        "times": time_data(scores.times),
        "longest_shown": scores.longest_shown,
    }


def time_data(times: np.ndarray) -> dict:
    """Times (N,), ascending, as the first and a step where that says it all, else with the steps between them."""
    step = float(times[-1] - times[0]) / max(len(times) - 1, 1)
    since = times - times[0]
    known = {"first": float(times[0]), "step": step}
    if np.abs(since - step * np.arange(len(times))).max() < TIME_UNIT:
        return known
    unit = max(TIME_UNIT, float(np.diff(times).max()) / 2**31)  # a step fits into 32 bits
    steps = np.diff(np.round(since / unit), prepend=0).astype("<u4")
    return known | {"unit": unit, "steps": base64_text(steps.tobytes())}


def curve_data(curve: OperatingCurve | None) -> dict | None:
    """What to expect at each of the G thresholds; no number in it is infinite, which JSON lacks."""
    if curve is None:
        return None
    shown = ("threshold", "false_alarms_per_hour", "false_alarms_per_hour_interval", "found", "found_interval", "named")
    rows = [{name: row[name] for name in shown} for row in map(curve.at, curve.thresholds.tolist())]
    known = {name: getattr(curve, name) for name in ("num_normal", "num_abnormal", "normal_hours")}
    return {"rows": rows, **known}


def page(
    result: dict,
    scores: FrameScores,
    video: Path | None,
    pictures: list[KeyFrame],
    folder: Path,
    checkpoint: str,
    curve: OperatingCurve | None = None,
) -> str:
    """report.html: everything in one file, which needs no network.

    Args:
        result: As in events.json.
        scores: Of all frames.
        video: The file, if there is one.
        pictures: Key frames, ascending.
        folder: Where the page will lie.
        checkpoint: Name of the checkpoint, for the reader.
        curve: What a threshold means on videos that the model has not seen, if that was measured.
    """
    template = (HERE / "report.html").read_text(encoding="utf-8")
    data = {key: result[key] for key in ("video", "fps", "duration", "threshold", "classes", "notes", "jumps")} | {
        **{key: result.get(key) for key in ("threshold_rule", "start_wall", "start_wall_from")},
        "checkpoint": checkpoint,
        "usual_rule": USUAL_RULE,
        "rule": USUAL_RULE | (result.get("event_settings") or {}),
        "curve": curve_data(curve),
        "source": video_data(video, folder),
        "pictures": [{"time": p.time, "src": f"data:image/jpeg;base64,{base64_text(p.jpeg)}"} for p in pictures],
        **score_data(scores),
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
    head = "<th>Time (h:min:s)</th><th>Class</th><th>Confidence (mean p_A over the event, 0 to 1)</th>"
    return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"
