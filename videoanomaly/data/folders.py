"""Lists out of folders: the folder that a video lies in is its class.

videos/Normal/a.mp4   videos/Fighting/b.mp4   videos/Road accident/cam1/c.mp4   videos/test/Fighting/d.mp4
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from videoanomaly.data.annotations import (
    Annotation,
    Video,
    VideoLists,
    add_intervals,
    classified_video,
    collect,
    label_of,
    read_temporal_of_classes,
    read_videos,
)
from videoanomaly.runtime.console import InputError, count, lookalike, note, reveal, some_of
from videoanomaly.runtime.torchrun import is_main

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
DENIALS = {"no", "non", "not"}
Rows = list[tuple[str, Video]]  # (place for error messages, video)


class Place(NamedTuple):
    """What the folders of a video tell."""

    split: str  # "train" or "test"
    folder: str | None  # whose name is the class; None where the video lies in none
    path: str  # of that folder below the root, or of the video itself


def place_of(name: str) -> Place:
    """Where a video lies, by its path below the root."""
    *folders, _ = name.split("/")
    split = SPLITS.get(folders[0].lower()) if folders else None
    own = folders[: 2 if split else 1]
    has_class = len(own) == (2 if split else 1)
    return Place(split or "train", own[-1] if has_class else None, "/".join(own) if has_class else name)


def is_normal(folder: str) -> bool:
    """Whether a word of the name begins with "normal", in any case, and none denies it.

    So are Normal, normal_videos and Training_Normal_Videos_Anomaly, but not Abnormal, AbNormal or Non-normal.
    """
    words = re.findall(r"[^\W\d_]+", folder.casefold())  # letters
    return any(word.startswith("normal") for word in words) and not DENIALS & {*words}


def class_of(folder: str) -> str:
    """The class that a folder stands for: Normal, or its name with `_` for blanks, which prompts show as blanks."""
    return "Normal" if is_normal(folder) else "_".join(unicodedata.normalize("NFC", folder).split())


def has_lists(root: Path) -> bool:
    """Whether lists beside the videos say which are trained on."""
    return any((root / name).exists() for name in ("train.txt", "classes.txt"))


def folder_lists(root: Path, names: Iterable[str], *, normal_only: bool = False) -> VideoLists:
    """Lists of videos by the folders that they lie in; folders whose classes differ in case alone are one class.

    Test videos are those below `test/` and those of a test.txt; where there is neither, those that
    temporal_annotations.txt names. Anomalous test videos without annotations are left out.

    Args:
        names: Of the videos below the root, as `video.finding.find_videos` gives them.
        normal_only: Whether normal training videos alone will do.
    Raises:
        InputError: If there are not both normal and other training videos, or a list beside the folders makes no sense.
    """
    places = {name: place_of(name) for name in sorted(names)}
    if loose := [name for name, place in places.items() if place.folder is None]:
        tell(f"{root}: left out {count(len(loose), 'video')} that lie in no folder of a class: {some_of(loose)}")
    spelt: dict[str, str] = {}  # class by its letters without case
    labelled = {}
    for name, place in places.items():
        if place.folder is not None:
            labelled[name] = spelt.setdefault((kind := class_of(place.folder)).casefold(), kind)
    classes = sorted(set(labelled.values()) - {"Normal"}, key=str.casefold)
    rows = {
        name: (f"{root}/{name}", Video(name, label_of(str(root), kind, classes))) for name, kind in labelled.items()
    }
    test = {name: row for name, row in rows.items() if places[name].split == "test"} | listed_test(root, classes)
    annotations = read_annotations(root, classes, rows | test)
    test |= {} if test else {name: rows[name] for name in annotations}
    train = [row for name, row in rows.items() if name not in test]
    check_kinds(root, [video.label for _, video in train], len(test), normal_only)
    return collect(classes, train, with_truth(root, list(test.values()), annotations))


def check_kinds(root: Path, labels: list[int], held_out: int, normal_only: bool) -> None:
    """Refuses training videos of one kind alone, unless normal ones will do."""
    behind = f", besides {held_out} for test" if held_out else ""
    if not any(label < 0 for label in labels):
        found = f"{len(labels)} videos in folders of anomalies{behind}" if labels else f"no video in a folder{behind}"
        raise InputError(f"{root}: found {found}, expected a folder named Normal, too, and one for each anomaly")
    if all(label < 0 for label in labels) and not normal_only:
        raise InputError(
            f"{root}: found {len(labels)} normal videos alone{behind}, expected a folder for each anomaly, too; "
            "--normal-only learns from normal videos"
        )


def listed_test(root: Path, classes: list[str]) -> dict[str, tuple[str, Video]]:
    """Rows of test.txt beside the folders, by name; nothing without one."""
    path = root / "test.txt"
    rows = read_videos(path, classified_video, classes) if path.exists() else []
    return {video.name: (where, video) for where, video in rows}


def read_annotations(root: Path, classes: list[str], known: Mapping[str, object]) -> dict[str, Annotation]:
    """What temporal_annotations.txt beside the folders tells, by the whole names of videos; nothing without one.

    Its lines may name a video by its path, by its path below `test/` or by its file name.
    """
    path = root / "temporal_annotations.txt"
    if not path.exists():
        return {}
    by_name: dict[str, list[str]] = {}
    for name in known:
        below = name.partition("/")[2] if name.split("/")[0].lower() in SPLITS else name
        for key in {name, below, PurePosixPath(name).name}:
            by_name.setdefault(key, []).append(name)
    result = {}
    for key, annotation in read_temporal_of_classes(path, classes).items():
        names = by_name.get(key, [])
        if len(names) != 1:
            found = f"{reveal(key)} for {' and '.join(names[:2])}" if names else reveal(key)
            expected = f"the path of one video below {root}"
            raise InputError(f"{annotation.place}: found {found}, expected {expected}{lookalike(key, by_name)}")
        result[names[0]] = annotation
    return result


def with_truth(root: Path, test: Rows, annotations: Mapping[str, Annotation]) -> Rows:
    """The test videos with their intervals: normal ones and annotated ones; none if there is no anomalous one."""
    path, names = root / "temporal_annotations.txt", {video.name for _, video in test}
    if unused := [name for name in annotations if name not in names]:
        tell(f"{path}: the times of {count(len(unused), 'video')} for training are not used: {some_of(unused)}")
    unknown = [v.name for _, v in test if v.label >= 0 and v.name not in annotations]
    if unknown:
        tell(
            f"{path}: found no times of {count(len(unknown), 'video')} for test, left out: {some_of(unknown)}; a line "
            "each, name.mp4 Class first_frame last_frame, would let them be measured"
        )
    rows = [(where, video) for where, video in test if video.name not in unknown]
    if rows and all(video.label < 0 for _, video in rows):
        tell(f"{root}: no anomalous video is left for test, so the {len(rows)} normal ones are left out, too")
        return []
    return add_intervals(path, rows, {name: found for name, found in annotations.items() if name in names})


def tell(text: str) -> None:
    if is_main():
        note(f"note: {text}")
