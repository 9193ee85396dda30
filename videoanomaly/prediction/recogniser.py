"""A checkpoint made ready for new videos: its model, its threshold, and the classes that were added."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from anomalyclip import AnomalyCLIP, VideoModel
from videoanomaly.clip_weights import load_training_clip
from videoanomaly.event_rule import LOW_SHARE, MERGE_GAP, MIN_LENGTH, EventSettings
from videoanomaly.operating_curve import OperatingCurve
from videoanomaly.prediction.explain import nearest_words
from videoanomaly.prediction.open_set import add_classes, check_names, check_open, name_by_text
from videoanomaly.prediction.operating_point import GIVEN, OTHERWISE_CUT, choose_threshold, stored_curve
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.fast_precision import choose_precision
from videoanomaly.runtime.precision import FULL
from videoanomaly.systems.one_class import OneClassGaussian
from videoanomaly.weights.checkpoints import frames_per_feature, load_model
from videoanomaly.winograd import narrow


@dataclass(frozen=True)
class PredictionOptions:
    """What predict.py can be asked for besides its inputs; see its --help."""

    ckpt: str
    device: str
    out: Path | None = None
    threshold: float | None = None
    false_alarms_per_hour: float | None = None  # instead of a threshold
    hysteresis: float = LOW_SHARE
    merge_gap: float = MERGE_GAP
    min_length: float = MIN_LENGTH
    start_time: str | None = None  # see wall_clock.read_start
    time_zone: str | None = None
    stride: int | None = None
    annotate: bool = False
    classes: tuple[str, ...] | None = None  # new ones
    explain: bool = False
    force: bool = False
    clip: str | None = None
    encoder: str | None = None
    temporal_features: str | None = None
    fps: float | None = None
    frames_per_feature: int | None = None
    dataset: str | None = None
    root: str | None = None
    batch: int = 32
    precision: str = FULL
    workers: int = 1
    command: str = ""  # the command line, to be told in events.json


class LoadedCheckpoint(NamedTuple):
    """A model, and what its checkpoint says about the features that go in and the events that come out."""

    model: VideoModel
    checkpoint: dict
    spacing: int  # frames from one row of features to the next
    event_settings: EventSettings
    threshold_rule: str  # a sentence: where the threshold comes from
    curve: OperatingCurve | None  # on held-out folds, if they were measured
    sha256: str  # of the checkpoint file
    precision: str = FULL  # of the convolutions
    words: dict | None = None  # near the learned contexts, see explain.nearest_words; None without --explain

    @property
    def threshold(self) -> float:
        return self.event_settings.threshold


def load(options: PredictionOptions) -> LoadedCheckpoint:
    """The recogniser of options.ckpt; what is wrong with the options shows before CLIP is read."""
    checkpoint, model = load_model(options.ckpt, dataset=options.dataset, root=options.root)
    with open(options.ckpt, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    events = event_rule_of(options, checkpoint)
    spacing = options.frames_per_feature or frames_per_feature(checkpoint)
    extended, words = extend(options, checkpoint, model)
    torch.backends.cudnn.allow_tf32 = False  # scores as on a CPU
    extended, precision = extended.to(options.device).eval(), choose_precision(options.precision, options.device)
    narrow(extended, getattr(torch, precision))
    return LoadedCheckpoint(extended, checkpoint, spacing, *events, sha256, precision, words)


def event_rule_of(options: PredictionOptions, checkpoint: dict) -> tuple[EventSettings, str, OperatingCurve | None]:
    """The recogniser's event_settings, threshold_rule and curve."""
    curve, asked = stored_curve(checkpoint), (options.threshold, options.false_alarms_per_hour)
    threshold, rule = choose_threshold(options.ckpt, checkpoint, curve, *asked)
    settings = EventSettings(threshold, options.hysteresis, options.merge_gap, options.min_length)
    return settings, rule + OTHERWISE_CUT * (bool(curve) and rule != GIVEN and not settings.is_usual), curve


def extend(options: PredictionOptions, checkpoint: dict, model: VideoModel) -> tuple[VideoModel, dict | None]:
    """The model with the new classes, and where an explanation is asked for what `nearest_words` gives, else None."""
    ckpt, names = options.ckpt, options.classes
    if not (names or options.explain):
        return model, None
    if names and isinstance(model, OneClassGaussian) and not options.explain:
        return name_by_text(ckpt, checkpoint, model, names, options.clip), None
    if not isinstance(model, AnomalyCLIP):
        raise InputError(
            f"{ckpt}: --classes and --explain are for checkpoints of AnomalyCLIP, found one of {model.NAME}"
        )
    if names:
        check_open(ckpt, checkpoint, model)
        check_names(ckpt, names, model.config.classes)
    ctx = checkpoint["model"].get("prompt_learner.ctx") if options.explain else None
    words = {} if options.explain else None
    if not names and ctx is None:
        return model, words
    clip = load_training_clip(ckpt, options.clip, checkpoint)
    if ctx is not None:
        words = nearest_words(ctx, clip.token_embedding.weight, model.config.classes)
    return add_classes(ckpt, checkpoint, clip, model, names) if names else model, words
