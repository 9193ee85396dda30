"""AnomalyCLIP: which frames of a video are anomalous, and how, learned from video labels alone.

Sources: Zanella et al., "Delving into CLIP latent space for Video Anomaly Recognition" (arXiv:2310.02835; equations,
tables and sections below are its); context vectors from CoOp (arXiv:2109.01134); the axial transformer of Ho et al.
(arXiv:1912.12180) in the reversible residual arrangement of Gomez et al. (arXiv:1707.04585). This file works when
copied alone: CLIP comes in as an argument.

Shapes: B videos in a batch (first half abnormal, second half normal), S segments of a video, F frames of a segment,
D feature size, C anomaly classes (Normal is not one of them), K selected segments, E embedding size, L tokens of a
prompt, W width of the text tower, J passes over a video, N feature rows of a video.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENGINEERED_PROMPT = "a video from a CCTV camera of a {}"  # Sec. 4.2 and Table 7
PROMPTS = {  # fixed ones by the config's `directions`; means of several as in CLIP (arXiv:2103.00020, Sec. 3.1.4)
    "engineered": (ENGINEERED_PROMPT,),
    "ensemble": (
        ENGINEERED_PROMPT,
        "a surveillance video of a {}",
        "a security camera shows a {}",
        "CCTV footage of a {}",
        "a picture of a {}",
        "a {}",
    ),
}
CHECKPOINT_FORMAT = 1
MOST_CROPS = 10  # of a frame, as the field's ten crops; a longer axis is another one


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A config field with the text and the choices that the command line shows."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class AnomalyCLIPConfig:
    """Every setting of the model and its losses; the defaults are the paper's for UCF-Crime."""

    classes: tuple[str, ...] = ()  # anomaly classes, Normal left out
    feature_dim: int = 512  # D, as CLIP ViT-B/16 projects
    temporal_feature_dim: int | None = None  # D of the Temporal model's own features (Table 15); None: the Selector's
    num_segments: int = option(32, "segments per video (S)")
    num_frames: int = option(16, "feature rows per segment (F)")
    topk: int = option(3, "segments that MIL selects per video (K)")
    mask_ratio: float = option(0.7, "share of segments hidden from the selection while training (App. A)")
    directions: str = option(
        "finetune",
        "class directions (Table 7): learned prompts, text projection tuned or not; fixed ones; vectors without CLIP",
        ("finetune", "frozen", "engineered", "ensemble", "direct"),
    )
    num_ctx: int = option(8, "learned context vectors per prompt (Table 8)")
    shared_ctx: bool = option(False, "one set of context vectors for all classes (Table 8)")
    likelihood: str = option(
        "projection",
        "Selector (Table 9): projection of re-centred features on directions, or cosine in CLIP's own space",
        ("projection", "cosine"),
    )
    selection: str = option(
        "likelihood",
        "what ranks segments (Table 9): the Selector's likelihood, or the magnitude of the features",
        ("likelihood", "magnitude"),
    )
    temporal: str = option("axial", "Temporal model (Table 10)", ("axial", "mlp", "short", "long", "mtn"))
    temporal_input: str = option(
        "features",
        "what the Temporal model sees (Table 15, App. A); relative: features, also less their median",
        ("features", "similarity", "both", "relative"),
    )
    embed_dim: int = option(256, "embedding size of the Temporal model (E, Table 11)")
    depth: int = option(1, "layers of the Temporal model (Table 11)")
    num_heads: int = option(8, "attention heads of the Temporal model")
    lambda_dir_abnormal: float = option(1.0, "weight of Eq. 7: top-K segments along their own class")
    lambda_top_abnormal: float = option(1.0, "weight of Eq. 8: class probability of the top-K segments")
    lambda_bottom_abnormal: float = option(1.0, "weight of Eq. 9: bottom-K segments are normal")
    lambda_dir_normal: float = option(1.0, "weight of Eq. 10: normal videos along all classes")
    lambda_top_normal: float = option(1.0, "weight of Eq. 11: top-K segments of normal videos are normal")
    lambda_sparse: float = option(8e-3, "weight of Eq. 12: few anomalous frames")
    lambda_smooth: float = option(8e-4, "weight of Eq. 13: scores change slowly")
    lambda_dir_bottom_abnormal: float = option(0.0, "weight of Eq. 15 (Table 14): bottom-K segments along their class")
    lambda_dir_top_normal: float = option(0.0, "weight of Eq. 16 (Table 14): top-K segments of normal videos")
    class_head: bool = option(False, "classes from a layer on the Temporal model's embedding, not from the Selector")
    smoothing: float = option(0.0, "standard deviation of a Gaussian over probabilities, in segments' lengths")
    variant: str = option("paper", "where paper and released code differ, follow this one", ("paper", "released"))

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) or not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be a sequence of one or more different names, got {self.classes!r}")
        self.classes = tuple(self.classes)
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
            if f.type in (int, int | None) and value is not None and value < 1:
                raise ValueError(f"{f.name} must be at least 1, got {value}")
        if not 1 <= self.topk <= self.num_segments:
            raise ValueError(f"topk must be in [1, {self.num_segments}], the segments of a video, got {self.topk}")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {self.mask_ratio}")
        if not 0 <= self.smoothing <= 10:  # segments' lengths
            raise ValueError(f"smoothing must be in [0, 10], got {self.smoothing}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads ({self.num_heads}), got {self.embed_dim}")
        if self.temporal_feature_dim is not None and self.temporal_input == "similarity":
            raise ValueError("temporal_input 'similarity' has no use for features of its own (temporal_feature_dim)")

    def to_plain(self) -> dict:
        """Plain values, which `torch.load(weights_only=True)` reads back."""
        return asdict(self) | {"classes": list(self.classes)}


# ---- Temporal model (Sec. 3.2): its body maps (B, S, F, E) to (B, S, F, E) ----


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """Normally distributed numbers; none on the meta device, whose random operations take a second to import."""
    x = torch.empty(*shape)
    return x if x.is_meta else x.normal_() * scale


class ChannelNorm(nn.Module):
    """Normalises the last axis; unlike LayerNorm it adds eps to the standard deviation, as axial transformers do."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=-1, keepdim=True, unbiased=False)
        return (x - mean) / (var.sqrt() + self.eps) * self.weight + self.bias


class AxisAttention(nn.Module):
    """Pre-norm multi-head self-attention along the second last axis."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * (head_dim or dim // num_heads)
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:2]
        x = self.norm(x).flatten(0, 1)  # (B * other axis, T, E)
        q, k, v = self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)
        # each (B *, heads, T, E / heads)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B *, T, E)
        return self.to_out(x).unflatten(0, lead)


class ConvFeedForward(nn.Module):
    """Two 3x3 convolutions E -> 4E -> E over the grid of segments and frames."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.conv_1 = nn.Conv2d(dim, 4 * dim, 3, padding=1)
        self.conv_2 = nn.Conv2d(4 * dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)  # (B, E, S, F), in memory still channels-last, which convolutions like
        x = self.conv_2(F.leaky_relu(self.conv_1(x), inplace=True))
        return x.permute(0, 2, 3, 1)  # (B, S, F, E)


class AxialLayer(nn.Module):
    """Attention along both axes, then two feed-forwards, on two residual streams that feed each other."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int | None = None):
        super().__init__()
        self.attn_segments = AxisAttention(dim, num_heads=num_heads, head_dim=head_dim)
        self.attn_frames = AxisAttention(dim, num_heads=num_heads, head_dim=head_dim)
        self.ff_1 = ConvFeedForward(dim)
        self.ff_2 = ConvFeedForward(dim)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        x1 = x1 + self.attn_segments(x2.transpose(1, 2)).transpose(1, 2)
        x2 = x2 + self.attn_frames(x1)
        x1 = x1 + self.ff_1(x2)
        x2 = x2 + self.ff_2(x1)
        return x1, x2


class AxialTransformer(nn.Module):
    """Short- and long-term relations at once: each axis of the (S, F) grid in turn (Ho et al.)."""

    def __init__(
        self, dim: int, *, num_segments: int, num_frames: int, num_heads: int, depth: int, head_dim: int | None = None
    ):
        super().__init__()
        self.pos_segments = nn.Parameter(randn(num_segments, 1, dim))
        self.pos_frames = nn.Parameter(randn(1, num_frames, dim))
        self.layers = nn.ModuleList(AxialLayer(dim, num_heads=num_heads, head_dim=head_dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_segments + self.pos_frames  # (B, S, F, E)
        x1 = x2 = x
        for layer in self.layers:
            x1, x2 = layer(x1, x2)
        return (x1 + x2) / 2


class TemporalModel(nn.Module):
    """Scores each frame (Eq. 6): (B, S, F, input_dim) -> logits of p_A, (B, S, F), and what they are made of."""

    def __init__(self, input_dim: int, body: nn.Module, embed_dim: int):
        super().__init__()
        self.projection = nn.Linear(input_dim, embed_dim)
        self.body = body
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.norm(self.body(self.projection(x)))  # (B, S, F, E)
        return self.head(embedding).squeeze(-1), embedding


# ---- Directions (Eq. 2) ----


def causal_attention(attn: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Self-attention of a text-tower block, (n, L, W) -> the same, by the parameter names that all CLIPs share."""
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)  # (n, L, 3W)
    # each (n, heads, L, W / heads)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
    x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return attn.out_proj(x.transpose(1, 2).flatten(2))  # (n, L, W)


class PromptLearner(nn.Module):
    """Class prompts [SOS, ctx_1 .. ctx_n, class name, ".", EOT] through CLIP's frozen text tower (CoOp).

    Only as many positions as the longest prompt has are computed: attention is causal, so what stands behind EOT
    never reaches it. The tower is a copy, so the CLIP that came in stays as it was.

    Args:
        clip: A CLIP with OpenAI's parameter names: this project's, OpenAI's or open_clip's.
        tokenize: Maps a list of n texts to token ids, (n, context length), EOT being the largest id of a row.
    Raises:
        ValueError: If a prompt has more tokens than the text tower has positions.
    """

    prefix: Tensor  # (n, 1, W), n being C, of several prompts for a class a multiple of it
    suffix: Tensor  # (n, L - 1 - num_ctx, W)
    eot_idx: Tensor  # (n,)
    positions: Tensor  # (L, W)
    ctx: nn.Parameter | None  # (num_ctx, W) or (C + 1, num_ctx, W)

    def __init__(self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor]):
        super().__init__()
        parts: Any = clip  # whose attributes the names tell, and no type
        prompts = PROMPTS.get(config.directions, ())
        num_ctx = 0 if prompts else config.num_ctx
        names = [name.replace("_", " ") for name in config.classes]
        self.num_classes = len(names)
        tokens = tokenize([prompt.format(name) for prompt in prompts or ("{}.",) for name in names])
        eot_idx = tokens.long().argmax(dim=-1) + num_ctx  # (n,)
        L, positions = int(eot_idx.max()) + 1, parts.positional_embedding.detach()
        if L > len(positions):
            raise ValueError(
                f"the longest prompt has {L} tokens, {num_ctx} of them context vectors; the text tower has "
                f"{len(positions)} positions"
            )
        with torch.no_grad():
            embeddings = parts.token_embedding(tokens.to(parts.token_embedding.weight.device)).float()  # (n, 77, W)
        self.register_buffer("prefix", embeddings[:, :1].clone(), persistent=False)
        self.register_buffer("suffix", embeddings[:, 1 : L - num_ctx].clone(), persistent=False)
        self.register_buffer("eot_idx", eot_idx.to(embeddings.device), persistent=False)
        self.register_buffer("positions", positions[:L].float().clone(), persistent=False)
        tower = {"blocks": parts.transformer.resblocks, "ln_final": parts.ln_final}
        self.text_tower = nn.ModuleDict(copy.deepcopy(tower)).float().requires_grad_(False)
        projection = parts.text_projection.detach().float().clone()  # (W, D)
        self.text_projection = nn.Parameter(projection, requires_grad=config.directions == "finetune")
        self.ctx = None
        if not prompts:  # the last row is Normal's: of no use, but part of the published 10.4 M parameters
            sets = () if config.shared_ctx else (len(names) + 1,)
            self.ctx = nn.Parameter(0.02 * torch.randn(*sets, num_ctx, embeddings.shape[-1], device=embeddings.device))

    def forward(self) -> Tensor:
        """Text features of the anomaly classes, (C, D), not normalised."""
        n, C = len(self.prefix), self.num_classes
        blocks: Any = self.text_tower["blocks"]
        parts = [self.prefix, self.suffix]
        if self.ctx is not None:
            parts.insert(1, self.ctx.expand(C, -1, -1) if self.ctx.ndim == 2 else self.ctx[:C])
        x = torch.cat(parts, dim=1) + self.positions  # (n, L, W)
        for block in blocks:
            x = x + causal_attention(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = self.text_tower["ln_final"](x)
        text = x[torch.arange(n, device=x.device), self.eot_idx] @ self.text_projection  # (n, D)
        if n == C:
            return text
        each = text.unflatten(0, (-1, C))  # directions are means of directions, lengths of lengths
        return F.normalize(F.normalize(each, dim=-1).mean(dim=0), dim=-1) * each.norm(dim=-1).mean(dim=0)[:, None]


# ---- MIL selection (Sec. 3.4, App. A) ----


def draw_segment_mask(num_videos: int, config: AnomalyCLIPConfig, device: torch.device | str) -> Tensor:
    """Which segments may be selected, (B, S) bool, drawn from torch's global generator.

    The paper's variant hides the given share of each video's segments, rounded down to whole ones (22 of 32), but
    leaves at least 2K, so that top and bottom do not overlap; the released code hides each with that probability.
    """
    S = config.num_segments
    noise = torch.rand(num_videos, S, device=device)
    if config.variant == "released":
        return noise < 1 - config.mask_ratio
    num_left = max(S - int(config.mask_ratio * S), min(2 * config.topk, S))
    return noise.argsort(dim=1) < num_left  # a row of a random permutation holds each rank once


def select_segments(ranking: Tensor, mask: Tensor, k: int, *, largest: bool) -> Tensor:
    """The k best (or worst) unmasked segments of each video.

    Args:
        ranking: Likelihood of each segment, (B, S).
        mask: Segments that may be selected, (B, S) bool. Where fewer than k may, others fill up.
        k: Segments per video, in [1, S].
        largest: True for the highest, False for the lowest.
    Returns:
        Segment indices, (B, K), best (worst) first.
    """
    return ranking.masked_fill(~mask, -math.inf if largest else math.inf).topk(k, dim=1, largest=largest).indices


def gather_segments(x: Tensor, segment_idx: Tensor) -> Tensor:
    """Picks (B, K, F) out of per-frame values (B, S, F) by segment indices (B, K)."""
    return x.gather(1, segment_idx.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def median(x: Tensor) -> Tensor:
    """Of the rows that are given of each video, (B, S, F, D) -> (B, 1, 1, D), as torch.median; ONNX knows topk."""
    rows = x.flatten(1, 2)  # (B, S * F, D)
    return rows.topk((rows.shape[1] + 1) // 2, dim=1, largest=False, sorted=False).values.amax(dim=1)[:, None, None]


class Prediction(NamedTuple):
    """What the model says about each frame, before any probability is formed."""

    likelihood: Tensor  # Selector, Eq. 3: (B, S, F, C)
    class_logits: Tensor  # their softmax is p_{c|A}: (B, S, F, C)
    anomaly_logits: Tensor  # Temporal model; their sigmoid is p_A: (B, S, F)
    magnitude: Tensor | None  # length of the features that the Selector saw, where segments are ranked by it: (B, S, F)

    def half(self, part: slice) -> "Prediction":
        """Of some of the videos."""
        return Prediction._make(None if x is None else x[part] for x in self)


class Rows(Protocol):
    """Features of a video, (N, D) or (N, crops, D): a tensor, an array, or what reads a file when it is indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def probabilities(anomaly_logits: Tensor, class_logits: Tensor) -> tuple[Tensor, Tensor]:
    """p_A (...) and p_{A,c} (..., C) of logits of these shapes (Sec. 3.3)."""
    p_A = anomaly_logits.sigmoid()
    return p_A, p_A.unsqueeze(-1) * class_logits.softmax(dim=-1)


def checked_rows(name: str, rows: Any, dim: int, num_rows: int | None = None) -> Rows:
    """What `predict` can read, of what it was given; lists become an array."""
    expected = f"expected ({num_rows or 'N'}, {dim}) or ({num_rows or 'N'}, crops, {dim}), of up to {MOST_CROPS} crops"
    try:
        rows = np.asarray(rows, np.float32) if isinstance(rows, (list, tuple)) else rows
        if hasattr(rows, "shape"):
            shape = tuple(rows.shape)
        else:
            shape = (len(rows), *np.shape(rows[np.arange(1)])[1:]) if len(rows) else (0,)
    except (TypeError, ValueError, RuntimeError, LookupError):
        raise ValueError(f"{name}: found a {type(rows).__name__} that is no array of numbers, {expected}") from None
    if shape[:1] == (0,):
        raise ValueError(f"{name} hold no rows")
    fits = len(shape) in (2, 3) and shape[-1] == dim and num_rows in (None, shape[0])
    if not fits or len(shape) == 3 and not 1 <= shape[1] <= MOST_CROPS:
        raise ValueError(f"{name}: found {shape}, {expected}")
    dtype = getattr(rows, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind not in "fiub" or isinstance(rows, Tensor) and rows.is_complex():
        raise ValueError(f"{name}: found {dtype}, expected real numbers")
    return rows


def inference_rows(num_rows: int, num_segments: int, num_frames: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the row numbers (up to batch_size, S, F) of the passes over a video; numbers from N on are padding."""
    num_passes = -(-num_rows // (num_segments * num_frames))
    grid = np.arange(num_segments * num_passes * num_frames).reshape(num_segments, num_passes, num_frames)
    grid = grid.transpose(1, 0, 2)  # (J, S, F)
    for start in range(0, num_passes, batch_size):
        yield grid[start : start + batch_size]


class VideoModel(nn.Module):
    """Inference over whole videos and checkpoints, for any model with NAME, config, and these parts of Prediction.

    Its buffer `directions`, if it has one, is finished by `finish_directions`, once the training ends.
    """

    NAME: str
    config: AnomalyCLIPConfig
    prototype: Tensor  # (D,)
    directions: Tensor  # one row for each class at least; some models have none

    def finish_directions(self) -> None:
        """Computes what inference needs of prompts; nothing without them."""

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch; leaving training mode also computes the directions once, for all that follows."""
        super().train(mode)
        if not mode:
            self.finish_directions()
        return self

    @torch.inference_mode()
    def predict(
        self, features: Rows, temporal_features: Rows | None = None, *, batch_size: int = 16
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities for a whole video of any length (Sec. 3.3 and 4.1).

        The video, repeated from its start up to a multiple of S * F rows, is cut into S blocks of J * F rows; pass j
        sees the j-th F rows of every block. Rows are read pass by pass, so that a memory-mapped file stays on disk.

        Args:
            features: (N, D), or (N, crops, D), over whose crops the probabilities are averaged; a tensor, an array, or
                anything with a length that takes an index array.
            temporal_features: The same for the Temporal model's own features, row for row.
            batch_size: Passes per forward call; bounds the memory.
        Returns:
            p_A, (N,): probability that a row is anomalous; p_class, (N, C): that it shows an anomaly of each class.
        Raises:
            ValueError: If there are no rows, features of another shape, or no directions yet.
        """
        if self.training:
            self.eval()
            try:
                return self.predict(features, temporal_features, batch_size=batch_size)
            finally:
                self.train()
        config = self.config
        features = checked_rows("features", features, config.feature_dim)
        if temporal_features is not None and (dim := config.temporal_feature_dim):
            temporal_features = checked_rows("temporal_features", temporal_features, dim, len(features))
        num_rows, sources = len(features), [x for x in (features, temporal_features) if x is not None]
        if hasattr(self, "directions") and not self.directions.any():
            raise ValueError("the model has no directions yet: give it CLIP, or load a checkpoint")
        p_A, p_class = np.empty(num_rows, np.float32), np.empty((num_rows, len(config.classes)), np.float32)
        for rows in inference_rows(num_rows, config.num_segments, config.num_frames, batch_size):
            scores = self.score_segments(*(self.read_rows(source, rows % num_rows) for source in sources))
            kept = rows < num_rows  # the rest is padding
            p_A[rows[kept]], p_class[rows[kept]] = (score[kept] for score in scores)
        return self.smoothed(p_A), self.smoothed(p_class)

    def smoothed(self, curves: np.ndarray) -> np.ndarray:
        """Probabilities (N,) or (N, C) of a video's rows under the config's Gaussian, whose ends repeat."""
        sigma = self.config.smoothing * self.config.num_frames
        if not sigma:
            return curves
        reach = math.ceil(3 * sigma)
        weights = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
        x = torch.from_numpy(curves).reshape(len(curves), -1).T[:, None]  # (C, 1, N)
        x = F.conv1d(F.pad(x, (reach, reach), mode="replicate"), (weights / weights.sum())[None, None])
        return x.squeeze(1).T.reshape(curves.shape).numpy()

    def read_rows(self, source: Rows, rows: np.ndarray) -> Tensor:
        """Rows (J, S, F) of a video -> (crops, J, S, F, D) float32 on the model's device."""
        index = rows.reshape(-1)
        if isinstance(source, Tensor):
            x = source[torch.from_numpy(index)]
        else:
            array = np.asarray(source[index])
            x = torch.from_numpy(array if array.dtype in (np.float16, np.float32) else array.astype(np.float32))
        x = x.to(self.prototype.device, torch.float32).reshape(*rows.shape, -1, x.shape[-1])  # (J, S, F, crops, D)
        return x.movedim(3, 0)

    def score_segments(self, *segments: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """p_A (J, S, F) and p_{A,c} (J, S, F, C) of one or two kinds of features (crops, J, S, F, D), crops' means."""
        num_crops, num_passes = max(len(x) for x in segments), segments[0].shape[1]
        prediction = self(*(x.expand(num_crops, *x.shape[1:]).flatten(0, 1) for x in segments))
        found = probabilities(prediction.anomaly_logits, prediction.class_logits)
        p_A, p_class = (p.unflatten(0, (-1, num_passes)).mean(0).cpu().numpy() for p in found)
        return p_A, p_class

    # -- checkpoints: tensors and plain values only --

    def trained_state(self) -> dict[str, Tensor]:
        """Parameters, buffers and the finished directions, without CLIP's frozen text tower."""
        self.finish_directions()
        return {k: v.cpu().clone() for k, v in self.state_dict().items() if ".text_tower." not in k}

    def fitting(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model takes of what `trained_state` gave; without CLIP the prompts are left out.

        Raises:
            ValueError: If the state is not one of a model with this config.
        """
        if not (isinstance(state, dict) and all(isinstance(k, str) for k in state)):
            raise ValueError("the checkpoint's model is no dict of tensors")
        if getattr(self, "prompt_learner", None) is None:
            state = {k: v for k, v in state.items() if not k.startswith("prompt_learner.")}
        own = {k: v for k, v in self.state_dict().items() if ".text_tower." not in k}
        for name in sorted(own.keys() | state.keys()):
            found, expected = (getattr(values.get(name), "shape", "nothing") for values in (state, own))
            if found == expected and state[name].is_floating_point() != own[name].is_floating_point():
                found, expected = state[name].dtype, own[name].dtype
            if found != expected:
                where = " ".join(name.split())
                raise ValueError(f"state does not fit the model at {where}: found {found}, expected {expected}")
        return state

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Loads what `trained_state` gave; the directions of prompts that are left out are finished. See `fitting`."""
        self.load_state_dict(self.fitting(state), strict=False)

    def checkpoint(self) -> dict[str, Any]:
        """The model as a plain dict; `from_checkpoint` reads it, and training adds its own entries."""
        config, state = self.config.to_plain(), self.trained_state()
        return {"format": CHECKPOINT_FORMAT, "system": self.NAME, "config": config, "model": state}

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """A model ready for `predict`, from train.py's file, none of which is run; a ValueError says what is wrong."""
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load has no error class of its own for files that are none of its
            found = f"found {type(error).__name__} on reading" if os.path.exists(path) else "no such file"
            raise ValueError(f"{path}: {found}, expected a checkpoint of train.py") from None
        try:
            model = cls.from_dict(checkpoint)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return model.to(device).eval()

    @classmethod
    def from_dict(cls, checkpoint: dict[str, Any]) -> Self:
        """A model in training mode, from what `checkpoint` gave; a ValueError if that is of another version."""
        if not isinstance(checkpoint, dict) or not {"config", "format", "model"} <= checkpoint.keys():
            raise ValueError("found a file without config, format, model, expected a checkpoint of train.py")
        found = checkpoint["format"]
        if not isinstance(found, int) or found > CHECKPOINT_FORMAT:
            raise ValueError(f"found checkpoint format {found!r:.20} of a newer version, expected {CHECKPOINT_FORMAT}")
        try:
            model = cls(AnomalyCLIPConfig(**checkpoint["config"]))
        except (TypeError, RuntimeError, OverflowError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"the checkpoint's config is not one of this version: {reason}") from None
        model.load_trained_state(checkpoint["model"])
        return model


class AnomalyCLIP(VideoModel):
    """Selector and Temporal model with their losses and the inference over whole videos.

    Args:
        config: All settings.
        clip: CLIP whose text tower gives the directions; not needed for `directions="direct"`, nor for inference with
            a checkpoint, which holds the finished directions.
        tokenize: CLIP's tokenizer, a list of n texts -> ids (n, context length).
        prototype: Normality prototype m (Eq. 1), (D,): mean feature of all frames of normal training videos.
        temporal_prototype: The same for the Temporal model's own features, if it has any.
    Raises:
        ValueError: If CLIP's text features have another width than the video features.
    """

    NAME = "anomalyclip"
    temporal_prototype: Tensor  # (temporal_feature_dim or D,)
    prompt_learner: PromptLearner | None
    free_directions: nn.Parameter | None  # (C, D)
    class_head: nn.Linear | None  # E -> C

    def __init__(
        self,
        config: AnomalyCLIPConfig,
        *,
        clip: nn.Module | None = None,
        tokenize: Callable[[list[str]], Tensor] | None = None,
        prototype: Tensor | None = None,
        temporal_prototype: Tensor | None = None,
    ):
        super().__init__()
        self.config = config
        parts: Any = clip  # whose attributes the names tell, and no type
        C, D = len(config.classes), config.feature_dim
        temporal_dim = config.temporal_feature_dim or D
        given = {"prototype": (prototype, D), "temporal_prototype": (temporal_prototype, temporal_dim)}
        for name, (value, dim) in given.items():
            self.register_buffer(name, torch.zeros(dim) if value is None else value.float().clone())
        self.register_buffer("directions", torch.zeros(C, D))  # finished ones, for inference
        self.prompt_learner = self.free_directions = None
        if config.directions == "direct":  # points around m; only where they lie from m matters
            self.free_directions = nn.Parameter(randn(C, D, scale=0.02))
        elif clip is not None:
            if parts.text_projection.shape[1] != D:
                raise ValueError(
                    f"CLIP's text features have {parts.text_projection.shape[1]} values, the video features {D}; "
                    "use features of the same CLIP, or directions='direct'"
                )
            assert tokenize is not None, "clip comes with its tokenize"
            self.prompt_learner = PromptLearner(config, clip, tokenize)
        # CLIP's temperature; takes part with likelihood="cosine" only, but is one of the published 10.4 M parameters
        temperature = torch.tensor(math.log(1 / 0.07)) if clip is None else parts.logit_scale.detach().float().clone()
        self.logit_scale = nn.Parameter(temperature)
        self.batch_norm = nn.BatchNorm1d(C, affine=False)
        widths = {"features": temporal_dim, "similarity": C, "both": C + temporal_dim, "relative": 2 * temporal_dim}
        self.temporal_model = TemporalModel(widths[config.temporal_input], self.temporal_body(), config.embed_dim)
        self.class_head = nn.Linear(config.embed_dim, C) if config.class_head else None
        for parameter in self.class_head.parameters() if self.class_head is not None else ():
            nn.init.zeros_(parameter)  # at first all classes are alike

    def temporal_body(self) -> nn.Module:
        """The part of the Temporal model that Table 10 exchanges; the paper's own, and the simplest of the others."""
        config, E = self.config, self.config.embed_dim
        if config.temporal == "mlp":  # of three layers, with projection and head
            return nn.Sequential(nn.ReLU(), nn.Linear(E, E), nn.ReLU())
        if config.temporal != "axial":
            others = "AnomalyCLIPSystem in videoanomaly/systems/ours.py has the others"
            raise ValueError(f"temporal must be 'axial' or 'mlp' in this file, got {config.temporal!r}; {others}")
        sizes = {"num_segments": config.num_segments, "num_frames": config.num_frames}
        return AxialTransformer(E, **sizes, num_heads=config.num_heads, depth=config.depth)

    # -- forward, one line a box of Fig. 2(b) --

    def forward(self, features: Tensor, temporal_features: Tensor | None = None) -> Prediction:
        """Selector and Temporal model on segments.

        Args:
            features: As they come out of the image encoder, not normalised, (B, S, F, D).
            temporal_features: The Temporal model's own features, (B, S, F, temporal_feature_dim), if it has any.
        Raises:
            ValueError: If features are missing, superfluous or of another width than the config says.
        """
        widths = [None if x is None else x.shape[-1] for x in (features, temporal_features)]
        if widths != (own := [self.config.feature_dim, self.config.temporal_feature_dim]):
            found, expected = (" and ".join(map(str, x)) for x in (widths, own))
            raise ValueError(f"features and temporal_features must be {expected} wide, got {found}")
        directions = self.class_directions() if self.training else self.directions  # (C, D)
        x = self.recentre(features, self.prototype)  # (B, S, F, D)
        likelihood = self.select(x, directions)  # (B, S, F, C)
        temporal = x if temporal_features is None else self.recentre(temporal_features, self.temporal_prototype)
        seen = {"similarity": [likelihood], "both": [likelihood, temporal]}.get(self.config.temporal_input, [temporal])
        if self.config.temporal_input == "relative":
            seen.append(temporal - median(temporal))
        anomaly_logits, embedding = self.temporal_model(torch.cat(seen, dim=-1))  # (B, S, F), (B, S, F, E)
        scale = self.logit_scale.exp() if self.config.likelihood == "cosine" else 1
        class_logits = likelihood * scale if self.class_head is None else self.class_head(embedding)
        magnitude = x.norm(dim=-1) if self.config.selection == "magnitude" else None  # (B, S, F)
        return Prediction(likelihood, class_logits.float(), anomaly_logits.float(), magnitude)

    def class_directions(self) -> Tensor:
        """Directions d_c of the classes (Eq. 2), (C, D); in CLIP's own space, without re-centring, text features."""
        if self.free_directions is not None:
            return self.free_directions
        if self.prompt_learner is None:
            raise ValueError(f"directions='{self.config.directions}' need CLIP to be trained: pass clip and tokenize")
        return self.recentre(self.prompt_learner(), self.prototype)

    def recentre(self, x: Tensor, prototype: Tensor) -> Tensor:
        """Features (..., D) from the prototype (D,), which is no origin in CLIP's own space."""
        return x if self.config.likelihood == "cosine" else x - prototype

    def select(self, x: Tensor, directions: Tensor) -> Tensor:
        """Likelihood of each class (Eq. 3, 4), (B, S, F, C): batch-normalised length of x along each direction."""
        if self.config.likelihood == "cosine":
            return (F.normalize(x, dim=-1) @ F.normalize(directions, dim=-1).T).float()
        lengths = (x @ F.normalize(directions, dim=-1).T).float()  # (B, S, F, C)
        return self.batch_norm(lengths.flatten(0, 2)).view_as(lengths)

    # -- losses (Eq. 7-16) --

    def losses(self, prediction: Prediction, labels: Tensor, segment_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Each loss by name, not yet weighted, and their weighted sum 'total'; means over the videos of a half.

        Args:
            prediction: Of a batch whose first half is abnormal and whose second half is normal.
            labels: Classes of the abnormal half, (B / 2,), int64 in [0, C).
            segment_mask: Segments that may be selected, (B, S) bool; drawn at random if not given.
        Raises:
            ValueError: If the labels are not as many as half the videos.
        """
        half = len(labels)
        if (videos := len(prediction.anomaly_logits)) != 2 * half:
            raise ValueError(f"{half} labels for the abnormal half go with {2 * half} videos, got {videos}")
        if segment_mask is None:
            segment_mask = draw_segment_mask(2 * half, self.config, labels.device)
        losses = self.abnormal_losses(prediction.half(slice(half)), labels, segment_mask[:half])
        losses |= self.normal_losses(prediction.half(slice(half, None)), segment_mask[half:])
        total: Any = sum(getattr(self.config, f"lambda_{name}") * loss for name, loss in losses.items())
        return losses | {"total": total}

    # in these three B counts the videos of one half
    def abnormal_losses(self, prediction: Prediction, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of videos with labels (B,) and segments that may be selected (B, S)."""
        own = labels.view(-1, 1, 1, 1).expand(*prediction.likelihood.shape[:3], 1)
        own_likelihood = prediction.likelihood.gather(-1, own).squeeze(-1)  # (B, S, F)
        log_p_own = prediction.class_logits.log_softmax(-1).gather(-1, own).squeeze(-1)  # (B, S, F)
        z = prediction.anomaly_logits
        top, bottom = (self.rank(prediction, own_likelihood, mask, largest=largest) for largest in (True, False))
        p_A = z.sigmoid().flatten(1)  # (B, S * F)
        return {
            "dir_abnormal": -gather_segments(own_likelihood, top).mean(),  # Eq. 7
            "top_abnormal": -gather_segments(F.logsigmoid(z) + log_p_own, top).mean(),  # Eq. 8
            "bottom_abnormal": -gather_segments(F.logsigmoid(-z), bottom).mean(),  # Eq. 9
            "dir_bottom_abnormal": gather_segments(own_likelihood, bottom).mean(),  # Eq. 15
            "sparse": p_A.mean(),  # Eq. 12
            "smooth": self.smoothness(p_A),  # Eq. 13
        }

    def normal_losses(self, prediction: Prediction, mask: Tensor) -> dict[str, Tensor]:
        """Of videos with segments that may be selected (B, S)."""
        likelihood = prediction.likelihood
        top = self.rank(prediction, likelihood.sum(-1), mask, largest=True)
        per_frame = likelihood.amax(-1) if self.config.variant == "released" else likelihood.mean(-1)  # (B, S, F)
        return {
            "dir_normal": per_frame.mean(),  # Eq. 10
            "top_normal": -gather_segments(F.logsigmoid(-prediction.anomaly_logits), top).mean(),  # Eq. 11
            "dir_top_normal": gather_segments(per_frame, top).mean(),  # Eq. 16; c, undefined for Normal, as in Eq. 10
        }

    def rank(self, prediction: Prediction, likelihood: Tensor, mask: Tensor, *, largest: bool) -> Tensor:
        """Selected segments, (B, K): a segment's likelihood is the sum over its frames (Eq. 5), of (B, S, F)."""
        per_frame = prediction.magnitude if self.config.selection == "magnitude" else likelihood
        assert per_frame is not None, "forward gives the magnitude where segments are ranked by it"
        return select_segments(per_frame.sum(dim=2), mask, self.config.topk, largest=largest)

    def smoothness(self, p_A: Tensor) -> Tensor:
        """Squared steps of the scores (B, S * F): summed over each video, mean over the videos.

        Eq. 13 as printed telescopes to last minus first score; we square, as its source (Sultani et al.) does. The
        released code sums over the whole batch, and so counts the steps from one video to the next as well.
        """
        if self.config.variant == "released":
            return p_A.flatten().diff().square().sum()
        return p_A.diff(dim=1).square().sum(dim=1).mean()

    @torch.no_grad()
    def finish_directions(self) -> None:
        """Keeps the directions for inference; a model that came with finished ones alone keeps those."""
        if self.free_directions is not None or self.prompt_learner is not None:
            self.directions.copy_(self.class_directions())
