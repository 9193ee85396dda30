"""Annotation lists, feature files and segment sampling: everything between a data set on disk and the model.

A data set is a folder with annotation lists (`load_lists`: which videos, which class, which frames) and a
folder with one `.npy` per video (`FeatureFolder`). A feature file is memory-mapped, never loaded whole.

Frames are 0-based and intervals half-open, whatever the lists on disk use.
Letters: S segments per video, F frames per segment, D feature size, C anomaly classes (Normal is not one of
them), N feature rows of a video (a row stands for `frames_per_feature` frames).
"""

import json
import mmap
import os
import re
import sys
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

# Class names with Normal, in id order, as in the label files of the released code.
CLASS_NAMES = {
    "shanghaitech": ("car", "chasing", "circuit", "fall", "fighting", "hurdle", "jumping", "monocycle", "normal",
                     "push", "robbery", "running", "skateboard", "step", "stoop", "throwing object", "vaudeville",
                     "vehicle"),
    "ucfcrime": ("Abuse", "Arrest", "Arson", "Assault", "Burglary", "Explosion", "Fighting", "Normal",
                 "RoadAccidents", "Robbery", "Shooting", "Shoplifting", "Stealing", "Vandalism"),
    "xdviolence": ("Abuse", "Car_accident", "Explosion", "Fighting", "Normal", "Riot", "Shooting"),
}
XD_CODES = {"A": "Normal", "B1": "Fighting", "B2": "Shooting", "B4": "Riot", "B5": "Abuse", "B6": "Car_accident",
            "G": "Explosion"}
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
VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
                  ".ogv", ".ts", ".vob", ".webm", ".wmv"}
FILE_SUFFIXES = VIDEO_SUFFIXES | {".npy"}
FEATURE_SUBFOLDERS = ("", "features", "Image-Features")
CHUNK_ROWS = 4096  # rows read at once by the prototype: 84 MB of ten-crop, 512-wide float32 features


# ---------------------------------------------------------------- scripts and files


class InputError(ValueError):
    """Bad input of the user: one line that names the file, what was found and what was expected."""


def run_script(main):
    """Runs `main()` and exits with the status it returns; an InputError becomes one line and status 2."""
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def write_atomically(path, write):
    """Calls `write(binary_file)` so that the file at `path` appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name survives a power cut only once the folder is written, too
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def read_lines(path):
    """Non-blank lines of a text file, as (place for error messages, stripped line)."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), expected a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}), expected a text file") from error
    lines = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: is empty, expected at least one line")
    return lines


def load_array(path, scattered=False):
    """Memory-mapped array of a .npy file; `scattered` reads no more of the disk than the rows that are asked for."""
    expected = "expected a .npy file with one array of numbers"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header can raise nearly anything
        raise InputError(f"{path}: cannot be read ({str(error).split(chr(10))[0]}), {expected}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: is an archive of arrays, {expected}")
    if scattered and hasattr(mmap, "MADV_RANDOM"):  # where the system reads megabytes ahead: 100 times faster
        array.base.madvise(mmap.MADV_RANDOM)
    return array


# ---------------------------------------------------------------- videos and their annotations


@dataclass(frozen=True)
class Video:
    name: str  # relative path without extension, "Abuse/Abuse028_x264": the key of everything about the video
    label: int  # class in [0, C), -1 for normal
    intervals: tuple[tuple[int, int], ...] = ()  # anomalous frames, half-open; row 0 of the features is frame 0


@dataclass
class VideoLists:
    classes: tuple[str, ...]  # the C anomaly classes in id order, Normal left out
    train: list[Video]
    test: list[Video]

    def to_plain(self):
        """As dicts, lists, ints and strings, which `torch.load(weights_only=True)` reads back."""
        train, test = ([[v.name, v.label, list(map(list, v.intervals))] for v in videos]
                       for videos in (self.train, self.test))
        return {"classes": list(self.classes), "train": train, "test": test}

    @classmethod
    def from_plain(cls, plain):
        """The inverse of `to_plain`."""
        train, test = ([Video(name, label, tuple(map(tuple, pairs))) for name, label, pairs in plain[split]]
                       for split in ("train", "test"))
        return cls(tuple(plain["classes"]), train, test)


def frame_labels(video, num_frames):
    """Class of each frame, (num_frames,) int64, -1 for normal; intervals are clipped to the video."""
    labels = np.full(num_frames, -1, dtype=np.int64)
    for start, end in video.intervals:
        labels[max(start, 0):max(end, 0)] = video.label
    return labels


def video_name(where, path):
    """Name of the video at a listed path. Only known extensions are cut off, for names may hold dots."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        raise InputError(f"{where}: found the path {path!r}, expected one below the root folder")
    name = "/".join(parts)
    suffix = PurePosixPath(name).suffix
    return name[:-len(suffix)] if suffix.lower() in FILE_SUFFIXES else name


def label_of(where, name, classes):
    """Label of a class name: its place in `classes`, -1 for Normal."""
    if name.lower() == "normal":
        return -1
    if name not in classes:
        raise InputError(f"{where}: found the class {name!r}, expected Normal or one of {', '.join(classes)}")
    return classes.index(name)


def without_normal(names):
    return tuple(name for name in names if name.lower() != "normal")


def half_open(where, numbers, inclusive):
    """Pairs of frame numbers as half-open intervals; -1 -1 stands for none."""
    if len(numbers) % 2:
        raise InputError(f"{where}: found {len(numbers)} frame numbers, expected pairs of start and end")
    pairs = [pair for pair in zip(numbers[::2], numbers[1::2]) if pair != (-1, -1)]
    for start, end in pairs:
        if start < 0 or end + inclusive <= start:
            raise InputError(f"{where}: found the interval {start} {end}, expected an end after a start of 0 or more")
    return tuple((start, end + inclusive) for start, end in pairs)


def read_temporal(path, has_class=True, inclusive=True):
    """`name [Class] start end [start end ...]`, one video a line, as {name: (place, intervals)}."""
    annotations = {}
    for where, line in read_lines(path):
        match = re.fullmatch(r"(.*?)((?:\s+-?\d+)+)", line)  # names may hold blanks: only trailing numbers are frames
        head = match[1].rsplit(None, int(has_class)) if match else []
        if len(head) != 1 + has_class:
            form = "name Class start end [start end ...]" if has_class else "name start end [start end ...]"
            raise InputError(f"{where}: found {line!r}, expected {form!r}")
        name = video_name(where, head[0])
        if name in annotations:
            raise InputError(f"{where}: found {name} again, expected each video once")
        annotations[name] = where, half_open(where, [int(number) for number in match[2].split()], inclusive)
    return annotations


def add_intervals(path, rows, annotations, ignore_others=True):
    """(place, test video) rows with the intervals that `path` gives each, by its name or by its file name alone."""
    used, result = set(), []
    file_names = Counter(PurePosixPath(video.name).name for _, video in rows)
    for where, video in rows:
        key = video.name if video.name in annotations else PurePosixPath(video.name).name
        intervals = annotations.get(key, ("", ()))[1]
        if intervals and key != video.name and file_names[key] > 1:
            raise InputError(f"{path}: found {key} for two test videos, expected the path of each")
        if (video.label >= 0) != bool(intervals):
            expected = "one or more, for it is anomalous" if video.label >= 0 else "none, for it is normal"
            raise InputError(f"{path}: found {len(intervals)} intervals of {video.name}, "
                             f"expected {expected} in {where}")
        used.add(key)
        result.append((where, replace(video, intervals=intervals)))
    others = [name for name in annotations if name not in used]
    if others and not ignore_others:
        raise InputError(f"{annotations[others[0]][0]}: found {others[0]}, expected a video of the test list")
    return result


def read_videos(path, parse, *args):
    """(place, parse(place, line, ...)) of each line of a list."""
    return [(where, parse(where, line, *args)) for where, line in read_lines(path)]


def collect(classes, train, test):
    """VideoLists of (place, video) rows, checked together."""
    places = {}
    for where, video in train + test:
        if video.name in places:
            raise InputError(f"{where}: found {video.name} again, expected it only in {places[video.name]}")
        places[video.name] = where
    num_abnormal = sum(video.label >= 0 for _, video in train)
    if num_abnormal in (0, len(train)):
        place = train[0][0].split(", line ")[0] if train else "training list"
        raise InputError(f"{place}: found {num_abnormal} anomalous and {len(train) - num_abnormal} normal training "
                         "videos, expected some of both")
    return VideoLists(tuple(classes), [video for _, video in train], [video for _, video in test])


# ---------------------------------------------------------------- the lists of each data set


def read_custom(root):
    """train.txt, test.txt (`path Class`), temporal_annotations.txt (ends inclusive), classes.txt (Normal first)."""
    names = [line for _, line in read_lines(root / "classes.txt")]
    if len(names) < 2 or names[0].lower() != "normal" or len(set(names)) < len(names):
        raise InputError(f"{root / 'classes.txt'}: found {names}, expected Normal, then each anomaly class once")
    train, test = (read_videos(root / file, classified_video, names[1:]) for file in ("train.txt", "test.txt"))
    temporal = root / "temporal_annotations.txt"
    return collect(names[1:], train, add_intervals(temporal, test, read_temporal(temporal), ignore_others=False))


def classified_video(where, line, classes):
    fields = line.rsplit(None, 1)  # the path may hold blanks
    if len(fields) < 2:
        raise InputError(f"{where}: found {line!r}, expected 'relative/path.mp4 Class'")
    return Video(video_name(where, fields[0]), label_of(where, fields[1], classes))


def read_released(files, names):
    """The released code's lists: frames count from `first` of the video's line, both ends are inclusive."""
    abnormal, normal, test, temporal = (files[pattern] for pattern in RELEASED_LISTS)
    train = [(where, video) for path in (abnormal, normal)
             for where, (video, _) in read_videos(path, numbered_video, names)]
    numbered = read_videos(test, numbered_video, names)
    rows = add_intervals(temporal, [(where, video) for where, (video, _) in numbered], read_temporal(temporal))
    shifted = [(where, replace(video, intervals=tuple((s - first, e - first) for s, e in video.intervals)))
               for (where, video), (_, (_, first)) in zip(rows, numbered)]
    return collect(without_normal(names), train, shifted)


def numbered_video(where, line, names):
    """Video and number of its first frame from `path first last label_id`."""
    match = re.fullmatch(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)", line)
    if not match:
        raise InputError(f"{where}: found {line!r}, expected 'path first_frame last_frame label_id'")
    first, last, label_id = (int(field) for field in match.groups()[1:])
    if last < first:
        raise InputError(f"{where}: found the frames {first} to {last}, expected the last after the first")
    if label_id >= len(names):
        raise InputError(f"{where}: found the label id {label_id}, expected 0 to {len(names) - 1}")
    return Video(video_name(where, match[1]), label_of(where, names[label_id], without_normal(names))), first


def read_pairs(path, header):
    """(place, first, second) of a CSV file with two columns; the header line is optional."""
    for where, line in read_lines(path):
        fields = tuple(field.strip() for field in line.split(",", 1))
        if len(fields) < 2:
            raise InputError(f"{where}: found {line!r}, expected '{','.join(header)}'")
        if fields != header:
            yield where, *fields


def read_class_ids(path):
    """Class names in id order from the `id,name` file of the released code."""
    names = []
    for where, number, name in read_pairs(path, ("id", "name")):
        if number != str(len(names)):
            raise InputError(f"{where}: found the id {number!r}, expected {len(names)}")
        names.append(name)
    if len(set(names)) < len(names) or len(without_normal(names)) != len(names) - 1:
        raise InputError(f"{path}: found the classes {', '.join(names)}, expected Normal and others, each once")
    return names


def read_ucfcrime(root, files):
    """`Class/video.mp4` lists as distributed; ends are inclusive, as the authors of the method read them."""
    classes = without_normal(CLASS_NAMES["ucfcrime"])
    *lists, temporal = require(root, files, "*train*.txt", "*test*.txt", "*temporal*.txt")
    train, test = (read_videos(path, foldered_video, classes) for path in lists)
    return collect(classes, train, add_intervals(temporal, test, read_temporal(temporal)))


def foldered_video(where, path, classes):
    folder, slash, _ = path.partition("/")
    if not slash:
        raise InputError(f"{where}: found {path!r}, expected 'Class/video.mp4'")
    class_name = "Normal" if "normal" in folder.lower() else folder  # Training_Normal_Videos_Anomaly, Testing_...
    return Video(video_name(where, path), label_of(where, class_name, classes))


def read_xdviolence(root, files):
    """Names that carry their labels; only videos with at most one anomaly type (paper Sec. 4.1); ends exclusive."""
    classes = without_normal(CLASS_NAMES["xdviolence"])
    temporal, = require(root, files, "annotations.txt")
    names = [read_lines(files[f"*{word}*.txt"]) if files[f"*{word}*.txt"] else names_in_folders(root, word)
             for word in ("train", "test")]
    rows = [[(where, coded_video(where, line, classes)) for where, line in split] for split in names]
    train, test = ([(where, video) for where, video in split if video] for split in rows)
    left_out = sum(map(len, rows)) - len(train) - len(test)
    if left_out:
        print(f"note: {root}: left out {left_out} videos with several anomaly types", file=sys.stderr)
    annotations = read_temporal(temporal, has_class=False, inclusive=False)
    return collect(classes, train, add_intervals(temporal, test, annotations))


def coded_video(where, path, classes):
    """The video named `..._label_B1-0-0`; None when it has several anomaly types."""
    name = video_name(where, path)
    match = re.search(r"_label_([A-Z0-9-]+)$", name)
    codes = set(match[1].split("-")) - {"0"} if match else set()
    if not codes or not codes <= XD_CODES.keys():
        raise InputError(f"{where}: found {name!r}, expected '_label_' and codes of {', '.join(XD_CODES)} at its end")
    return Video(name, label_of(where, XD_CODES[codes.pop()], classes)) if len(codes) == 1 else None


def names_in_folders(root, word):
    """(folder, name) of the features or videos in the folders `*word*` of a feature root."""
    for base in (root / sub for sub in FEATURE_SUBFOLDERS):
        folders = sorted(folder for folder in base.glob("*") if folder.is_dir() and word in folder.name.lower())
        names = [video_name(base, file.relative_to(base).as_posix()) for folder in folders
                 for file in sorted(folder.rglob("*")) if file.suffix.lower() in FILE_SUFFIXES]
        if names:
            return [(base, name) for name in dict.fromkeys(re.sub(r"(_i3d|__\d)$", "", name) for name in names)]
    raise InputError(f"{root}: found no {word} videos, expected a list *{word}*.txt here or in Annotations, or "
                     f"features or videos in a folder *{word}* here, in features or in Image-Features")


def read_shanghaitech(root, files, classes_csv):
    """Names of the weakly supervised split, a 0/1 mask per anomalous test video, classes from `video,class`."""
    lists = require(root, files, "*train*.txt", "*test*.txt")
    if classes_csv is None and not (root / "classes.csv").exists():
        print(f"note: {root}: no classes.csv (video,class), so all anomalies are one class 'anomaly'", file=sys.stderr)
        named, classes = None, ("anomaly",)
    else:
        pairs = read_pairs(classes_csv or root / "classes.csv", ("video", "class"))
        named = {video_name(where, name): class_name for where, name, class_name in pairs}
        own, known = without_normal(sorted(set(named.values()))), without_normal(CLASS_NAMES["shanghaitech"])
        classes = known if set(own) <= set(known) else own
    train, test = (read_videos(path, digits_video, classes, named) for path in lists)
    folder = next((f for f in (root, lists[1].parent) if (f / "test_frame_mask").is_dir()), root) / "test_frame_mask"
    masks = {video.name: read_mask(folder / f"{video.name}.npy") for _, video in test if video.label >= 0}
    return collect(classes, train, add_intervals(folder, test, masks))


def digits_video(where, path, classes, named):
    """The video named `scene_digits`: four digits are anomalous, three normal."""
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


def read_mask(path):
    """The place and the runs of ones of a 0/1 array with one value per frame."""
    mask = load_array(path)
    if mask.ndim != 1 or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: found an array {mask.shape} of {mask.dtype}, expected 0 or 1 for each frame")
    steps = np.diff(mask.astype(np.int8), prepend=0, append=0)
    return str(path), tuple(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist()))


def find_list(root, words, other_words):
    """The .txt file in root/Annotations (any case), else in root, whose name holds all `words`; None without one."""
    for folder in [f for f in sorted(root.iterdir()) if f.is_dir() and f.name.lower() == "annotations"] + [root]:
        names = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() == ".txt"]
        found = [name for name in names if all(word in name.lower() for word in words)
                 and not any(word in name.lower() for word in other_words)]
        if len(found) > 1:
            raise InputError(f"{folder}: found {' and '.join(found)}, expected one of them")
        if found:
            return folder / found[0]
    return None


def require(root, files, *patterns):
    missing = [pattern for pattern in patterns if files[pattern] is None]
    if missing:
        raise InputError(f"{root}: found no {', '.join(missing)} here or in Annotations, expected "
                         f"{', '.join(patterns)} (or the released code's {', '.join(RELEASED_LISTS)})")
    return [files[pattern] for pattern in patterns]


def load_lists(dataset, root, classes_csv=None):
    """Reads the annotation lists of a data set, in the layout that is found below `root`.

    Args:
        dataset: "shanghaitech", "ucfcrime", "xdviolence" (each as distributed, or as in the released code of
            AnomalyCLIP with lists of `path first last label_id`) or "custom" (see `read_custom`).
        root: Folder with the lists, or with a folder Annotations that holds them.
        classes_csv: Class of each ShanghaiTech video (`video,class`; root/classes.csv by default), or the
            class ids of released lists (`id,name`; the authors' by default).
    Returns:
        VideoLists.
    Raises:
        InputError: If a list is missing or a line of one makes no sense.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: is no folder, expected the one with the annotation lists of {dataset}")
    files = {pattern: find_list(root, *words) for pattern, words in LISTS.items()} if dataset != "custom" else {}
    if files.get(RELEASED_LISTS[0]) or files.get(RELEASED_LISTS[1]):
        require(root, files, *RELEASED_LISTS)
        return read_released(files, read_class_ids(classes_csv) if classes_csv else CLASS_NAMES[dataset])
    if dataset == "shanghaitech":
        return read_shanghaitech(root, files, classes_csv)
    if classes_csv:
        raise InputError(f"{classes_csv}: found a file of classes, expected none: the lists in {root} name the classes")
    if dataset == "custom":
        return read_custom(root)
    return {"ucfcrime": read_ucfcrime, "xdviolence": read_xdviolence}[dataset](root, files)


# ---------------------------------------------------------------- feature files


class LazyArray:
    """An array (N, crops, D) that is read when it is indexed: by rows, or by (rows, crop) for one crop."""

    def __init__(self, shape, read):
        self.shape, self.read = shape, read

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self.read(*index) if isinstance(index, tuple) else self.read(index)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype=dtype)


def stack_crops(arrays):
    """The files of the crops of one video, each (N, D), as one array (N, crops, D)."""
    def read(rows, crop=None):
        return np.stack([array[rows] for array in arrays], axis=-2) if crop is None else arrays[crop][rows]
    return LazyArray((len(arrays[0]), len(arrays), arrays[0].shape[1]), read)


class FeatureFolder:
    """The feature files below a folder.

    Args:
        root: Folder with `<video name>.npy`, or with a folder `features` or `Image-Features` that holds them.
        frames_per_feature: Frames that a row stands for; by default the stride in meta.json, 1 without one.
        crops: Crops per frame where files are (N * crops, D), the crops of a frame in consecutive rows.
    """

    def __init__(self, root, frames_per_feature=None, crops=1):
        self.root = Path(root)
        self.folders = [self.root / sub for sub in FEATURE_SUBFOLDERS]
        self.meta = next((read_meta(f / "meta.json") for f in self.folders if (f / "meta.json").is_file()), None)
        self.frames_per_feature = frames_per_feature or (self.meta["stride"] if self.meta else 1)
        self.crops = crops
        self.dim = self.meta["dim"] if self.meta else None  # D; without meta.json known after the first `open`

    @property
    def encoder(self):
        """What made the features, as meta.json tells; None without one. Unequal means: not to be mixed."""
        return self.meta and {key: value for key, value in self.meta.items() if key not in ("videos", "stride")}

    def open(self, name, scattered=False):
        """Features of a video, a memory-mapped array (N, crops, D) of float16 or float32 (see `load_array`)."""
        paths = self._paths(name)
        arrays = [self._open_file(path, scattered) for path in paths]
        if len(arrays) == 1:
            return arrays[0]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1 or arrays[0].shape[1] > 1:
            raise InputError(f"{paths[0]}: found {sorted(shapes)} in the files of the crops, expected equal (rows, D)")
        return stack_crops([array[:, 0] for array in arrays])

    def num_frames(self, name):
        """Frames of the video: as meta.json tells, else those that its rows stand for."""
        known = self.meta["videos"].get(name) if self.meta else None
        return known["frames"] if known else len(self.open(name)) * self.frames_per_feature

    def _paths(self, name):
        for folder in self.folders:
            crop_paths = [folder / f"{name}__{crop}.npy" for crop in range(10)]
            for paths in ([folder / f"{name}.npy"], [folder / f"{name}_i3d.npy"], crop_paths):
                paths = [path for path in paths if path.is_file()]
                if paths:
                    self.folders = [folder]  # where one video is, there all are
                    return paths
        raise InputError(f"{self.root}: found no features of {name}, expected {name}.npy, {name}_i3d.npy or "
                         f"{name}__0.npy in {' or '.join(map(str, self.folders))}")

    def _open_file(self, path, scattered):
        array, D = load_array(path, scattered), self.dim or "D"
        if array.ndim not in (2, 3) or array.dtype not in (np.float16, np.float32) or 0 in array.shape:
            raise InputError(f"{path}: found an array {array.shape} of {array.dtype}, expected rows: (N, {D}) or "
                             f"(N, crops, {D}), float16 or float32")
        if array.shape[-1] != (self.dim or array.shape[-1]):
            raise InputError(f"{path}: found features of size {array.shape[-1]}, expected {D} as in the others")
        if array.ndim == 2 and len(array) % self.crops or array.ndim == 3 and self.crops not in (1, array.shape[1]):
            raise InputError(f"{path}: found an array {array.shape}, expected {self.crops} crops per frame")
        self.dim = array.shape[-1]
        return array if array.ndim == 3 else array.reshape(-1, self.crops, self.dim)  # (N, crops, D)


def read_meta(path):
    """Checked content of the meta.json that extract_features.py writes."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        valid = min(meta["stride"], meta["dim"]) >= 1 and all(v["frames"] >= 1 for v in meta["videos"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error!r}), expected what extract_features.py writes") from error
    if not valid:
        raise InputError(f"{path}: found a stride, dim or frames below 1, expected what extract_features.py writes")
    return meta


def matching_rows(features, name, num_rows, frames_per_feature, scattered=False):
    """The rows of a video in `features` that show the same frames as `num_rows` rows of `frames_per_feature` frames."""
    array = features.open(name, scattered)
    idx = np.minimum(np.arange(num_rows) * frames_per_feature // features.frames_per_feature, len(array) - 1)
    return LazyArray((num_rows, *array.shape[1:]),
                     lambda rows, *crop: array[(idx[rows], *crop) if crop else idx[rows]])


def check_features(features, videos):
    """Opens the file of every video (headers only), so that what is missing or odd shows before any work."""
    for video in videos:
        features.open(video.name)


def normality_prototype(features, videos):
    """Mean of all frame features of the normal videos, (D,) float32 (paper Eq. 1), summed in float64."""
    total, num_rows = 0, 0
    normal = [video for video in videos if video.label < 0]
    if not normal:
        raise InputError("the training list holds no normal video, expected some for the normality prototype")
    for video in tqdm(normal, desc="normality prototype", unit="video", disable=None):
        array = features.open(video.name)
        for start in range(0, len(array), CHUNK_ROWS):
            total = total + array[start:start + CHUNK_ROWS].sum(axis=(0, 1), dtype=np.float64)
        if not np.isfinite(total).all():
            raise InputError(f"{video.name}: found features that are infinite or not a number, expected finite ones")
        num_rows += array.shape[0] * array.shape[1]
    return torch.from_numpy(total / num_rows).float()


# ---------------------------------------------------------------- segments and batches


def training_rows(num_rows, num_segments, num_frames, rng, released=False):
    """Rows of a training sample: F consecutive ones at a random place in each of S blocks (paper Sec. 4.1).

    Args:
        num_rows: Rows of the video; a video shorter than S * F is repeated from its start.
        num_segments: S.
        num_frames: F.
        rng: numpy Generator.
        released: Blocks as in the released code: for videos of up to about S * F rows they are one row too short,
            so that segments overlap by a row and no start is random.
    Returns:
        Row indices, (S, F) int64 in [0, num_rows).
    """
    S, F = num_segments, num_frames
    length = max(num_rows, S * F)
    if released:
        block = (length - F + 1) // S
        starts = np.arange(S) * block + rng.integers(max(block - F + 2, 1), size=S)
    else:
        borders = np.arange(S + 1) * length // S
        starts = rng.integers(borders[:-1], borders[1:] - F, endpoint=True)
    return (starts[:, None] + np.arange(F)) % num_rows  # (S, F)


class SegmentDataset(torch.utils.data.Dataset):
    """Training samples: S segments of F rows of a video; item (video_idx, seed) depends on nothing else.

    Args:
        videos: Training videos.
        features: Features that are sampled; of several crops one is drawn.
        num_segments: S.
        num_frames: F.
        temporal_features: Second features of the same frames, for models that look at the time with another encoder.
        released: See `training_rows`.
    """

    def __init__(self, videos, features, num_segments, num_frames, temporal_features=None, released=False):
        self.videos, self.features, self.temporal_features = videos, features, temporal_features
        self.num_segments, self.num_frames, self.released = num_segments, num_frames, released

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        """Dict of `features` (S, F, D) float32, `label` and, with second features, `temporal_features` (S, F, D2)."""
        video_idx, seed = index
        video, rng = self.videos[video_idx], np.random.default_rng(seed)
        array = self.features.open(video.name, scattered=True)
        rows = training_rows(len(array), self.num_segments, self.num_frames, rng, self.released)
        crop = int(rng.integers(array.shape[1]))
        sample = {"features": read_rows(array, rows, crop), "label": video.label}
        if self.temporal_features is not None:
            other = matching_rows(self.temporal_features, video.name, len(array), self.features.frames_per_feature,
                                  scattered=True)
            crop = crop if other.shape[1] == array.shape[1] else int(rng.integers(other.shape[1]))
            sample["temporal_features"] = read_rows(other, rows, crop)
        return sample


def read_rows(array, rows, crop):
    """Rows (S, F) of one crop as a float32 tensor (S, F, D); no other row is read."""
    return torch.from_numpy(np.array(array[rows, crop], dtype=np.float32))


class BalancedBatches:
    """Batches of (video_idx, sample seed), first B/2 abnormal, then B/2 normal; the same for equal (seed, epoch).

    An epoch shows each video of the longer class once; the shorter class is repeated, reshuffled each time.

    Args:
        labels: Label of each video, -1 for normal; both kinds occur.
        batch_size: B, even.
        seed: 0 or more.
        released: Drop the incomplete half-batch of every shuffle, as the released code does.
    """

    def __init__(self, labels, batch_size, seed, released=False):
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"batch_size must be even and at least 2, half abnormal, half normal, got {batch_size}")
        is_abnormal = np.asarray(labels) >= 0
        self.halves = [np.flatnonzero(is_abnormal), np.flatnonzero(~is_abnormal)]
        if not all(map(len, self.halves)):
            raise ValueError("labels must hold abnormal (0 or more) and normal (-1) videos, got only one kind")
        self.half, self.seed, self.released, self.epoch = batch_size // 2, seed, released, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        longest = max(map(len, self.halves))
        return max(longest // self.half, 1) if self.released else -(-longest // self.half)

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        videos = [self._shuffled(idx, rng).reshape(len(self), self.half) for idx in self.halves]
        videos = np.concatenate(videos, axis=1)  # (batches, B)
        seeds = np.random.SeedSequence((self.seed, self.epoch, 1)).generate_state(videos.size, np.uint64)
        for batch, batch_seeds in zip(videos.tolist(), seeds.reshape(videos.shape).tolist()):
            yield list(zip(batch, batch_seeds))

    def _shuffled(self, idx, rng):
        """Videos of one kind for the whole epoch, shuffle after shuffle."""
        used = max(len(idx) // self.half * self.half, min(len(idx), self.half)) if self.released else len(idx)
        count = len(self) * self.half
        return np.concatenate([rng.permutation(idx)[:used] for _ in range(-(-count // used))])[:count]


# ---------------------------------------------------------------- synthetic data


DEMO_CLASSES = ("Alpha", "Beta", "Gamma", "Delta")
DEMO_COUNTS = {"train": (48, 12), "test": (16, 6)}  # normal videos, videos of each anomaly class
DEMO_DIM = 64


def write_demo(root, seed=0):
    """Writes synthetic features (no video behind them) in the `custom` layout: 13 MB in 2 s.

    A feature is a common mean, the offset of one of six scenes, a slow drift and noise. Anomalies are pulses along
    the direction of their class; pulses of the same size along other directions occur in all videos, so that the
    distance to the prototype alone does not find the anomalies.

    Args:
        root: Folder for train.txt, test.txt, temporal_annotations.txt, classes.txt and features/.
        seed: Seed of everything.
    Returns:
        The planted class directions, (C, D) float64, orthonormal.
    """
    rng, texts = np.random.default_rng(seed), {"classes.txt": ["Normal", *DEMO_CLASSES], "temporal_annotations.txt": []}
    basis = np.linalg.qr(rng.normal(size=(DEMO_DIM, DEMO_DIM)))[0]  # 4 class, 8 distractor, 52 background directions
    scenes = basis.sum(axis=0) + rng.normal(size=(6, DEMO_DIM - 12)) @ basis[12:]
    meta = {"encoder": "synthetic", "weights_sha256": None, "dim": DEMO_DIM, "stride": 1, "crops": 1, "jpeg": None,
            "videos": {}}
    for split, (num_normal, num_abnormal) in DEMO_COUNTS.items():
        texts[f"{split}.txt"] = []
        for i, label in enumerate([-1] * num_normal + list(range(len(DEMO_CLASSES))) * num_abnormal):
            kind = DEMO_CLASSES[label] if label >= 0 else "Normal"
            name = f"{kind}/{kind}_{split}{i:03d}"
            features, numbers = demo_video(rng, label, scenes[rng.integers(len(scenes))], basis)
            write_atomically(Path(root, "features", f"{name}.npy"), lambda file: np.save(file, features))
            meta["videos"][name] = {"frames": len(features), "fps": 30.0}
            texts[f"{split}.txt"].append(f"{name}.mp4 {kind}")
            if split == "test":
                texts["temporal_annotations.txt"].append(f"{name}.mp4  {kind}  {'  '.join(map(str, numbers))}")
    texts["features/meta.json"] = [json.dumps(meta)]
    for file_name, lines in texts.items():
        write_atomically(Path(root, file_name), lambda file: file.write("\n".join([*lines, ""]).encode()))
    return basis[:len(DEMO_CLASSES)]


def demo_video(rng, label, scene, basis):
    """Features (N, D) float16 and the inclusive frame numbers of the anomalous intervals (-1 -1 for none)."""
    num_frames = int(rng.integers(300, 1201))
    time = np.arange(num_frames)[:, None]
    waves = np.sin(2 * np.pi * (time / rng.uniform(300, 900, size=4) + rng.uniform(size=4)))  # (N, 4)
    features = scene + waves @ rng.normal(scale=0.4, size=(4, DEMO_DIM - 12)) @ basis[12:]
    features += rng.normal(scale=0.8, size=features.shape)
    for _ in range(rng.integers(1, 4)):
        features += 5 * demo_pulse(rng, time, 0, num_frames)[0] * basis[rng.integers(4, 12)]  # a distractor
    numbers = []
    borders = np.linspace(0, num_frames, rng.integers(2, 4)).astype(int) if label >= 0 else []
    for start, end in zip(borders[:-1], borders[1:]):
        pulse, interval = demo_pulse(rng, time, start, end)
        features += 5 * pulse * basis[label]
        numbers += interval
    return features.astype(np.float16), numbers or [-1, -1]


def demo_pulse(rng, time, start, end):
    """A soft pulse inside [start, end), (N, 1) in [0, 1], and its first and last frame of one half or more."""
    first = int(rng.integers(start + 10, end - 100))
    last = int(rng.integers(first + 40, min(first + 160, end - 10)))
    return 1 / (1 + np.exp((first - time) / 3)) / (1 + np.exp((time - last) / 3)), [first, last]
