"""Rows of the benchmark's table about models: a function each, from the command line's arguments to lines."""

import copy
import shutil
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks import peers
from benchmarks.data_rows import gemm_rate
from benchmarks.inputs import SMALL, VIT_B16, make_pair, make_step, our_model, random_clip
from benchmarks.measure import Line, against, gib, in_subprocess, peak_memory, pick, rates, relative, spread, take_turns
from benchmarks.peers import MissingPeer


def image_flops(sizes: dict) -> float:
    """Floating point operations of the image tower for one image: its matrix products, and the attention."""
    width, tokens = sizes["vision_width"], (sizes["image_resolution"] // sizes["vision_patch_size"]) ** 2 + 1
    per_layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return sizes["vision_layers"] * per_layer + 2 * tokens * 3 * sizes["vision_patch_size"] ** 2 * width


@torch.inference_mode()
def encode(model, images, dtype=torch.float32):
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        features = model.encode_image(images) if hasattr(model, "encode_image") else model(images).image_embeds
    return features.float()


def image_inputs(args):
    """Sizes, a random CLIP of ours, its state and a batch of images."""
    sizes = pick(args, SMALL, VIT_B16)
    model = random_clip(sizes)
    images = torch.randn(pick(args, 4, 16), 3, *[sizes["image_resolution"]] * 2).to(args.device)
    return sizes, model.to(args.device), {k: v.cpu() for k, v in model.state_dict().items()}, images


def image_fp32(args) -> list[Line]:
    sizes, model, state, images = image_inputs(args)
    work, functions, lines = f"image tower, fp32, batch {len(images)}", {"ours": partial(encode, model, images)}, []
    for name, build in (
        ("OpenAI", peers.openai_clip),
        ("open_clip", peers.open_clip_clip),
        ("transformers", peers.transformers_image_tower),
    ):
        try:
            functions[name] = partial(encode, build(state, sizes).to(args.device), images)
        except MissingPeer as error:
            lines.append(Line(work, peer=name, note=f"needs {error}"))
    results, seconds = take_turns(functions, args.rounds, args.device)
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


def image_bf16(args) -> list[Line]:
    sizes, model, state, images = image_inputs(args)
    openai = peers.openai_clip(state, sizes).to(args.device)
    functions = {"ours": partial(encode, model, images, torch.bfloat16), "OpenAI": partial(encode, openai, images)}
    results, seconds = take_turns(functions, args.rounds, args.device)
    cosine = torch.nn.functional.cosine_similarity(results["ours"], results["OpenAI"]).min()
    limit = np.median(gemm_rate(torch.bfloat16, args))
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


def text(args) -> list[Line]:
    ours, theirs = make_pair(args)
    towers = {"ours": ours.prompt_learner, "77": theirs.prompts}

    def both_ways(tower):
        tower.zero_grad()
        features = tower()
        features.square().sum().backward()
        return features, tower.ctx.grad.clone()

    results, seconds = take_turns(
        {name: partial(both_ways, tower) for name, tower in towers.items()}, args.rounds, args.device
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


def training_run(which: str, quick: bool, device: str, threads: int, num_videos: int, num_steps: int) -> dict:
    """Losses of the first step, median seconds of those after it, and peak bytes of a process that trains one of the
    two.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    models = dict(zip(("ours", "released"), make_pair(SimpleNamespace(quick=quick, device=device))))
    ours = models["ours"]
    step = make_step(SimpleNamespace(device=device), models[which], ours.losses, ours.config, num_videos)
    results, seconds = take_turns({"step": step}, num_steps, device)
    losses = {name: float(value) for name, value in results["step"].items()}
    return {"losses": losses, "seconds": float(np.median(seconds["step"])), "peak": peak_memory(device)}


def train(args) -> list[Line]:
    """Each model in processes of its own, which take turns: memory that one has freed does not speed up the other."""
    num_videos, runs = pick(args, 8, 64), {"ours": [], "released": []}
    for _ in range(min(args.rounds, 3)):
        for which, done in runs.items():
            done.append(
                in_subprocess(
                    "benchmarks.model_rows",
                    "training_run",
                    which,
                    args.quick,
                    args.device,
                    torch.get_num_threads(),
                    num_videos,
                    2,
                )
            )
    losses = [done[0]["losses"] for done in runs.values()]
    difference = max(abs(losses[0][name] - value) / max(1, abs(value)) for name, value in losses[1].items())
    seconds, memory = ([[run[key] for run in done] for done in runs.values()] for key in ("seconds", "peak"))
    most = [max(peaks) for peaks in memory]
    line = against(
        f"training step, B {num_videos}",
        "OpenAI's text tower, reversible axial_attention",
        *seconds,
        partial(spread, unit="s"),
        1.5,
        difference=difference,
        tolerance=1e-5,
        note=f"peak memory {gib(most[0])}, peer {gib(most[1])} (goal: not higher)",
    )
    line.reached = line.reached and most[0] <= most[1]
    return [line]


def accelerator(args) -> list[Line]:
    """torch.compile of the image tower and bf16 autocast of the training step; on CUDA also pinned memory."""
    sizes, model, _, images = image_inputs(args)
    compiled = copy.deepcopy(model)
    compiled.visual = torch.compile(compiled.visual)
    work = f"image tower, bf16, batch {len(images)}, torch.compile"
    lines = [
        compared_compile(work, args, *(partial(encode, m, images, torch.bfloat16) for m in (compiled, model))),
        compared_autocast(args),
    ]
    if not args.device.startswith("cuda"):
        return lines + [Line("copies to the device, pinned memory", note="needs --device cuda")]
    pageable = torch.empty(2**28, dtype=torch.uint8)
    pinned = pageable.pin_memory()
    _, seconds = take_turns(
        {"pinned": lambda: pinned.to(args.device, non_blocking=True), "pageable": lambda: pageable.to(args.device)},
        args.rounds,
        args.device,
    )
    show = partial(rates, count=2**28 / 1e9, unit="GB/s")
    return lines + [
        against("copies to the device, pinned memory", "pageable", seconds["pinned"], seconds["pageable"], show)
    ]


def compared_compile(work: str, args, compiled, eager) -> Line:
    if not (shutil.which("g++") or shutil.which("clang++")):
        return Line(work, note="needs a C++ compiler")
    start = time.perf_counter()
    compiled()
    first = time.perf_counter() - start
    results, seconds = take_turns({"compiled": compiled, "eager": eager}, args.rounds, args.device)
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


def compared_autocast(args) -> Line:
    num_videos, model = pick(args, 8, 64), our_model(args)
    loss, config = model.losses, model.config
    steps = {
        "bf16": make_step(args, copy.deepcopy(model), loss, config, num_videos, torch.bfloat16),
        "fp32": make_step(args, model, loss, config, num_videos),
    }
    results, seconds = take_turns(steps, args.rounds, args.device)
    return against(
        f"training step, B {num_videos}, bf16 autocast",
        "fp32",
        seconds["bf16"],
        seconds["fp32"],
        partial(spread, unit="s"),
        tolerance=0.05,
        difference=relative(results["bf16"]["total"], results["fp32"]["total"]),
    )
