"""Feature files and segment sampling.

A data set is a folder with annotation lists (annotations.py) and a folder with one `.npy` per video (`FeatureFolder`). A
feature file is memory-mapped, never loaded whole.

Letters: S segments per video, F frames per segment, D feature size, N feature rows of a video (a row stands for
`frames_per_feature` frames).
"""

import json
import mmap
import os
import sys
from pathlib import Path

import numpy as np

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import check_inside
from videoanomaly.runtime.processes import same_for_all, sum_over_ranks
from videoanomaly.runtime.torchrun import rank_and_world

VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
                  ".ogv", ".ts", ".vob", ".webm", ".wmv"}
FEATURE_SUBFOLDERS = ("", "features", "Image-Features")
LENGTH_TOLERANCE = 15  # the field's ground truths and feature files differ by up to so many frames per video
CHUNK_ROWS = 4096  # rows read at once by the prototype: 84 MB of ten-crop, 512-wide float32 features
MOMENT_ROWS = 1024  # rows of a video that its second moments are taken of


# ---------------------------------------------------------------- feature files


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


class RowsOnDisk:
    """Features of a file (N, crops, D) that are read when they are indexed by (row numbers, crop).

    Without a memory map, whose pages would each be a fault, and without an open file in between: a data set has thousands.

    Args:
        array: The whole file, memory-mapped.
    """

    def __init__(self, path, array):
        self.path, self.shape, self.dtype, self.offset = path, array.shape, array.dtype, array.offset
        self.state = self.look(os.stat(path))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        rows, crop = index
        flat, size = rows.reshape(-1) * self.shape[1] + crop, self.shape[2] * self.dtype.itemsize
        borders = np.flatnonzero(np.diff(flat, prepend=-2, append=-2) != 1).tolist()  # of the runs of neighbours in the file
        out = np.empty((len(flat), self.shape[2]), self.dtype)
        content, file = out.view(np.uint8).reshape(-1), os.open(self.path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):  # the system reads nothing ahead
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            places = zip(borders, borders[1:], (self.offset + flat[borders[:-1]] * size).tolist())
            done = [os.preadv(file, [content[a * size:b * size]], place) for a, b, place in places]
            if sum(done) != len(content) or self.look(os.fstat(file)) != self.state:
                raise InputError(f"{self.path}: has been changed since it was first read, expected the same file")
        finally:
            os.close(file)
        return out.reshape(*rows.shape, -1)

    @staticmethod
    def look(status):
        return status.st_size, status.st_mtime_ns


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
        self.scattered = {}  # what `open_scattered` has found, by video

    @property
    def encoder(self):
        """What made the features, as meta.json tells; None without one. Unequal means: not to be mixed."""
        return self.meta and {key: value for key, value in self.meta.items() if key not in ("videos", "stride")}

    def open(self, name, scattered=False):
        """Features of a video, a memory-mapped array (N, crops, D) of float16 or float32 (see `load_array`)."""
        paths = self.paths(name)
        arrays = [self._open_file(path, scattered) for path in paths]
        if len(arrays) == 1:
            return arrays[0]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1 or arrays[0].shape[1] > 1:
            raise InputError(f"{paths[0]}: found {sorted(shapes)} in the files of the crops, expected equal (rows, D)")
        return stack_crops([array[:, 0] for array in arrays])

    def open_scattered(self, name):
        """The same for a few rows here and there: by (row numbers, crop), again and again with no more work than to read them."""
        if name not in self.scattered:
            paths, array = self.paths(name), self.open(name, scattered=True)
            if not (len(paths) == 1 and array.flags.c_contiguous and hasattr(os, "preadv")):
                return array  # not kept, for each holds an open file
            self.scattered[name] = RowsOnDisk(paths[0], array)
        return self.scattered[name]

    def num_frames(self, name):
        """Frames of the video: as meta.json tells, else those that its rows stand for."""
        known = self.meta["videos"].get(name) if self.meta else None
        return known["frames"] if known else len(self.open(name)) * self.frames_per_feature

    def paths(self, name):
        """The file of a video, or its files if each crop has one."""
        for folder in self.folders:
            for stem in dict.fromkeys((name, name.rsplit("/", 1)[-1])):  # RTFM's files lie flat in one folder
                crop_paths = [folder / f"{stem}__{crop}.npy" for crop in range(10)]
                for paths in ([folder / f"{stem}.npy"], [folder / f"{stem}_i3d.npy"], crop_paths):
                    if paths := [path for path in paths if os.path.isfile(path)]:  # Path.is_file raises for long names
                        for path in paths:
                            check_inside(path, folder)
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
        meta["encoder"], meta["weights_sha256"]  # used by whoever compares encoders
    except Exception as error:  # other types than expected, a million brackets
        raise InputError(f"{path}: is damaged ({error!r}), expected what extract_features.py writes") from error
    if not valid:
        raise InputError(f"{path}: found a stride, dim or frames below 1, expected what extract_features.py writes")
    return meta


def matching_rows(features, name, num_rows, frames_per_feature, scattered=False):
    """The rows of a video in `features` that show the same frames as `num_rows` rows of `frames_per_feature` frames."""
    array = features.open_scattered(name) if scattered else features.open(name)
    found, expected = len(array) * features.frames_per_feature, num_rows * frames_per_feature
    if abs(found - expected) >= max(features.frames_per_feature, frames_per_feature):
        raise InputError(f"{features.root}: found {len(array)} rows for {found} frames of {name}, expected rows for {expected} "
                         "as in the other features; does a row stand for another number of frames?")
    idx = np.minimum(np.arange(num_rows) * frames_per_feature // features.frames_per_feature, len(array) - 1)
    return LazyArray((num_rows, *array.shape[1:]),
                     lambda rows, *crop: array[(idx[rows], *crop) if crop else idx[rows]])


def check_length(features, video, path, num_rows):
    """Frames by which a video's lists and features differ in length, and by which its last anomaly ends behind both."""
    num_frames, known = num_rows * features.frames_per_feature, features.num_frames(video.name)
    found = f"{path}: found {num_rows} rows, of {features.frames_per_feature} frames each"
    if abs(num_frames - known) >= features.frames_per_feature:
        raise InputError(f"{found}, expected rows for the {known} frames that meta.json tells; see --frames-per-feature")
    if video.intervals and max(start for start, _ in video.intervals) >= num_frames:
        raise InputError(f"{found}, expected more: an anomaly starts at frame {max(video.intervals)[0]}; see "
                         "--frames-per-feature and --crops")
    rounding = 0 if features.meta else features.frames_per_feature - 1  # rows alone do not tell the last frames
    difference = abs(known - video.num_frames) if video.num_frames is not None else 0
    if difference > LENGTH_TOLERANCE + rounding:
        raise InputError(f"{path}: found features of {known} frames, expected {video.num_frames} as in the lists, or up to "
                         f"{LENGTH_TOLERANCE} more or less; see --frames-per-feature and --crops")
    last = max((end for _, end in video.intervals), default=0)
    return (difference if difference > rounding else 0), max(last - num_frames, 0)


def check_features(features, videos, temporal_features=None):
    """Looks at the files of every video (headers only), so that what is missing or does not fit shows before any work.

    Where annotations and features disagree on the length of a video by up to LENGTH_TOLERANCE, the features are trusted: frame
    0 is row 0 in both, and what is annotated behind the last frame is cut off. One line on stderr counts such videos.
    """
    names, differing, cut = {}, {}, {}
    for video in videos:
        num_rows, path = len(features.open(video.name)), features.paths(video.name)[0]
        if names.setdefault(path, video.name) != video.name:
            raise InputError(f"{path}: found as features of {names[path]} and of {video.name}, expected a file for each")
        differing[video.name], cut[video.name] = check_length(features, video, path, num_rows)
        if temporal_features is not None:
            matching_rows(temporal_features, video.name, num_rows, features.frames_per_feature)
    note(features.root, differing, "lists and features differ in length, the features are trusted,")
    note(features.root, cut, "annotated anomalies end behind the last frame and are cut off there,")


def note(place, differences, what):
    """One line on stderr on all videos of {name: frames}."""
    count, worst = sum(n > 0 for n in differences.values()), max(differences, key=differences.get, default=None)
    if count:
        print(f"note: {place}: in {count} videos {what} by up to {differences[worst]} frames (in {worst})", file=sys.stderr)


def checked_sum(features, name):
    """Sum of the features of a video over rows and crops, (D,) float64, and their number; each value is looked at."""
    array, total = features.open(name), 0
    for start in range(0, len(array), CHUNK_ROWS):
        chunk = array[start:start + CHUNK_ROWS]
        part = chunk.sum(axis=(0, 1), dtype=np.float64)  # not finite if one value is not: float32 ones do not overflow it
        if not np.isfinite(part).all():
            row = start + int(np.argmin(np.isfinite(chunk).all(axis=(1, 2))))
            raise InputError(f"{features.paths(name)[0]} of {name}: found features that are infinite or not a number in row "
                             f"{row}, expected finite ones")
        total = total + part
    if not total.any() and not np.any(array):
        raise InputError(f"{features.paths(name)[0]} of {name}: found nothing but zeros, expected features")
    return total, array.shape[0] * array.shape[1]


def normality_prototype(features, videos):
    """Mean of all frame features of the normal videos, (D,) float32 (paper Eq. 1), summed in float64.

    The abnormal ones among `videos` are read as well, to find infinite features before the training: a pass at the speed of
    the disk, at most 1.3 GB/s for float16 and 2.3 GB/s for float32 (one core), so 12 s for the 15 GB of UCF-Crime's.
    """
    import torch  # here and below, so that a script answers --help without waiting for it
    from tqdm import tqdm

    if not any(video.label < 0 for video in videos):
        raise InputError("the training list holds no normal video, expected some for the normality prototype")
    rank, _, world_size = rank_and_world()

    def sum_share():
        total = np.zeros(features.open(videos[0].name).shape[-1] + 1)  # the last counts rows
        quiet = None if rank == 0 else True
        for video in tqdm(videos[rank::world_size], desc="reading all features once", unit="video", disable=quiet):
            video_sum, video_rows = checked_sum(features, video.name)
            if video.label < 0:
                total += np.append(video_sum, video_rows)
        return torch.from_numpy(total)

    total = sum_over_ranks(same_for_all(sum_share))
    return (total[:-1] / total[-1]).float()


def normal_moments(features, videos):
    """First and second moments of the features of the normal videos, from which mean and variance along any direction follow.

    Of each video at most MOMENT_ROWS rows, evenly spaced: neighbours tell little more, and training batches take as many of a
    long video as of a short one. About 20 ms a video of 512-wide features (one core).

    Returns:
        "count" of the rows (int), their "sum", (D,), and "outer", the sum of their outer products, (D, D), float64 tensors;
        the crops of a row count as rows.
    """
    import torch

    rank, _, world_size = rank_and_world()
    normal = [video.name for video in videos if video.label < 0]

    def sum_share():
        total = np.zeros((features.open(normal[0]).shape[-1] + 1,) * 2)  # of rows with a 1 behind them, which counts and sums
        for name in normal[rank::world_size]:
            rows = spaced_rows(features.open(name, scattered=True))
            rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=1)
            total += rows.T @ rows
        return torch.from_numpy(total)

    total = sum_over_ranks(same_for_all(sum_share))  # (D + 1, D + 1)
    return {"count": int(total[-1, -1]), "sum": total[-1, :-1].clone(), "outer": total[:-1, :-1].clone()}


def spaced_rows(array):
    """Up to MOMENT_ROWS evenly spaced rows of features (N, crops, D), (rows * crops, D) float64."""
    idx = np.linspace(0, len(array) - 1, min(MOMENT_ROWS, len(array))).astype(int)
    return np.asarray(array[idx], np.float64).reshape(-1, array.shape[-1])


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


class SegmentDataset:
    """Training samples for a DataLoader: S segments of F rows of a video; item (video_idx, seed) depends on nothing else.

    Args:
        videos: Training videos.
        features: Features that are sampled; of several crops one is drawn.
        num_segments: S.
        num_frames: F.
        temporal_features: Second features of the same frames, for models that look at the time with another encoder.
        released: See `training_rows`.
        mean: Give the mean of each segment's rows, (S, 1, D), for models that look at no more.
    """

    def __init__(self, videos, features, num_segments, num_frames, temporal_features=None, released=False, mean=False):
        self.videos, self.features, self.temporal_features = videos, features, temporal_features
        self.num_segments, self.num_frames, self.released, self.mean = num_segments, num_frames, released, mean

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        """Dict of `features` (S, F, D) float32, `label`, `video_idx`, with second features `temporal_features` (S, F, D2)."""
        video_idx, seed = index
        video, rng = self.videos[video_idx], np.random.default_rng(seed)
        array = self.features.open_scattered(video.name)
        rows = training_rows(len(array), self.num_segments, self.num_frames, rng, self.released)
        crop = int(rng.integers(array.shape[1]))
        x = read_rows(array, rows, crop)
        sample = {"features": x.mean(dim=1, keepdim=True) if self.mean else x, "label": video.label, "video_idx": video_idx}
        if self.temporal_features is not None:
            other = matching_rows(self.temporal_features, video.name, len(array), self.features.frames_per_feature,
                                  scattered=True)
            crop = crop if other.shape[1] == array.shape[1] else int(rng.integers(other.shape[1]))
            sample["temporal_features"] = read_rows(other, rows, crop)
        return sample


def read_rows(array, rows, crop):
    """Rows (S, F) of one crop as a float32 tensor (S, F, D); no other row is read."""
    import torch

    return torch.from_numpy(np.asarray(array[rows, crop], dtype=np.float32))


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
