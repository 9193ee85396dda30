"""MIL ranking of Sultani et al."""

import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.systems.base import Defaults, SegmentPrediction
from videoanomaly.systems.binary import BinarySystem


class Sultani(BinarySystem):
    """MIL ranking (Sultani et al., arXiv:1801.04264; WaqasSultani/AnomalyDetectionCVPR2018).

    The class head sees the normalised features, and selects K segments where the ranking loss takes one. Weight decay
    is twice the published L2, which has no factor of a half, and takes in the biases, which that leaves out.
    """

    NAME = "sultani"
    DEFAULTS = Defaults(0.01, 2e-3, 20_000, batch_size=60, optimizer="Adagrad")
    LAMBDAS = {"sparse": 8e-5, "smooth": 8e-5}

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        super().__init__(config, config.feature_dim, prototype)
        self.head = nn.Sequential(
            nn.Linear(config.feature_dim, 512),
            nn.ReLU(),
            nn.Dropout(0.6),
            nn.Linear(512, 32),
            nn.Dropout(0.6),
            nn.Linear(32, 1),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = F.normalize(features.mean(dim=2), dim=-1)  # (B, S, D)
        return self.predict_segments(x, self.head(x).squeeze(-1))

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        abnormal, normal = prediction.anomaly_logits[..., 0].sigmoid().chunk(2)  # (A, S) each
        hinge = F.relu(
            1 - abnormal.amax(dim=1)[:, None] + normal.amax(dim=1)
        )  # (A, A), each abnormal video with each normal
        return {
            "rank": hinge.sum(dim=0).mean(),
            "sparse": abnormal.sum(),
            "smooth": abnormal.diff(dim=1).square().sum(),
        }
