"""What a small grey copy of a picture tells of a camera: is it frozen or black, and did the scene change since the last
picture that was encoded? The copies and what makes two scenes the same: video/luma.py.

A camera whose copies are equal is frozen.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from videoanomaly.video.luma import COLUMNS, ROWS, is_same_scene

DARK = 32  # levels: black is 16 in most videos
BLACK_AFTER = 10.0  # seconds without a brighter block
GREY = 128  # level of what a mask hides


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
        return is_same_scene(difference)
