"""What is known of a video so far: the frames that were looked at, their features, and what lies between them.

N frames of a video; n looked at, G = n gaps behind them; D feature size.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videoanomaly.archives.budget import Gaps
from videoanomaly.archives.looking import Look
from videoanomaly.runtime.files import write_atomically
from videoanomaly.video.encoding import Reading
from videoanomaly.video.frame_clock import Damage, Jump


class Seen(NamedTuple):
    """Looks at a video and their features."""

    look: Look  # its `rows` are numbers of rows of `features`
    features: np.ndarray  # (rows, D) or (rows, crops, D), float16
    values: np.ndarray  # (G,) highest p_A in each gap and at its ends; (0,) until it is scored


def compact(features: np.ndarray, look: Look) -> Seen:
    """Without the rows of an attempt that was given up."""
    kept, rows = np.unique(look.rows, return_inverse=True)
    return Seen(look._replace(rows=rows), features[kept], np.zeros(0, np.float32))


def merge(seen: Seen, features: np.ndarray, look: Look) -> Seen:
    """A second look, whose features are those of new frames, with what was seen before."""
    first = seen.look
    before = np.searchsorted(first.frames, look.frames, side="right") - 1
    rows = np.where(look.rows < 0, first.rows[np.maximum(before, 0)], look.rows + len(seen.features))
    frames = np.concatenate([first.frames, look.frames])
    order = np.argsort(frames, kind="stable")
    both = first._replace(frames=frames[order], rows=np.concatenate([first.rows, rows])[order])
    return Seen(both, np.concatenate([seen.features, features]), np.zeros(0, np.float32))


def fill(seen: Seen, stride: int, spacing: int) -> np.ndarray:
    """Features of every spacing-th frame, (rows, ...) float16: linear between frames as near as in a full pass,
    elsewhere those of the nearest one. A mean of two scenes that are seconds apart would be like neither.
    """
    frames, rows = seen.look.frames, seen.look.rows
    at = np.arange(0, len(seen.look.reading.times), spacing)
    before = np.maximum(np.searchsorted(frames, at, side="right") - 1, 0)
    after = np.minimum(before + 1, len(frames) - 1)
    span = frames[after] - frames[before]
    weight = np.clip((at - frames[before]) / np.maximum(span, 1), 0, 1)
    weight = np.where(span > stride, weight > 0.5, weight).astype(np.float32)
    weight = weight.reshape(-1, *[1] * (seen.features.ndim - 1))
    return (seen.features[rows[before]] * (1 - weight) + seen.features[rows[after]] * weight).astype(np.float16)


def missing(look: Look, stride: int) -> np.ndarray:
    """Frames of a full pass that were not looked at, ascending."""
    return np.setdiff1d(np.arange(0, len(look.reading.times), stride), look.frames, assume_unique=True)


def gaps_of(seen: Seen, stride: int) -> Gaps:
    """What filling each gap costs and promises."""
    look = seen.look
    ends = np.stack([look.frames, np.append(look.frames[1:], len(look.reading.times))], axis=1)
    costs = np.diff(np.searchsorted(missing(look, stride), np.append(ends[:, 0], ends[-1, 1])))
    return Gaps(ends, costs, seen.values)


def gap_values(p_A: np.ndarray, look: Look, spacing: int) -> np.ndarray:
    """The highest p_A of rows, (rows,), in each gap and at its ends, (G,)."""
    at = np.minimum(look.frames // spacing, len(p_A) - 1)
    highest = np.maximum.reduceat(p_A, at)
    return np.maximum(highest, np.append(p_A[at[1:]], p_A[-1])).astype(np.float32)


def wanted(look: Look, chosen: np.ndarray, stride: int) -> np.ndarray:
    """The missing frames of some gaps, (G,) bool."""
    frames = missing(look, stride)
    return frames[chosen[np.searchsorted(look.frames, frames, side="right") - 1]]


def save(path: Path, seen: Seen, settings: dict) -> None:
    """Writes it, so that a run that is killed goes on from there."""
    look, reading = seen.look, seen.look.reading
    origin = {
        "settings": settings,
        "header_rate": reading.header_rate,
        "damage": [damage._asdict() for damage in reading.damage],
        "jumps": [jump._asdict() for jump in reading.jumps],
        "may_seek": reading.may_seek,
        "why_whole": look.why_whole,
    }
    arrays = {
        "times": reading.times,
        "frames": look.frames,
        "rows": look.rows,
        "stamps": np.diff(look.stamps, prepend=0),  # as steps they take a tenth of the room
        "keys": look.keys,
        "features": seen.features,
        "values": seen.values,
        "origin": np.array(json.dumps(origin)),
    }
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def restore(path: Path, settings: dict) -> Seen | None:
    """What `save` wrote with the same settings; None without it, or where a byte of it changed."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            origin = json.loads(str(arrays["origin"]))
            if origin["settings"] != settings:
                return None
            places = [Damage(**place) for place in origin["damage"]], [Jump(**jump) for jump in origin["jumps"]]
            reading = Reading(arrays["times"], origin["header_rate"], *places, origin["may_seek"])
            stamps = np.cumsum(arrays["stamps"])
            look = Look(reading, arrays["frames"], arrays["rows"], stamps, arrays["keys"], origin["why_whole"])
            return Seen(look, arrays["features"], arrays["values"])
    except Exception:  # NumPy and zipfile raise many kinds
        return None
