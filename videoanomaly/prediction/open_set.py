"""Classes that were never trained (open set).

A new class has a direction like the trained ones: its prompt, with the contexts that all classes share (or the
engineered prompt), through CLIP's text tower, minus the normality prototype (Eq. 2). Its projection is batch-normalised
(Eq. 4) by statistics that stand in for those of a training: see `projection_statistics`. The Temporal model never sees
new classes, so p_A stays what it was, bit for bit; p_{c|A} is the softmax over trained and new classes.

A one-class model has no classes of its own, and nothing that was trained with them: its new ones are those of zero-shot
CLIP, p_{c|A} the softmax of the cosines with the engineered prompts.

Shapes: B passes, S segments, F rows of a segment, C trained and n new classes, D feature size, N rows of a video.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import clip_model
from anomalyclip import PROMPTS, AnomalyCLIP, Prediction, VideoModel
from videoanomaly.clip_weights import DEFAULT_CLIP, find_clip, load_clip
from videoanomaly.runtime.console import InputError
from videoanomaly.systems.base import SegmentPrediction
from videoanomaly.systems.checks import check_config
from videoanomaly.systems.clip_zeroshot import ClipZeroShot
from videoanomaly.systems.one_class import OneClassGaussian
from videoanomaly.systems.ours import AnomalyCLIPSystem


class OpenSetAnomalyCLIP(AnomalyCLIPSystem):
    """A trained model with classes added behind its own: `predict` gives (N,) and (N, C + n).

    Args:
        model: The trained model.
        names: n names of new classes.
        directions: Their directions, (n, D).
        mean, var: Of their projections, see `projection_statistics`, (n,); None where likelihoods are cosines.
    """

    new_directions: Tensor
    new_mean: Tensor
    new_var: Tensor

    def __init__(
        self, model: AnomalyCLIP, names: tuple[str, ...], directions: Tensor, mean: Tensor | None, var: Tensor | None
    ):
        super().__init__(model.config)
        self.load_trained_state({k: v for k, v in model.trained_state().items() if not k.startswith("prompt_learner.")})
        self.temporal_model = model.temporal_model  # itself: what computes p_A stays what it is
        self.config = replace(model.config, classes=model.config.classes + tuple(names))
        self.register_buffer("new_directions", directions)
        self.register_buffer("new_mean", mean)
        self.register_buffer("new_var", var)

    def forward(self, features: Tensor, temporal_features: Tensor | None = None) -> Prediction:
        prediction = super().forward(features, temporal_features)
        new = self.select_new(self.recentre(features, self.prototype))  # (B, S, F, n)
        logits = new * self.logit_scale.exp() if self.config.likelihood == "cosine" else new
        return prediction._replace(
            likelihood=torch.cat([prediction.likelihood, new], dim=-1),
            class_logits=torch.cat([prediction.class_logits, logits.float()], dim=-1),
        )

    def select_new(self, x: Tensor) -> Tensor:
        """As `select`, for the new classes: (B, S, F, n)."""
        directions = F.normalize(self.new_directions, dim=-1)
        if self.config.likelihood == "cosine":
            return (F.normalize(x, dim=-1) @ directions.T).float()
        lengths = (x @ directions.T).float()
        return (lengths - self.new_mean) / (self.new_var + self.batch_norm.eps).sqrt()


def projection_statistics(model: AnomalyCLIP, moments: dict, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance for the batch normalisation of projections on directions that were never trained, (n,) each.

    The trained classes have running statistics over whole batches, half of which are abnormal videos; of a new class
    only the projections of normal rows are known. Both are known of the trained classes, and that calibrates: the
    variance over normal rows is multiplied by the geometric mean of the trained classes' ratios of running variance to
    variance over normal rows; the mean is shifted by the mean of their shifts, counted in standard deviations over
    normal rows. So a new class is normalised as an average trained one, whose anomalies took part; what holds for all
    of them alike is met exactly.

    Args:
        moments: data.normal_moments of the training features.
        directions: (n, D), of any length.
    """

    def on_normal_rows(directions: Tensor) -> tuple[Tensor, Tensor]:
        d = F.normalize(directions.double(), dim=-1)
        centre = moments["sum"] / moments["count"]
        covariance = moments["outer"] / moments["count"] - torch.outer(centre, centre)
        return (centre - model.prototype.double()) @ d.T, ((d @ covariance) * d).sum(-1).clamp_min(1e-12)

    mean, var = on_normal_rows(model.directions)  # of the trained classes, (C,)
    norm = model.batch_norm
    assert norm.running_mean is not None and norm.running_var is not None, "it counts"
    running_mean, running_var = norm.running_mean.double(), norm.running_var.double()
    ratio = (running_var.clamp_min(1e-12) / var).log().mean().exp()
    shift = ((running_mean - mean) / var.sqrt()).mean()
    mean, var = on_normal_rows(directions)  # of the new ones, (n,)
    return (mean + shift * var.sqrt()).float(), (ratio * var).float()


def check_names(ckpt: str, names: tuple[str, ...], trained: tuple[str, ...]) -> None:
    known = {as_prompted(name): name for name in trained}
    for name in names:
        if as_prompted(name) in known:
            raise InputError(
                f"--classes {name!r}: is {known[as_prompted(name)]!r}, a trained class of {ckpt}, expected others"
            )


def as_prompted(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def are_moments(moments: Any, dim: int) -> bool:
    try:
        shapes = moments["sum"].shape == (dim,) and moments["outer"].shape == (dim, dim)
        return moments["count"] > 0 and shapes and bool((moments["sum"].isfinite() & moments["outer"].isfinite()).all())
    except (TypeError, KeyError, AttributeError):
        return False


def check_open(ckpt: str, checkpoint: dict, model: AnomalyCLIP) -> None:
    """Whether the checkpoint can have new classes."""
    config, moments = model.config, checkpoint.get("normal_moments")
    if config.directions == "direct":
        raise InputError(
            f"{ckpt}: --classes needs directions that come from prompts, found --directions direct; train with "
            "--shared-ctx and another --directions"
        )
    if config.directions not in PROMPTS and not config.shared_ctx:
        raise InputError(
            f"{ckpt}: --classes needs contexts that all classes share, found contexts of each class; train with "
            "--shared-ctx"
        )
    if config.class_head:
        raise InputError(
            f"{ckpt}: --classes needs classes that come from prompts, found --class-head; train without it"
        )
    if config.likelihood == "projection" and not are_moments(moments, config.feature_dim):
        raise InputError(
            f"{ckpt}: --classes needs the moments of the normal features, found none in this checkpoint; train it "
            "again with this version"
        )


@contextmanager
def short_names(names: tuple[str, ...]) -> Iterator[None]:
    """Tells in one line that a prompt with one of the names is too long, or does not fit."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # a prompt is too long
        too_long = isinstance(error, RuntimeError) and "too long" in str(error)  # the tokenizer, which repeats the text
        reason = (
            "found a name of more than 77 tokens, expected a shorter one" if too_long else str(error).splitlines()[0]
        )
        raise InputError(f"--classes {textwrap.shorten(max(names, key=len), 60)}: {reason}") from None


def new_directions(
    ckpt: str, checkpoint: dict, clip: clip_model.CLIP, model: AnomalyCLIP, names: tuple[str, ...]
) -> Tensor:
    """Directions (n, D) of new classes with the contexts and the text projection of the checkpoint."""
    with short_names(names):
        config = check_config(replace(model.config, classes=names))
        prompted = AnomalyCLIPSystem(config, clip=clip, tokenize=clip_model.tokenize, prototype=model.prototype)
    learned = [name for name in ("ctx", "text_projection") if getattr(prompted.prompt_learner, name) is not None]
    state = {name: checkpoint["model"].get(f"prompt_learner.{name}") for name in learned}
    if any(
        value is None or value.shape != getattr(prompted.prompt_learner, name).shape for name, value in state.items()
    ):
        raise InputError(
            f"{ckpt}: found no {' and '.join(learned)} that fit this CLIP, expected a checkpoint of train.py"
        )
    assert prompted.prompt_learner is not None, "CLIP came in"
    prompted.prompt_learner.load_state_dict(state, strict=False)
    with torch.no_grad():
        return prompted.class_directions()


def add_classes(
    ckpt: str, checkpoint: dict, clip: clip_model.CLIP, model: AnomalyCLIP, names: tuple[str, ...]
) -> OpenSetAnomalyCLIP:
    directions, statistics = new_directions(ckpt, checkpoint, clip, model, names), (None, None)
    if model.config.likelihood == "projection":
        statistics = projection_statistics(model, checkpoint["normal_moments"], directions)
    return OpenSetAnomalyCLIP(model, names, directions, *statistics).eval()


class NamedOneClass(VideoModel):
    """A one-class model whose anomalies zero-shot CLIP names: `predict` gives (N,) and (N, n)."""

    NAME = OneClassGaussian.NAME

    def __init__(self, model: OneClassGaussian, zero_shot: ClipZeroShot):
        super().__init__()
        self.model, self.zero_shot, self.config = model, zero_shot, zero_shot.config
        self.register_buffer("prototype", model.prototype)

    def forward(self, features: Tensor) -> SegmentPrediction:
        return self.model(features)._replace(class_logits=self.zero_shot(features).class_logits)


def clip_of_features(ckpt: str, checkpoint: dict, name: str | None) -> clip_model.CLIP:
    """See `name_by_text`."""
    encoder, needs = checkpoint["encoder"], f"{ckpt}: --classes needs the CLIP that made its features, found"
    if encoder and not encoder["encoder"].startswith("clip "):
        raise InputError(f"{needs} features of {encoder['encoder']}")
    if encoder and not name:
        return find_clip(ckpt, checkpoint, encoder["weights_sha256"], image_tower=True)
    name = name or checkpoint["settings"].get("clip") or DEFAULT_CLIP
    loaded = load_clip(name, message=f"{needs} none ({{}}); give --clip FILE")
    if encoder and encoder["weights_sha256"] != clip_model.weights_hash(loaded.visual):
        raise InputError(f"{needs} another one in {name}")
    return loaded


def name_by_text(
    ckpt: str, checkpoint: dict, model: OneClassGaussian, names: tuple[str, ...], clip: str | None
) -> NamedOneClass:
    """The model with the classes of those names, by the text tower of the CLIP that made its features.

    Args:
        clip: Its name or file; None: where `find_clip` finds it, if the checkpoint tells which, else as it is named.
    """
    loaded = clip_of_features(ckpt, checkpoint, clip)
    with short_names(names):
        config = check_config(replace(model.config, classes=names, directions="engineered"))
        zero_shot = ClipZeroShot(config, clip=loaded, tokenize=clip_model.tokenize, prototype=model.prototype)
    return NamedOneClass(model, zero_shot).eval()
