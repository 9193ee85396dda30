"""A checkpoint made ready for new videos: its model, the encoder that goes with it, and scores frame by frame.

Shapes: N frames of a video, C anomaly classes.
"""
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import evaluate
import openset
from extract_features import input_size, load_encoder
from videoanomaly.data.features import FeatureFolder
from videoanomaly.runtime.console import InputError

DEFAULT_CLIP = "ViT-B/16"


class Recogniser(NamedTuple):
    """A model, and what its checkpoint says about the features that go in and the threshold on what comes out."""

    model: object  # AnomalyCLIP
    checkpoint: dict
    spacing: int  # frames from one row of features to the next
    threshold: float
    sha256: str  # of the checkpoint file
    words: dict | None = None  # near the learned contexts, see explain.nearest_words; None without --explain


class Encoder(NamedTuple):
    """An image encoder, and how the training features were made with it."""

    model: object  # dim, preprocess, encode
    description: str
    crops: int
    jpeg: int | None
    n_px: int  # side of its input, pixels


def load(args) -> Recogniser:
    """Of predict.py's options: ckpt, dataset, root, threshold, frames_per_feature, device, clip, classes, explain."""
    asked = SimpleNamespace(dataset=args.dataset, root=args.root, features=None)
    checkpoint, model = evaluate.load_checkpoint(args.ckpt, asked)
    with open(args.ckpt, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    threshold = args.threshold if args.threshold is not None else checkpoint.get("threshold") or 0.5
    spacing = args.frames_per_feature or frames_per_feature(checkpoint)
    model, words = openset.prepare(args, checkpoint, model)
    return Recogniser(model.to(args.device).eval(), checkpoint, spacing, threshold, sha256, words)


def frames_per_feature(checkpoint: dict) -> int:
    """Frames between the rows of the training features; older checkpoints do not hold it, but name the features' folder."""
    settings = checkpoint["settings"]
    folder = settings["features"] or settings["root"]
    known = checkpoint.get("frames_per_feature") or settings["frames_per_feature"]
    return known or (FeatureFolder(folder).frames_per_feature if folder and Path(folder).is_dir() else 1)


def matching_encoder(args, recogniser: Recogniser) -> Encoder:
    """The encoder that made the training features; any other is refused. Of predict.py's options: clip, encoder, device."""
    trained, config = recogniser.checkpoint["encoder"], recogniser.model.config
    if config.temporal_feature_dim:
        raise InputError(f"{args.ckpt}: its Temporal model has features of its own, expected --features and "
                         "--temporal-features")
    name = trained["encoder"] if trained else f"clip {DEFAULT_CLIP}"
    if not (args.clip or args.encoder):
        check_known(args.ckpt, name)
    model, found = load_encoder(args.clip or name.removeprefix("clip "), args.encoder, args.device)
    if found["dim"] != config.feature_dim:
        raise InputError(f"{found['encoder']}: makes features of {found['dim']} values, expected {config.feature_dim} as in "
                         f"{args.ckpt}")
    if trained and trained["weights_sha256"] != found["weights_sha256"]:
        raise InputError(f"{found['encoder']}: its weights did not make the features of {args.ckpt}, expected those of {name} "
                         f"(weights_sha256 {found['weights_sha256']}, expected {trained['weights_sha256']})")
    made = trained or {}
    return Encoder(model, found["encoder"], made.get("crops") or 1, made.get("jpeg"), input_size(model, found["encoder"]))


def check_known(ckpt: str, name: str) -> None:
    """Whether the encoder of the training can be had by its name alone."""
    import clip_model

    if name.removeprefix("clip ") not in clip_model.available_models():
        option = "--clip FILE" if name.startswith("clip ") else "--encoder FILE.py:CLASS"
        raise InputError(f"{ckpt}: was trained with features of {name}, expected {option} that brings it")


def interpolate(features: np.ndarray, stride: int, spacing: int, num_frames: int) -> np.ndarray:
    """Features of every stride-th frame -> those of every spacing-th, linear in between, float16.

    The model keeps the spacing that it was trained with, and so its notion of speed.
    """
    if stride == spacing:
        return features
    at = np.minimum(np.arange(0, num_frames, spacing) / stride, len(features) - 1)
    before = at.astype(int)
    weight = (at - before).reshape(-1, *[1] * (features.ndim - 1)).astype(np.float32)
    after = features[np.minimum(before + 1, len(features) - 1)]
    return (features[before] * (1 - weight) + after * weight).astype(np.float16)


def score_frames(recogniser: Recogniser, name: str, rows, num_frames: int, *others) -> tuple[np.ndarray, np.ndarray]:
    """p_A (N,) and p_class (N, C) by frame; a row speaks for its `spacing` frames, as in evaluate.py."""
    p_A, p_class = recogniser.model.predict(rows, *others)
    if not np.isfinite(p_A).all():
        raise InputError(f"{name}: found features that are infinite or not a number, expected finite ones")
    row_of_frame = np.arange(num_frames) // recogniser.spacing
    return p_A[row_of_frame], p_class[row_of_frame]
