"""Default sizes for videos of your own: docs/videos.md has this rule as a table."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from videoanomaly.data.features import FRAME_RATE

SMALL, MEDIUM = 500, 1000  # training videos from which the next sizes are taken
SEGMENTS = 32  # of a video
FEWEST_ROWS = 64  # of a typical video: two a segment
MOST_ROWS = {False: 100_000, True: 10_000_000}  # to encode, by whether there is a GPU: hours of work with ViT-B/16
ROWS_PER_SECOND = {False: 6.0, True: 12.5}
FEWEST_STEPS = 240  # of a training


class Length(NamedTuple):
    """Of a video."""

    frames: int  # 0 where unknown
    fps: float  # frames/s, 0 where unknown

    @property
    def seconds(self) -> float:
        return self.frames / (self.fps or FRAME_RATE)


def stride_for(lengths: Sequence[Length], has_gpu: bool) -> int:
    """Every how many frames to encode one.

    As many as leave 6 rows a second on a CPU, 12.5 on a GPU; more where that would be too many rows in all, but at
    least one a second stays; fewer where a typical video would have less than two rows a segment. Of thousands of
    videos a GPU encodes every frame, as the paper does.
    """
    if has_gpu and len(lengths) >= MEDIUM:
        return 1
    seconds = sum(length.seconds for length in lengths)
    wanted = min(max(MOST_ROWS[has_gpu] / max(seconds, 1), 1.0), ROWS_PER_SECOND[has_gpu])
    rate = median(length.fps or FRAME_RATE for length in lengths)
    frames = median(length.frames for length in lengths)
    return max(min(round(rate / wanted), int(frames) // FEWEST_ROWS), 1)


def sizes_for(lengths: Sequence[Length], longest: int, stride: int) -> dict[str, int]:
    """Width, depth, videos of a batch, epochs and rows of a segment, by the names of their settings.

    Args:
        lengths: Of the training videos.
        longest: How many of them are normal, or how many are not: the larger number, which an epoch shows once.
        stride: Frames between two rows.
    """
    if len(lengths) >= MEDIUM:  # the paper's, of UCF-Crime
        return {"embed_dim": 256, "depth": 1, "batch_size": 64, "epochs": 50, "num_frames": 16}
    # 32 segments are a typical video
    rows = round(math.ceil(median(length.frames for length in lengths) / stride) / SEGMENTS)
    width, batch_size, epochs = (128, 32, 40) if len(lengths) >= SMALL else (32, 16, 30)
    steps = -(-longest // (batch_size // 2))  # of an epoch
    return {
        "embed_dim": width,
        "depth": 1,
        "batch_size": batch_size,
        "epochs": max(epochs, -(-FEWEST_STEPS // steps)),
        "num_frames": min(max(rows, 2), 16),
    }
