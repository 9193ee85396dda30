"""Rows of the benchmark's table about models: a function each, from the setup to lines."""

import copy
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.inputs import SMALL, VIT_B16, make_pair, make_step, our_model, random_clip
from benchmarks.measure import (
    Line,
    Setup,
    against,
    gemm_rate,
    gib,
    in_subprocess,
    peak_memory,
    pick,
    rates,
    relative,
    spread,
    take_turns,
)
from benchmarks.peers import MissingPeer
from clip_model import CLIP, quicken


def image_flops(sizes: dict) -> float:
    """Floating point operations of the image tower for one image: its matrix products, and the attention."""
    width, tokens = sizes["vision_width"], (sizes["image_resolution"] // sizes["vision_patch_size"]) ** 2 + 1
    per_layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return sizes["vision_layers"] * per_layer + 2 * tokens * 3 * sizes["vision_patch_size"] ** 2 * width


@torch.inference_mode()
def encode(model: Any, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Features of images by any CLIP, or by the image tower of transformers."""
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = model.encode_image(images) if hasattr(model, "encode_image") else model(images).image_embeds
    return features.float()


def image_inputs(setup: Setup) -> tuple[dict[str, int], CLIP, dict[str, Tensor], Tensor]:
    """Sizes, a random CLIP of ours, its state and a batch of images."""
    sizes = pick(setup.quick, SMALL, VIT_B16)
    model = random_clip(sizes)
    images = torch.randn(pick(setup.quick, 4, 16), 3, *[sizes["image_resolution"]] * 2).to(setup.device)
    return sizes, model.to(setup.device), {k: v.cpu().clone() for k, v in model.state_dict().items()}, images


def quickened(model: CLIP, dtype: torch.dtype) -> CLIP:
    """As extract_features.py and predict.py use it."""
    quicken(model.visual, dtype)
    return model


def image_fp32(setup: Setup) -> list[Line]:
    sizes, model, state, images = image_inputs(setup)
    ours = partial(encode, quickened(model, torch.float32), images)
    work, functions, lines = f"image tower, fp32, batch {len(images)}", {"ours": ours}, []
    for name, build in (
        ("OpenAI", peers.openai_clip),
        ("open_clip", peers.open_clip_clip),
        ("transformers", peers.transformers_image_tower),
    ):
        try:
            functions[name] = partial(encode, build(state, sizes).to(setup.device), images)
        except MissingPeer as error:
            lines.append(Line(work, peer=name, note=f"needs {error}"))
    results, seconds = take_turns(functions, setup.rounds, setup.device)
    show = partial(rates, count=len(images), unit="images/s")
    return lines + [
        against(
            work,
            name,
            seconds["ours"],
            seconds[name],
            show,
            1.2,
            tolerance=1e-4,
            difference=relative(results["ours"], results[name]),
        )
        for name in functions
        if name != "ours"
    ]


def image_bf16(setup: Setup) -> list[Line]:
    sizes, model, state, images = image_inputs(setup)
    openai = peers.openai_clip(state, sizes).to(setup.device)
    ours = partial(encode, quickened(model, torch.bfloat16), images)
    functions = {"ours": ours, "OpenAI": partial(encode, openai, images)}
    results, seconds = take_turns(functions, setup.rounds, setup.device)
    cosine = torch.nn.functional.cosine_similarity(results["ours"], results["OpenAI"]).min()
    limit = np.median(gemm_rate(torch.bfloat16, setup))
    share = image_flops(sizes) * len(images) / np.median(seconds["ours"]) / limit
    line = against(
        f"image tower, bf16, batch {len(images)}",
        "OpenAI fp32",
        seconds["ours"],
        seconds["OpenAI"],
        partial(rates, count=len(images), unit="images/s"),
        3,
        difference=1 - float(cosine),
        tolerance=5e-4,
        note=f"{share:.0%} of the bf16 matrix product's rate (goal 75%)",
    )
    line.reached = line.reached and bool(share >= 0.75)
    return [line]


def text(setup: Setup) -> list[Line]:
    ours, theirs = make_pair(setup.quick, setup.device)
    towers = {"ours": ours.prompt_learner, "77": theirs.prompts}

    def both_ways(tower):
        tower.zero_grad()
        features = tower()
        features.square().sum().backward()
        return features, tower.ctx.grad.clone()

    results, seconds = take_turns(
        {name: partial(both_ways, tower) for name, tower in towers.items()}, setup.rounds, setup.device
    )
    difference = max(map(relative, results["ours"], results["77"]))
    work = f"text tower, {len(ours.config.classes)} classes, forward and backward"
    return [
        against(
            work,
            "OpenAI, 77 positions",
            seconds["ours"],
            seconds["77"],
            partial(spread, unit="ms", scale=1e3),
            4,
            difference=difference,
            tolerance=1e-5,
        )
    ]


def training_run(which: str, quick: bool, device: str, threads: int, num_videos: int, num_steps: int) -> dict[str, Any]:
    """Losses of the first step, median seconds of those after it, and peak bytes of a process that trains one of the
    two.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    ours, theirs = make_pair(quick, device)
    model = {"ours": ours, "released": theirs}[which]
    step = make_step(model, ours.losses, ours.config, num_videos, device)
    results, seconds = take_turns({"step": step}, num_steps, device)
    losses = {name: float(value) for name, value in results["step"].items()}
    return {"losses": losses, "seconds": float(np.median(seconds["step"])), "peak": peak_memory(device)}


def train(setup: Setup) -> list[Line]:
    """Each model in processes of its own, which take turns: memory that one has freed does not speed up the other."""
    num_videos = pick(setup.quick, 8, 64)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "released": []}
    for _ in range(min(setup.rounds, 3)):
        for which, done in runs.items():
            done.append(
                in_subprocess(
                    "benchmarks.model_rows",
                    "training_run",
                    which,
                    setup.quick,
                    setup.device,
                    torch.get_num_threads(),
                    num_videos,
                    2,
                )
            )
    losses = [done[0]["losses"] for done in runs.values()]
    difference = max(abs(losses[0][name] - value) / max(1, abs(value)) for name, value in losses[1].items())
    ours, theirs = ([run["seconds"] for run in done] for done in runs.values())
    most = [max(run["peak"] for run in done) for done in runs.values()]
    line = against(
        f"training step, B {num_videos}",
        "OpenAI's text tower, reversible axial_attention",
        ours,
        theirs,
        partial(spread, unit="s"),
        1.5,
        difference=difference,
        tolerance=1e-5,
        note=f"peak memory {gib(most[0])}, peer {gib(most[1])} (goal: not higher)",
    )
    line.reached = line.reached and most[0] <= most[1]
    return [line]


def accelerator(setup: Setup) -> list[Line]:
    """torch.compile of the image tower and bf16 autocast of the training step; on CUDA also pinned memory."""
    _, model, _, images = image_inputs(setup)
    compiled = copy.deepcopy(model)
    compiled.visual.compile()
    work = f"image tower, bf16, batch {len(images)}, torch.compile"
    lines = [
        compared_compile(work, setup, *(partial(encode, m, images, torch.bfloat16) for m in (compiled, model))),
        compared_autocast(setup),
    ]
    if not setup.device.startswith("cuda"):
        return lines + [Line("copies to the device, pinned memory", note="needs --device cuda")]
    pageable = torch.empty(2**28, dtype=torch.uint8)
    pinned = pageable.pin_memory()
    _, seconds = take_turns(
        {"pinned": lambda: pinned.to(setup.device, non_blocking=True), "pageable": lambda: pageable.to(setup.device)},
        setup.rounds,
        setup.device,
    )
    show = partial(rates, count=2**28 / 1e9, unit="GB/s")
    return lines + [
        against("copies to the device, pinned memory", "pageable", seconds["pinned"], seconds["pageable"], show)
    ]


def compared_compile(work: str, setup: Setup, compiled: Callable[[], Tensor], eager: Callable[[], Tensor]) -> Line:
    if not (shutil.which("g++") or shutil.which("clang++")):
        return Line(work, note="needs a C++ compiler")
    start = time.perf_counter()
    compiled()
    first = time.perf_counter() - start
    results, seconds = take_turns({"compiled": compiled, "eager": eager}, setup.rounds, setup.device)
    cosine = torch.nn.functional.cosine_similarity(results["compiled"], results["eager"]).min()
    gain = np.median(seconds["eager"]) - np.median(seconds["compiled"])
    after = f"pays after {first / gain:,.0f} batches" if gain > 0 else "never pays"
    return against(
        work,
        "the same without",
        seconds["compiled"],
        seconds["eager"],
        partial(spread, unit="ms", scale=1e3),
        difference=1 - float(cosine),
        tolerance=5e-4,
        note=f"compiling took {first:.1f} s, {after}",
    )


def compared_autocast(setup: Setup) -> Line:
    num_videos, model = pick(setup.quick, 8, 64), our_model(setup.quick, setup.device)
    loss, config = model.losses, model.config
    steps = {
        "bf16": make_step(copy.deepcopy(model), loss, config, num_videos, setup.device, torch.bfloat16),
        "fp32": make_step(model, loss, config, num_videos, setup.device),
    }
    results, seconds = take_turns(steps, setup.rounds, setup.device)
    return against(
        f"training step, B {num_videos}, bf16 autocast",
        "fp32",
        seconds["bf16"],
        seconds["fp32"],
        partial(spread, unit="s"),
        tolerance=0.05,
        difference=relative(results["bf16"]["total"], results["fp32"]["total"]),
    )
