"""Trains the demo's CLIP on rendered frames and composed captions, and writes videoanomaly/demo/clip.npz.

    # one process a core; goes on where it was stopped
    torchrun --nproc-per-node 2 -m videoanomaly.demo.train_clip --out runs/demo-clip
    # figures of videoanomaly/demo/clip.npz on the held-out world
    python -m videoanomaly.demo.train_clip --evaluate

The weights go to the repository in float16, with those rows of the token embedding alone that the captions use: all
other words are zero. `unpack` writes them as a file that every script takes as --clip.
"""

import argparse
import io
import json
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomalyclip import ENGINEERED_PROMPT
from clip_model import CLIP, VisionTransformer, load, preprocess, tokenize
from videoanomaly.demo.world import (
    CLASSES,
    COUNTS,
    SEED,
    SIDE,
    Statement,
    Video,
    caption,
    make_video,
    plan,
    say,
    statements,
)
from videoanomaly.runtime.console import InputError, Parser, run_script
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.processes import process_group, sum_over_ranks
from videoanomaly.runtime.torchrun import is_main, rank_and_world

SIZES: dict[str, Any] = {
    "embed_dim": 128,
    "image_resolution": SIDE,
    "vision_layers": 4,
    "vision_width": 192,
    "vision_patch_size": 12,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
WEIGHTS = Path(__file__).with_name("clip.npz")
BATCH, FRAMES_PER_VIDEO = 128, 4  # frames of the same video are each other's hard negatives
KEEP, KEEP_UNTIL = 0.5, 0.75  # share of patches looked at, up to which part of the steps: twice the steps in that time
PEAKS = (0.02, 1e-3)  # learning rates of Muon and AdamW
SHORT = 0.3  # share of captions that say no more than the anomaly, or that there is none


# ---------------------------------------------------------------- data


def pick_frames(video: Video, rng: np.random.Generator) -> np.ndarray:
    """FRAMES_PER_VIDEO frames, half of them anomalous where there are some."""
    frames = rng.integers(video.num_frames, size=FRAMES_PER_VIDEO)
    for begin, end in video.intervals:
        frames[::2] = rng.integers(begin, end, size=len(frames[::2]))
    return frames


def augment(frame: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frame and grids of patches (m, g, g), mirrored; the frame with another contrast, coarse as after compression."""
    if rng.random() < 0.5:
        frame, where = frame[:, ::-1], where[..., ::-1]
    frame = np.clip((frame - 128.0) * rng.uniform(0.85, 1.15) + 128 + rng.uniform(-12, 12), 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=int(rng.integers(25, 90)))
        frame = np.asarray(Image.open(file))
    return frame, where


def patches_of(box: Sequence[float]) -> np.ndarray:
    """Which patches (g, g) a box covers to 30 % of the patch or of the box, whichever is less."""
    left, top, right, bottom = box
    p, start = SIZES["vision_patch_size"], np.arange(0, SIDE, SIZES["vision_patch_size"])
    across, down = (
        np.clip(np.minimum(start + p, high) - np.maximum(start, low), 0, None)
        for low, high in ((left, right), (top, bottom))
    )
    return down[:, None] * across > 0.3 * min(p * p, (right - left) * (bottom - top))


class Batch(NamedTuple):
    """n frames, and the m statements that hold for any of them."""

    frames: Tensor  # (n, 3, SIDE, SIDE) uint8
    captions: Tensor  # their tokens, (n, 77)
    statements: Tensor  # their tokens, (m, 77)
    holds: Tensor  # which hold for which frame, (n, m) bool
    where: Tensor  # which patches they are about, (n, P, m) bool
    is_class: Tensor  # statements on the class, (m,) bool


def make_batch(size: int, rng: np.random.Generator, third: int | None = None) -> Batch:
    """Frames of three videos with an anomaly to one without, but for a third of the looks (see `make_video`)."""
    items = []
    for _ in range(size // FRAMES_PER_VIDEO):
        label = None if rng.random() < 0.25 else CLASSES[rng.integers(len(CLASSES))]
        video = make_video(int(rng.integers(2**31)), "clip", label, third)
        items += [make_item(video, i, rng) for i in pick_frames(video, rng)]
    frames, texts, said, places = zip(*items)
    everything = sorted(set().union(*said), key=str)
    holds = torch.tensor([[statement in of_frame for statement in everything] for of_frame in said])
    where = torch.zeros(len(frames), places[0].shape[-1] ** 2, len(everything), dtype=torch.bool)
    for k, (of_frame, place) in enumerate(zip(said, places)):
        where[k][:, [everything.index(statement) for statement in of_frame]] = (
            torch.from_numpy(place.copy()).flatten(1).T
        )
    return Batch(
        torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2),
        tokenize(list(texts)),
        tokenize([say(statement, rng) for statement in everything]),
        holds,
        where,
        torch.tensor([statement[0] == "class" for statement in everything]),
    )


def make_item(video: Video, i: int, rng: np.random.Generator) -> tuple[np.ndarray, str, list[Statement], np.ndarray]:
    """Frame i, a caption, the statements that hold, and the patches that each is about, (m, g, g) bool."""
    boxes, said = {}, statements(video, i)
    frame = video.frame(i, boxes)
    grid = SIDE // SIZES["vision_patch_size"]
    where = np.zeros((len(said), grid, grid), bool)
    for place, actors in zip(where, said.values()):
        for k in actors & boxes.keys():
            place |= patches_of(boxes[k])
    frame, where = augment(frame, where, rng)
    return frame, caption(video, i, rng, short=rng.random() < SHORT), list(said), where


@cache
def normalization() -> Any:
    """The last step of CLIP's preprocessing."""
    return preprocess(SIDE).transforms[-1]


def to_input(frames: Tensor) -> Tensor:
    """(n, 3, SIDE, SIDE) uint8 -> what CLIP's preprocessing gives."""
    return normalization()(frames.float() / 255)


# ---------------------------------------------------------------- training


def cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Of rows with one or more positives each, which share the target; logits and positive are (n, m)."""
    return F.cross_entropy(logits, positive.float() / positive.sum(dim=-1, keepdim=True))


def caption_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss in both directions; equal captions are each other's positives.

    Args:
        logits: Scaled similarities, (n images, n captions).
        tokens: Of the captions, (n, 77).
    """
    equal = (tokens[:, None] == tokens[None]).all(dim=-1)
    return (cross_entropy(logits, equal) + cross_entropy(logits.T, equal)) / 2


def find_loss(logits: Tensor, positive: Tensor, is_class: Tensor) -> Tensor:
    """Where does each of m statements hold? Those on classes weigh as much as all others together.

    Args:
        logits: Scaled similarities, (images or patches, m). What holds nowhere asks nothing.
        positive: Where they hold, as `logits`, bool.
        is_class: (m,) bool.
    """
    kinds = [kind & positive.any(dim=0) for kind in (is_class, ~is_class)]
    losses = [cross_entropy(logits.T[kind], positive.T[kind]) for kind in kinds if kind.any()]
    return sum(losses, start=logits.new_zeros(())) / 2


def encode_patches(
    visual: VisionTransformer, images: Tensor, where: Tensor, keep: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the images and of a share `keep` of their patches (FLIP, arXiv:2212.00794), of those with actors
    first.

    Returns:
        (n, embed_dim), (n, keep * P, embed_dim) and the patches' indices, (n, keep * P).
    """
    x = visual.conv1(images).flatten(2).transpose(1, 2) + visual.positional_embedding[1:]  # (n, P, width)
    idx = (torch.rand(x.shape[:2]) + where.any(dim=-1)).topk(round(keep * x.shape[1])).indices  # (n, keep * P)
    x = x.gather(1, idx[..., None].expand(-1, -1, x.shape[-1]))
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.transformer(visual.ln_pre(torch.cat([first, x], dim=1)))
    x = visual.ln_post(x) @ visual.proj
    return x[:, 0], x[:, 1:], idx


def batch_loss(model: CLIP, batch: Batch, keep: float) -> Tensor:
    """The losses of captions, statements, classes and regions (as RegionCLIP, arXiv:2112.09106), (4,).

    The world knows all that holds for an image, so short texts need not be taken for wrong where they are right.
    """
    frames, captions, statement_tokens, holds, where, is_class = batch
    features, patches, idx = encode_patches(model.visual, to_input(frames), where, keep)
    features, patches = F.normalize(features, dim=-1), F.normalize(patches, dim=-1)
    long, short = (F.normalize(model.encode_text(tokens), dim=-1) for tokens in (captions, statement_tokens))
    scale = model.logit_scale.exp()
    where = where.gather(1, idx[..., None].expand(-1, -1, where.shape[-1]))
    logits = scale * features @ short.T
    return torch.stack(
        [
            caption_loss(scale * features @ long.T, captions),
            find_loss(logits, holds, is_class),
            2 * cross_entropy(logits[:, is_class], holds[:, is_class]),
            find_loss((scale * patches @ short.T).flatten(0, 1), where.flatten(0, 1), is_class),
        ]
    )


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal factor of a matrix, by five Newton-Schulz steps of fifth order."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x) * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5


def add_over_ranks(tensors: list[Tensor]) -> None:
    """Replaces each by its sum over all processes."""
    flat = sum_over_ranks(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal (Jordan, 2024, kellerjordan.github.io/posts/muon), for matrices in the
    blocks.

    A small transformer learns about twice as fast as with AdamW. PyTorch's own computes in bfloat16, five times slower
    on CPUs without instructions for it. Queries, keys and values are one matrix each. Of several processes each does
    its share.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.02})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  (no closure: nobody has one)
        rank, _, world_size = rank_and_world()
        for group in self.param_groups:
            steps = [torch.zeros_like(p) for p in group["params"]]
            for k, p in enumerate(group["params"]):
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 0.05)
                if k % world_size == rank:
                    parts = p.grad.lerp(momentum, 0.95).split(
                        p.shape[1] if p.shape[0] == 3 * p.shape[1] else p.shape[0]
                    )
                    steps[k] = torch.cat([orthogonalized(part) for part in parts])
            add_over_ranks(steps)
            for p, step in zip(group["params"], steps):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])


def make_optimizers(model: CLIP) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "resblocks" in name}
    others = [p for name, p in model.named_parameters() if name not in matrices and p.requires_grad]
    return [Muon(matrices.values(), PEAKS[0]), torch.optim.AdamW(others, PEAKS[1], betas=(0.9, 0.98), weight_decay=0)]


def start_positions(model: CLIP) -> None:
    """Positions of the patches start as sines and cosines of row and column, with which a small ViT learns faster."""
    positions, side = model.visual.positional_embedding, SIDE // SIZES["vision_patch_size"]
    quarter = positions.shape[1] // 4
    rates = math.pi / 2 / (2 * side) ** (torch.arange(quarter) / quarter)
    rows, columns = (
        grid.flatten()[:, None] * rates for grid in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
    )
    positions.data[1:] = 0.7 * torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rates: linear warm-up over 20 steps, then a cosine to a hundredth."""
    return min(1, (step + 1) / 20) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def save(
    path: Path, model: CLIP, optimizers: list[torch.optim.Optimizer], step: int, used: Tensor, settings: dict[str, int]
) -> None:
    if not is_main():
        return
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "step": step,
        "used": used,
        "settings": settings,
    }
    write_atomically(path, lambda file: torch.save(state, file))


def resume(
    path: Path, model: CLIP, optimizers: list[torch.optim.Optimizer], settings: dict[str, int]
) -> tuple[int, Tensor]:
    """Restores a run; returns the step to go on with, and the tokens used so far, (vocabulary,) bool.

    Raises:
        InputError: If it is a run with other settings.
    """
    if not path.exists():
        return 0, torch.zeros(SIZES["vocab_size"], dtype=torch.bool)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["settings"] != settings:
        raise InputError(f"{path}: found a run with {state['settings']}, expected {settings}; choose another --out")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        optimizer.load_state_dict(saved)
    return state["step"], state["used"]


def train_step(
    model: CLIP, optimizers: list[torch.optim.Optimizer], batch: Batch, factor: float, keep: float, amp: bool = False
) -> Tensor:
    """One step at `factor` times the peak learning rates; the losses, (4,). Of several processes the gradients are
    averaged.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = batch_loss(model, batch, keep)
    model.zero_grad(set_to_none=True)
    (losses.sum() / rank_and_world()[2]).backward()
    add_over_ranks([p.grad for p in model.parameters() if p.grad is not None])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in zip(optimizers, PEAKS):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        optimizer.step()
    model.logit_scale.data.clamp_(max=math.log(100))
    return losses.detach()


def train(
    model: CLIP,
    folder: str | Path,
    *,
    steps: int,
    seed: int,
    stop_after: int | None = None,
    third: int | None = None,
    amp: bool = False,
) -> tuple[bool, Tensor]:
    """Trains from the folder's last.pt or from the start.

    The token embedding stays as it is drawn: the text tower reads fixed random vectors as well, and 49,408 rows cost no
    time.

    Args:
        model: As it is drawn; it is trained in place.
        folder: Of last.pt.
        steps: Of the whole schedule.
        seed: Of the batches.
        stop_after: So many steps, to go on later (default: at the end of the schedule).
        third: Of the looks, which it does not see (see `make_video`).
        amp: Forward passes in bfloat16.
    Returns:
        Whether it came to the end, and which tokens were used, (vocabulary,) bool.
    """
    model.token_embedding.requires_grad_(False)
    optimizers, last = make_optimizers(model), Path(folder, "last.pt")
    rank, _, world_size = rank_and_world()
    settings = {"seed": seed, "steps": steps, "processes": world_size}
    settings |= ({} if third is None else {"third": third}) | ({"amp": 1} if amp else {})
    first, used = resume(last, model, optimizers, settings)
    end = min(steps, first + stop_after) if stop_after else steps
    start, recent = time.perf_counter(), []
    model.train()
    for done in range(first + 1, end + 1):
        rng = np.random.default_rng((seed, done, rank))
        torch.manual_seed(int(rng.integers(2**31)))  # of the patches that are kept
        batch = make_batch(BATCH // world_size, rng, third)
        keep = KEEP if done <= KEEP_UNTIL * steps else 1
        recent.append(train_step(model, optimizers, batch, schedule(done - 1, steps), keep, amp))
        used[torch.cat(batch[1:3]).unique().long()] = True
        if is_main() and (done % 50 == 0 or done == end):
            means, recent = torch.stack(recent).mean(dim=0), []
            print(
                f"step {done}/{steps}  losses {' '.join(f'{loss:.3f}' for loss in means)}  scale "
                f"{model.logit_scale.exp():.1f}  {(time.perf_counter() - start) / (done - first):.2f} s/step",
                flush=True,
            )
        if done % 100 == 0 or done == end:
            used = sum_over_ranks(used.int()) > 0
            save(last, model, optimizers, done, used, settings)
    return end == steps, used


# ---------------------------------------------------------------- weights


def pack(model: CLIP, used: Tensor, path: str | Path = WEIGHTS) -> None:
    """Writes float16 weights, with the used rows of the token embedding alone."""
    state = {name: tensor.half().numpy() for name, tensor in model.state_dict().items()}
    ids = used.nonzero().flatten().numpy()
    state["token_embedding.rows"], state["token_embedding.ids"] = state.pop("token_embedding.weight")[ids], ids
    write_atomically(path, lambda file: np.savez(file, **state))


def unpack(target: str | Path, path: str | Path = WEIGHTS) -> Path:
    """Writes the weights as a state dict that `clip_model.load` reads; returns its path."""
    with np.load(path, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    rows, ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids")
    state["token_embedding.weight"] = torch.zeros(SIZES["vocab_size"], rows.shape[1], dtype=rows.dtype)
    state["token_embedding.weight"][ids] = rows
    write_atomically(target, lambda file: torch.save(state, file))
    return Path(target)


# ---------------------------------------------------------------- figures


@torch.no_grad()
def encode_frames(model: CLIP, frames: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return F.normalize(torch.cat([model.encode_image(to_input(part)) for part in stacked.split(64)]), dim=-1)


@torch.no_grad()
def encode_texts(model: CLIP, texts: list[str]) -> Tensor:
    return F.normalize(model.encode_text(tokenize(texts)), dim=-1)


def retrieval(model: CLIP, seed: int = 98, rounds: int = 8, size: int = 64) -> dict[str, float]:
    """Recall@1 of image -> text and text -> image among `size` frames of different held-out videos."""
    recalls = []
    for k in range(rounds):
        rng, frames, texts = np.random.default_rng((seed, k)), [], []
        while len(texts) < size:
            video = make_video(int(rng.integers(2**31)), "test", (None, *CLASSES)[len(texts) % (len(CLASSES) + 1)])
            i = int(pick_frames(video, rng)[0])
            text = caption(video, i, rng)
            if text not in texts:
                texts.append(text)
                frames.append(video.frame(i))
        similarity = encode_frames(model, frames) @ encode_texts(model, texts).T
        recalls.append([(similarity.argmax(dim=d) == torch.arange(size)).float().mean().item() for d in (1, 0)])
    return dict(zip(("image_to_text", "text_to_image"), np.mean(recalls, axis=0).round(4).tolist()))


@torch.no_grad()
def zero_shot(
    model: CLIP,
    seed: int = SEED,
    stride: int = 4,
    counts: dict[str, tuple[int, int]] | None = None,
    third: int | None = None,
) -> dict[str, float]:
    """AUC of "not normal", AUC of each class and their mean, of the prompts alone, on the demo's test videos."""
    from sklearn.metrics import roc_auc_score  # slow to import

    texts = encode_texts(model, [ENGINEERED_PROMPT.format(name.replace("_", " ")) for name in ("normal", *CLASSES)])
    probs, truth = [], []
    for split, _, label, video_seed in plan(counts or {"test": COUNTS["test"]}, seed):
        video = make_video(video_seed, split, label, third)
        idx = range(0, video.num_frames, stride)
        logits = model.logit_scale.exp() * encode_frames(model, [video.frame(i) for i in idx]) @ texts.T
        probs.append(logits.softmax(dim=-1).numpy())
        truth += [CLASSES.index(label) + 1 if video.is_anomalous(i) else 0 for i in idx]
    probs, truth = np.concatenate(probs), np.array(truth)
    found = {"AUC": roc_auc_score(truth > 0, 1 - probs[:, 0])}
    of_classes = {
        name: roc_auc_score(truth == c, probs[:, c]) for c, name in enumerate(CLASSES, 1) if (truth == c).any()
    }
    found |= {"mAUC": np.mean(list(of_classes.values()))} | of_classes
    return {name: round(float(value), 4) for name, value in found.items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--out", default="runs/demo-clip", help="folder of last.pt (default: runs/demo-clip)")
    parser.add_argument("--steps", type=int, default=2000, help=f"steps of {BATCH} frames (default: 2000)")
    parser.add_argument("--stop-after", type=int, help="stop after so many steps of the schedule, to go on later")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument(
        "--third", type=int, choices=range(3), help="leave out this third of the looks; its figures are of development"
    )
    parser.add_argument("--amp", action="store_true", help="forward passes in bfloat16")
    parser.add_argument(
        "--weights", default=WEIGHTS, help="where the packed weights go (default: videoanomaly/demo/clip.npz)"
    )
    parser.add_argument("--evaluate", action="store_true", help="no training: figures of --weights")
    args = parser.parse_args(argv)
    if BATCH // FRAMES_PER_VIDEO % rank_and_world()[2]:
        raise InputError(
            f"found {rank_and_world()[2]} processes, expected a number that divides {BATCH // FRAMES_PER_VIDEO}"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.evaluate:
        torch.manual_seed(args.seed)
        model = CLIP(**SIZES)
        start_positions(model)
        with process_group("cpu"):
            names = ("steps", "seed", "stop_after", "third", "amp")
            ended, used = train(model, args.out, **{name: getattr(args, name) for name in names})
        if not (ended and is_main()):
            return
        pack(model, used, args.weights)
    with tempfile.TemporaryDirectory() as folder:
        model = load(unpack(Path(folder, "clip.pt"), args.weights))  # what the file holds, in float16
    if args.third is None:
        print(json.dumps({"retrieval": retrieval(model), "zero_shot": zero_shot(model)}))
    else:
        print(json.dumps({"zero_shot": zero_shot(model, counts={"development": COUNTS["test"]}, third=args.third)}))


if __name__ == "__main__":
    run_script(main)
