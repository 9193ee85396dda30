"""Magnitude-contrastive glance-and-focus network (MGFN)."""

import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, AxisAttention, gather_segments
from videoanomaly.systems.base import Defaults, SegmentPrediction, top_score_loss
from videoanomaly.systems.binary import BinarySystem, sparse_and_smooth
from videoanomaly.systems.rtfm import RTFM


class Focus(nn.Module):
    """Convolution over time with one kernel a head, of 64 channels each (MGFN's self-attentional convolution)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.to_v, self.to_out = (
            nn.BatchNorm1d(dim),
            nn.Conv1d(dim, dim, 1, bias=False),
            nn.Conv1d(dim, dim, 1),
        )
        self.num_heads = dim // 64
        self.over_time = nn.Conv1d(self.num_heads, self.num_heads, 5, padding=2, groups=self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        v = self.to_v(self.norm(x)).unflatten(1, (self.num_heads, 64)).transpose(1, 2)  # (B, 64, heads, S)
        v = self.over_time(v.flatten(0, 1)).unflatten(0, (-1, 64)).transpose(1, 2).flatten(1, 2)
        return self.to_out(v)  # (B, dim, S)


class MGFNBlock(nn.Module):
    """Convolution, attention (glance) or convolution by heads (focus), feed-forward, each with a residual, on (B, dim,
    S).
    """

    def __init__(self, dim: int, *, glance: bool):
        super().__init__()
        self.conv, self.glance = nn.Conv1d(dim, dim, 3, padding=1), glance
        self.attention = AxisAttention(dim, num_heads=dim // 64, head_dim=64) if glance else Focus(dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(x)
        if self.glance:
            x = x + self.attention(x.transpose(1, 2).unsqueeze(1)).squeeze(1).transpose(1, 2)
        else:
            x = x + self.attention(x)
        return x + self.feed_forward(x.transpose(1, 2)).transpose(1, 2)


class ChannelLayerNorm(nn.LayerNorm):
    """Over the channels of (B, dim, S)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class MGFN(RTFM):
    """Magnitude-contrastive glance-and-focus network (Chen et al., arXiv:2211.15098; carolchenyx/MGFN.).

    Magnitudes are Euclidean, of the features in front of the last LayerNorm, which would make them all alike; sparsity
    is the abnormal videos'. The released code has L1 norms in the contrast and the normal videos' sparsity.
    """

    NAME = "mgfn"
    # 1000 epochs of UCF-Crime; on a planted problem it does not settle at 1e-3
    DEFAULTS = Defaults(1e-3, 5e-4, 51_000, small_lr=1e-4, batch_size=32)
    LAMBDAS = {"contrast": 1e-3, "sparse": 8e-3, "smooth": 8e-4}
    MARGIN = 200
    WIDTHS, DEPTHS = (64, 128, 1024), (3, 3, 2)  # of glance, focus, focus; widths are multiples of 64

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        BinarySystem.__init__(self, config, self.WIDTHS[-1], prototype)
        self.to_tokens = nn.Conv1d(config.feature_dim, self.WIDTHS[0], 3, padding=1)
        self.magnitude_to_tokens = nn.Conv1d(1, self.WIDTHS[0], 3, padding=1)
        layers = []
        for i, (width, depth) in enumerate(zip(self.WIDTHS, self.DEPTHS)):
            if i > 0:
                layers += [ChannelLayerNorm(self.WIDTHS[i - 1]), nn.Conv1d(self.WIDTHS[i - 1], width, 1)]
            layers += [MGFNBlock(width, glance=i == 0) for _ in range(depth)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(self.WIDTHS[-1]), nn.Linear(self.WIDTHS[-1], 1))

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = features.mean(dim=2).transpose(1, 2)  # (B, D, S)
        x = self.to_tokens(x) + 0.1 * self.magnitude_to_tokens(x.norm(dim=1, keepdim=True))  # (B, 64, S)
        x = self.body(x).transpose(1, 2)  # (B, S, E)
        return self.predict_segments(x, self.head(x).squeeze(-1))

    def binary_losses(self, prediction: SegmentPrediction) -> dict[str, Tensor]:
        logits, top = prediction.anomaly_logits[..., 0], self.rank(prediction)
        abnormal, normal = gather_segments(prediction.embedding, top).norm(dim=-1).chunk(2)  # (A, K) each
        apart = F.relu(self.MARGIN - F.pairwise_distance(abnormal, normal)).square().mean()
        contrast = 1e-3 * apart + pull_together(abnormal) + pull_together(normal)
        return {"top": top_score_loss(logits, top), "contrast": contrast} | sparse_and_smooth(logits.chunk(2)[0])


def pull_together(magnitudes: Tensor) -> Tensor:
    """Mean squared distance between the halves of (A, K); 0 for a single video, and an odd one is left out."""
    half = len(magnitudes) // 2
    return (magnitudes[:half] - magnitudes[half : 2 * half]).square().sum() / max(half, 1)
