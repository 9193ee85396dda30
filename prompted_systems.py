"""The systems with prompts that AnomalyCLIP is compared with: zero-shot CLIP, ActionCLIP and VadCLIP.

Their probabilities for whole videos come in AnomalyCLIP's way, see binary_systems.py. Without CLIP, with features that no text
goes with, ActionCLIP and VadCLIP have free vectors in the place of the texts (`directions="direct"`).

Shapes: as in anomalyclip.py, here with P prompts of a class, n segments of a batch.
"""
import copy
import math
from dataclasses import replace
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, PromptLearner
from binary_systems import SegmentPrediction, System, closeness, per_frame, top_score_loss
from clip_model import QuickGELU, Transformer

NORMAL = "normal"  # the name of the class that AnomalyCLIP does without, in prompts; last of C + 1
# As many as ActionCLIP's, of which the first three are; the others are of our making
TEMPLATES = ("a photo of action {}", "Human action of {}", "{}, a video of action", "{}", "an action: {}", "a video of {}",
             "a recording of {}", "footage of {}", "somebody seen in {}", "people in a scene of {}", "the event is {}",
             "this is {}", "a person in the act of {}", "what happens here is {}", "a short clip of {}", "an example of {}")


def against_normal(logits: Tensor) -> Tensor:
    """Log-odds of the C classes together against Normal, (...,), of logits (..., C + 1): their sigmoid is 1 - p(normal)."""
    return logits[..., :-1].logsumexp(dim=-1) - logits[..., -1]


class PromptedSystem(System):
    """A system whose classes and Normal are texts, P prompts of each; with `directions="direct"`, free vectors."""

    def __init__(self, config: AnomalyCLIPConfig, clip: nn.Module | None, tokenize: Callable[[list[str]], Tensor] | None,
                 prototype: Tensor | None):
        super().__init__(config, prototype)
        C, D = len(config.classes), config.feature_dim
        self.register_buffer("directions", torch.zeros(C + 1, D))  # finished texts, for inference
        self.free_text = nn.Parameter(0.02 * torch.randn(1, C + 1, D)) if config.directions == "direct" else None
        self.prompt_learner = None
        if clip is not None and self.free_text is None:
            if clip.text_projection.shape[1] != D:
                raise ValueError(f"CLIP's text features have {clip.text_projection.shape[1]} values, the video features {D}; "
                                 "use features of the same CLIP")
            names = tuple(name.replace("_", " ") for name in config.classes)
            if NORMAL in (name.lower() for name in names):
                raise ValueError(f"classes must not be called {NORMAL!r}, which is what is no anomaly, got {names}")
            self.prompt_learner = self.make_prompts(replace(config, classes=(*names, NORMAL)), clip, tokenize)

    def make_prompts(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize) -> nn.Module:
        """Of a config whose last class is Normal."""
        raise NotImplementedError

    def text_features(self) -> Tensor:
        """As CLIP makes them, (P, C + 1, D); free vectors have length 1."""
        if self.free_text is None and self.prompt_learner is None:
            raise ValueError(f"{self.NAME} needs CLIP to be trained: pass clip and tokenize")
        text = self.prompt_learner() if self.free_text is None else F.normalize(self.free_text, dim=-1)
        return text.reshape(-1, *self.directions.shape)

    @torch.no_grad()
    def finish_directions(self) -> None:
        if self.free_text is not None or self.prompt_learner is not None:
            self.directions.copy_(self.text_features().mean(dim=0))

    def class_text(self) -> Tensor:
        """Mean over the prompts, (C + 1, D)."""
        return self.text_features().mean(dim=0) if self.training else self.directions


def text_side(clip: nn.Module) -> nn.Module:
    """A frozen copy of this project's CLIP without its image tower, so that the one that came in stays as it was."""
    text = copy.copy(clip)
    text._modules = {name: module for name, module in clip._modules.items() if name != "visual"}
    return copy.deepcopy(text).float().requires_grad_(False)


def starting_scale(clip: nn.Module | None) -> nn.Parameter:
    """CLIP's temperature, as a logarithm; without one, that with which its training began."""
    return nn.Parameter(torch.tensor(math.log(1 / 0.07)) if clip is None else clip.logit_scale.detach().float().clone())


class ClipZeroShot(PromptedSystem):
    """CLIP as it is (Sec. 4.2): softmax of the cosines of a row with "a video from a CCTV camera of a {class}"; no training."""

    NAME = "clip-zeroshot"
    DIRECTIONS = ("engineered",)
    SEES_MEANS = False

    def __init__(self, config: AnomalyCLIPConfig, *, clip: nn.Module | None = None, tokenize=None,
                 prototype: Tensor | None = None):
        super().__init__(config, clip, tokenize, prototype)
        self.logit_scale = starting_scale(clip)

    def make_prompts(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize) -> nn.Module:
        return PromptLearner(config, clip, tokenize)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D), each row by itself."""
        logits = self.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ F.normalize(self.class_text(), dim=-1).T
        return SegmentPrediction(against_normal(logits), logits[..., :-1], features.mean(dim=2))


class TemplatePrompts(nn.Module):
    """TEMPLATES with the class names through the frozen tower, once; only the projection may learn. Gives (16, C + 1, D)."""

    def __init__(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize):
        super().__init__()
        tokens = tokenize([template.format(name) for template in TEMPLATES for name in config.classes])
        text = text_side(clip)
        text.text_projection = nn.Parameter(torch.eye(len(clip.text_projection)), requires_grad=False)
        with torch.no_grad():
            encoded = text.encode_text(tokens.to(text.token_embedding.weight.device))
        self.register_buffer("encoded", encoded.unflatten(0, (len(TEMPLATES), -1)), persistent=False)  # (16, C + 1, W)
        self.text_projection = nn.Parameter(clip.text_projection.detach().float().clone(), config.directions == "finetune")

    def forward(self) -> Tensor:
        return self.encoded @ self.text_projection


class ActionCLIP(PromptedSystem):
    """Temporal head on frozen features, each segment with its video's label (arXiv:2109.08472; sallymmx/ActionCLIP).

    Its position embedding has one row for each row of a segment. A segment's class probabilities are those of its rows. CLIP's
    temperature stays as it is.
    Features go in as they are: the temporal head starts with steps of a size that those of length 1 would drown in.
    """

    NAME = "actionclip"
    MULTIPLE = 8  # heads
    SEES_MEANS = False
    DIRECTIONS = ("finetune", "frozen", "direct")

    def __init__(self, config: AnomalyCLIPConfig, *, clip: nn.Module | None = None, tokenize=None,
                 prototype: Tensor | None = None):
        super().__init__(config, clip, tokenize, prototype)
        self.logit_scale = starting_scale(clip).requires_grad_(False)
        self.positions = nn.Parameter(0.02 * torch.randn(config.num_frames, config.feature_dim))
        self.temporal = Transformer(width=config.feature_dim, layers=6, heads=8, causal=False, quick_gelu=True)

    def make_prompts(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize) -> nn.Module:
        return TemplatePrompts(config, clip, tokenize)

    def parameter_groups(self) -> list[dict]:
        """The temporal head, and vectors that stand in for texts, learn ten times as fast as the text projection."""
        groups = {1: [], 10: []}
        for name, p in self.named_parameters():
            if p.requires_grad:
                groups[1 if name.startswith("prompt_learner") else 10].append(p)
        return [{"params": params, "scale": scale} for scale, params in groups.items() if params]

    def text_features(self) -> Tensor:
        """Normalised, (P, C + 1, D)."""
        return F.normalize(super().text_features(), dim=-1)

    def forward(self, features: Tensor) -> SegmentPrediction:
        """Segments (B, S, F, D)."""
        x = features.flatten(0, 1)  # (B * S, F, D)
        x = (x + self.temporal(x + self.positions)).mean(dim=1).unflatten(0, features.shape[:2]).float()  # (B, S, D)
        logits = self.logit_scale.exp() * F.normalize(x, dim=-1) @ F.normalize(self.class_text(), dim=-1).T
        logits = per_frame(logits, features.shape[2])  # (B, S, F, C + 1)
        return SegmentPrediction(against_normal(logits), logits[..., :-1], x)

    def losses(self, prediction: SegmentPrediction, labels: Tensor) -> dict[str, Tensor]:
        """Each segment of the batch beside a random text of each segment's class, both ways; targets favour equal classes."""
        video = F.normalize(prediction.embedding.flatten(0, 1), dim=-1)  # (n, D), n = B * S
        label = torch.cat([labels, torch.full_like(labels, len(self.config.classes))])
        label = label.repeat_interleave(prediction.embedding.shape[1])  # (n,)
        prompts = self.text_features()  # (P, C + 1, D)
        text = prompts[torch.randint(len(prompts), label.shape, device=label.device), label]  # (n, D)
        logits = self.logit_scale.exp() * video @ text.T  # (n, n)
        target = (10.0 * (label[:, None] == label)).softmax(dim=1)
        both = [F.kl_div(x.log_softmax(dim=1), target, reduction="batchmean") for x in (logits, logits.T)]
        return self.with_total({"contrast": (both[0] + both[1]) / 2})


class AroundPrompts(nn.Module):
    """Learned context vectors, shared by all classes, in front of and behind the class name; gives (C + 1, D)."""

    def __init__(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize, num_ctx: int = 10):
        super().__init__()
        fill = ["x"] * num_ctx  # one token each, whose places the context vectors take
        tokens = tokenize([" ".join([*fill, name, *fill]) for name in config.classes]).long()
        eot_idx = tokens.argmax(dim=-1)
        if int(eot_idx.max()) >= len(clip.positional_embedding):
            raise ValueError(f"the longest prompt has {int(eot_idx.max()) + 1} tokens, {2 * num_ctx} of them context vectors; "
                             f"the text tower has {len(clip.positional_embedding)} positions")
        at = torch.arange(int(eot_idx.max()) + 1).expand(len(tokens), -1)  # (C + 1, L)
        from_end = at - eot_idx[:, None] + num_ctx  # number of the context vector behind the name
        self.register_buffer("before", (at >= 1) & (at <= num_ctx), persistent=False)
        self.register_buffer("behind", (from_end >= 0) & (from_end < num_ctx), persistent=False)
        self.register_buffer("eot_idx", eot_idx, persistent=False)
        with torch.no_grad():
            embeddings = clip.token_embedding(tokens[:, :at.shape[1]].to(clip.positional_embedding.device)).float().cpu()
        self.register_buffer("embeddings", embeddings, persistent=False)  # (C + 1, L, W)
        self.ctx = nn.Parameter(0.02 * torch.randn(2, num_ctx, embeddings.shape[-1]))
        self.text_tower = text_side(clip)

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

    Settings of UCF-Crime (window of 8 segments, two layers, rate 2e-5, weight 0.1 of the texts' loss), also for XD-Violence,
    for which the published code has others (64, one, 1e-5, 1e-4). S // 16 + 1 segments of each video are selected, for each
    class.
    p_{A,c} is p_A times the softmax over the anomaly classes.
    """

    NAME = "vadclip"
    DIRECTIONS = ("frozen", "direct")
    MULTIPLE = 2
    LAMBDAS = {"text": 0.1}
    WINDOW, THRESHOLD, TEMPERATURE = 8, 0.7, 0.07

    def __init__(self, config: AnomalyCLIPConfig, *, clip: nn.Module | None = None, tokenize=None,
                 prototype: Tensor | None = None):
        super().__init__(config, clip, tokenize, prototype)
        D = config.feature_dim
        self.positions = nn.Parameter(0.01 * torch.randn(config.num_segments, D))
        self.local = Transformer(width=D, layers=2, heads=1, causal=False, quick_gelu=True)
        self.alike, self.near, self.join = GraphBranch(D), GraphBranch(D), nn.Linear(D, D)
        self.binary_mlp, self.binary_head, self.text_mlp = feed_forward(D), nn.Linear(D, 1), feed_forward(D)

    def make_prompts(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize) -> nn.Module:
        return AroundPrompts(config, clip, tokenize)

    def in_windows(self, x: Tensor) -> Tensor:
        """Segments (B, S, D) among those of their window; the last one may be short."""
        if x.shape[1] % self.WINDOW:
            return torch.cat([self.local(part) for part in x.split(self.WINDOW, dim=1)], dim=1)
        windows = self.local(x.unflatten(1, (-1, self.WINDOW)).flatten(0, 1))  # (B * S / 8, 8, D)
        return windows.unflatten(0, (len(x), -1)).flatten(1, 2)

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
        cosine = (unit[:-1] @ unit[-1]).float().expand(len(x), -1)  # (B, C)
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
        return self.with_total({"top": top_score_loss(z, z.topk(k, dim=1).indices),
                                "class": F.cross_entropy(video_logits, label), "text": prediction.text_cosine.abs().mean()})
