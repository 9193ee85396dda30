"""Scores of frames -> events with names and times, and the files that hold them: JSON, CSV and subtitles.

Shapes: N frames of a video, C anomaly classes.
"""

import csv
import html
import io
from collections.abc import Sequence

import numpy as np

from videoanomaly.event_rule import EventSettings, cut_events, highest_classes
from videoanomaly.frame_scores import FrameScores
from videoanomaly.runtime.files import csv_cell
from videoanomaly.video.frame_clock import clock

CSV_COLUMNS = (
    "start_seconds",
    "end_seconds",
    "start_frame",
    "end_frame_exclusive",
    "start_hms",
    "end_hms",
    "class",
    "p_class",
    "confidence_mean_p_A",
    "second",
    "p_second",
    "third",
    "p_third",
    "start_wall_iso8601",
    "end_wall_iso8601",
)
CONFIDENCE = "mean p_A over the event"
FIELDS = {  # what events.json says of itself
    "start, end": "seconds from the start of the video; end is when the event's last frame ends",
    "start_frame, end_frame": "half-open: the first frame of the event, from 0, and the one behind its last",
    "start_time, end_time": "start and end as hh:mm:ss.mmm",
    "start_wall, end_wall": "time of day, ISO 8601 with zone; null where nothing tells when the video began",
    "confidence": CONFIDENCE,
    "p_class": "mean probability of the class over the event",
    "coverage": "share of the frames that were looked at fully and when, seconds; null: all of them",
    "merge_gap, min_length": "seconds",
}


def find_events(scores: FrameScores, classes: Sequence[str], *settings: float) -> list[dict]:
    """Events of p_A in the order of time, as plain values; `settings` are the fields of an EventSettings.

    Returns:
        Of each event: start, end (seconds), start_frame, end_frame (first frame and the one behind the last),
        start_time, end_time (hh:mm:ss.mmm), class (highest mean p_class), p_class (that mean), confidence (mean p_A)
        and others, the next two classes with their mean p_class.
    """
    ends, result = scores.ends, []
    rule = EventSettings(*settings)
    limits = {"merge_gap": rule.merge_gap, "min_length": rule.min_length}
    found = cut_events(scores.p_A, scores.fps, high=rule.threshold, low=rule.low, **limits)
    for (first, behind), confidence in zip(found.intervals.tolist(), found.scores.tolist()):
        means = scores.p_class[first:behind].mean(axis=0, dtype=np.float64)  # (C,)
        best, *others = highest_classes(means, classes)
        start, end = float(scores.times[first]), float(ends[behind - 1])
        result.append(
            {
                "start": start,
                "end": end,
                "start_frame": first,
                "end_frame": behind,
                "start_time": clock(start),
                "end_time": clock(end),
                **best,
                "confidence": confidence,
                "others": others,
            }
        )
    return result


def to_csv(events: list[dict]) -> str:
    """CSV_COLUMNS of each event; empty cells where there are fewer than three classes."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for event in events:
        others = [value for other in event["others"] for value in (csv_cell(other["class"]), f"{other['p_class']:.4f}")]
        writer.writerow(
            [
                f"{event['start']:.3f}",
                f"{event['end']:.3f}",
                event["start_frame"],
                event["end_frame"],
                event["start_time"],
                event["end_time"],
                csv_cell(event["class"]),
                f"{event['p_class']:.4f}",
                f"{event['confidence']:.4f}",
                *others,
                *[""] * (4 - len(others)),
                event.get("start_wall") or "",
                event.get("end_wall") or "",
            ]
        )
    return file.getvalue()


def to_vtt(events: list[dict]) -> str:
    """Subtitles (WebVTT): name and confidence of the event that is on, first frame to end of the last."""
    cues = [f"WEBVTT\n\nNOTE A cue ends when the last frame of its event ends. Percentage: {CONFIDENCE}.\n"]
    for number, event in enumerate(events, 1):
        name = html.escape(" ".join(event["class"].split()), quote=False)  # a blank line would end the cue
        cues.append(f"{number}\n{event['start_time']} --> {event['end_time']}\n{name} {event['confidence']:.0%}\n")
    return "\n".join(cues)
