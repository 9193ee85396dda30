"""Which videos, which class, which frames: videos, lists of them, and the lines of annotation files.

Frames are 0-based and intervals half-open, whatever the lists on disk use. C anomaly classes; Normal is not one of
them.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from videoanomaly.runtime.console import CONTROLS, InputError, as_text, lookalike, note, reveal
from videoanomaly.runtime.files import read_lines
from videoanomaly.runtime.torchrun import is_main

VIDEO_SUFFIXES = {  # all that FFmpeg demuxes; .dav and those of raw H.264 and H.265 are what recorders write
    *(".264", ".265", ".3g2", ".3gp", ".asf", ".avc", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265"),
    *(".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
}
FILE_SUFFIXES = VIDEO_SUFFIXES | {".npy"}
ANOMALY = "Anomaly"  # the class of all that is not normal, where no training video shows which there are
INTEGER = re.compile("-?[0-9]+")
Intervals = tuple[tuple[int, int], ...]  # of frames, half-open
T = TypeVar("T")


@dataclass(frozen=True)
class Video:
    name: str  # relative path without extension, "Abuse/Abuse028_x264": the key of everything about the video
    label: int  # class in [0, C), -1 for normal
    intervals: Intervals = ()  # anomalous frames, half-open; row 0 of the features is frame 0
    # as the lists tell, None where they do not; see check_features
    num_frames: int | None = field(default=None, compare=False)
    interval_labels: tuple[int, ...] = ()  # class of each interval where they show several, else none: all show `label`


@dataclass
class VideoLists:
    classes: tuple[str, ...]  # the C anomaly classes in id order, Normal left out
    train: list[Video]
    test: list[Video]

    def to_plain(self) -> dict[str, Any]:
        """As dicts, lists, ints and strings, which `torch.load(weights_only=True)` reads back."""
        train, test = (
            [
                [v.name, v.label, list(map(list, v.intervals))] + [list(v.interval_labels)] * bool(v.interval_labels)
                for v in videos
            ]
            for videos in (self.train, self.test)
        )
        lengths = {v.name: v.num_frames for v in self.train + self.test if v.num_frames is not None}
        return {"classes": list(self.classes), "train": train, "test": test} | (
            {"num_frames": lengths} if lengths else {}
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "VideoLists":
        """The inverse of `to_plain`."""
        lengths = plain.get("num_frames", {})
        train, test = (
            [
                Video(name, label, tuple(map(tuple, pairs)), lengths.get(name), tuple(*several))
                for name, label, pairs, *several in plain[split]
            ]
            for split in ("train", "test")
        )
        return cls(tuple(plain["classes"]), train, test)

    def normal_only(self) -> "VideoLists":
        """The normal training videos alone; what is no normal test video is of one class, ANOMALY."""
        test = [replace(video, label=min(video.label, 0), interval_labels=()) for video in self.test]
        return VideoLists((ANOMALY,), [video for video in self.train if video.label < 0], test)


def frame_labels(video: Video, num_frames: int) -> np.ndarray:
    """Class of each frame, (num_frames,) int64, -1 for normal; intervals are clipped to the video."""
    labels = np.full(num_frames, -1, dtype=np.int64)
    for start, end in video.intervals:
        labels[max(start, 0) : max(end, 0)] = video.label
    return labels


def frame_masks(video: Video, num_frames: int, num_classes: int) -> np.ndarray:
    """Which classes each frame shows, (num_frames, num_classes) bool; intervals are clipped to the video."""
    masks = np.zeros((num_frames, num_classes), bool)
    for (start, end), label in zip(video.intervals, video.interval_labels or repeat(video.label)):
        masks[max(start, 0) : max(end, 0), label] = True
    return masks


def video_name(where: str | Path, path: str) -> str:
    """Name of the video at a listed path. Only known extensions are cut off, for names may hold dots."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts:
        raise InputError(f"{where}: found the path {path!r}, expected one below the root folder")
    name = "/".join(parts)
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in FILE_SUFFIXES else name


def label_of(where: str, name: str, classes: Sequence[str]) -> int:
    """Label of a class name: its place in `classes`, -1 for Normal."""
    if name.lower() == "normal":
        return -1
    if name not in classes:
        expected = f"Normal or one of {', '.join(map(reveal, classes))}"
        raise InputError(f"{where}: found the class {reveal(name)!r}, expected {expected}{lookalike(name, classes)}")
    return classes.index(name)


def without_normal(names: Iterable[str]) -> tuple[str, ...]:
    """The names of the C anomaly classes, in their order."""
    return tuple(name for name in names if name.lower() != "normal")


def frame_number(where: str, text: str) -> int:
    """The integer that a field holds; nobody's video has a trillion frames, and Python refuses thousands of digits."""
    if len(text) > 12:
        raise InputError(f"{where}: found the frame number {text[:12]}..., expected at most 12 digits")
    return int(text)


def split_numbers(line: str) -> tuple[str, list[str]]:
    """The text in front of the integers at the end of a line, and these as strings; the first field is always text."""
    fields = line.split()
    num_numbers = next(
        (i for i, text in enumerate(reversed(fields[1:])) if not INTEGER.fullmatch(text)), len(fields) - 1
    )
    return line.rsplit(None, num_numbers)[0], fields[len(fields) - num_numbers :]


def half_open(where: str, numbers: Sequence[int], inclusive: bool) -> Intervals:
    """Pairs of frame numbers as half-open intervals; -1 -1 stands for none."""
    if len(numbers) % 2:
        raise InputError(f"{where}: found {len(numbers)} frame numbers, expected pairs of start and end")
    pairs = [pair for pair in zip(numbers[::2], numbers[1::2]) if pair != (-1, -1)]
    for start, end in pairs:
        if start < 0 or end + inclusive <= start:
            raise InputError(f"{where}: found the interval {start} {end}, expected an end after a start of 0 or more")
    return tuple((start, end + inclusive) for start, end in pairs)


def check_apart(where: str, intervals: Intervals) -> None:
    """Refuses intervals of a class that share frames: no published list has any, so one of the numbers is wrong."""
    for (start, end), (next_start, next_end) in zip(sorted(intervals), sorted(intervals)[1:]):
        if next_start < end:
            raise InputError(
                f"{where}: found the frames {start} to {end - 1} and {next_start} to {next_end - 1}, which overlap, "
                "expected intervals apart from each other"
            )


class Annotation(NamedTuple):
    """What a list tells of a test video."""

    place: str  # file and line
    intervals: Intervals
    labels: tuple[int, ...] = ()  # as `Video.interval_labels`


def temporal_lines(path: str | Path, has_class: bool, inclusive: bool) -> Iterator[tuple[str, str, str, Intervals]]:
    """(place, name, class or nothing, intervals) of each line `name [Class] start end [start end ...]`."""
    for where, line in read_lines(path):
        text, numbers = split_numbers(line)  # names may hold blanks: only trailing numbers are frames
        head = text.rsplit(None, int(has_class))
        if len(head) != 1 + has_class or not numbers:
            form = "name Class start end [start end ...]" if has_class else "name start end [start end ...]"
            raise InputError(f"{where}: found {line!r}, expected {form!r}")
        intervals = half_open(where, [frame_number(where, text) for text in numbers], inclusive)
        yield where, video_name(where, head[0]), head[-1] if has_class else "", intervals


def read_temporal(path: str | Path, has_class: bool = True, inclusive: bool = True) -> dict[str, Annotation]:
    """The intervals of each video, which has a line."""
    annotations = {}
    for where, name, _, intervals in temporal_lines(path, has_class, inclusive):
        if name in annotations:
            raise InputError(f"{where}: found {name} again, expected each video once")
        annotations[name] = Annotation(where, intervals)
    return annotations


def read_temporal_of_classes(path: str | Path, classes: Sequence[str]) -> dict[str, Annotation]:
    """The same where a video may have a line for each of several classes, whose intervals may share frames."""
    lines: dict[str, list[tuple[str, str, Intervals]]] = {}
    for where, name, class_name, intervals in temporal_lines(path, has_class=True, inclusive=True):
        if class_name in [other for _, other, _ in lines.get(name, [])]:
            raise InputError(f"{where}: found {name} again, expected each video once, or once for each of its classes")
        lines.setdefault(name, []).append((where, class_name, intervals))
    annotations = {}
    for name, of_video in lines.items():
        labels = tuple(label_of(where, kind, classes) for where, kind, spans in of_video for _ in spans)
        all_spans = tuple(span for *_, spans in of_video for span in spans)
        annotations[name] = Annotation(of_video[0][0], all_spans, labels if len(of_video) > 1 else ())
    return annotations


def add_intervals(
    path: str | Path, rows: list[tuple[str, Video]], annotations: Mapping[str, Annotation], ignore_others: bool = True
) -> list[tuple[str, Video]]:
    """(place, test video) rows with the intervals that `path` gives each, by its name or by its file name alone."""
    used, result = set(), []
    file_names = Counter(PurePosixPath(video.name).name for _, video in rows)
    for where, video in rows:
        key = video.name if video.name in annotations else PurePosixPath(video.name).name
        place, intervals, labels = annotations.get(key, Annotation(str(path), ()))
        if intervals and key != video.name and file_names[key] > 1:
            raise InputError(f"{path}: found {key} for two test videos, expected the path of each")
        if (video.label >= 0) != bool(intervals):
            expected = "one or more, for it is anomalous" if video.label >= 0 else "none, for it is normal"
            raise InputError(
                f"{path}: found {len(intervals)} intervals of {reveal(video.name)}, expected {expected} in {where}"
                f"{lookalike(key, annotations)}"
            )
        for label in set(labels or (video.label,)):
            spans = zip(intervals, labels or repeat(label))
            check_apart(place, tuple(span for span, of_span in spans if of_span == label))
        if labels and video.label not in labels:
            raise InputError(f"{place}: found {video.name} without intervals of its class in {where}, expected some")
        used.add(key)
        result.append((where, replace(video, intervals=intervals, interval_labels=labels)))
    others = [name for name in annotations if name not in used]
    if others and not ignore_others:
        raise InputError(f"{annotations[others[0]][0]}: found {reveal(others[0])}, expected a video of the test list")
    if others:
        print(
            as_text(f"note: {path}: ignored {len(others)} annotated videos that are not in the test list, such as ")
            + as_text(others[0]),
            file=sys.stderr,
        )
    return result


def read_videos(path: str | Path, parse: Callable[..., T], *args: Any) -> list[tuple[str, T]]:
    """(place, parse(place, line, ...)) of each line of a list."""
    return [(where, parse(where, line, *args)) for where, line in read_lines(path)]


def collect(classes: Iterable[str], train: list[tuple[str, Video]], test: list[tuple[str, Video]]) -> VideoLists:
    """VideoLists of (place, video) rows, checked together.

    Raises:
        InputError: If a video occurs twice, or no training video is normal.
    """
    places = {}
    for where, video in train + test:
        if video.name in places:
            raise InputError(f"{where}: found {video.name} again, expected it only in {places[video.name]}")
        places[video.name] = where
    num_abnormal = sum(video.label >= 0 for _, video in train)
    if num_abnormal == len(train):
        place = train[0][0].split(", line ")[0] if train else "training list"
        raise InputError(
            f"{place}: found {num_abnormal} anomalous and {len(train) - num_abnormal} normal training "
            "videos, expected some of both"
        )
    return VideoLists(tuple(classes), [video for _, video in train], [video for _, video in test])


def note_rare_classes(place: str | Path, lists: VideoLists) -> None:
    """One line on stderr that names the classes which no or a single training video shows, if any shows one."""
    counts = Counter(video.label for video in lists.train)
    if counts.keys() == {-1}:
        return
    parts = []
    for count, text in enumerate(("no training video of", "a single training video of")):
        if names := [reveal(name) for c, name in enumerate(lists.classes) if counts[c] == count]:
            parts.append(f"{text} {', '.join(names)}")
    if parts and is_main():
        note(f"note: {place}: {'; '.join(parts)}; numbers of such classes, and means over them, tell little")


def read_custom(root: Path) -> VideoLists:
    """train.txt, test.txt (`path Class`), temporal_annotations.txt (ends inclusive), classes.txt (Normal first).

    Without test.txt and temporal_annotations.txt there are no test videos.
    """
    names = [line for _, line in read_lines(root / "classes.txt")]
    if spaced := [name for name in names if len(name.split()) > 1]:
        raise InputError(
            f"{root / 'classes.txt'}: found {spaced[0]!r}, expected names without blanks; write _ instead, prompts "
            "show it as a blank"
        )
    if not names or names[0].lower() != "normal" or len(set(names)) < len(names):
        raise InputError(f"{root / 'classes.txt'}: found {names}, expected Normal, then each anomaly class once")
    train, temporal = read_videos(root / "train.txt", classified_video, names[1:]), root / "temporal_annotations.txt"
    if not ((root / "test.txt").exists() or temporal.exists()):
        return collect(names[1:], train, [])
    test = read_videos(root / "test.txt", classified_video, names[1:])
    annotations = read_temporal_of_classes(temporal, names[1:])
    return collect(names[1:], train, add_intervals(temporal, test, annotations, ignore_others=False))


def classified_video(where: str, line: str, classes: Sequence[str]) -> Video:
    """The video of a line `path Class`."""
    fields = line.rsplit(None, 1)  # the path may hold blanks
    if len(fields) < 2:
        raise InputError(f"{where}: found {line!r}, expected 'relative/path.mp4 Class'")
    return Video(video_name(where, fields[0]), label_of(where, fields[1], classes))


def read_pairs(path: str | Path, header: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """(place, first, second) of a CSV file with two columns; the header line is optional."""
    for where, line in read_lines(path):
        first, comma, second = (part.strip() for part in line.partition(","))
        if not comma:
            raise InputError(f"{where}: found {line!r}, expected '{','.join(header)}'")
        if (first, second) != header:
            yield where, first, second


def class_names(text: str) -> tuple[str, ...]:
    """The names of `--classes "NAME, NAME"`, cleaned of surplus blanks."""
    if odd := CONTROLS.search(text):
        raise InputError(f"--classes: found the control character {odd[0]!r}, expected names")
    names = tuple(" ".join(name.split()) for name in text.split(","))
    if not all(name.replace("_", "").strip() for name in names):
        raise InputError(f"--classes {text!r}: found an empty name, expected names with commas between them")
    if len({name.replace("_", " ").lower() for name in names}) < len(names):
        raise InputError(f"--classes {text!r}: found a name twice, expected different ones")
    return names
