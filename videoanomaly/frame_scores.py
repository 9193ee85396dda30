"""Rows of a video -> scores of its frames.

Shapes: N frames of a video, C anomaly classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from videoanomaly.runtime.console import InputError


class FrameScores(NamedTuple):
    """A video's probabilities frame by frame, and when each frame is shown."""

    p_A: np.ndarray  # (N,) float32
    p_class: np.ndarray  # (N, C) float32
    times: np.ndarray  # (N,) float64, seconds from the start of the file, ascending
    fps: float  # mean frames per second
    likelihood: np.ndarray | None = None  # the Selector's, (N, C), where an explanation needs it

    @property
    def duration(self) -> float:
        """Seconds up to the end of the last frame."""
        return float(self.times[-1] + 1 / self.fps)

    @property
    def longest_shown(self) -> float:
        """Seconds that a frame counts for in an event at most, though it stands for longer before a pause."""
        return max(10 / self.fps, 5.0)

    @property
    def ends(self) -> np.ndarray:
        """Up to when each frame counts, (N,) seconds."""
        return np.minimum(np.append(self.times[1:], self.duration), self.times + self.longest_shown)


def score_frames(
    predict: Callable, rows: object, *others: object, num_frames: int, spacing: int, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """What predict(rows[, rows of other features]) says, by frame: a row speaks for its `spacing` frames.

    Args:
        rows: Features of a video, (rows, crops, D).
        num_frames: N.
        name: Of the video, for errors.
    Returns:
        p_A (N,) and p_class (N, C), or None where a rule knows no classes.
    Raises:
        InputError: If a score is infinite or not a number.
    """
    p_A, p_class = predict(rows, *others)
    if not np.isfinite(p_A).all():
        raise InputError(f"{name}: found features that are infinite or not a number, expected finite ones")
    row_of_frame = np.arange(num_frames) // spacing
    return p_A[row_of_frame], None if p_class is None else p_class[row_of_frame]
