"""The entries of a checkpoint besides its model: types and ranges, looked at once, before anything uses them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from anomalyclip import MOST_CROPS
from videoanomaly.data.annotations import video_name
from videoanomaly.runtime.console import InputError, as_text
from videoanomaly.runtime.precision import NAMES
from videoanomaly.systems.checks import is_name

LONGEST_PATH = 4096  # characters
MOST = 10**9  # frames, epochs, features: no video and no run has as many
CURVE = {*"thresholds false_alarms normal_alarmed found named dispersion num_normal num_abnormal normal_hours".split()}


def is_count(value: Any, least: int = 1, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value <= most


def is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value) <= LONGEST_PATH


def or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def is_encoder(value: Any) -> bool:
    """What meta.json tells of an encoder."""
    checks = {
        "encoder": is_name,
        "weights_sha256": or_none(is_text),
        "dim": is_count,
        "crops": or_none(lambda crops: is_count(crops, 1, MOST_CROPS)),
        "jpeg": or_none(lambda quality: is_count(quality, 1, 100)),
        "precision": lambda value: value in NAMES,
    }
    known = isinstance(value, dict) and {"encoder", "weights_sha256"} <= value.keys()
    return known and all(check(value[name]) for name, check in checks.items() if name in value)


def is_begun(value: Any) -> bool:
    """What is done of an epoch; see NOT_BEGUN."""
    if not (isinstance(value, dict) and {"steps", "sums", "seconds"} <= value.keys()):
        return False
    sums = value["sums"]
    summed = isinstance(sums, dict) and all(isinstance(x, Tensor) or is_number(x) for x in sums.values())
    return summed and is_count(value["steps"], 0) and is_number(value["seconds"], 0)


def is_provenance(value: Any) -> bool:
    """Texts by name that a terminal can show."""
    shown = isinstance(value, dict) and all(is_name(name) for name in value)
    return shown and all(text is None or is_text(text) and as_text(text) == text for text in value.values())


def is_list(value: Any, check: Callable[[Any], bool], size: int | None = None) -> bool:
    """Whether it is a list, of that many where that is given, of what passes the check."""
    return isinstance(value, list) and size in (None, len(value)) and all(map(check, value))


def is_curve(value: Any) -> bool:
    """An `OperatingCurve.to_plain`: ascending thresholds, at least one, and what was counted at each."""
    if not (isinstance(value, dict) and value.keys() == CURVE):
        return False
    thresholds, normal, abnormal = value["thresholds"], value["num_normal"], value["num_abnormal"]
    sized = is_count(normal, 0) and is_count(abnormal, 0) and is_number(value["normal_hours"], 0)
    if not (sized and is_list(thresholds, partial(is_number, least=0, most=1)) and thresholds):
        return False
    G = len(thresholds)
    most = {"false_alarms": MOST, "normal_alarmed": normal, "found": abnormal, "named": abnormal}
    counted = all(is_list(value[name], partial(is_count, least=0, most=limit), G) for name, limit in most.items())
    spread = is_list(value["dispersion"], lambda row: is_list(row, partial(is_number, least=1), G), 4)
    return counted and spread and sorted(thresholds) == thresholds


ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "threshold": (or_none(lambda value: is_number(value, 0, 1)), "a number from 0 to 1"),
    "operating_curve": (or_none(is_curve), "what thresholds did on held-out folds"),
    "epoch": (lambda value: is_count(value, 0), "a count of epochs"),
    "frames_per_feature": (or_none(is_count), "a count of frames"),
    "encoder": (or_none(is_encoder), "what meta.json tells of an encoder"),
    "temporal_encoder": (or_none(is_encoder), "what meta.json tells of an encoder"),
    "clip_sha256": (or_none(is_text), "a hash"),
    "clip_bytes": (or_none(lambda value: is_count(value, 1, 2**50)), "the size of a file"),
    "settings": (lambda value: isinstance(value, dict), "settings by name"),
    "provenance": (is_provenance, "texts by name"),
    "begun": (is_begun, "what is done of an epoch"),
}
SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("features", "temporal_features", "root", "dataset", "clip"), (or_none(is_text), "a text")),
    **dict.fromkeys(("frames_per_feature", "temporal_frames_per_feature"), (or_none(is_count), "a count of frames")),
    "crops": (lambda value: is_count(value, 1, MOST_CROPS), f"a count up to {MOST_CROPS}"),
}
NEEDED = ("root", "features", "temporal_features", "frames_per_feature", "temporal_frames_per_feature", "crops")


def check_entries(checkpoint: dict) -> None:
    """Looks at all that a checkpoint hands out besides its model and its config, which `from_dict` looks at.

    Raises:
        ValueError: With the entry, what was found and what was expected.
    """
    check_all(checkpoint, ENTRIES)
    settings = checkpoint["settings"]
    if missing := [name for name in NEEDED if name not in settings]:
        raise ValueError(f"found settings without {', '.join(missing)}, expected a checkpoint of train.py")
    check_all(settings, SETTINGS)
    check_lists(checkpoint["lists"], checkpoint["config"])


def check_all(values: dict, checks: dict[str, tuple[Callable[[Any], bool], str]]) -> None:
    for name, (check, expected) in checks.items():
        if name in values and not check(values[name]):
            raise ValueError(f"found {name} = {values[name]!a:.60}, expected {expected}")


def check_lists(lists: Any, config: Any) -> None:
    """Videos of a checkpoint as `VideoLists.to_plain` gives them: names, labels and intervals as lists on disk have."""
    if not (
        isinstance(lists, dict) and all(isinstance(lists.get(name), list) for name in ("classes", "train", "test"))
    ):
        raise ValueError("found no lists of classes, train and test, expected a checkpoint of train.py")
    if not isinstance(config, dict) or lists["classes"] != config.get("classes"):
        raise ValueError("found other classes in its lists than in its config, expected the same")
    lengths, names = lists.get("num_frames", {}), set()
    if not (isinstance(lengths, dict) and all(is_count(value, 0) for value in lengths.values())):
        raise ValueError("found num_frames in its lists that are no counts, expected frames by video")
    for video in lists["train"] + lists["test"]:
        if not is_video(video, len(lists["classes"])) or video[0] in names:
            raise ValueError(
                f"found the video {video!a:.80} in its lists, expected a name of its own, label, intervals"
            )
        names.add(video[0])


def is_video(value: Any, num_classes: int) -> bool:
    """[name, label, intervals], where it has several classes also that of each interval: a name below a folder, a class
    or -1, pairs of start and end.
    """
    if not (isinstance(value, list) and len(value) in (3, 4) and is_name(value[0]) and isinstance(value[2], list)):
        return False
    several = value[3] if len(value) == 4 else [0] * len(value[2])
    if not (isinstance(several, list) and len(several) == len(value[2])):
        return False
    if not all(is_count(c, 0, num_classes - 1) for c in several):
        return False
    try:
        video_name("", value[0])
    except InputError:  # it leads outside
        return False
    pairs = all(
        isinstance(p, list) and len(p) == 2 and all(is_count(x, 0) for x in p) and p[0] < p[1] for p in value[2]
    )
    return is_count(value[1], -1, num_classes - 1) and pairs
