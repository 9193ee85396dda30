"""VadCLIP: a binary branch and a branch of texts, on local and global relations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, randn
from clip_model import QuickGELU, Transformer
from videoanomaly.systems.base import Defaults, closeness, per_frame, top_score_loss
from videoanomaly.systems.prompted import PromptedSystem, text_side


class AroundPrompts(nn.Module):
    """Learned context vectors, shared by all classes, in front of and behind the class name; gives (C + 1, D)."""

    before: Tensor
    behind: Tensor
    eot_idx: Tensor
    embeddings: Tensor

    def __init__(
        self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor], num_ctx: int = 10
    ):
        super().__init__()
        tower: Any = clip  # with OpenAI's names of parameters
        fill = ["x"] * num_ctx  # one token each, whose places the context vectors take
        tokens = tokenize([" ".join([*fill, name, *fill]) for name in config.classes]).long()
        eot_idx = tokens.argmax(dim=-1)
        if int(eot_idx.max()) >= len(tower.positional_embedding):
            raise ValueError(
                f"the longest prompt has {int(eot_idx.max()) + 1} tokens, {2 * num_ctx} of them context vectors; "
                f"the text tower has {len(tower.positional_embedding)} positions"
            )
        at = torch.arange(int(eot_idx.max()) + 1).expand(len(tokens), -1)  # (C + 1, L)
        from_end = at - eot_idx[:, None] + num_ctx  # number of the context vector behind the name
        self.register_buffer("before", (at >= 1) & (at <= num_ctx), persistent=False)
        self.register_buffer("behind", (from_end >= 0) & (from_end < num_ctx), persistent=False)
        self.register_buffer("eot_idx", eot_idx, persistent=False)
        with torch.no_grad():
            embeddings = (
                tower.token_embedding(tokens[:, : at.shape[1]].to(tower.positional_embedding.device)).float().cpu()
            )
        self.register_buffer("embeddings", embeddings, persistent=False)  # (C + 1, L, W)
        self.ctx = nn.Parameter(randn(2, num_ctx, embeddings.shape[-1], scale=0.02))
        self.text_tower: Any = text_side(clip)

    def forward(self) -> Tensor:
        n = len(self.embeddings)
        x = self.embeddings  # (C + 1, L, W)
        for mask, ctx in zip((self.before, self.behind), self.ctx):
            x = x.masked_scatter(mask.unsqueeze(-1), ctx.expand(n, -1, -1))
        return self.text_tower.encode_text_embeddings(x, self.eot_idx)


class GraphBranch(nn.Module):
    """Two graph convolutions with residuals, (B, S, D) -> (B, S, D / 2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, dim // 2)
        self.skip, self.gelu = nn.Linear(dim, dim // 2), QuickGELU()

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        x = self.gelu(graph @ self.linear_1(x) + self.skip(x))
        return self.gelu(graph @ self.linear_2(x) + x)


def feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), QuickGELU(), nn.Linear(4 * dim, dim))


class VadCLIPPrediction(NamedTuple):
    anomaly_logits: Tensor  # of the binary branch, (B, S, F)
    class_logits: Tensor  # of the other branch, (B, S, F, C)
    all_logits: Tensor  # the same with Normal, (B, S, C + 1)
    text_cosine: Tensor  # of each class's text with that of Normal, the same for all videos, (B, C)


class VadCLIP(PromptedSystem):
    """Binary branch and branch of texts on local and global relations (arXiv:2308.11681; nwpu-zxr/VadCLIP).

    Settings of UCF-Crime (window of 8 segments, two layers, rate 2e-5, weight 0.1 of the texts' loss), also for
    XD-Violence, for which the published code has others (64, one, 1e-5, 1e-4). S // 16 + 1 segments of each video are
    selected, for each class. p_{A,c} is p_A times the softmax over the anomaly classes.
    """

    NAME = "vadclip"
    # 10 epochs of UCF-Crime, where each of ten crops counts as a video; 2e-5 is too slow for SMALL_STEPS
    DEFAULTS = Defaults(
        2e-5, 1e-2, 1_250, small_lr=1e-4, batch_size=128, num_segments=256, optimizer="AdamW", schedule="steps"
    )
    DIRECTIONS = ("frozen", "direct")
    MULTIPLE = 2
    LAMBDAS = {"text": 0.1}
    WINDOW, THRESHOLD, TEMPERATURE = 8, 0.7, 0.07

    def __init__(
        self,
        config: AnomalyCLIPConfig,
        *,
        clip: nn.Module | None = None,
        tokenize: Callable[[list[str]], Tensor] | None = None,
        prototype: Tensor | None = None,
    ):
        super().__init__(config, clip, tokenize, prototype)
        D = config.feature_dim
        self.positions = nn.Parameter(randn(config.num_segments, D, scale=0.01))
        self.local = Transformer(width=D, layers=2, heads=1, causal=False, quick_gelu=True)
        self.alike, self.near, self.join = GraphBranch(D), GraphBranch(D), nn.Linear(D, D)
        self.binary_mlp, self.binary_head, self.text_mlp = feed_forward(D), nn.Linear(D, 1), feed_forward(D)

    def make_prompts(
        self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor]
    ) -> nn.Module:
        return AroundPrompts(config, clip, tokenize)

    def in_windows(self, x: Tensor) -> Tensor:
        """Segments (B, S, D) among those of their window; the last one may be short."""
        if x.shape[1] % self.WINDOW:
            return torch.cat([self.local(part) for part in x.split(self.WINDOW, dim=1)], dim=1)
        windows = self.local(x.unflatten(1, (-1, self.WINDOW)).flatten(0, 1))  # (B * S / 8, 8, D)
        return windows.unflatten(0, (-1, x.shape[1] // self.WINDOW)).flatten(1, 2)

    def relate(self, x: Tensor) -> Tensor:
        """Segments among those of their window, then along two graphs, (B, S, D)."""
        x = self.in_windows(x + self.positions)
        unit = F.normalize(x, dim=-1)
        similarity = F.threshold(unit @ unit.transpose(1, 2), self.THRESHOLD, 0.0).softmax(dim=-1)  # (B, S, S)
        near = closeness(x.shape[1], x.device, normalise=False).to(x.dtype)
        return self.join(torch.cat([self.alike(x, similarity), self.near(x, near)], dim=-1))

    def forward(self, features: Tensor) -> VadCLIPPrediction:
        """Segments (B, S, F, D)."""
        num_frames = features.shape[2]
        x = self.relate(features.mean(dim=2))  # (B, S, D)
        z = self.binary_head(x + self.binary_mlp(x)).squeeze(-1)  # (B, S)
        pooled = F.normalize(z.sigmoid().unsqueeze(1) @ x, dim=-1)  # (B, 1, D), the visual prompt
        text = self.class_text()  # (C + 1, D)
        unit = F.normalize(text.float(), dim=-1)
        cosine = (unit[:-1] @ unit[-1]).float().expand(x.shape[0], -1)  # (B, C)
        text = text + pooled  # (B, C + 1, D)
        text = F.normalize(text + self.text_mlp(text), dim=-1)
        logits = (F.normalize(x, dim=-1) @ text.transpose(1, 2)).float() / self.TEMPERATURE  # (B, S, C + 1)
        return VadCLIPPrediction(per_frame(z, num_frames), per_frame(logits[..., :-1], num_frames), logits, cosine)

    def losses(self, prediction: VadCLIPPrediction, labels: Tensor) -> dict[str, Tensor]:
        """As AnomalyCLIP.losses; "total" is weighted with LAMBDAS."""
        k = self.config.num_segments // 16 + 1
        z, C = prediction.anomaly_logits[..., 0], len(self.config.classes)
        video_logits = prediction.all_logits.topk(k, dim=1).values.mean(dim=1)  # (B, C + 1)
        label = torch.cat([labels, torch.full_like(labels, C)])  # (B,)
        return self.with_total(
            {
                "top": top_score_loss(z, z.topk(k, dim=1).indices),
                "class": F.cross_entropy(video_logits, label),
                "text": prediction.text_cosine.abs().mean(),
            }
        )
