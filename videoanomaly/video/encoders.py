"""Image encoders: CLIP's image tower or a class of the user's, and which one made a checkpoint's features."""

import hashlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import clip_model
from videoanomaly.clip_weights import DEFAULT_CLIP, find_clip, load_clip
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.fast_precision import choose_precision
from videoanomaly.runtime.precision import AUTO, FULL, note_difference, precision_of
from videoanomaly.video.preprocessing import ImageEncoder, prepare, resize_like_pil


class ClipEncoder:
    """CLIP's image tower with the three members that every encoder has: dim, preprocess, encode.

    Args:
        clip: The model, or its name or file.
    """

    def __init__(self, clip: str | clip_model.CLIP, device: str):
        is_model = isinstance(clip, clip_model.CLIP)
        model = clip.to(device) if is_model else load_clip(clip, message="--clip {}", device=device)
        self.visual, self.device, self.dim = model.visual, device, model.text_projection.shape[1]
        self.preprocess = clip_model.preprocess(self.visual.input_resolution)
        self.encode_image = model.encode_image

    def quicken(self, precision: str) -> None:
        """Computes in that precision from now on; the CLIP is of no other use then, not even to tell its hash."""
        clip_model.quicken(self.visual, getattr(torch, precision))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, n_px, n_px) -> (n, D) float32, on the CPU."""
        return self.encode_image(images.to(self.device, non_blocking=True)).cpu()


class MixedEncoder:
    """An encoder of the user's, with PyTorch's autocast around it: it decides what is computed in the precision."""

    def __init__(self, encoder: ImageEncoder, device: str, precision: str):
        self.encoder, self.device, self.dim, self.preprocess = encoder, device, encoder.dim, encoder.preprocess
        self.precision = getattr(torch, precision)

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, n_px, n_px) -> (n, D) float32."""
        with torch.autocast(torch.device(self.device).type, self.precision):
            return self.encoder.encode(images).float()


class DevicePreprocessing:
    """CLIP's encoder, but frames go to the device as they are, and are resized, cropped and normalised there, all at
    once.
    """

    def __init__(self, encoder: ClipEncoder):
        self.encoder, self.dim = encoder, encoder.dim
        _, self.crop, _, _, self.normalize = encoder.preprocess.transforms

    @staticmethod
    def preprocess(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W) uint8

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, D) float32, on the CPU."""
        frames = frames.to(self.encoder.device, non_blocking=True)
        images = self.crop(resize_like_pil(frames, self.encoder.visual.input_resolution))
        return self.encoder.encode(self.normalize(images / 255))


def clip_description(name_or_path: str, encoder: ClipEncoder) -> str:
    """The published name, or for other weights what they look like: a path would tie the features to one machine."""
    if name_or_path in clip_model.available_models():
        return f"clip {name_or_path}"
    conv1 = encoder.visual.conv1
    return (
        f"clip embed {encoder.dim}, width {conv1.out_channels}, patch {conv1.kernel_size[0]}, "
        f"resolution {encoder.visual.input_resolution}"
    )


def run_file(file: str) -> ModuleType:
    """The module of a Python file, whose neighbours it may import as when Python is given the file.

    It stays under a name of its own among the loaded modules: dataclasses and pickle look their classes up there.
    """
    path = Path(file).resolve()
    name = f"encoder_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader, "a file that ends in .py has both"
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for later imports; last, so that none of its files hides one of ours
    return module


def custom_encoder(spec: str, device: str) -> ImageEncoder:
    """An object of the class that FILE.py:CLASS names. This runs the code in the file."""
    file, _, class_name = spec.rpartition(":")
    if not (file.endswith(".py") and Path(file).is_file()):
        raise InputError(f"--encoder {spec}: found no file {file!r}, expected FILE.py:CLASS")
    encoder_class: Any = getattr(run_file(file), class_name, None)
    if not inspect.isclass(encoder_class):
        raise InputError(f"--encoder {spec}: found no class {class_name!r} in {file}")
    given = {"device": device} if "device" in inspect.signature(encoder_class).parameters else {}
    encoder: Any = encoder_class(**given)
    return encoder


def weights_sha256(encoder: ImageEncoder) -> str | None:
    """Hash of the weights of the nn.Modules among the encoder's attributes; None without any."""
    modules = {name: value for name, value in sorted(vars(encoder).items()) if isinstance(value, nn.Module)}
    if len(modules) < 2:
        return next(map(clip_model.weights_hash, modules.values()), None)
    return clip_model.weights_hash(nn.ModuleDict(modules))


def load_encoder(
    clip: str, encoder_spec: str | None, device: str, precision: str = FULL
) -> tuple[ImageEncoder, dict[str, Any]]:
    """Returns the encoder and what meta.json says of it: encoder, weights_sha256, dim, precision."""
    if encoder_spec:
        encoder = custom_encoder(encoder_spec, device)
        description = type(encoder).__name__
    else:
        encoder = of_clip = ClipEncoder(clip, device)
        description = clip_description(clip, of_clip)
    found = {"encoder": description, "weights_sha256": weights_sha256(encoder), "dim": encoder.dim}
    encoder, chosen = with_precision(encoder, device, precision)
    return encoder, found | {"precision": chosen}


def with_precision(encoder: ImageEncoder, device: str, precision: str) -> tuple[ImageEncoder, str]:
    """The encoder that computes in a precision, and which that is.

    `auto` leaves an encoder of the user's in float32: under autocast events moved by up to 8 rows with EfficientNet.
    """
    chosen = choose_precision(precision, device)
    if isinstance(encoder, ClipEncoder):
        encoder.quicken(chosen)
        return encoder, chosen
    if precision in (AUTO, FULL):
        return encoder, FULL
    return MixedEncoder(encoder, device, chosen), chosen


def input_size(encoder: ImageEncoder, description: str) -> int:
    """Side of the encoder's input, pixels, found with a black picture, which also tells whether the encoder works."""
    image = encoder.preprocess(Image.new("RGB", (64, 48)))
    features = encoder.encode(image[None])
    if features.shape != (1, encoder.dim):
        raise InputError(
            f"{description}: encode gave {tuple(features.shape)} for one image, expected (1, {encoder.dim})"
        )
    return image.shape[-1]


class Encoder(NamedTuple):
    """An image encoder, and how the training features were made with it."""

    model: ImageEncoder
    description: str
    crops: int
    jpeg: int | None
    n_px: int  # side of its input, pixels

    def inputs(self, image: Image.Image) -> list[Tensor]:
        """See `prepare`."""
        return prepare(image, self.model.preprocess, self.crops, self.jpeg, self.n_px)


def matching_encoder(
    ckpt: str,
    checkpoint: dict,
    dims: tuple[int, int | None],
    *,
    clip: str | None,
    encoder: str | None,
    device: str,
    precision: str = FULL,
) -> Encoder:
    """The encoder that made the training features; any other is refused.

    Args:
        ckpt: Name of the checkpoint, for errors.
        dims: Sizes of the features of its Selector and of its Temporal model, None where those are the same.
        clip: CLIP weights, a name or a file; None: those of the training, where `find_clip` finds them.
        encoder: FILE.py:CLASS instead of CLIP.
        precision: One of precision.PRECISIONS; one line tells if the training features were made in another.
    """
    trained, (dim, temporal_dim) = checkpoint["encoder"], dims
    if temporal_dim:
        raise InputError(
            f"{ckpt}: its Temporal model has features of its own, expected --features and --temporal-features"
        )
    name = trained["encoder"] if trained else f"clip {DEFAULT_CLIP}"
    if clip or encoder or not trained:
        model, found = load_encoder(clip or DEFAULT_CLIP, encoder, device, precision)
    else:
        refuse_code(ckpt, name)
        expected = trained["weights_sha256"]
        of_clip = ClipEncoder(find_clip(ckpt, checkpoint, expected, image_tower=True), device)
        model, chosen = with_precision(of_clip, device, precision)
        found = trained | {"dim": model.dim, "precision": chosen}
    if found["dim"] != dim:
        raise InputError(f"{found['encoder']}: makes features of {found['dim']} values, expected {dim} as in {ckpt}")
    if trained and trained["weights_sha256"] != found["weights_sha256"]:
        raise InputError(
            f"{found['encoder']}: its weights did not make the features of {ckpt}, expected those of {name} "
            f"(weights_sha256 {found['weights_sha256']}, expected {trained['weights_sha256']})"
        )
    if trained:
        note_difference(ckpt, found["precision"], precision_of(trained))
    made = trained or {}
    n_px = input_size(model, found["encoder"])
    return Encoder(model, found["encoder"], made.get("crops") or 1, made.get("jpeg"), n_px)


def refuse_code(ckpt: str, name: str) -> None:
    """An encoder that is code runs where the user names it, not where a checkpoint does."""
    if not name.startswith("clip "):
        spec = f"FILE.py:{name if name.isidentifier() else 'CLASS'}"
        raise InputError(f"{ckpt}: was trained with features of {name:.80}, code of its own, give --encoder {spec}")
