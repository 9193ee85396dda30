"""Feature files: a folder with one `.npy` per video, memory-mapped, never loaded whole, and checked before any work.

Letters: D feature size, N feature rows of a video (a row stands for `frames_per_feature` frames).
"""

import json
import math
import mmap
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from videoanomaly.data.annotations import Video
from videoanomaly.runtime.console import InputError, as_text, lookalike, reveal
from videoanomaly.runtime.files import check_inside, files_by_name
from videoanomaly.runtime.precision import NAMES, precision_of

FEATURE_SUBFOLDERS = ("", "features", "Image-Features")
FRAME_RATE = 30.0  # frames per second where nothing tells them
MOST_CROPS = 10  # of a frame, as the field's ten crops; a longer axis is another one
LENGTH_TOLERANCE = 15  # the field's ground truths and feature files differ by up to so many frames per video


class NoFeatures(InputError):
    """A video has none."""


def open_array(path: str | Path) -> Any:
    """numpy.load; Python 3.11 fails now and then where threads parse headers at once (python/cpython#106905)."""
    for _ in range(3):
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except SystemError:
            continue
    return np.load(path, mmap_mode="r", allow_pickle=False)


def load_array(path: str | Path, scattered: bool = False) -> np.ndarray:
    """Memory-mapped array of a .npy file; `scattered` reads no more of the disk than the rows that are asked for.

    Raises:
        InputError: If the file is no such array.
    """
    expected = "expected a .npy file with one array of numbers"
    try:
        with np.errstate(over="ignore"):  # sizes that a damaged header claims
            array = open_array(path)
    except Exception as error:  # a damaged header can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "pickle" in reason:  # NumPy tells how to load it unsafely, also where the file is a text
            reason = "no array, or one of Python objects"
        raise InputError(f"{path}: cannot be read ({reason}), {expected}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: is an archive of arrays, {expected}")
    if scattered and hasattr(mmap, "MADV_RANDOM"):  # where the system reads megabytes ahead: 100 times faster
        base: Any = array.base  # the mmap
        base.madvise(mmap.MADV_RANDOM)
    return array


class LazyArray:
    """An array (N, crops, D) that is read when it is indexed: by rows, or by (rows, crop) for one crop.

    Args:
        shape: (N, crops, D).
        read: Called with rows, or with rows and crop; gives their features.
    """

    def __init__(self, shape: tuple[int, ...], read: Callable[..., np.ndarray]):
        self.shape, self.read = shape, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(*index) if isinstance(index, tuple) else self.read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


class RowsOnDisk:
    """Features of a file (N, crops, D) that are read when they are indexed by (row numbers, crop).

    Without a memory map, whose pages would each be a fault, and without an open file in between: a data set has
        thousands.

    Args:
        array: The whole file, memory-mapped.
    """

    def __init__(self, path: Path, array: np.memmap):
        self.path, self.shape, self.dtype, self.offset = path, array.shape, array.dtype, array.offset
        self.state = self.look(os.stat(path))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: tuple[np.ndarray, int]) -> np.ndarray:
        rows, crop = index
        flat, size = rows.reshape(-1) * self.shape[1] + crop, self.shape[2] * self.dtype.itemsize
        # of the runs of neighbours in the file
        borders = np.flatnonzero(np.diff(flat, prepend=-2, append=-2) != 1).tolist()
        out = np.empty((len(flat), self.shape[2]), self.dtype)
        content, file = out.view(np.uint8).reshape(-1).data, os.open(self.path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):  # the system reads nothing ahead
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            places = zip(borders, borders[1:], (self.offset + flat[borders[:-1]] * size).tolist())
            done = [os.preadv(file, [content[a * size : b * size]], place) for a, b, place in places]
            if sum(done) != len(content) or self.look(os.fstat(file)) != self.state:
                raise InputError(f"{self.path}: has been changed since it was first read, expected the same file")
        finally:
            os.close(file)
        return out.reshape(*rows.shape, -1)

    @staticmethod
    def look(status: os.stat_result) -> tuple[int, int]:
        """What a change of the file would change: its size in bytes, and when it was written, ns."""
        return status.st_size, status.st_mtime_ns


Rows = np.ndarray | LazyArray | RowsOnDisk  # features (N, crops, D), in whatever way they are read


def stack_crops(arrays: list[np.ndarray]) -> LazyArray:
    """The files of the crops of one video, each (N, D), as one array (N, crops, D)."""

    def read(rows: Any, crop: int | None = None) -> np.ndarray:
        return np.stack([array[rows] for array in arrays], axis=-2) if crop is None else arrays[crop][rows]

    return LazyArray((len(arrays[0]), len(arrays), arrays[0].shape[1]), read)


def crop_paths(whole: Path) -> list[Path]:
    """Files of a video's crops where each has one, by the path without suffix."""
    return [Path(f"{whole}__{crop}.npy") for crop in range(MOST_CROPS)]


class FeatureFolder:
    """The feature files below a folder.

    Args:
        root: Folder with `<video name>.npy`, or with a folder `features` or `Image-Features` that holds them.
        frames_per_feature: Frames that a row stands for; by default the stride in meta.json, 1 without one.
        crops: Crops per frame where files are (N * crops, D), the crops of a frame in consecutive rows.
    """

    def __init__(self, root: str | Path, frames_per_feature: int | None = None, crops: int = 1):
        self.root = Path(root)
        self.folders = [self.root / sub for sub in FEATURE_SUBFOLDERS]
        self.meta = next((read_meta(f / "meta.json") for f in self.folders if (f / "meta.json").is_file()), None)
        self.frames_per_feature: int = frames_per_feature or (self.meta["stride"] if self.meta else 1)
        self.crops = crops
        # D; without meta.json known after the first `open`
        self.dim: int | None = self.meta["dim"] if self.meta else None
        self.several: int | None = None  # crops of the files (N, crops, D) that have more than one
        self.scattered: dict[str, RowsOnDisk] = {}  # what `open_scattered` has found, by video
        self.by_name: dict[str, list[tuple[Path, Path]]] | None = None  # all files, once one is not in its place

    @property
    def encoder(self) -> dict | None:
        """What made the features, as meta.json tells; None without one. Unequal means: not to be mixed."""
        return self.meta and {key: value for key, value in self.meta.items() if key not in ("videos", "stride")}

    def open(self, name: str, scattered: bool = False) -> np.ndarray | LazyArray:
        """Features of a video, a memory-mapped array (N, crops, D) of float16 or float32 (see `load_array`).

        Raises:
            InputError: If there are none, or other ones than the folder should hold.
        """
        paths = self.paths(name)
        arrays = [self._open_file(path, scattered) for path in paths]
        if len(arrays) == 1:
            return arrays[0]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1 or arrays[0].shape[1] > 1:
            raise InputError(f"{paths[0]}: found {sorted(shapes)} in the files of the crops, expected equal (rows, D)")
        return stack_crops([array[:, 0] for array in arrays])

    def open_scattered(self, name: str) -> Rows:
        """The same for a few rows here and there: by (row numbers, crop), again and again, at the reading's cost."""
        if name not in self.scattered:
            paths, array = self.paths(name), self.open(name, scattered=True)
            if not (isinstance(array, np.memmap) and array.flags.c_contiguous and hasattr(os, "preadv")):
                return array  # not kept, for each holds an open file
            self.scattered[name] = RowsOnDisk(paths[0], array)
        return self.scattered[name]

    def num_frames(self, name: str) -> int:
        """Frames of the video: as meta.json tells, else those that its rows stand for."""
        known = self.known(name)
        return known["frames"] if known else len(self.open(name)) * self.frames_per_feature

    def known(self, name: str) -> dict[str, Any]:
        """What meta.json tells of a video; nothing without one."""
        videos = self.meta["videos"] if self.meta else {}
        if name in videos or self.by_name is None:
            return videos.get(name, {})
        path = self.paths(name)[0].with_suffix("")
        return next((videos[key] for f in self.folders if (key := os.path.relpath(path, f)) in videos), {})

    def frame_rate(self, name: str, default: float | None = None) -> float:
        """Frames per second of the video: as meta.json tells, else the default, else FRAME_RATE."""
        return self.known(name).get("fps") or default or FRAME_RATE

    def paths(self, name: str) -> list[Path]:
        """The file of a video, or its files if each crop has one."""
        for folder in self.folders:
            for stem in dict.fromkeys((name, name.rsplit("/", 1)[-1])):  # RTFM's files lie flat in one folder
                whole = folder / stem
                for paths in ([Path(f"{whole}.npy")], [Path(f"{whole}_i3d.npy")], crop_paths(whole)):
                    if paths := [path for path in paths if os.path.isfile(path)]:  # Path.is_file raises for long names
                        for path in paths:
                            check_inside(path, folder)
                        self.folders = [folder]  # where one video is, there all are
                        return paths
        return self.paths_elsewhere(name)

    def paths_elsewhere(self, name: str) -> list[Path]:
        """The same where a data set lies in other folders than its lists tell, or its names are spelt otherwise: the
        one place with that file name, of several the one that ends as the whole name.
        """
        if self.by_name is None:
            links = [folder for folder in self.folders[1:] if folder.is_symlink()]
            self.by_name = files_by_name([self.folders[0], *links], ".npy")
        file = unicodedata.normalize("NFC", name.rsplit("/", 1)[-1])
        ends = [end for end in ("", "_i3d", "__0") if f"{file}{end}" in self.by_name]
        if not ends:
            raise NoFeatures(
                f"{self.root}: found no features of {reveal(name)}, expected {reveal(name)}.npy, {file}_i3d.npy or "
                f"{file}__0.npy in {' or '.join(map(str, self.folders))}, or one file of that name below"
                f"{lookalike(file, self.by_name)}"
            )
        found = self.by_name[f"{file}{ends[0]}"]
        if len(found) > 1:
            whole = f"/{unicodedata.normalize('NFC', name)}{ends[0]}.npy"
            exact = [(f, path) for f, path in found if unicodedata.normalize("NFC", path.as_posix()).endswith(whole)]
            found = exact if len(exact) == 1 else found
        if len(found) > 1:
            places = " and ".join(str(path) for _, path in found[:2])
            raise InputError(
                f"{self.root}: found {places} for {name}, expected one, or {name}.npy in {self.folders[0]}"
            )
        folder, path = found[0]
        check_inside(path, folder)
        if ends[0] != "__0":
            return [path]
        return [path for path in crop_paths(path.with_name(path.stem.removesuffix("__0"))) if path.is_file()]

    def _open_file(self, path: Path, scattered: bool) -> np.ndarray:
        array, D = load_array(path, scattered), self.dim or "D"
        if array.ndim not in (2, 3) or array.dtype not in (np.float16, np.float32) or 0 in array.shape:
            raise InputError(
                f"{path}: found an array {array.shape} of {array.dtype}, expected rows: (N, {D}) or "
                f"(N, crops, {D}), float16 or float32"
            )
        if array.shape[-1] != (self.dim or array.shape[-1]):
            raise InputError(f"{path}: found features of size {array.shape[-1]}, expected {D} as in the others")
        if array.ndim == 2 and len(array) % self.crops:
            raise InputError(f"{path}: found an array {array.shape}, expected {self.crops} crops per frame")
        if array.ndim == 3:
            self._check_crops(path, array.shape)
        self.dim = array.shape[-1]
        return array if array.ndim == 3 else array.reshape(-1, self.crops, array.shape[-1])  # (N, crops, D)

    def _check_crops(self, path: Path, shape: tuple[int, ...]) -> None:
        """Refuses a middle axis of (N, crops, D) that cannot be one of crops: there is an axis too many."""
        found, told = shape[1], self.meta.get("crops") if self.meta else None
        known = self.crops if self.crops > 1 else told
        if found != (known or found):
            expected = f"{known} crops per frame, (N, {known}, {shape[2]})"
        elif found > MOST_CROPS:
            expected = f"(N, {shape[2]}) or (N, crops, {shape[2]}), up to {MOST_CROPS} crops per frame"
        elif found > 1 and found != (self.several or found):
            expected = f"{self.several} crops per frame, (N, {self.several}, {shape[2]}), as in the others"
        else:
            self.several = found if found > 1 else self.several
            return
        raise InputError(f"{path}: found an array {shape}, expected {expected}")


def read_meta(path: Path) -> dict[str, Any]:
    """Checked content of the meta.json that extract_features.py writes; an InputError if it is no such file."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        counts = [meta["stride"], meta["dim"], meta.get("crops", 1), *(v["frames"] for v in meta["videos"].values())]
        rates = [v.get("fps") for v in meta["videos"].values()]
        valid = all(type(n) is int and n >= 1 for n in counts)
        valid &= all(fps is None or math.isfinite(fps) and fps > 0 for fps in rates)
        valid &= all(precision_of(made) in NAMES for made in (meta, *meta["videos"].values()))
        _ = meta["encoder"], meta["weights_sha256"]  # used by whoever compares encoders
    except Exception as error:  # other types than expected, a million brackets
        raise InputError(f"{path}: is damaged ({error!r}), expected what extract_features.py writes") from error
    if not valid:
        raise InputError(
            f"{path}: found a stride, dim, crops, precision, frames or fps that is none, expected what "
            "extract_features.py writes"
        )
    return meta


def matching_rows(
    features: FeatureFolder, name: str, num_rows: int, frames_per_feature: int, scattered: bool = False
) -> LazyArray:
    """The rows of a video in `features` that show the same frames as `num_rows` rows of `frames_per_feature` frames.

    Raises:
        InputError: If the two differ in length by a row or more.
    """
    array = features.open_scattered(name) if scattered else features.open(name)
    found, expected = len(array) * features.frames_per_feature, num_rows * frames_per_feature
    if abs(found - expected) >= max(features.frames_per_feature, frames_per_feature):
        raise InputError(
            f"{features.root}: found {len(array)} rows for {found} frames of {name}, expected rows for {expected} "
            "as in the other features; does a row stand for another number of frames?"
        )
    idx = np.minimum(np.arange(num_rows) * frames_per_feature // features.frames_per_feature, len(array) - 1)

    def read(rows: Any, *crop: int) -> np.ndarray:
        index: Any = (idx[rows], *crop) if crop else idx[rows]
        return array[index]

    return LazyArray((num_rows, *array.shape[1:]), read)


def check_length(features: FeatureFolder, video: Video, path: Path, num_rows: int) -> tuple[int, int]:
    """Frames by which a video's lists and features differ in length, and by which its last anomaly ends behind both.

    Raises:
        InputError: If the lengths differ by more than they may.
    """
    num_frames, known = num_rows * features.frames_per_feature, features.num_frames(video.name)
    found = f"{path}: found {num_rows} rows, of {features.frames_per_feature} frames each"
    if abs(num_frames - known) >= features.frames_per_feature:
        raise InputError(
            f"{found}, expected rows for the {known} frames that meta.json tells; see --frames-per-feature"
        )
    if video.intervals and max(start for start, _ in video.intervals) >= num_frames:
        raise InputError(
            f"{found}, expected more: an anomaly starts at frame {max(video.intervals)[0]}; see "
            "--frames-per-feature and --crops"
        )
    rounding = 0 if features.meta else features.frames_per_feature - 1  # rows alone do not tell the last frames
    difference = abs(known - video.num_frames) if video.num_frames is not None else 0
    if difference > LENGTH_TOLERANCE + rounding:
        raise InputError(
            f"{path}: found features of {known} frames, expected {video.num_frames} as in the lists, or up to "
            f"{LENGTH_TOLERANCE} more or less; see --frames-per-feature and --crops"
        )
    last = max((end for _, end in video.intervals), default=0)
    return (difference if difference > rounding else 0), max(last - num_frames, 0)


def check_features(
    features: FeatureFolder, videos: Iterable[Video], temporal_features: FeatureFolder | None = None
) -> None:
    """Looks at the files of every video (headers only), so that what is missing or does not fit shows before any work.

    Where annotations and features disagree on the length of a video by up to LENGTH_TOLERANCE, the features are
    trusted: frame 0 is row 0 in both, and what is annotated behind the last frame is cut off. One line on stderr counts
    such videos.

    Raises:
        InputError: On the first file that is missing or does not fit.
    """
    names: dict[Path, str] = {}
    differing, cut = {}, {}
    for video in videos:
        num_rows, path = len(features.open(video.name)), features.paths(video.name)[0]
        if names.setdefault(path, video.name) != video.name:
            raise InputError(
                f"{path}: found as features of {names[path]} and of {video.name}, expected a file for each"
            )
        differing[video.name], cut[video.name] = check_length(features, video, path, num_rows)
        if temporal_features is not None:
            matching_rows(temporal_features, video.name, num_rows, features.frames_per_feature)
    note(features.root, differing, "lists and features differ in length, the features are trusted,")
    note(features.root, cut, "annotated anomalies end behind the last frame and are cut off there,")


def note(place: Path, differences: dict[str, int], what: str) -> None:
    """One line on stderr on all videos of {name: frames}."""
    count, worst = sum(n > 0 for n in differences.values()), max(differences, key=differences.__getitem__, default="")
    if count:
        print(
            as_text(f"note: {place}: in {count} videos {what} by up to {differences[worst]} frames (in {worst})"),
            file=sys.stderr,
        )
