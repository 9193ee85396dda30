"""Uncertainty-regulated dual memory units (UR-DMU)."""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, gather_segments
from videoanomaly.systems.base import Defaults, bag_targets, closeness, score_head, top_score_loss
from videoanomaly.systems.binary import BinarySystem


class GlobalLocalLayer(nn.Module):
    """Transformer layer whose values are also averaged over near segments (UR-DMU's GL-MHSA)."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, dropout: float):
        super().__init__()
        inner, self.num_heads = num_heads * head_dim, num_heads
        self.norm, self.to_qkvt = nn.LayerNorm(dim), nn.Linear(dim, 4 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(2 * inner, dim), nn.Dropout(dropout))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, t = self.to_qkvt(self.norm(x)).chunk(4, dim=-1)  # (B, S, inner)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))  # (B, heads, S, head_dim)
        far = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        near = closeness(x.shape[1], x.device, normalise=True).to(t.dtype) @ t
        x = x + self.to_out(torch.cat([far, near], dim=-1))
        return x + self.feed_forward(x)


class Memory(nn.Module):
    """Slots that segments are compared with: how well (B, S, dim) fits the best of them, (B, S), and what is read out
    of them.
    """

    def __init__(self, num_slots: int, dim: int):
        super().__init__()
        self.slots = nn.Parameter(torch.empty(num_slots, dim).uniform_(-(dim**-0.5), dim**-0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (x @ self.slots.T / x.shape[-1] ** 0.5).sigmoid()  # (B, S, slots)
        return weights.topk(len(self.slots) // 16 + 1, dim=-1).values.mean(dim=-1), weights @ self.slots


class URDMUPrediction(NamedTuple):
    """As SegmentPrediction, and what the two memories say."""

    anomaly_logits: Tensor
    class_logits: Tensor
    embedding: Tensor  # before the memories, (B, S, E)
    abnormal_fit: Tensor  # with the abnormal memory, (B, S)
    normal_fit: Tensor
    abnormal_mean: Tensor  # encoded read-out of the abnormal memory, (B, S, E)
    normal_mean: Tensor  # the same of the normal one
    normal_log_var: Tensor
    normal_latent: Tensor  # normal_mean, in normal videos of the training with noise


class URDMU(BinarySystem):
    """Uncertainty-regulated dual memory units (Zhou et al., arXiv:2302.05160; henrryzh1/UR-DMU).

    Latents and their lengths are means over a video's selected segments; S // 16 + 1 are selected, K by the class head.
    """

    NAME = "ur-dmu"
    DEFAULTS = Defaults(1e-4, 5e-5, 3_000, batch_size=128, num_segments=200)
    LAMBDAS = {"memory": 0.1, "triplet": 0.1, "kl": 1e-3, "distance": 1e-4}
    DIM, MARGIN = 512, 100

    def __init__(self, config: AnomalyCLIPConfig, *, prototype: Tensor | None = None):
        super().__init__(config, 2 * self.DIM, prototype)
        self.embed = nn.Sequential(nn.Conv1d(config.feature_dim, self.DIM, 3, padding=1), nn.ReLU())
        self.layers = nn.Sequential(
            *(GlobalLocalLayer(self.DIM, num_heads=4, head_dim=128, dropout=0.5) for _ in range(2))
        )
        self.abnormal_memory, self.normal_memory = Memory(60, self.DIM), Memory(60, self.DIM)
        self.to_mean, self.to_log_var = nn.Linear(self.DIM, self.DIM), nn.Linear(self.DIM, self.DIM)
        self.head = score_head(2 * self.DIM, 128, 1)

    def forward(self, features: Tensor) -> URDMUPrediction:
        """Segments (B, S, F, D); of a batch in training, the second half is normal."""
        x = self.layers(self.embed(features.mean(dim=2).transpose(1, 2)).transpose(1, 2))  # (B, S, E)
        abnormal_fit, abnormal_read_out = self.abnormal_memory(x)
        normal_fit, normal_read_out = self.normal_memory(x)
        abnormal_mean, mean = self.to_mean(abnormal_read_out), self.to_mean(normal_read_out)
        latent, log_var = mean, self.to_log_var(normal_read_out)
        if self.training:
            is_normal = 1 - bag_targets(x).view(-1, 1, 1)
            latent = mean + is_normal * torch.randn_like(mean) * (log_var / 2).exp()
        joined = torch.cat([x, abnormal_mean + latent], dim=-1)  # (B, S, 2E)
        frames = self.predict_segments(joined, self.head(joined).squeeze(-1))
        others = (x, abnormal_fit, normal_fit, abnormal_mean, mean, log_var, latent)
        return URDMUPrediction(*frames[:2], *(y.float() for y in others))

    def binary_losses(self, prediction: URDMUPrediction) -> dict[str, Tensor]:
        logits, k = prediction.anomaly_logits[..., 0], self.config.num_segments // 16 + 1
        halves = {name: value.chunk(2) for name, value in prediction._asdict().items()}
        by_abnormal = halves["abnormal_fit"][0].topk(k, dim=1).indices  # (A, k) segments of the abnormal videos
        by_normal = halves["normal_fit"][0].topk(k, dim=1).indices
        of_normal = halves["normal_fit"][1].topk(k, dim=1).indices  # of the normal videos

        def mean_of(name: str, half: int, segment_idx: Tensor) -> Tensor:
            return gather_segments(halves[name][half], segment_idx).mean(dim=1)  # (A, E)

        points = [
            F.normalize(mean_of("embedding", half, idx), dim=-1)
            for half, idx in ((1, of_normal), (0, by_normal), (0, by_abnormal))
        ]
        abnormal_length = mean_of("abnormal_mean", 0, by_abnormal).norm(dim=-1)  # (A,)
        normal_length = mean_of("normal_latent", 1, of_normal).norm(dim=-1)
        mean, log_var = halves["normal_mean"][1], halves["normal_log_var"][1]  # (A, S, E)
        return {
            "top": top_score_loss(logits, logits.topk(k, dim=1).indices),
            "memory": self.memory_loss(halves, k),
            "triplet": F.triplet_margin_loss(points[0], points[1], points[2]),
            "kl": (mean**2 + log_var.exp() - 1 - log_var).sum(dim=-1).mean() / 2,
            "distance": F.relu(self.MARGIN - abnormal_length + normal_length).mean(),
        }

    @staticmethod
    def memory_loss(halves: dict[str, tuple[Tensor, Tensor]], k: int) -> Tensor:
        """Each memory fits its kind: k segments of an abnormal video, all of a normal one."""
        (abnormal, normal), (normal_in_abnormal, normal_in_normal) = halves["abnormal_fit"], halves["normal_fit"]
        best, unlike = (fit.topk(k, dim=1).values.mean(dim=1) for fit in (abnormal, 1 - normal_in_abnormal))
        fits = (best, unlike, normal_in_normal, 1 - normal)  # all should be 1
        return cast(Tensor, sum(F.binary_cross_entropy(fit, torch.ones_like(fit)) for fit in fits))
