"""The annotation lists of each data set, in the layouts in which they are distributed."""

import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from videoanomaly.data.annotations import (
    FILE_SUFFIXES,
    Annotation,
    Intervals,
    Video,
    VideoLists,
    add_intervals,
    collect,
    frame_number,
    label_of,
    read_custom,
    read_pairs,
    read_temporal,
    read_videos,
    video_name,
    without_normal,
)
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.features import FEATURE_SUBFOLDERS, load_array
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import check_inside, read_lines

XD_CODES = {
    "A": "Normal",
    "B1": "Fighting",
    "B2": "Shooting",
    "B4": "Riot",
    "B5": "Abuse",
    "B6": "Car_accident",
    "G": "Explosion",
}
# Annotation lists by the words that their file names hold and must not hold (any case).
LISTS = {
    "*train*abnormal*.txt": (("train", "abnormal"), ()),
    "*train*normal*.txt": (("train", "normal"), ("abnormal",)),
    "*train*.txt": (("train",), ("normal", "temporal")),
    "*test*.txt": (("test",), ("train", "temporal")),
    "*temporal*.txt": (("temporal",), ()),
    "annotations.txt": (("annotations.txt",), ("temporal",)),
}
RELEASED_LISTS = ("*train*abnormal*.txt", "*train*normal*.txt", "*test*.txt", "*temporal*.txt")
Files = Mapping[str, Path | None]  # what was found of LISTS


def read_released(paths: Sequence[Path], names: Sequence[str]) -> VideoLists:
    """The released code's lists: frames count from `first` of the video's line, both ends are inclusive.

    Args:
        paths: Of the RELEASED_LISTS.
        names: Classes with Normal, in id order.
    """
    abnormal, normal, test, temporal = paths
    train = [
        (where, video) for path in (abnormal, normal) for where, (video, _) in read_videos(path, numbered_video, names)
    ]
    numbered = read_videos(test, numbered_video, names)
    rows = add_intervals(temporal, [(where, video) for where, (video, _) in numbered], read_temporal(temporal))
    shifted = [
        (where, replace(video, intervals=tuple((s - first, e - first) for s, e in video.intervals)))
        for (where, video), (_, (_, first)) in zip(rows, numbered)
    ]
    return collect(without_normal(names), train, shifted)


def numbered_video(where: str, line: str, names: Sequence[str]) -> tuple[Video, int]:
    """Video and number of its first frame from `path first last label_id`."""
    path, *numbers = line.rsplit(None, 3)
    if len(numbers) < 3 or not all(re.fullmatch("[0-9]+", text) for text in numbers):
        raise InputError(f"{where}: found {line!r}, expected 'path first_frame last_frame label_id'")
    first, last, label_id = (frame_number(where, text) for text in numbers)
    if last < first:
        raise InputError(f"{where}: found the frames {first} to {last}, expected the last after the first")
    if label_id >= len(names):
        raise InputError(f"{where}: found the label id {label_id}, expected 0 to {len(names) - 1}")
    label = label_of(where, names[label_id], without_normal(names))
    return Video(video_name(where, path), label, num_frames=last - first + 1), first


def read_class_ids(path: str | Path) -> list[str]:
    """Class names in id order from the `id,name` file of the released code."""
    names = []
    for where, number, name in read_pairs(path, ("id", "name")):
        if number != str(len(names)):
            raise InputError(f"{where}: found the id {number!r}, expected {len(names)}")
        names.append(name)
    if len(set(names)) < len(names) or len(without_normal(names)) != len(names) - 1:
        raise InputError(f"{path}: found the classes {', '.join(names)}, expected Normal and others, each once")
    return names


def read_ucfcrime(root: Path, files: Files, classes_csv: str | Path | None = None) -> VideoLists:
    """`Class/video.mp4` lists as distributed; ends are inclusive, as the authors of the method read them."""
    classes = without_normal(DATASETS["ucfcrime"].classes)
    *lists, temporal = require(root, files, "*train*.txt", "*test*.txt", "*temporal*.txt")
    train, test = (read_videos(path, foldered_video, classes) for path in lists)
    return collect(classes, train, add_intervals(temporal, test, read_temporal(temporal)))


def foldered_video(where: str, path: str, classes: Sequence[str]) -> Video:
    """The video of a line `Class/video.mp4`."""
    folder, slash, _ = path.partition("/")
    if not slash:
        raise InputError(f"{where}: found {path!r}, expected 'Class/video.mp4'")
    class_name = "Normal" if "normal" in folder.lower() else folder  # Training_Normal_Videos_Anomaly, Testing_...
    return Video(video_name(where, path), label_of(where, class_name, classes))


def read_xdviolence(root: Path, files: Files, classes_csv: str | Path | None = None) -> VideoLists:
    """Names that carry their labels; only videos with at most one anomaly type (paper Sec. 4.1); ends exclusive."""
    classes = without_normal(DATASETS["xdviolence"].classes)
    (temporal,) = require(root, files, "annotations.txt")
    names = [
        read_lines(path) if (path := files[f"*{word}*.txt"]) else names_in_folders(root, word)
        for word in ("train", "test")
    ]
    rows = [[(where, coded_video(where, line, classes)) for where, line in split] for split in names]
    train, test = ([(where, video) for where, video in split if video] for split in rows)
    left_out = sum(map(len, rows)) - len(train) - len(test)
    if left_out:
        print(f"note: {root}: left out {left_out} videos with several anomaly types", file=sys.stderr)
    annotations = read_temporal(temporal, has_class=False, inclusive=False)
    return collect(classes, train, add_intervals(temporal, test, annotations))


def coded_video(where: str, path: str, classes: Sequence[str]) -> Video | None:
    """The video named `..._label_B1-0-0`; None when it has several anomaly types."""
    name = video_name(where, path)
    match = re.search(r"_label_([A-Z0-9-]+)$", name)
    codes = set(match[1].split("-")) - {"0"} if match else set()
    if not codes or not codes <= XD_CODES.keys():
        raise InputError(f"{where}: found {name!r}, expected '_label_' and codes of {', '.join(XD_CODES)} at its end")
    return Video(name, label_of(where, XD_CODES[codes.pop()], classes)) if len(codes) == 1 else None


def names_in_folders(root: Path, word: str) -> list[tuple[str, str]]:
    """(folder, name) of the features or videos in the folders `*word*` of a feature root."""
    for base in (root / sub for sub in FEATURE_SUBFOLDERS):
        folders = sorted(folder for folder in base.glob("*") if folder.is_dir() and word in folder.name.lower())
        names = [
            video_name(base, unicodedata.normalize("NFC", file.relative_to(base).as_posix()))
            for folder in folders
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in FILE_SUFFIXES
        ]
        if names:
            return [(str(base), name) for name in dict.fromkeys(re.sub(r"(_i3d|__\d)$", "", name) for name in names)]
    raise InputError(
        f"{root}: found no {word} videos, expected a list *{word}*.txt here or in Annotations, or "
        f"features or videos in a folder *{word}* here, in features or in Image-Features"
    )


def read_shanghaitech(root: Path, files: Files, classes_csv: str | Path | None = None) -> VideoLists:
    """Names of the weakly supervised split, a 0/1 mask per anomalous test video, classes from `video,class`."""
    lists = require(root, files, "*train*.txt", "*test*.txt")
    if classes_csv is None and not (root / "classes.csv").exists():
        print(f"note: {root}: no classes.csv (video,class), so all anomalies are one class 'anomaly'", file=sys.stderr)
        named, classes = None, ("anomaly",)
    else:
        pairs = read_pairs(classes_csv or root / "classes.csv", ("video", "class"))
        named = {video_name(where, name): class_name for where, name, class_name in pairs}
        own, known = without_normal(sorted(set(named.values()))), without_normal(DATASETS["shanghaitech"].classes)
        classes = known if set(own) <= set(known) else own
    train, test = (read_videos(path, digits_video, classes, named) for path in lists)
    folder = next((f for f in (root, lists[1].parent) if (f / "test_frame_mask").is_dir()), root) / "test_frame_mask"
    masks = {video.name: read_mask(folder, video.name) for _, video in test if video.label >= 0}
    test = [
        (where, replace(video, num_frames=masks[video.name][2] if video.label >= 0 else None)) for where, video in test
    ]
    annotations = {name: Annotation(place, intervals) for name, (place, intervals, _) in masks.items()}
    return collect(classes, train, add_intervals(folder, test, annotations))


def digits_video(where: str, path: str, classes: Sequence[str], named: Mapping[str, str] | None) -> Video:
    """The video named `scene_digits`: four digits are anomalous, three normal; `named`: class of each, if known."""
    name = video_name(where, path)
    match = re.search(r"_(\d{3,4})$", name)
    if not match:
        raise InputError(f"{where}: found {name!r}, expected a name like 01_002 (normal) or 01_0014 (anomalous)")
    if len(match[1]) == 3:
        return Video(name, -1)
    class_name = "anomaly" if named is None else named.get(name, "normal")
    if class_name.lower() == "normal":
        raise InputError(f"{where}: found the anomalous video {name}, expected its class in the 'video,class' file")
    return Video(name, label_of(where, class_name, classes))


def read_mask(folder: Path, name: str) -> tuple[str, Intervals, int]:
    """The place, the runs of ones and the length of a 0/1 array with one value per frame."""
    path = folder / f"{name}.npy"
    check_inside(path, folder)
    mask = load_array(path)
    if mask.ndim != 1 or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: found an array {mask.shape} of {mask.dtype}, expected 0 or 1 for each frame")
    steps = np.diff(mask.astype(np.int8), prepend=0, append=0)
    runs = zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist())
    return str(path), tuple(runs), len(mask)


def find_list(root: Path, words: Sequence[str], other_words: Sequence[str]) -> Path | None:
    """The .txt file in root/Annotations (any case), else in root, whose name holds all `words`; None without one."""
    for folder in [f for f in sorted(root.iterdir()) if f.is_dir() and f.name.lower() == "annotations"] + [root]:
        names = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() == ".txt"]
        found = [
            name
            for name in names
            if all(word in name.lower() for word in words) and not any(word in name.lower() for word in other_words)
        ]
        if len(found) > 1:
            raise InputError(f"{folder}: found {' and '.join(found)}, expected one of them")
        if found:
            return folder / found[0]
    return None


def require(root: Path, files: Files, *patterns: str) -> list[Path]:
    """The lists with these names; an InputError says which are missing."""
    missing = [pattern for pattern in patterns if files[pattern] is None]
    if missing:
        raise InputError(
            f"{root}: found no {', '.join(missing)} here or in Annotations, expected "
            f"{', '.join(patterns)} (or the released code's {', '.join(RELEASED_LISTS)})"
        )
    return [path for pattern in patterns if (path := files[pattern]) is not None]


# (root, lists by pattern, classes_csv) -> VideoLists
READERS: dict[str, Callable[[Path, Files, str | Path | None], VideoLists]] = {
    "shanghaitech": read_shanghaitech,
    "ucfcrime": read_ucfcrime,
    "xdviolence": read_xdviolence,
    "custom": lambda root, files, classes_csv: read_custom(root),
}


def load_lists(dataset: str, root: str | Path, classes_csv: str | Path | None = None) -> VideoLists:
    """Reads the annotation lists of a data set, in the layout that is found below `root`.

    Args:
        dataset: A key of DATASETS. The published ones have their lists as distributed, or as in the released code of
            AnomalyCLIP, `path first last label_id`; for the others see `read_custom`.
        root: Folder with the lists, or with a folder Annotations that holds them.
        classes_csv: Class of each ShanghaiTech video (`video,class`; root/classes.csv by default), or the
            class ids of released lists (`id,name`; the authors' by default).
    Raises:
        InputError: If a list is missing or a line of one makes no sense.
    """
    root, known = Path(root), DATASETS[dataset]
    if not root.is_dir():
        raise InputError(f"{root}: is no folder, expected the one with the annotation lists of {known.lists}")
    files = {pattern: find_list(root, *words) for pattern, words in LISTS.items()} if known.classes else {}
    if files.get(RELEASED_LISTS[0]) or files.get(RELEASED_LISTS[1]):
        paths = require(root, files, *RELEASED_LISTS)
        return read_released(paths, read_class_ids(classes_csv) if classes_csv else known.classes)
    if classes_csv and known.lists != "shanghaitech":
        raise InputError(f"{classes_csv}: found a file of classes, expected none: the lists in {root} name the classes")
    return READERS[known.lists](root, files, classes_csv)
