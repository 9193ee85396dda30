"""What train.py asks of a system, and what those that AnomalyCLIP is compared with have in common.

Shapes: as in anomalyclip.py, here with E the width of the features that a system scores.
"""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, VideoModel
from videoanomaly.data.datasets import Dataset
from videoanomaly.data.prototype import normality_prototype
from videoanomaly.data.training_data import TrainingData


class Defaults(NamedTuple):
    """Settings of one system as its paper has them. Small data sets (`Dataset.is_small`) take SMALL_STEPS instead of
    `steps` or `epochs`, and sizes of their own.
    """

    lr: float | None = None  # None: as the data set says
    weight_decay: float = 0.0
    steps: int | None = None  # the epochs are as many as take these, whatever the data set
    epochs: int | None = None  # where the paper counts these
    small_lr: float | None = None  # of small data sets, where it is not lr
    batch_size: int = 64
    num_segments: int = 32
    num_frames: int | None = None  # feature rows of a segment; None: those of SNIPPET frames
    optimizer: str = "Adam"
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"  # or "cosine" after a warm-up, or "steps": a tenth after 2/5 and 4/5 of the epochs


class Trainable(VideoModel):
    """What train.py asks of a system, with the answers of one that needs nothing. catalogue.py names them all."""

    NAME: str
    DEFAULTS: Defaults
    DIRECTIONS: tuple[str, ...]  # choices of the config's `directions`, the default first
    OPTIONS: frozenset[str]  # those of settings.OPTIONAL that have an effect
    EXTRAS: tuple[str, ...] = ()  # what `extras` gives, by name
    SEES_MEANS = False  # of a segment's rows alone: in training it can have (B, S, 1, D)
    NORMAL_ONLY = False  # learns from normal videos alone, see VideoLists.normal_only
    FITS_HEAD = False  # `finish` makes it whole: without it there is nothing to evaluate

    @classmethod
    def settings(cls, dataset: Dataset) -> dict:
        """Settings of a training on the data set that are not the data set's own."""
        return {}

    @classmethod
    def check(cls, config: AnomalyCLIPConfig) -> None:
        """Raises ValueError if there is no such model."""

    @classmethod
    def learn(cls, data: TrainingData, seed: int) -> dict[str, Tensor]:
        """Arguments of the constructor that the training videos teach without a gradient."""
        return {"prototype": normality_prototype(data.features, data.lists.train)}

    def parameter_groups(self) -> list[dict]:
        """For the optimiser; "scale", where a group has one, multiplies its learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def finish(self, data: TrainingData) -> None:
        """What is left to learn from the training videos after the last epoch."""

    def extras(self, data: TrainingData) -> dict:
        """Entries of the checkpoint besides the model's own, made before the first epoch: plain values and tensors."""
        return {}


class System(Trainable):
    """A system to compare AnomalyCLIP with: config, prototype and weighted losses.

    The prototype takes no part; `evaluate.py --rules` measures distances to it.
    """

    DIRECTIONS = ("direct",)
    OPTIONS = frozenset({"num_segments", "num_frames", "directions", "epochs", "lr", "smoothing"})
    LAMBDAS: dict[str, float] = {}  # weights of losses other than 1
    MULTIPLE = 1  # of which the feature size must be one
    SEES_MEANS = True

    def __init__(self, config: AnomalyCLIPConfig, prototype: Tensor | None = None):
        super().__init__()
        self.check(config)
        self.config = config
        prototype = torch.zeros(config.feature_dim) if prototype is None else prototype.float().clone()
        self.register_buffer("prototype", prototype)

    @classmethod
    def settings(cls, dataset: Dataset) -> dict:
        """The paper's; on small data sets the data set's sizes."""
        own, small = cls.DEFAULTS, dataset.is_small
        settings = {
            "lr": small and own.small_lr or own.lr,
            "epochs": None if small else own.epochs,
            "directions": cls.DIRECTIONS[0],
            "num_frames": dataset.settings.get("num_frames", own.num_frames),
        }
        settings |= {} if small else {"batch_size": own.batch_size, "num_segments": own.num_segments}
        return settings | ({} if "topk" in cls.OPTIONS else {"topk": 1})  # which fits any number of segments

    @classmethod
    def check(cls, config: AnomalyCLIPConfig) -> None:
        if config.directions not in cls.DIRECTIONS:
            raise ValueError(
                f"directions of {cls.NAME} must be one of {', '.join(cls.DIRECTIONS)}, got {config.directions!r}"
            )
        if config.feature_dim % cls.MULTIPLE:
            raise ValueError(
                f"feature_dim must be a multiple of {cls.MULTIPLE} for {cls.NAME}, got {config.feature_dim}"
            )

    def finish_directions(self) -> None:
        """Computes what inference needs of prompts; nothing without them."""

    def with_total(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        total = sum(self.LAMBDAS.get(name, 1) * loss for name, loss in losses.items())
        return losses | {"total": cast(Tensor, total)}


def per_frame(x: Tensor, num_frames: int) -> Tensor:
    """(B, S, ...) -> (B, S, F, ...), in float32."""
    return x.float().unsqueeze(2).expand(*x.shape[:2], num_frames, *x.shape[2:])


def bag_targets(x: Tensor) -> Tensor:
    """1 for the abnormal half of (B, ...), 0 for the normal one, (B,)."""
    return (torch.arange(len(x), device=x.device) < len(x) // 2).float()


def closeness(num_segments: int, device: torch.device, *, normalise: bool) -> Tensor:
    """exp(-|i - j| / e), (S, S); normalised, rows add up to 1."""
    at = torch.arange(num_segments, device=device, dtype=torch.float32)
    exponent = -(at[:, None] - at).abs() / math.e
    return exponent.softmax(dim=1) if normalise else exponent.exp()


def score_head(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU and dropout in between."""
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


class SegmentPrediction(NamedTuple):
    anomaly_logits: Tensor  # (B, S, F), equal for the frames of a segment
    class_logits: Tensor  # (B, S, F, C), likewise
    embedding: Tensor  # what the score is made of, (B, S, E)


def top_score_loss(logits: Tensor, top: Tensor) -> Tensor:
    """Cross-entropy of the mean score of each video's top segments (B, K) of logits (B, S)."""
    score = logits.sigmoid().gather(1, top).mean(dim=1)  # (B,); a mean of scores, hence no logits
    return F.binary_cross_entropy(score, bag_targets(score))
