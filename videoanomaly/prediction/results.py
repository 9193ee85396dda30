"""All files of a video's results, and of several videos."""

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from videoanomaly import plots
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction import annotated_video, explain, report, report_index
from videoanomaly.prediction.events import FIELDS, find_events, to_csv, to_vtt
from videoanomaly.prediction.recogniser import LoadedCheckpoint, PredictionOptions
from videoanomaly.runtime.console import InputError, as_text, count
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.precision import FULL
from videoanomaly.runtime.provenance import provenance
from videoanomaly.video.decoding import BROKEN, VideoFile
from videoanomaly.video.encoding import Reading
from videoanomaly.video.finding import size_and_time
from videoanomaly.video.frame_clock import Damage, Jump
from videoanomaly.video.key_frames import key_frames
from videoanomaly.video.wall_clock import Start, find_start, read_start, read_zone

EXPLANATIONS = ("explain.txt", "explain.json")
PICTURES = ("key_frame.jpg", report_index.EVENT_PICTURES, "timeline.png")
SIDE_FILES = ("events.json", "annotated.mp4", *PICTURES, *EXPLANATIONS)


def result_settings(options: PredictionOptions, recogniser: LoadedCheckpoint, path: Path) -> dict[str, dict]:
    """What the results of a video depend on: equal settings need no second run, equal ones of scores no encoder."""
    scores = {
        "checkpoint": recogniser.sha256,
        "frames_per_feature": recogniser.spacing,
        "stride": options.stride or recogniser.spacing,
        "fps": options.fps,
        "encoder": [options.clip, options.encoder],
        "new_classes": list(options.classes or ()),
        "source": [path.name, *size_and_time(path).values()],
    }
    if recogniser.precision != FULL:  # older results tell none
        scores["precision"] = recogniser.precision
    events = {
        "event_settings": recogniser.event_settings._asdict(),
        "threshold_rule": recogniser.threshold_rule,
        "start_time": options.start_time,
        "time_zone": options.time_zone,
        "annotate": options.annotate,
        "explain": options.explain,
    }
    return {"scores": scores, "events": events}


def operating(recogniser: LoadedCheckpoint) -> dict | None:
    """What the threshold did on held-out folds; None if that was not measured, or for other events than these."""
    curve, settings = recogniser.curve, recogniser.event_settings
    return curve.at(settings.threshold) if curve and settings.is_usual else None


def read_result(folder: Path) -> dict | None:
    """The events.json of a finished video; it is written last."""
    try:
        result = json.loads((folder / "events.json").read_text(encoding="utf-8"))
        known = {"settings", "video", "events"} <= result.keys() and isinstance(result["settings"], dict)
        return result if known else None
    except (OSError, ValueError, AttributeError):
        return None


def check_owner(folder: Path, path: Path, settings: dict[str, dict]) -> None:
    """Refuses to overwrite the results of another video: of another place, and another name, size or time of change.

    Raises:
        InputError: If that is what `folder` holds.
    """
    result = read_result(folder) or {"settings": settings}
    of_scores = result["settings"].get("scores", result["settings"])  # older results tell no path
    source, theirs = settings["scores"]["source"], of_scores.get("source") or [None]
    found = result.get("path", theirs[0])
    if theirs != source and found not in (os.path.abspath(path), *([path.name] if "path" not in result else [])):
        raise InputError(
            f"{folder}: found the results of {found}, expected none or those of {path}; --force overwrites them, "
            "another --out keeps them"
        )


def find_start_of(path: Path, is_video: bool, duration: float, options: PredictionOptions) -> Start | None:
    """When a video, or that of features, began, if something tells."""
    zone = read_zone(options.time_zone) if options.time_zone else None
    if options.start_time:
        return read_start(options.start_time, zone)
    tags = {}
    if is_video and path.is_file():
        with suppress(*BROKEN), VideoFile(path) as file:
            tags = file.container.metadata
    changed = size_and_time(path)["mtime_ns"] / 1e9
    return find_start(Path(os.path.abspath(path)).as_posix(), tags, duration, changed, zone)


def kept_scores(
    folder: Path, settings: dict[str, dict], recogniser: LoadedCheckpoint
) -> tuple[FrameScores, Reading] | None:
    """What an earlier run with the same settings of scores found; None without one, or where a byte of it changed."""
    if settings["events"]["explain"] and not (folder / "explain.json").is_file():
        return None
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
            origin = json.loads(str(arrays["origin"]))
            if origin["settings"] != settings["scores"]:
                return None
            scores = FrameScores(arrays["p_A"], arrays["p_class"], arrays["time"], 0.0)
        places = [Damage(**place) for place in origin["damage"]], [Jump(**jump) for jump in origin["jumps"]]
        read = Reading(scores.times, origin["header_rate"], *places, origin["may_seek"])
        shapes = [values.shape for values in scores[:3]]
        N, C = len(scores.times), len(recogniser.model.config.classes)
        return (scores._replace(fps=read.fps), read) if shapes == [(N,), (N, C), (N,)] else None
    except Exception:  # NumPy and zipfile raise many kinds
        return None


def coverage(settings: dict, scores: FrameScores) -> dict | None:
    """What of a video was looked at fully: its share of the frames and the times; None where that is all of it.

    Args:
        settings: Of scores, as `result_settings` gives them; a triage adds which frames it filled.
    """
    if "triage" not in settings:
        return None
    stretches = settings["triage"]["frames"]
    frames = sum(behind - first for first, behind in stretches)
    times = [[float(scores.times[first]), float(scores.ends[behind - 1])] for first, behind in stretches]
    return {"share": frames / len(scores.times), "times": times}


def coverage_note(found: dict) -> str:
    """A line on it."""
    return f"{found['share']:.1%} of it was looked at fully, the rest only here and there"


def write_scores(folder: Path, scores: FrameScores, classes: tuple[str, ...], origin: dict) -> None:
    """scores.npz: what else is written can be made from it and the video without an encoder."""
    arrays: dict[str, Any] = {
        "p_A": scores.p_A,
        "p_class": scores.p_class,
        "time": scores.times,
        "classes": np.array(classes),
        "origin": np.array(json.dumps(origin)),
    }
    write_atomically(folder / "scores.npz", lambda file: np.savez(file, **arrays))


def remove_stale(folder: Path, kept: set[str]) -> None:
    """What an earlier run wrote and this one may not write over; events.json first, so that a kill leaves no mixture
    that looks finished.
    """
    for name in SIDE_FILES:
        if name not in kept:
            (folder / name).unlink(missing_ok=True)


def write_results(
    folder: Path,
    name: str,
    path: Path,
    scores: FrameScores,
    recogniser: LoadedCheckpoint,
    options: PredictionOptions,
    settings: dict[str, dict],
    read: Reading | None = None,
    again: bool = False,
) -> dict:
    """All files of a video, events.json last; returns what that holds.

    Args:
        path: The video, or its features.
        settings: As `result_settings` gave them before the file was read.
        read: What is known of a video file; None of features.
        again: The scores are those of the folder's scores.npz.
    """
    video = path if read else None
    classes, threshold = recogniser.model.config.classes, recogniser.threshold
    events = find_events(scores, classes, *recogniser.event_settings)
    start = find_start_of(path, bool(read), scores.duration, options)
    for event in events:
        event |= {f"{end}_wall": start and start.iso(event[end]) for end in ("start", "end")}
    reading = {
        "damage": [damage._asdict() for damage in read.damage] if read else [],
        "jumps": [jump._asdict() for jump in read.jumps] if read else [],
    }
    covered = coverage(settings["scores"], scores)
    result = {
        "video": as_text(name),
        "frames": len(scores.times),
        "fps": scores.fps,
        "duration": scores.duration,
        "threshold": threshold,
        "threshold_rule": recogniser.threshold_rule,
        "event_settings": recogniser.event_settings._asdict(),
        "operating": operating(recogniser),
        "start_wall": start and start.iso(),
        "start_wall_from": start and start.told_by,
        "highest_p_A": float(scores.p_A.max()),
        "classes": list(classes),
        "fields": FIELDS,
        "events": events,
        **reading,
        "coverage": covered,
        "notes": (read.notes() if read else []) + ([coverage_note(covered)] if covered else []),
        "new_classes": list(options.classes or ()),
        "precision": recogniser.precision,
        "path": os.path.abspath(path),
        "settings": settings,
        "provenance": result_provenance(options, recogniser),
    }
    remove_stale(folder, {"timeline.png", *(EXPLANATIONS if options.explain else ())} if again else set())
    if not again:
        seen = {"header_rate": read.header_rate, "may_seek": read.may_seek} if read else {}
        write_scores(folder, scores, classes, {"settings": settings["scores"], **reading, **seen})
    if not (folder / "timeline.png").is_file():
        no_truth = np.zeros(scores.p_class.shape, bool)
        plots.timeline(folder / "timeline.png", name, scores.p_A, scores.p_class, no_truth, classes)
    if options.annotate and video:
        annotated_video.write_video(folder / "annotated.mp4", video, scores, events, classes, threshold)
    pictures = key_frames(video, scores.p_A, scores.times, events, read.may_seek) if video and read else []
    if pictures:
        best = max(pictures, key=lambda picture: picture.score)
        write_atomically(folder / "key_frame.jpg", lambda file: file.write(best.jpeg))
    report_index.write_event_pictures(folder, events, pictures)
    if scores.likelihood is not None:
        write_explanation(folder, result["video"], scores, recogniser)
    page = report.page(result, scores, video, pictures, folder, Path(options.ckpt).name, recogniser.curve)
    for file_name, text in (
        ("events.csv", to_csv(events)),
        ("events.vtt", to_vtt(events)),
        ("report.html", page),
        ("events.json", json.dumps(result, indent=1)),
    ):
        write_atomically(folder / file_name, partial(write_text, text=text))
    return result


def result_provenance(options: PredictionOptions, recogniser: LoadedCheckpoint) -> dict[str, str | None]:
    """What made a result: the checkpoint and this program."""
    of_file = {"checkpoint": as_text(Path(options.ckpt).name), "checkpoint_sha256": recogniser.sha256}
    return of_file | provenance(options.command, recogniser.checkpoint["encoder"])


def write_explanation(folder: Path, video: str, scores: FrameScores, recogniser: LoadedCheckpoint) -> None:
    config = recogniser.model.config
    segments = explain.driving_segments(scores, config.classes, config.num_frames * recogniser.spacing)
    text = f"{video}: {explain.segments_text(segments)}"
    fields = {
        "segments": "seconds and frames as in events.json; likelihood, p_class and p_A are means over the segment"
    }
    found = {"video": video, "fields": fields, "contexts": recogniser.words, "segments": segments}
    for name, content in (
        ("explain.txt", f"{text}\n\n{explain.words_text(recogniser.words or {})}\n"),
        ("explain.json", json.dumps(found, indent=1)),
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
    """events.csv and index.html of all videos of this run."""
    for name, text in (
        ("events.csv", report_index.combined_csv(results)),
        ("index.html", report_index.index(results, failed, out)),
    ):
        write_atomically(out / name, partial(write_text, text=text))
