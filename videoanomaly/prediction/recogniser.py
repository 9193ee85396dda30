"""A checkpoint made ready for new videos: its model, its threshold, and the classes that were added."""

import hashlib
from types import SimpleNamespace
from typing import NamedTuple

from videoanomaly.prediction import open_set
from videoanomaly.weights import checkpoints
from videoanomaly.weights.checkpoints import frames_per_feature


class Recogniser(NamedTuple):
    """A model, and what its checkpoint says about the features that go in and the threshold on what comes out."""

    model: object  # AnomalyCLIP
    checkpoint: dict
    spacing: int  # frames from one row of features to the next
    threshold: float
    sha256: str  # of the checkpoint file
    words: dict | None = None  # near the learned contexts, see explain.nearest_words; None without --explain


def load(args) -> Recogniser:
    """Of predict.py's options: ckpt, dataset, root, threshold, frames_per_feature, device, clip, classes, explain."""
    asked = SimpleNamespace(dataset=args.dataset, root=args.root, features=None)
    checkpoint, model = checkpoints.load_checkpoint(args.ckpt, asked)
    with open(args.ckpt, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    threshold = args.threshold if args.threshold is not None else checkpoint.get("threshold") or 0.5
    spacing = args.frames_per_feature or frames_per_feature(checkpoint)
    model, words = open_set.prepare(args, checkpoint, model)
    return Recogniser(model.to(args.device).eval(), checkpoint, spacing, threshold, sha256, words)
