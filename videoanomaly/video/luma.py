"""Whether a picture differs from another, by a small grey copy of it.

The copy is the frame's luma, averaged over COLUMNS x ROWS blocks, in levels of 0 to 255. Two pictures show one and the
same scene if no region, POOL x POOL blocks, differs by more than a few levels: its mean hides the noise of a sensor and
the grain of compression, while what moves in a twentieth of it, 60 levels lighter or darker than what is behind,
changes it by three.
"""

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

COLUMNS, ROWS = 64, 36  # blocks of 10 x 10 pixels in a picture of 640 x 360
POOL = 4  # blocks, side of a region
STILL = 3.0  # levels of 255 that a region of a still scene may differ; what it saves and changes: docs/watch.md


def luma_blocks(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Means over the blocks, (ROWS, COLUMNS) int16."""
    small = reformatter.reformat(frame, COLUMNS, ROWS, "gray", interpolation=Interpolation.AREA, threads=1)
    return small.to_ndarray().astype(np.int16)


def regions(blocks: np.ndarray) -> np.ndarray:
    """Means over POOL x POOL blocks, (ROWS / POOL, COLUMNS / POOL)."""
    return blocks.reshape(ROWS // POOL, POOL, COLUMNS // POOL, POOL).mean(axis=(1, 3))


def is_same_scene(difference: np.ndarray) -> bool:
    """Whether blocks that differ by so much, (ROWS, COLUMNS), are of one and the same scene."""
    return bool(np.abs(regions(difference)).max() <= STILL)
