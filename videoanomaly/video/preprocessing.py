"""A frame -> the encoder's inputs: JPEG in between, crops, resizing."""

import io
from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

Preprocess = Callable[[Image.Image], Tensor]  # a picture -> the encoder's input, (3, n_px, n_px)


class ImageEncoder(Protocol):
    """What makes features of pictures: CLIP, or an object of the user's."""

    @property
    def dim(self) -> int:
        """Size of a feature, D."""
        ...

    @property
    def preprocess(self) -> Preprocess: ...

    def encode(self, images: Tensor, /) -> Tensor:
        """Preprocessed pictures (n, 3, n_px, n_px) -> (n, D)."""
        ...


def jpeg_round_trip(image: Image.Image, quality: int) -> Image.Image:
    """What cv2.imwrite to a .jpg file and reading it leave of an image; quality in [1, 100], OpenCV's default is 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(file).convert("RGB")


def resize_like_opencv(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear as cv2.resize: without the low-pass filter of Image.resize, so making an image smaller aliases."""
    to_source = (image.width / width, 0, 0, 0, image.height / height, 0)
    return image.transform((width, height), Image.Transform.AFFINE, to_source, Image.Resampling.BILINEAR)


def cut_crops(image: Image.Image, num_crops: int, n_px: int) -> list[Image.Image]:
    """VadCLIP's crops: centre, top left, top right, bottom left, bottom right, then the mirror image of each.

    Args:
        image: A frame of any size; it is first stretched to 340x256 for `n_px` 224, in proportion for others.
        num_crops: 5, or 10 with the mirror images.
        n_px: Side of a crop, pixels.
    """
    width, height = round(340 * n_px / 224), round(256 * n_px / 224)
    image = resize_like_opencv(image, width, height)
    right, bottom = width - n_px, height - n_px
    corners = [(right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom)]
    crops = [image.crop((x, y, x + n_px, y + n_px)) for x, y in corners]
    return (crops + [ImageOps.mirror(crop) for crop in crops])[:num_crops]


def prepare(image: Image.Image, preprocess: Preprocess, num_crops: int, jpeg: int | None, n_px: int) -> list[Tensor]:
    """A frame -> the encoder's input for each of its crops, (3, n_px, n_px).

    Args:
        image: The frame.
        preprocess: Of the encoder.
        num_crops: 1: the whole frame; 5 or 10: see `cut_crops`.
        jpeg: Quality of a JPEG file in between, in [1, 100]; None or 0: none.
        n_px: Side of the encoder's input, pixels.
    """
    image = jpeg_round_trip(image, jpeg) if jpeg else image
    crops = cut_crops(image, num_crops, n_px) if num_crops > 1 else [image]
    return [preprocess(crop) for crop in crops]


def resize_like_pil(frames: Tensor, n_px: int) -> Tensor:
    """Shorter side to n_px as PIL's bicubic does it: first the width, then the height, whole numbers after each.

    (n, 3, H, W) in [0, 255], uint8 or float -> (n, 3, H', W') float32.
    """
    *_, H, W = frames.shape
    height, width = n_px * H // min(H, W), n_px * W // min(H, W)
    frames = frames.float()
    for size in ((H, width), (height, width)):
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bicubic", antialias=True)
            frames = frames.clamp(0, 255).round()  # bicubic overshoots
    return frames
