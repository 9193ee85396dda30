"""The other bodies of the Temporal model in Table 10 (arXiv:2310.02835): all map (B, S, F, E) to (B, S, F, E).

The multi-scale temporal network is RTFM's (arXiv:2101.10030). Shapes: as in anomalyclip.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, randn


class AxisTransformer(nn.Module):
    """A standard transformer along one axis: frames within segments, or the mean embeddings of the segments."""

    LAYERS = 12  # per layer of the axial transformer: 9.5 M parameters at E = 256, where one axial layer has 10.0 M

    def __init__(self, dim: int, *, length: int, long: bool, num_heads: int, depth: int):
        super().__init__()
        self.long = long
        self.pos = nn.Parameter(randn(length, dim))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(self.LAYERS * depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.long:
            out = self.layers(x.mean(dim=2) + self.pos)  # (B, S, E)
            return out.unsqueeze(2).expand_as(x)  # (B, S, F, E)
        return self.layers(x.flatten(0, 1) + self.pos).unflatten(0, x.shape[:2])  # (B, S, F, E)


class NonLocal(nn.Module):
    """Non-local block over time with dot products and a zero-initialised residual, as in RTFM."""

    def __init__(self, dim: int, norm: Callable[[int], nn.Module] = nn.BatchNorm1d):
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv1d(dim, dim // 2, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv1d(dim // 2, dim, 1), norm(dim))
        nn.init.zeros_(self.out[1].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.theta(x).transpose(1, 2) @ self.phi(x) / x.shape[-1]  # (B, T, T)
        return x + self.out(self.g(x) @ weights.transpose(1, 2))  # (B, dim, T)


class MTN(nn.Module):
    """RTFM's multi-scale temporal network along the segments' mean embeddings."""

    def __init__(self, dim: int, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm1d):
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Conv1d(dim, width, 3, padding=d, dilation=d), nn.ReLU(), norm(width)) for d in (1, 2, 4)
        )
        self.non_local = nn.Sequential(nn.Conv1d(dim, width, 1, bias=False), nn.ReLU(), NonLocal(width, norm))
        self.fuse = nn.Sequential(nn.Conv1d(4 * width, dim, 3, padding=1, bias=False), nn.ReLU(), norm(dim))

    def forward(self, x: Tensor) -> Tensor:
        t = x.mean(dim=2).transpose(1, 2)  # (B, E, S)
        out = torch.cat([scale(t) for scale in self.scales] + [self.non_local(t)], dim=1)  # (B, E, S)
        out = (self.fuse(out) + t).transpose(1, 2)  # (B, S, E)
        return out.unsqueeze(2).expand_as(x)  # (B, S, F, E)


def other_body(config: AnomalyCLIPConfig) -> nn.Module | None:
    """The body that the config names, if it is one of these."""
    E, attention = config.embed_dim, {"num_heads": config.num_heads, "depth": config.depth}
    if config.temporal == "short":
        return AxisTransformer(E, length=config.num_frames, long=False, **attention)
    if config.temporal == "long":
        return AxisTransformer(E, length=config.num_segments, long=True, **attention)
    return MTN(E, E // 4) if config.temporal == "mtn" else None
