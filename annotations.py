"""Annotation lists: which videos, which class, which frames.

Frames are 0-based and intervals half-open, whatever the lists on disk use. C anomaly classes; Normal is not one of them.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from data import FEATURE_SUBFOLDERS, VIDEO_SUFFIXES, load_array
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import check_inside, read_lines

FILE_SUFFIXES = VIDEO_SUFFIXES | {".npy"}
INTEGER = re.compile("-?[0-9]+")
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


@dataclass(frozen=True)
class Video:
    name: str  # relative path without extension, "Abuse/Abuse028_x264": the key of everything about the video
    label: int  # class in [0, C), -1 for normal
    intervals: tuple[tuple[int, int], ...] = ()  # anomalous frames, half-open; row 0 of the features is frame 0
    num_frames: int | None = field(default=None, compare=False)  # as the lists tell, None where they do not; see check_features


@dataclass
class VideoLists:
    classes: tuple[str, ...]  # the C anomaly classes in id order, Normal left out
    train: list[Video]
    test: list[Video]

    def to_plain(self):
        """As dicts, lists, ints and strings, which `torch.load(weights_only=True)` reads back."""
        train, test = ([[v.name, v.label, list(map(list, v.intervals))] for v in videos]
                       for videos in (self.train, self.test))
        lengths = {v.name: v.num_frames for v in self.train + self.test if v.num_frames is not None}
        return {"classes": list(self.classes), "train": train, "test": test} | ({"num_frames": lengths} if lengths else {})

    @classmethod
    def from_plain(cls, plain):
        """The inverse of `to_plain`."""
        lengths = plain.get("num_frames", {})
        train, test = ([Video(name, label, tuple(map(tuple, pairs)), lengths.get(name)) for name, label, pairs in plain[split]]
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
    if path.startswith("/") or ".." in parts or not parts:
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


def frame_number(where, text):
    """The integer that a field holds; nobody's video has a trillion frames, and Python refuses thousands of digits."""
    if len(text) > 12:
        raise InputError(f"{where}: found the frame number {text[:12]}..., expected at most 12 digits")
    return int(text)


def split_numbers(line):
    """The text in front of the integers at the end of a line, and these as strings; the first field is always text."""
    fields = line.split()
    num_numbers = next((i for i, text in enumerate(reversed(fields[1:])) if not INTEGER.fullmatch(text)), len(fields) - 1)
    return line.rsplit(None, num_numbers)[0], fields[len(fields) - num_numbers:]


def half_open(where, numbers, inclusive):
    """Pairs of frame numbers as half-open intervals; -1 -1 stands for none."""
    if len(numbers) % 2:
        raise InputError(f"{where}: found {len(numbers)} frame numbers, expected pairs of start and end")
    pairs = [pair for pair in zip(numbers[::2], numbers[1::2]) if pair != (-1, -1)]
    for start, end in pairs:
        if start < 0 or end + inclusive <= start:
            raise InputError(f"{where}: found the interval {start} {end}, expected an end after a start of 0 or more")
    return tuple((start, end + inclusive) for start, end in pairs)


def check_apart(where, intervals):
    """Refuses intervals that share frames: no published list has any, so one of the numbers is wrong."""
    for (start, end), (next_start, next_end) in zip(sorted(intervals), sorted(intervals)[1:]):
        if next_start < end:
            raise InputError(f"{where}: found the frames {start} to {end - 1} and {next_start} to {next_end - 1}, which overlap, "
                             "expected intervals apart from each other")


def read_temporal(path, has_class=True, inclusive=True):
    """`name [Class] start end [start end ...]`, one video a line, as {name: (place, intervals)}."""
    annotations = {}
    for where, line in read_lines(path):
        text, numbers = split_numbers(line)  # names may hold blanks: only trailing numbers are frames
        head = text.rsplit(None, int(has_class))
        if len(head) != 1 + has_class or not numbers:
            form = "name Class start end [start end ...]" if has_class else "name start end [start end ...]"
            raise InputError(f"{where}: found {line!r}, expected {form!r}")
        name = video_name(where, head[0])
        if name in annotations:
            raise InputError(f"{where}: found {name} again, expected each video once")
        annotations[name] = where, half_open(where, [frame_number(where, text) for text in numbers], inclusive)
    return annotations


def add_intervals(path, rows, annotations, ignore_others=True):
    """(place, test video) rows with the intervals that `path` gives each, by its name or by its file name alone."""
    used, result = set(), []
    file_names = Counter(PurePosixPath(video.name).name for _, video in rows)
    for where, video in rows:
        key = video.name if video.name in annotations else PurePosixPath(video.name).name
        place, intervals = annotations.get(key, (path, ()))[:2]
        if intervals and key != video.name and file_names[key] > 1:
            raise InputError(f"{path}: found {key} for two test videos, expected the path of each")
        if (video.label >= 0) != bool(intervals):
            expected = "one or more, for it is anomalous" if video.label >= 0 else "none, for it is normal"
            raise InputError(f"{path}: found {len(intervals)} intervals of {video.name}, "
                             f"expected {expected} in {where}")
        check_apart(place, intervals)
        used.add(key)
        result.append((where, replace(video, intervals=intervals)))
    others = [name for name in annotations if name not in used]
    if others and not ignore_others:
        raise InputError(f"{annotations[others[0]][0]}: found {others[0]}, expected a video of the test list")
    if others:
        print(f"note: {path}: ignored {len(others)} annotated videos that are not in the test list, such as {others[0]}",
              file=sys.stderr)
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
    if spaced := [name for name in names if len(name.split()) > 1]:
        raise InputError(f"{root / 'classes.txt'}: found {spaced[0]!r}, expected names without blanks; write _ instead, prompts "
                         "show it as a blank")
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
    masks = {video.name: read_mask(folder, video.name) for _, video in test if video.label >= 0}
    test = [(where, replace(video, num_frames=masks[video.name][2] if video.label >= 0 else None)) for where, video in test]
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


def read_mask(folder, name):
    """The place, the runs of ones and the length of a 0/1 array with one value per frame."""
    path = folder / f"{name}.npy"
    check_inside(path, folder)
    mask = load_array(path)
    if mask.ndim != 1 or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{path}: found an array {mask.shape} of {mask.dtype}, expected 0 or 1 for each frame")
    steps = np.diff(mask.astype(np.int8), prepend=0, append=0)
    runs = zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist())
    return str(path), tuple(runs), len(mask)


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
