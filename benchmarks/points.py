"""The points of the growth curves: a piece of work of one size, its seconds and its memory.

Each runs in a process of its own, which imports nothing that the work does not need: that would count as its memory.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clip_model
from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, PromptLearner
from benchmarks.inputs import SMALL, VIT_B16, evaluate_ours, make_step, random_clip, random_scores, write_features
from benchmarks.measure import in_subprocess, peak_memory, take_turns
from videoanomaly import winograd
from videoanomaly.data.annotations import Video
from videoanomaly.evaluation import metrics, scoring


def classes_named(count: int) -> tuple[str, ...]:
    return tuple(f"Class{chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(count))


def small_model(device: str, embed_dim: int) -> AnomalyCLIP:
    torch.manual_seed(0)
    config = AnomalyCLIPConfig(classes=classes_named(13), directions="direct", embed_dim=embed_dim)
    model = AnomalyCLIP(config, prototype=torch.randn(config.feature_dim)).to(device)
    winograd.accelerate(model)
    return model


def write_one(folder: str, count: int, dim: int) -> None:
    write_features(Path(folder), [count], dim, np.float16)


def frames_work(count: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    model = small_model(device, embed_dim=32).eval()
    # in a process of its own, whose memory is not the evaluation's
    in_subprocess("benchmarks.points", "write_one", str(folder), count, model.config.feature_dim)
    videos = [Video("0", 0, ((count // 4, count // 2),), count)]
    return lambda: evaluate_ours(model, videos, folder)


def videos_work(count: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    scores = random_scores(count, 1000, 6)
    named = {str(i): s for i, s in enumerate(scores)}
    classes = tuple("ABCDEF")
    return lambda: (scoring.frame_metrics(named, classes), metrics.bootstrap_metrics(scores, classes, num_draws=100))


def classes_work(count: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    sizes = SMALL if quick else VIT_B16
    config = AnomalyCLIPConfig(classes=classes_named(count), feature_dim=sizes["embed_dim"])
    prompts = PromptLearner(config, random_clip(sizes), clip_model.tokenize).to(device)
    return lambda: prompts().square().sum().backward()


def batch_work(count: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    model = small_model(device, embed_dim=64)
    return make_step(model, model.losses, model.config, count, device)


WORKS = {"frames": frames_work, "videos": videos_work, "classes": classes_work, "batch": batch_work}


def point(curve: str, count: int, quick: bool, device: str, threads: int) -> tuple[float, int]:
    """Median seconds and peak bytes of a piece of work of one size, in this process."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        work = WORKS[curve](count, quick, device, Path(folder))
        _, seconds = take_turns({"work": work}, 1, device)  # after one to warm up
        if seconds["work"][0] < 2:
            _, seconds = take_turns({"work": work}, 5, device)
    return float(np.median(seconds["work"])), peak_memory(device)
