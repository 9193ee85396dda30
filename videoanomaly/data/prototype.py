"""What the features of the training videos teach without a gradient: the normality prototype, and second moments.

Letters: D feature size, N feature rows of a video.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoanomaly.data.annotations import Video
from videoanomaly.data.features import FeatureFolder, LazyArray
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.processes import same_for_all, sum_over_ranks
from videoanomaly.runtime.torchrun import rank_and_world

CHUNK_ROWS = 4096  # rows read at once by the prototype: 84 MB of ten-crop, 512-wide float32 features
MOMENT_ROWS = 1024  # rows of a video that its second moments are taken of


def checked_sum(features: FeatureFolder, name: str) -> tuple[np.ndarray, int]:
    """Sum of the features of a video over rows and crops, (D,) float64, and their number; each value is looked at.

    Raises:
        InputError: If one is infinite or not a number, or all are zero.
    """
    array = features.open(name)
    total = np.zeros(array.shape[-1])
    for start in range(0, len(array), CHUNK_ROWS):
        chunk = array[start : start + CHUNK_ROWS]
        # not finite if one value is not: float32 ones do not overflow it
        part = chunk.sum(axis=(0, 1), dtype=np.float64)
        if not np.isfinite(part).all():
            row = start + int(np.argmin(np.isfinite(chunk).all(axis=(1, 2))))
            raise InputError(
                f"{features.paths(name)[0]} of {name}: found features that are infinite or not a number in row "
                f"{row}, expected finite ones"
            )
        total = total + part
    if not total.any() and not np.any(array):
        raise InputError(f"{features.paths(name)[0]} of {name}: found nothing but zeros, expected features")
    return total, array.shape[0] * array.shape[1]


def normality_prototype(features: FeatureFolder, videos: Sequence[Video]) -> Tensor:
    """Mean of all frame features of the normal videos, (D,) float32 (paper Eq. 1), summed in float64.

    The abnormal ones among `videos` are read as well, to find infinite features before the training: a pass at the
    speed of the disk, at most 1.3 GB/s for float16 and 2.3 GB/s for float32 (one core), so 12 s for the 15 GB of
    UCF-Crime's.

    Raises:
        InputError: If no video is normal, or the features of one are none (see `checked_sum`).
    """
    if not any(video.label < 0 for video in videos):
        raise InputError("the training list holds no normal video, expected some for the normality prototype")
    rank, _, world_size = rank_and_world()

    def sum_share() -> Tensor:
        total = np.zeros(features.open(videos[0].name).shape[-1] + 1)  # the last counts rows
        quiet = None if rank == 0 else True
        for video in tqdm(videos[rank::world_size], desc="reading all features once", unit="video", disable=quiet):
            video_sum, video_rows = checked_sum(features, video.name)
            if video.label < 0:
                total += np.append(video_sum, video_rows)
        return torch.from_numpy(total)

    total = sum_over_ranks(same_for_all(sum_share))
    return (total[:-1] / total[-1]).float()


def normal_moments(features: FeatureFolder, videos: Sequence[Video]) -> dict:
    """First and second moments of the features of the normal videos: mean and variance along any direction follow.

    Of each video at most MOMENT_ROWS rows, evenly spaced: neighbours tell little more, and training batches take as
    many of a long video as of a short one. About 20 ms a video of 512-wide features (one core).

    Returns:
        "count" of the rows (int), their "sum", (D,), and "outer", the sum of their outer products, (D, D), float64
        tensors; the crops of a row count as rows.
    """
    rank, _, world_size = rank_and_world()
    normal = [video.name for video in videos if video.label < 0]

    share = partial(row_moments, features, normal[rank::world_size])
    total = sum_over_ranks(same_for_all(lambda: torch.from_numpy(share())))
    return {"count": int(total[-1, -1]), "sum": total[-1, :-1].clone(), "outer": total[:-1, :-1].clone()}


def row_moments(features: FeatureFolder, names: Sequence[str]) -> np.ndarray:
    """Sum of the outer products of the videos' `spaced_rows`, with a 1 behind each, which counts and sums,
    (D + 1, D + 1).
    """
    total = np.zeros(((features.dim or features.open(names[0]).shape[-1]) + 1,) * 2)
    for name in names:
        rows = np.pad(spaced_rows(features.open(name, scattered=True)), ((0, 0), (0, 1)), constant_values=1)
        total += rows.T @ rows
    return total


def spaced_rows(array: np.ndarray | LazyArray) -> np.ndarray:
    """Up to MOMENT_ROWS evenly spaced rows of features (N, crops, D), (rows * crops, D) float64."""
    idx = np.linspace(0, len(array) - 1, min(MOMENT_ROWS, len(array))).astype(int)
    return np.asarray(array[idx], np.float64).reshape(-1, array.shape[-1])
