"""What people would run instead, built from its packages, for the benchmarks: CLIP's other implementations and the
released model.

No code of those projects is in here; the facts of the released model are in arXiv:2310.02835 and in the state dicts of
its checkpoints (released.py). Letters as in anomalyclip.py.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalyclip import AnomalyCLIPConfig, Prediction, probabilities
from videoanomaly.data.annotations import Video
from videoanomaly.evaluation.scoring import Scores

TRANSFORMERS_NAMES = (  # OpenAI's names -> those of transformers' CLIPVisionModelWithProjection
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.class_", "vision_model.embeddings.class_"),
    ("visual.conv1", "vision_model.embeddings.patch_embedding"),
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("c_proj", "fc2"),
    ("c_fc", "fc1"),
    ("visual.ln_post", "vision_model.post_layernorm"),
    (".attn.", ".self_attn."),
    (".ln_", ".layer_norm"),
    ("visual.proj", "visual_projection.weight"),
)


class MissingPeer(Exception):
    """A package to compare with is not installed; the text tells how to."""


def import_peer(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeer(f"pip install {package} ({str(error).splitlines()[0]})") from None


# ---- CLIP ----


def openai_clip(state: dict[str, Tensor], sizes: dict[str, int]) -> nn.Module:
    model = import_peer("clip.model", "clip-anytorch 'setuptools<81'").CLIP(**sizes)
    model.load_state_dict(state)
    return model.eval()


def open_clip_clip(state: dict[str, Tensor], sizes: dict[str, int]) -> nn.Module:
    open_clip = import_peer("open_clip", "open-clip-torch")
    vision = {
        "layers": sizes["vision_layers"],
        "width": sizes["vision_width"],
        "patch_size": sizes["vision_patch_size"],
        "image_size": sizes["image_resolution"],
    }
    text = {
        "context_length": sizes["context_length"],
        "vocab_size": sizes["vocab_size"],
        "width": sizes["transformer_width"],
        "heads": sizes["transformer_heads"],
        "layers": sizes["transformer_layers"],
    }
    model = open_clip.CLIP(embed_dim=sizes["embed_dim"], vision_cfg=vision, text_cfg=text, quick_gelu=True)
    model.load_state_dict(state)
    return model.eval()


def transformers_image_tower(state: dict[str, Tensor], sizes: dict[str, int]) -> nn.Module:
    transformers = import_peer("transformers", "transformers")
    width = sizes["vision_width"]
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=sizes["embed_dim"],
        hidden_act="quick_gelu",
        num_hidden_layers=sizes["vision_layers"],
        num_attention_heads=width // 64,
        image_size=sizes["image_resolution"],
        patch_size=sizes["vision_patch_size"],
    )
    model = transformers.CLIPVisionModelWithProjection(config)
    model.load_state_dict(to_transformers(state))
    return model.eval()


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a state dict with OpenAI's names under those of transformers."""
    renamed = {}
    for name, value in state.items():
        if not name.startswith("visual."):
            continue
        value = value.T if name == "visual.proj" else value
        for old, new in TRANSFORMERS_NAMES:
            name = name.replace(old, new)
        if "in_proj_" in name:
            renamed |= {name.replace("in_proj_", f"{kind}_proj."): part for kind, part in zip("qkv", value.chunk(3))}
        else:
            renamed[name] = value
    return renamed


# ---- the released model ----


class LongPrompts(nn.Module):
    """Class prompts with learned contexts through OpenAI's text tower, at all 77 positions of it.

    The released code computes Normal's text feature as well and throws it away; that is left out here.
    """

    prefix: Tensor
    suffix: Tensor
    eot_idx: Tensor
    positions: Tensor

    def __init__(self, clip: Any, tokenize: Callable[[list[str]], Tensor], classes: tuple[str, ...], num_ctx: int):
        super().__init__()
        tokens = tokenize([f"{'X ' * num_ctx}{name}." for name in classes])  # the X only keep the contexts' places
        with torch.no_grad():
            embeddings = clip.token_embedding(tokens)  # (C, 77, W)
        fixed = {
            "prefix": embeddings[:, :1],
            "suffix": embeddings[:, 1 + num_ctx :],
            "eot_idx": tokens.argmax(dim=-1),
            "positions": clip.positional_embedding.detach(),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.clone(), persistent=False)
        self.transformer, self.ln_final = clip.transformer.requires_grad_(False), clip.ln_final.requires_grad_(False)
        self.ctx = nn.Parameter(0.02 * torch.randn(len(classes) + 1, num_ctx, embeddings.shape[-1]))  # Normal's last
        self.text_projection = nn.Parameter(clip.text_projection.detach().clone())

    def forward(self) -> Tensor:
        C = len(self.prefix)
        x = torch.cat([self.prefix, self.ctx[:C], self.suffix], dim=1) + self.positions  # (C, 77, W)
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        return x[torch.arange(C, device=x.device), self.eot_idx] @ self.text_projection  # (C, D)


class ReleasedModel(nn.Module):
    """The network of the released code for UCF-Crime: `axial_attention`'s reversible transformer, the text tower every
    time.

    Args:
        config: An AnomalyCLIPConfig with temporal_input "features".
        clip: OpenAI's CLIP.
        tokenize: Its tokenizer.
        prototype: Normality prototype, (D,).
    """

    prototype: Tensor

    def __init__(
        self, config: AnomalyCLIPConfig, clip: nn.Module, tokenize: Callable[[list[str]], Tensor], prototype: Tensor
    ):
        super().__init__()
        axial = import_peer("axial_attention", "axial-attention")
        E = config.embed_dim
        self.register_buffer("prototype", prototype)
        self.prompts = LongPrompts(clip, tokenize, config.classes, config.num_ctx)
        self.batch_norm = nn.BatchNorm1d(len(config.classes), affine=False)
        self.projection, self.layer_norm, self.linear = (
            nn.Linear(config.feature_dim, E),
            nn.LayerNorm(E),
            nn.Linear(E, 1),
        )
        self.axial_attn = axial.AxialImageTransformer(
            dim=E,
            depth=config.depth,
            heads=config.num_heads,
            dim_index=1,
            reversible=True,
            axial_pos_emb_shape=(config.num_segments, config.num_frames),
        )

    def forward(self, features: Tensor) -> Prediction:
        x = features - self.prototype  # (B, S, F, D)
        lengths = x @ F.normalize(self.prompts() - self.prototype, dim=-1).T  # (B, S, F, C)
        likelihood = self.batch_norm(lengths.flatten(0, 2)).view_as(lengths)
        grid = self.axial_attn(self.projection(x).permute(0, 3, 1, 2))  # (B, E, S, F)
        logits = self.linear(self.layer_norm(grid.permute(0, 2, 3, 1))).squeeze(-1)
        return Prediction(likelihood, likelihood, logits, None)

    def published_state(self) -> dict[str, Tensor]:
        """Parameters and buffers as a checkpoint of the released code names them; see released.convert_state."""
        names = (
            ("prompts.text_projection", "text_encoder.text_projection"),
            ("prompts.ctx", "prompt_learner.ctx"),
            ("batch_norm.", "selector_model.bn_layer."),
            ("projection.", "temporal_model.projection."),
            ("axial_attn.", "temporal_model.axial_attn."),
            ("layer_norm.", "temporal_model.classifier.layer_norm."),
            ("linear.", "temporal_model.classifier.linear."),
        )
        return {
            theirs + name.removeprefix(ours): value
            for name, value in self.state_dict().items()
            for ours, theirs in names
            if name.startswith(ours)
        }


# ---- the released loops ----


def whole_file_sample(
    path: Path, num_segments: int, num_frames: int, seed: int, training_rows: Callable[..., np.ndarray]
) -> np.ndarray:
    """A training sample as the released code reads it: the whole file, then the rows, (S, F, D)."""
    rng = np.random.default_rng(seed)
    array = np.load(path)
    return array[training_rows(len(array), num_segments, num_frames, rng)]


def loop_labels(video: Video, num_frames: int) -> list[int]:
    """Class of each frame, looked up frame by frame."""
    labels = []
    for frame in range(num_frames):
        labels.append(video.label if any(start <= frame < end for start, end in video.intervals) else -1)
    return labels


@torch.no_grad()
def loop_scores(
    model: ReleasedModel, path: Path, num_segments: int, num_frames: int, device: str
) -> tuple[Tensor, Tensor]:
    """p_A (N,) and p_class (N, C) of a video: all passes in one batch, and the text tower anew."""
    rows = np.load(path)
    num_passes = -(-len(rows) // (num_segments * num_frames))
    idx = np.arange(num_segments * num_passes * num_frames)
    grid = (
        torch.from_numpy(rows[idx % len(rows)]).to(device).float().unflatten(0, (num_segments, num_passes, num_frames))
    )
    prediction = model(grid.transpose(0, 1))  # of (J, S, F, D)
    found = probabilities(prediction.anomaly_logits, prediction.class_logits)
    p_A, p_class = (p.transpose(0, 1).flatten(0, 2)[: len(rows)].cpu() for p in found)
    return p_A, p_class


def loop_metrics(
    p_A: list[float], p_class: list[list[float]], labels: list[int], classes: tuple[str, ...]
) -> dict[str, float]:
    """AUC and AP over all frames and per class, labels and scores collected frame by frame."""
    sklearn = import_peer("sklearn.metrics", "scikit-learn")

    def both(scores: list[float], positive: list[int]) -> dict[str, float]:
        return {"AUC": sklearn.roc_auc_score(positive, scores), "AP": sklearn.average_precision_score(positive, scores)}

    result, per_class = both(p_A, [int(label >= 0) for label in labels]), {}
    for c, name in enumerate(classes):
        positive = [int(label == c) for label in labels]
        if any(positive):
            per_class[name] = both([row[c] for row in p_class], positive)
    return result | {f"m{key}": sum(v[key] for v in per_class.values()) / len(per_class) for key in ("AUC", "AP")}


def sklearn_draws(scores: Sequence[Scores], classes: tuple[str, ...], weights: np.ndarray) -> dict[str, list[float]]:
    """AUC, AP, mAUC and mAP of draws of videos, scikit-learn once a draw and class; `weights` (R, V)."""
    sklearn = import_peer("sklearn.metrics", "scikit-learn")
    p_A, p_class, labels = (np.concatenate(parts) for parts in zip(*scores))
    video_idx = np.repeat(np.arange(len(scores)), [len(s.labels) for s in scores])
    draws: dict[str, list[float]] = {"AUC": [], "AP": [], "mAUC": [], "mAP": []}
    for drawn in weights:
        frames = drawn[video_idx]  # how often each frame counts
        for key, metric in (("AUC", sklearn.roc_auc_score), ("AP", sklearn.average_precision_score)):
            draws[key].append(metric(labels >= 0, p_A, sample_weight=frames))
            present = [c for c in range(len(classes)) if frames[labels == c].any()]
            per_class = [metric(labels == c, p_class[:, c], sample_weight=frames) for c in present]
            draws[f"m{key}"].append(float(np.mean(per_class)))
    return draws
