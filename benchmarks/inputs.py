"""Models and data of the benchmark, the same for all that are compared."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn

import clip_model
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, Prediction
from benchmarks import peers
from benchmarks.measure import pick
from videoanomaly import winograd
from videoanomaly.data.annotations import Video
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.features import FeatureFolder
from videoanomaly.evaluation import scoring
from videoanomaly.evaluation.scoring import Scores
from videoanomaly.runtime.files import write_atomically
from videoanomaly.weights import released

VIT_B16 = {
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}
SMALL = VIT_B16 | {
    "embed_dim": 64,
    "image_resolution": 96,
    "vision_layers": 3,
    "vision_width": 256,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 3,
}  # for --quick


def random_clip(sizes: dict[str, Any], seed: int = 0) -> clip_model.CLIP:
    torch.manual_seed(seed)
    return clip_model.CLIP(**sizes).eval()


def preset(quick: bool) -> AnomalyCLIPConfig:
    """UCF-Crime's config, or a smaller one."""
    classes = tuple(name for name in DATASETS["ucfcrime"].classes if name != "Normal")
    config = AnomalyCLIPConfig(classes=classes, feature_dim=pick(quick, SMALL, VIT_B16)["embed_dim"])
    return replace(config, num_segments=8, num_frames=4, embed_dim=32) if quick else config


def our_model(quick: bool, device: str) -> AnomalyCLIP:
    clip, config = random_clip(pick(quick, SMALL, VIT_B16)), preset(quick)
    prototype = torch.randn(config.feature_dim)
    model = AnomalyCLIP(config, clip=clip, tokenize=clip_model.tokenize, prototype=prototype).to(device)
    winograd.accelerate(model)
    return model


def released_model(quick: bool, device: str) -> peers.ReleasedModel:
    sizes, config = pick(quick, SMALL, VIT_B16), preset(quick)
    clip = peers.openai_clip(random_clip(sizes).state_dict(), sizes)
    return peers.ReleasedModel(config, clip, clip_model.tokenize, torch.randn(config.feature_dim)).to(device)


def make_pair(quick: bool, device: str) -> tuple[AnomalyCLIP, peers.ReleasedModel]:
    """Our model and the released one with the same weights."""
    ours, theirs = our_model(quick, device), released_model(quick, device)
    state = released.convert_state(theirs.published_state(), normal_id=len(ours.config.classes))
    left = ours.load_state_dict(state | {"prototype": theirs.prototype}, strict=False).missing_keys
    shared = ("temporal_model", "prompt_learner.ctx", "prompt_learner.text_projection")
    assert not any(name.startswith(shared) for name in left), f"the two models differ in {left}"
    return ours, theirs


def training_step(
    model: nn.Module,
    loss: Callable[[Prediction, Tensor], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    labels: Tensor,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """All of a step but reading the batch, as in train.py; the seed decides the masks."""
    torch.manual_seed(seed)
    with torch.autocast(features.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        prediction = model(features)
    losses = loss(prediction, labels)
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


def make_step(
    model: nn.Module,
    loss: Callable[[Prediction, Tensor], dict[str, Tensor]],
    config: AnomalyCLIPConfig,
    num_videos: int,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], dict[str, Tensor]]:
    """A function that takes the next training step and gives its losses."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_videos, config.num_segments, config.num_frames, config.feature_dim, generator=generator)
    labels = torch.arange(num_videos // 2) % len(config.classes)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, betas=(0.9, 0.98), weight_decay=0.2)
    model.train()
    return partial(training_step, model, loss, optimizer, features.to(device), labels.to(device), seed=0, dtype=dtype)


def write_features(folder: Path, lengths: Iterable[int], dim: int, dtype: DTypeLike) -> list[Video]:
    """Random features of videos named 0, 1, ...; every other video has a class and two intervals. The videos."""
    rng, videos = np.random.default_rng(0), []
    block = rng.standard_normal((4096, dim), dtype=np.float32)
    for i, length in enumerate(map(int, lengths)):
        start = rng.integers(len(block))
        rows = np.resize(np.roll(block, start, axis=0), (length, dim)) * np.float32(rng.uniform(0.5, 1.5))
        write_atomically(folder / f"{i}.npy", partial(np.save, arr=rows.astype(dtype)))
        intervals = ((length // 4, length // 3), (length // 2, length * 3 // 5)) if i % 2 else ()
        videos.append(Video(str(i), i // 2 % 13 if i % 2 else -1, intervals, length))
    return videos


def video_lengths(count: int, mean: int) -> np.ndarray:
    """Skewed as those of UCF-Crime are, with the given mean."""
    lengths = np.random.default_rng(0).lognormal(sigma=1.0, size=count)
    return np.maximum(lengths * mean / lengths.mean(), 40).astype(int)


def evaluate_ours(model: AnomalyCLIP, videos: list[Video], folder: Path) -> dict[str, Any]:
    scores = scoring.score_videos(model.predict, videos, FeatureFolder(folder))
    results = scoring.frame_metrics(scores, model.config.classes)
    write_atomically(folder / "metrics.json", lambda file: file.write(json.dumps(results).encode()))
    return results


def random_scores(num_videos: int, mean_length: int, num_classes: int) -> list[Scores]:
    rng, videos = np.random.default_rng(0), []
    for i, length in enumerate(video_lengths(num_videos, mean_length)):
        labels = np.full(length, -1)
        if i % 2:
            labels[length // 4 : length // 2] = i // 2 % num_classes
        p_class = rng.random((length, num_classes), dtype=np.float32) / num_classes
        p_A = 0.8 * rng.random(length, dtype=np.float32) + 0.2 * (labels >= 0).astype(np.float32)
        videos.append(Scores(p_A, p_A[:, None] * p_class, labels))
    return videos
