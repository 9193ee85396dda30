"""Robust temporal feature magnitudes (RTFM)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalyclip import AnomalyCLIPConfig, gather_segments
from videoanomaly.systems.base import Defaults, SegmentPrediction, score_head, top_score_loss
from videoanomaly.systems.binary import BinarySystem, sparse_and_smooth
from videoanomaly.systems.temporal_bodies import MTN


def magnitude_topk(embedding: Tensor, k: int, training: bool) -> Tensor:
    """Segments with the longest features, (B, K); training hides 70 % of them from it, as RTFM's dropout does."""
    magnitude = embedding.detach().norm(dim=-1)  # (B, S)
    shown = F.dropout(torch.ones_like(magnitude), 0.7, training)
    return (magnitude * shown).topk(k, dim=1).indices


class RTFM(BinarySystem):
    """Robust temporal feature magnitudes (Tian et al., arXiv:2101.10030; tianyu0207/RTFM).

    Each crop is ranked by its own magnitudes, where the published code ranks by their mean over crops: a crop is drawn
    for each training sample.
    """

    NAME = "rtfm"
    DEFAULTS = Defaults(1e-3, 5e-3, 15_000)
    LAMBDAS = {"magnitude": 1e-4, "sparse": 8e-3, "smooth": 8e-4}
    MARGIN, WIDTH = 100, 512

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        super().__init__(config, config.feature_dim, prototype)
        self.mtn = MTN(config.feature_dim, self.WIDTH)
        self.head = score_head(config.feature_dim, 512, 128, 1, dropout=0.7)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = F.dropout(self.mtn(features)[:, :, 0], 0.7, self.training)  # (B, S, D)
        return self.predict_segments(x, self.head(x).squeeze(-1))

    def rank(self, prediction: SegmentPrediction) -> Tensor:
        return magnitude_topk(prediction.embedding, self.config.topk, self.training)

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        logits, top = prediction.anomaly_logits[..., 0], self.rank(prediction)
        abnormal, normal = gather_segments(prediction.embedding, top).mean(dim=1).norm(dim=-1).chunk(2)  # (A,) each
        magnitude = ((self.MARGIN - abnormal).abs() + normal).square().mean()
        return {"top": top_score_loss(logits, top), "magnitude": magnitude} | sparse_and_smooth(logits.chunk(2)[0])
