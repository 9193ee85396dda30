"""Whether a picture differs from another: a small grey copy of it, and what that tells of a camera.

The copy is the frame's luma, averaged over COLUMNS x ROWS blocks, in levels of 0 to 255. A camera whose copies are
equal is frozen. Two pictures show one and the same scene if no region, POOL x POOL blocks, differs by more than a few
levels: its mean hides the noise of a sensor and the grain of compression, while what moves in a twentieth of it, 60
levels lighter or darker than what is behind, changes it by three.
"""

from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageDraw

COLUMNS, ROWS = 64, 36  # blocks of 10 x 10 pixels in a picture of 640 x 360
POOL = 4  # blocks, side of a region
STILL = 3.0  # levels of 255 that a region of a still scene may differ; what it saves and changes: docs/watch.md
DARK = 32  # levels: black is 16 in most videos
BLACK_AFTER = 10.0  # seconds without a brighter block
GREY = 128  # level of what a mask hides


def luma_blocks(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Means over the blocks, (ROWS, COLUMNS) int16."""
    small = reformatter.reformat(frame, COLUMNS, ROWS, "gray", interpolation=Interpolation.AREA, threads=1)
    return small.to_ndarray().astype(np.int16)


def regions(blocks: np.ndarray) -> np.ndarray:
    """Means over POOL x POOL blocks, (ROWS / POOL, COLUMNS / POOL)."""
    return blocks.reshape(ROWS // POOL, POOL, COLUMNS // POOL, POOL).mean(axis=(1, 3))


class Mask:
    """What of the pictures is looked at.

    Args:
        polygon: (x, y) in [0, 1], shares of width and height.
    """

    def __init__(self, polygon: Sequence[tuple[float, float]]):
        self.polygon, self.hidden = polygon, Image.new("L", (0, 0))
        self.blocks = np.array(self.draw(COLUMNS, ROWS)) > 0  # hidden ones

    def draw(self, width: int, height: int) -> Image.Image:
        """255 outside the polygon, 0 inside."""
        hidden = Image.new("L", (width, height), 255)
        ImageDraw.Draw(hidden).polygon([(x * (width - 1), y * (height - 1)) for x, y in self.polygon], fill=0)
        return hidden

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture, grey outside the polygon; it is changed in place."""
        if self.hidden.size != image.size:
            self.hidden = self.draw(*image.size)
        image.paste((GREY, GREY, GREY), mask=self.hidden)
        return image


class Stillness:
    """Of one camera: is its picture frozen or black, and does it differ from the last one that was encoded?

    Args:
        frozen_after: Seconds of one and the same picture.
        mask: What it hides never differs.
    """

    def __init__(self, frozen_after: float, mask: Mask | None = None):
        self.frozen_after, self.mask = frozen_after, mask
        self.encoded: np.ndarray | None = None
        self.last: np.ndarray | None = None
        self.changed_at = self.bright_at = 0.0

    def forget(self, now: float) -> None:
        """The camera begins anew, at `now` in seconds."""
        self.encoded = self.last = None
        self.changed_at = self.bright_at = now

    def see(self, blocks: np.ndarray, now: float) -> str:
        """The camera's state by its newest picture: connected, frozen or black."""
        if self.last is None or not np.array_equal(blocks, self.last):
            self.last, self.changed_at = blocks, now
        if blocks.max() > DARK:
            self.bright_at = now
        if now - self.bright_at >= BLACK_AFTER:
            return "black"
        return "frozen" if now - self.changed_at >= self.frozen_after else "connected"

    def is_still(self, blocks: np.ndarray) -> bool:
        """Whether the picture is the scene that was encoded last."""
        if self.encoded is None:
            return False
        difference = blocks - self.encoded
        if self.mask:
            difference[self.mask.blocks] = 0
        return bool(np.abs(regions(difference)).max() <= STILL)
