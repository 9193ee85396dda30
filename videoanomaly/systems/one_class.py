"""How far a row lies from all that normal videos show: a system that needs no abnormal video.

A Gaussian of the features, with the prototype as its mean and a covariance that is shrunk towards a multiple of the
identity by the oracle approximating shrinkage of Chen et al. (arXiv:0907.4698), scikit-learn's OAS. That formula counts
independent samples; rows of a video are none, so each begun SAMPLE_SECONDS of a video count as one. With few videos the
score is thus close to the distance to the prototype. All that is kept of the rows are sums, (D, D), and one distance
of each.

Shapes: as in anomalyclip.py, here with G groups of normal videos.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.data.annotations import Video
from videoanomaly.data.features import FeatureFolder
from videoanomaly.data.prototype import normality_prototype, row_moments, spaced_rows
from videoanomaly.data.training_data import TrainingData
from videoanomaly.systems.base import Defaults, SegmentPrediction, System

GROUPS = 5  # of videos; each is scored by the statistics of the others
SAMPLE_SECONDS = 30.0
RARE = 0.05  # share of the normal rows that have a p_A above 1/2; a smaller one is that of one odd video
NEAREST = 1e-6  # distance, so that its logarithm is finite


class OneClassGaussian(System):
    """Mahalanobis distance to the normality prototype, row by row.

    p_A = RARE / (RARE + share of normal rows that lie as far), so that any encoder and camera has the same scale. The
    share is that of a power law through two quantiles, `usual` (1/2) and `rare` (RARE), of distances to statistics that
    left the row's video out: 1/2 at the distance that one normal row in 20 exceeds, 0.98 where one in 1000 would. There
    are no classes but ANOMALY.
    """

    NAME = "gaussian"
    DEFAULTS = Defaults(1.0, steps=0)
    OPTIONS = frozenset({"clip", "num_segments", "num_frames"})
    SEES_MEANS = False
    NORMAL_ONLY = True
    whitening: Tensor
    usual: Tensor
    rare: Tensor

    def __init__(
        self,
        config: AnomalyCLIPConfig,
        *,
        prototype: Tensor | None = None,
        whitening: Tensor | None = None,
        usual: Tensor | None = None,
        rare: Tensor | None = None,
    ):
        super().__init__(config, prototype)
        D = config.feature_dim
        self.register_buffer("whitening", torch.zeros(D, D) if whitening is None else whitening)
        self.register_buffer("usual", torch.tensor(1.0) if usual is None else usual)  # distances
        self.register_buffer("rare", torch.tensor(2.0) if rare is None else rare)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D), each row by itself."""
        distance = ((features.float() - self.prototype) @ self.whitening).norm(dim=-1)  # (B, S, F)
        steepness = math.log(1 / 2 / RARE) / (self.rare / self.usual).log()
        logits = steepness * (distance.clamp_min(NEAREST) / self.rare).log()
        class_logits = torch.zeros_like(logits).unsqueeze(-1).expand(*logits.shape, len(self.config.classes))
        return SegmentPrediction(logits, class_logits, features.mean(dim=2))

    @classmethod
    def learn(cls, data: TrainingData, seed: int) -> dict[str, Tensor]:
        prototype = normality_prototype(data.features, data.lists.train)
        groups = grouped(data.lists.train, data.features)
        distances = np.concatenate(
            [
                np.linalg.norm((spaced_rows(data.features.open(video.name)) - centre) @ whitening, axis=1)
                for videos, centre, whitening in left_out(groups)
                for video in videos
            ]
        )
        usual, rare = np.maximum(np.quantile(distances, (0.5, 1 - RARE)), NEAREST)
        _, whitening = gaussian(groups, prototype.double().numpy())
        known = {"whitening": whitening, "usual": usual, "rare": max(rare, 1.01 * usual)}
        return {"prototype": prototype} | {name: torch.tensor(value).float() for name, value in known.items()}


class Group(NamedTuple):
    """Normal videos and what is known of them together."""

    videos: list[Video]
    moments: np.ndarray  # see row_moments, (D + 1, D + 1)
    num_samples: int  # independent ones


def grouped(videos: Sequence[Video], features: FeatureFolder) -> list[Group]:
    """Up to GROUPS groups of the normal ones."""
    normal, groups = [video for video in videos if video.label < 0], []
    for own in (normal[k::GROUPS] for k in range(min(GROUPS, len(normal)))):
        seconds = [features.num_frames(video.name) / features.frame_rate(video.name) for video in own]
        moments = row_moments(features, [video.name for video in own])
        groups.append(Group(own, moments, sum(math.ceil(s / SAMPLE_SECONDS) for s in seconds)))
    return groups


def left_out(groups: Sequence[Group]) -> Iterator[tuple[list[Video], np.ndarray, np.ndarray]]:
    """Videos of each group, with `gaussian` of all others; a single group has nothing but its own."""
    for group in groups:
        others = [other for other in groups if other is not group]
        yield group.videos, *gaussian(others or groups)


def gaussian(groups: Sequence[Group], centre: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Centre (D,), the mean where none is given, and the matrix (D, D) that makes rows around it white."""
    moments = np.sum([group.moments for group in groups], axis=0)
    moments = moments / moments[-1, -1]
    mean, outer = moments[-1, :-1], moments[:-1, :-1]
    around = mean if centre is None else centre
    off = mean - around
    covariance = outer - np.outer(mean, mean) + np.outer(off, off)
    values, vectors = np.linalg.eigh(shrunk(covariance, sum(group.num_samples for group in groups)))
    return around, vectors / np.sqrt(values)


def shrunk(covariance: np.ndarray, num_samples: int) -> np.ndarray:
    """The oracle approximating shrinkage (Chen et al., Eq. 23) of a covariance (D, D), as scikit-learn's OAS has it."""
    D = len(covariance)
    mean, squares = np.trace(covariance) / D, np.square(covariance).mean()
    spread = (num_samples + 1) * (squares - mean**2 / D)
    share = min((squares + mean**2) / spread, 1.0) if spread > 0 else 1.0
    least = max(mean, 1e-12) * 1e-6  # of the variances: rows may be all alike
    return (1 - share) * covariance + (share * mean + least) * np.eye(D)
