"""All files of a video's results, and index.html over several videos."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from videoanomaly import plots
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction import annotated_video, explain, report
from videoanomaly.prediction.events import count, find_events, to_csv, to_vtt
from videoanomaly.prediction.recogniser import PredictionOptions, Recogniser
from videoanomaly.runtime.console import as_text
from videoanomaly.runtime.files import write_atomically
from videoanomaly.video.encoding import Reading
from videoanomaly.video.finding import size_and_time
from videoanomaly.video.key_frames import key_frames


def result_settings(options: PredictionOptions, recogniser: Recogniser, path: Path) -> dict:
    """What the results of a video depend on; equal settings need no second run."""
    return {
        "checkpoint": recogniser.sha256,
        "event_settings": recogniser.event_settings._asdict(),
        "threshold_rule": recogniser.threshold_rule,
        "frames_per_feature": recogniser.spacing,
        "stride": options.stride or recogniser.spacing,
        "annotate": options.annotate,
        "fps": options.fps,
        "encoder": [options.clip, options.encoder],
        "new_classes": list(options.classes or ()),
        "explain": options.explain,
        "source": [path.name, *size_and_time(path).values()],
    }


def operating(recogniser: Recogniser) -> dict | None:
    """What the threshold did on held-out folds; None if that was not measured, or for other events than these."""
    curve, settings = recogniser.curve, recogniser.event_settings
    if not (curve and settings.is_usual):
        return None
    row = curve.at(settings.threshold)
    low, high = row["false_alarms_per_hour_interval"]
    return row | {
        "false_alarms_per_hour_interval": [low, high if math.isfinite(high) else None]
    }  # JSON has no infinity


def read_result(folder: Path) -> dict | None:
    """The events.json of a finished video; it is written last."""
    try:
        result = json.loads((folder / "events.json").read_text(encoding="utf-8"))
        return result if {"settings", "video", "events"} <= result.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def write_results(
    folder: Path,
    name: str,
    video: Path | None,
    scores: FrameScores,
    recogniser: Recogniser,
    options: PredictionOptions,
    settings: dict,
    read: Reading | None = None,
) -> dict:
    """All files of a video, events.json last; returns what that holds. `read` is what is known of a video file."""
    classes, threshold = recogniser.model.config.classes, recogniser.threshold
    events = find_events(scores, classes, *recogniser.event_settings)
    result = {
        "video": as_text(name),
        "frames": len(scores.times),
        "fps": scores.fps,
        "duration": scores.duration,
        "threshold": threshold,
        "threshold_rule": recogniser.threshold_rule,
        "event_settings": recogniser.event_settings._asdict(),
        "operating": operating(recogniser),
        "highest_p_A": float(scores.p_A.max()),
        "classes": list(classes),
        "events": events,
        "damage": [damage._asdict() for damage in read.damage] if read else [],
        "jumps": [jump._asdict() for jump in read.jumps] if read else [],
        "notes": read.notes() if read else [],
        "new_classes": list(options.classes or ()),
        "settings": settings,
    }
    arrays: dict[str, Any] = {
        "p_A": scores.p_A,
        "p_class": scores.p_class,
        "time": scores.times,
        "classes": np.array(classes),
    }
    write_atomically(folder / "scores.npz", lambda file: np.savez(file, **arrays))
    no_truth = np.zeros(scores.p_class.shape, bool)
    plots.timeline(folder / "timeline.png", name, scores.p_A, scores.p_class, no_truth, classes)
    if options.annotate and video:
        annotated_video.write_video(folder / "annotated.mp4", video, scores, events, classes, threshold)
    pictures = key_frames(video, scores.p_A, scores.times, events, read.may_seek) if video and read else []
    if pictures:
        best = max(pictures, key=lambda picture: picture.score)
        write_atomically(folder / "key_frame.jpg", lambda file: file.write(best.jpeg))
    if options.explain:
        write_explanation(folder, result["video"], scores, recogniser)
    page = report.page(result, scores, video, pictures, folder, Path(options.ckpt).name)
    for file_name, text in (
        ("events.csv", to_csv(events)),
        ("events.vtt", to_vtt(events)),
        ("report.html", page),
        ("events.json", json.dumps(result, indent=1)),
    ):
        write_atomically(folder / file_name, partial(write_text, text=text))
    return result


def write_explanation(folder: Path, video: str, scores: FrameScores, recogniser: Recogniser) -> None:
    config = recogniser.model.config
    segments = explain.driving_segments(scores, config.classes, config.num_frames * recogniser.spacing)
    text = f"{video}: {explain.segments_text(segments)}"
    found = json.dumps({"video": video, "contexts": recogniser.words, "segments": segments}, indent=1)
    for name, content in (
        ("explain.txt", f"{text}\n\n{explain.words_text(recogniser.words or {})}\n"),
        ("explain.json", found),
    ):
        write_atomically(folder / name, partial(write_text, text=content))
    tqdm.write(text)


def write_text(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))  # names of files may hold bytes that are no text


def summary(folder: Path, result: dict) -> str:
    best = max(result["events"], key=lambda event: event["confidence"], default=None)
    found = (
        f"highest {best['class']} {best['confidence']:.2f} at {best['start_time']}"
        if best
        else f"highest p_A {result['highest_p_A']:.2f}"
    )
    return as_text(f"{result['video']}: {count(len(result['events']), 'event')}, {found}; {folder / 'report.html'}")


def write_index(out: Path, results: dict, failed: dict) -> None:
    write_atomically(out / "index.html", partial(write_text, text=report.index(results, failed, out)))
