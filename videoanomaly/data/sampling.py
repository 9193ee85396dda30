"""Training samples: segments of videos, balanced batches, and the rest of an epoch that was begun.

Letters: S segments per video, F frames per segment, D feature size, N feature rows of a video.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videoanomaly.data.annotations import Video
from videoanomaly.data.features import FeatureFolder, Rows, matching_rows
from videoanomaly.runtime.torchrun import rank_and_world


def training_rows(
    num_rows: int, num_segments: int, num_frames: int, rng: np.random.Generator, released: bool = False
) -> np.ndarray:
    """Rows of a training sample: F consecutive ones at a random place in each of S blocks (paper Sec. 4.1).

    Args:
        num_rows: Rows of the video; a video shorter than S * F is repeated from its start.
        num_segments: S.
        num_frames: F.
        rng: Where the starts are drawn from.
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
    """Training samples for a DataLoader: S segments of F rows of a video; item (video_idx, seed) depends on no more.

    Args:
        videos: Training videos.
        features: Features that are sampled; of several crops one is drawn.
        num_segments: S.
        num_frames: F.
        temporal_features: Second features of the same frames, for models that look at the time with another encoder.
        released: See `training_rows`.
        mean: Give the mean of each segment's rows, (S, 1, D), for models that look at no more.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        features: FeatureFolder,
        num_segments: int,
        num_frames: int,
        temporal_features: FeatureFolder | None = None,
        released: bool = False,
        mean: bool = False,
    ):
        self.videos, self.features, self.temporal_features = videos, features, temporal_features
        self.num_segments, self.num_frames, self.released, self.mean = num_segments, num_frames, released, mean

    def __len__(self) -> int:
        return len(self.videos)

    def sample_bytes(self) -> int:
        """Of the tensors of one sample; all have the same shapes."""
        return sum(value.nbytes for value in self[0, 0].values() if isinstance(value, Tensor))

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """`features` (S, F, D) float32, `label`, `video_idx`, and of second features `temporal_features` (S, F, D2)."""
        video_idx, seed = index
        video, rng = self.videos[video_idx], np.random.default_rng(seed)
        array = self.features.open_scattered(video.name)
        rows = training_rows(len(array), self.num_segments, self.num_frames, rng, self.released)
        crop = int(rng.integers(array.shape[1]))
        x = read_rows(array, rows, crop)
        sample = {
            "features": x.mean(dim=1, keepdim=True) if self.mean else x,
            "label": video.label,
            "video_idx": video_idx,
        }
        if self.temporal_features is not None:
            other = matching_rows(
                self.temporal_features, video.name, len(array), self.features.frames_per_feature, scattered=True
            )
            crop = crop if other.shape[1] == array.shape[1] else int(rng.integers(other.shape[1]))
            sample["temporal_features"] = read_rows(other, rows, crop)
        return sample


def read_rows(array: Rows, rows: np.ndarray, crop: int) -> Tensor:
    """Rows (S, F) of one crop as a float32 tensor (S, F, D); no other row is read."""
    return torch.from_numpy(np.asarray(array[rows, crop], dtype=np.float32))


class BalancedBatches:
    """Batches of (video_idx, sample seed), first B/2 abnormal, then B/2 normal; the same for equal (seed, epoch).

    An epoch shows each video of the longer class once; the shorter class is repeated, reshuffled each time.

    Args:
        labels: Label of each video, -1 for normal; both kinds occur.
        batch_size: B, even.
        seed: 0 or more.
        released: Drop the incomplete half-batch of every shuffle, as the released code does.
    Raises:
        ValueError: If B is odd or below 2, or the labels are all of one kind.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, seed: int, released: bool = False):
        if batch_size < 2 or batch_size % 2:
            raise ValueError(f"batch_size must be even and at least 2, half abnormal, half normal, got {batch_size}")
        is_abnormal = np.asarray(labels) >= 0
        self.halves = [np.flatnonzero(is_abnormal), np.flatnonzero(~is_abnormal)]
        if not all(map(len, self.halves)):
            raise ValueError("labels must hold abnormal (0 or more) and normal (-1) videos, got only one kind")
        self.half, self.seed, self.released, self.epoch = batch_size // 2, seed, released, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration gives, 0 or more."""
        self.epoch = epoch

    def __len__(self) -> int:
        longest = max(map(len, self.halves))
        return max(longest // self.half, 1) if self.released else -(-longest // self.half)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        halves = [self._shuffled(idx, rng).reshape(len(self), self.half) for idx in self.halves]
        videos = np.concatenate(halves, axis=1)  # (batches, B)
        seeds = np.random.SeedSequence((self.seed, self.epoch, 1)).generate_state(videos.size, np.uint64)
        for batch, batch_seeds in zip(videos, seeds.reshape(videos.shape)):
            yield list(zip(batch.tolist(), batch_seeds.tolist()))

    def _shuffled(self, idx: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Videos of one kind for the whole epoch, shuffle after shuffle."""
        used = max(len(idx) // self.half * self.half, min(len(idx), self.half)) if self.released else len(idx)
        count = len(self) * self.half
        return np.concatenate([rng.permutation(idx)[:used] for _ in range(-(-count // used))])[:count]


class RestOfEpoch:
    """A batch sampler that leaves out the batches that a stopped run has seen, and the videos of other processes.

    Neither are read. A process's share of a batch is as the batch: first half abnormal, second half normal.

    Args:
        batches: Batch sampler of whole epochs, with `set_epoch(epoch)`.
    """

    def __init__(self, batches: BalancedBatches):
        self.batches, self.num_seen = batches, 0

    def set_epoch(self, epoch: int, num_seen: int) -> None:
        """Which epoch the next iteration gives, without its first `num_seen` batches."""
        self.batches.set_epoch(epoch)
        self.num_seen = num_seen

    def __len__(self) -> int:
        """Of a whole epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, _, world_size = rank_and_world()
        for batch in islice(self.batches, self.num_seen, None):
            share = len(batch) // 2 // world_size
            yield [
                video
                for half in (0, len(batch) // 2)
                for video in batch[half + rank * share : half + (rank + 1) * share]
            ]
