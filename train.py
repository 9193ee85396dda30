"""Trains AnomalyCLIP, or a system to compare it with, on per-frame features of videos that carry one label each.

    python train.py --dataset demo                                   # rendered videos, three minutes, no files needed
    python train.py --dataset ucfcrime --root data/UCFCrime          # or shanghaitech, xdviolence
    python train.py --dataset custom --root data/mine --features features/mine --directions direct
    python train.py ... --out runs/x --resume                        # go on where runs/x/last.pt stopped
    python train.py ... --model rtfm                                 # another system on the same features: systems.py
    torchrun --nproc-per-node 8 --max-restarts 3 train.py ...        # 8 processes, one per GPU, train as one

Writes OUT/last.pt after every epoch, of 200 and more after every hundredth part, and a line per epoch to OUT/log.jsonl;
evaluate.py reads last.pt. Ctrl-C or SIGTERM: it finishes the step, saves, tells how to go on there, and exits with
status 130 or 143; a second Ctrl-C stops at once.
"""

import argparse
import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from videoanomaly.clip_weights import load_clip
from videoanomaly.data.datasets import PRESETS
from videoanomaly.data.sampling import RestOfEpoch
from videoanomaly.data.training_data import open_features
from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.runtime.files import remove_temporary_files
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import (
    any_rank,
    check_device,
    gather_videos,
    process_group,
    same_for_all,
    split_model,
)
from videoanomaly.runtime.run_folder import lock_folder, report, resume_command, trim_log
from videoanomaly.runtime.signals import stop_signals, survive_one_signal
from videoanomaly.runtime.torchrun import is_main, local_device, rank_and_world
from videoanomaly.settings import config_fields, make_config
from videoanomaly.weights.checkpoints import NOT_BEGUN, load_resumed, restore, save


def parse_args(argv=None) -> argparse.Namespace:
    from videoanomaly import settings

    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", required=True, choices=PRESETS, help="annotation format and preset of settings")
    add("--root", help="folder of lists and annotations")
    add("--features", help="folder of .npy features (default: found under --root)")
    add("--temporal-features", help="other features for the Temporal model, such as I3D (Table 15)")
    add("--frames-per-feature", type=int, help="video frames per feature row (default: as meta.json says, else 1)")
    add("--temporal-frames-per-feature", type=int, help="the same for --temporal-features")
    add("--crops", type=int, default=1, help="crops per frame in files of shape (N * crops, D) (default: 1)")
    add("--classes-csv", help="ShanghaiTech: CSV of video,class; released lists: CSV of id,name")
    add_config_options(parser)
    add = parser.add_argument_group("optimisation").add_argument
    add("--lr", type=float, help="peak learning rate (default: as the preset)")
    add(
        "--epochs",
        type=int,
        help="epochs; the first tenth warms up (default: as the preset; with another --model as many as "
        "take its steps)",
    )
    add("--batch-size", type=int, help="videos per batch, half of them normal (default: 64)")
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    add("--amp", action=argparse.BooleanOptionalAction, default=False, help="bfloat16 autocast")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the model")
    add = parser.add_argument_group("run").add_argument
    add("--out", help="output folder (default: runs/DATASET)")
    add("--resume", action="store_true", help="go on from OUT/last.pt; start anew if there is none")
    add(
        "--evaluate",
        action=argparse.BooleanOptionalAction,
        help="evaluate on the test list at the end (default: demo only)",
    )
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--workers", type=int, default=2, help="processes that read features (default: 2)")
    args = parser.parse_args(argv)
    for name, value in ({"batch_size": 64, "evaluate": False} | settings.preset(args, PRESETS[args.dataset])).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.out = args.out or f"runs/{args.dataset}"
    args.clip = args.clip or (str(Path(args.root, "clip.pt")) if args.dataset == "demo" else "ViT-B/16")
    args.resume |= int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # torchrun has started us anew
    check_args(args)
    return args


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option for each config field, and one for all weights of losses; None where the user gave nothing."""
    from videoanomaly.systems import catalogue

    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default="anomalyclip",
        choices=catalogue.MODELS,
        help="what to train; the others have the settings of their papers and of systems.py (default: anomalyclip)",
    )
    add(
        "--clip", help="CLIP whose text tower gives the directions: a name or a file (default: ViT-B/16; demo: its own)"
    )
    weights = []
    for f in config_fields():
        if f.name.startswith("lambda_"):
            weights.append(f"{f.name.removeprefix('lambda_')}={f.default:g}")
            continue
        others = [f"; {name}: {preset[f.name]}" for name, preset in PRESETS.items() if f.name in preset]
        text = {"help": f"{f.metadata['help']} (default: {f.default}{''.join(others)})"}
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if f.type is bool
            else {"type": f.type, "choices": f.metadata["choices"]}
        )
        add(f"--{f.name.replace('_', '-')}", **kind, **text)
    add(
        "--lambdas",
        nargs="+",
        default=[],
        metavar="LOSS=WEIGHT",
        help=f"weights of losses (defaults: {' '.join(weights)})",
    )


def check_args(args: argparse.Namespace) -> None:
    if args.root is None:
        raise InputError(f"--root is missing: expected the folder with the lists of --dataset {args.dataset}")
    if args.batch_size < 2 or args.batch_size % 2:
        raise InputError(f"--batch-size {args.batch_size}: expected an even number, half of it normal videos")
    if args.batch_size % (twice := 2 * rank_and_world()[2]):
        raise InputError(f"--batch-size {args.batch_size}: expected a multiple of {twice}, twice the processes")
    least = {
        "epochs": 1,
        "frames_per_feature": 1,
        "temporal_frames_per_feature": 1,
        "crops": 1,
        "seed": 0,
        "workers": 0,
    }
    for name, smallest in least.items():
        if (value := getattr(args, name)) is not None and value < smallest:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least {smallest}")
    last = Path(args.out) / "last.pt"
    if last.exists() and not args.resume:
        raise InputError(f"{last}: found the result of an earlier run; go on with --resume, or choose another --out")
    if Path(args.out).is_file():
        raise InputError(f"--out {args.out}: found a file, expected a folder or a new name")
    if not args.lr > 0:
        raise InputError(f"--lr {args.lr}: expected a positive number")


def batch_losses(model, forward, batch: dict, device, amp: bool) -> dict:
    """Losses of the whole batch, of which this process has a share: the same in all processes."""
    import torch

    inputs = [batch[k].to(device, non_blocking=True) for k in ("features", "temporal_features") if k in batch]
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp):
        prediction = forward(*inputs)
    labels = gather_videos(batch["label"].to(device))
    prediction = type(prediction)(*(None if x is None else gather_videos(x) for x in prediction))
    return model.losses(prediction, labels[: len(labels) // 2])


def train_epoch(
    model, forward, loader, optimizer, schedule, epoch: int, begun: dict, signals: list, args, device
) -> dict:
    """Goes on with an epoch from where it was begun (see NOT_BEGUN) to its end or the first signal; what is done by
    then.
    """
    from tqdm import tqdm

    start, steps, sums = time.perf_counter(), begun["steps"], dict(begun["sums"])
    loader.batch_sampler.set_epoch(epoch, steps)
    model.train()
    bar = tqdm(loader, initial=steps, leave=False, unit="step", disable=not (is_main() and sys.stderr.isatty()))
    for steps, batch in enumerate(bar, start=steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = schedule(epoch * len(loader) + steps - 1) * group.get("scale", 1)  # none in older checkpoints
        losses = batch_losses(model, forward, batch, device, args.amp)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        optimizer.step()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
        if any_rank(bool(signals)):
            break
    return {"steps": steps, "sums": sums, "seconds": begun["seconds"] + time.perf_counter() - start}


def mean_losses(done: dict) -> dict[str, float]:
    means = {name: float(value) / done["steps"] for name, value in done["sums"].items()}
    if not math.isfinite(means["total"]):
        raise FloatingPointError(
            f"the loss became {means['total']} in this epoch; try a lower --lr, or look at the features"
        )
    return means


def make_loader(args, config, lists, features, temporal, device: str):
    import torch

    from videoanomaly.data.sampling import BalancedBatches, SegmentDataset
    from videoanomaly.systems.catalogue import MODELS

    released, mean = config.variant == "released", getattr(MODELS[args.model], "SEES_MEANS", False)
    dataset = SegmentDataset(lists.train, features, config.num_segments, config.num_frames, temporal, released, mean)
    batches = BalancedBatches([v.label for v in lists.train], args.batch_size, args.seed, released=released)
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=RestOfEpoch(batches),
        num_workers=args.workers,
        pin_memory=device != "cpu",
        persistent_workers=args.workers > 0,
        worker_init_fn=survive_one_signal,
        generator=torch.Generator(),
    )  # of its own, so that workers change no other draw


def fit(args, device: str, config, data, clip: dict, extra: dict) -> tuple[int, str]:
    """Trains from the folder's checkpoint or from the start, to the end or a signal.

    Args:
        data: Lists, features and the Temporal model's features or None.
        clip: See `load_clip`.
        extra: Entries of the checkpoint that do not change.
    Returns:
        The number of the signal that stopped it, 0 if none did, and how far it came.
    """
    import torch

    from videoanomaly.evaluation.scoring import alarm_threshold
    from videoanomaly.systems.catalogue import DEFAULTS, build, finish, make_optimizer, num_trained
    from videoanomaly.systems.ours import make_moments
    from videoanomaly.winograd import accelerate

    lists, out, released = data[0], Path(args.out), config.variant == "released"
    if is_main():
        remove_temporary_files(out.iterdir())
    checkpoint = load_resumed(out / "last.pt", config, extra)
    torch.manual_seed(args.seed)
    model = build(args, config, clip, None if checkpoint else data).to(device)
    is_new = not checkpoint and args.model == "anomalyclip"  # which alone can have new classes
    moments = make_moments(config, *data[:2]) if is_new else (checkpoint or {}).get("normal_moments")
    extra = extra | ({"normal_moments": moments} if moments else {})
    accelerate(model)
    optimizer = make_optimizer(args.model, model, args.lr, released=released)
    first_epoch, begun = restore(checkpoint, model, optimizer, device) if checkpoint else (0, NOT_BEGUN)
    if is_main():
        trim_log(out / "log.jsonl", first_epoch)

    loader = make_loader(args, config, *data, device)
    forward = split_model(torch.compile(model) if args.compile else model, device)
    num_normal = sum(v.label < 0 for v in lists.train)
    print(
        f"{args.dataset}: {len(lists.train) - num_normal} abnormal and {num_normal} normal videos, {len(lists.classes)} "
        f"classes, {config.num_segments} segments of {config.num_frames} rows, "
        f"{num_trained(model, args.epochs):,} trainable parameters, {len(loader)} steps an epoch on {device}"
    )
    schedule = partial(
        learning_rate,
        steps_per_epoch=len(loader),
        epochs=args.epochs,
        peak=args.lr,
        released=released,
        kind=DEFAULTS[args.model].schedule,
    )

    with stop_signals() as signals:
        for epoch in range(first_epoch, args.epochs):
            begun = train_epoch(model, forward, loader, optimizer, schedule, epoch, begun, signals, args, device)
            losses, num_epochs = mean_losses(begun), epoch
            if begun["steps"] == len(loader):
                record = {"epoch": epoch + 1, "lr": schedule(epoch * len(loader)), "seconds": begun["seconds"]}
                if is_main():
                    report(out / "log.jsonl", record | {"losses": losses}, args.epochs, config)
                num_epochs, begun = epoch + 1, NOT_BEGUN
            stop = any_rank(bool(signals))
            if is_main() and (stop or num_epochs % max(args.epochs // 100, 1) == 0 or num_epochs == args.epochs):
                save(out / "last.pt", model, optimizer, num_epochs, begun, device, extra)
            if stop:
                number = signals[0] if signals else signal.SIGTERM  # of another process
                return number, f"{num_epochs} epochs and {begun['steps']} of {len(loader)} steps"
    if is_main() and (not checkpoint or first_epoch < args.epochs or "threshold" not in checkpoint):
        finish(model, *data[:2])
        extra = extra | {"threshold": alarm_threshold(model, *data)}
        save(out / "last.pt", model, optimizer, args.epochs, NOT_BEGUN, device, extra)
    return 0, f"{args.epochs} epochs"


def prepare(args) -> tuple:
    """Config, data, CLIP and what else the checkpoint holds: everything that can be wrong with the input shows here."""
    from videoanomaly import settings
    from videoanomaly.data.lists import load_lists

    if args.dataset == "demo":
        from videoanomaly.demo.prepare import write_dataset

        same_for_all(lambda: is_main() and write_dataset(args.root, args.clip, local_device(check_device(args.device))))
    lists = load_lists("custom" if args.dataset == "demo" else args.dataset, args.root, args.classes_csv)
    features, temporal = open_features(args, lists.train + lists.test)
    num_normal = sum(v.label < 0 for v in lists.train)
    settings.complete(args, len(lists.train) - num_normal, num_normal, features.frames_per_feature)
    config = make_config(args, lists.classes, features.dim, temporal and temporal.dim)
    clip, clip_sha256 = load_clip(args, config, features.encoder)
    extra = {
        "settings": vars(args),
        "lists": lists.to_plain(),
        "encoder": features.encoder,
        "frames_per_feature": features.frames_per_feature,
        "temporal_encoder": temporal and temporal.encoder,
        "clip_sha256": clip_sha256,
    }
    return config, (lists, features, temporal), clip, extra


def learning_rate(
    step: int, steps_per_epoch: int, epochs: int, peak: float, released: bool, kind: str = "cosine"
) -> float:
    """Linear warm-up from zero over the first tenth of the epochs, then a cosine to zero (App. B); other kinds: see
    Defaults.

    The released code changes it once an epoch, so that its whole first epoch has rate zero; we change it every step.
    """
    if kind != "cosine":
        return peak * (0.1 ** (5 * step // (2 * steps_per_epoch * epochs)) if kind == "steps" else 1)
    epoch = step // steps_per_epoch if released else (step + 1) / steps_per_epoch
    warmup = max(1, epochs // 10) if released else epochs / 10
    if epoch < warmup:
        return peak * epoch / warmup
    return peak * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2 if epochs > warmup else peak


def surest(path: Path, videos) -> str:
    """Name of the abnormal video with the highest p_A in evaluate.py's file of scores, whose report has something to
    show.
    """
    import numpy as np

    with np.load(path) as scores:
        return max((v.name for v in videos if v.label >= 0), key=lambda name: scores[f"{name}.p_A"].max())


def main(argv=None) -> int | None:
    """Returns the exit status: 128 and the signal that stopped the training, if one did."""
    keep_freed_memory()
    args = parse_args(argv)
    device, last = local_device(check_device(args.device)), Path(args.out) / "last.pt"
    with process_group(device):
        prepared = prepare(args)
        with lock_folder(Path(args.out)):
            number, done = fit(args, device, *prepared)
    print(f"checkpoint: {last}, after {done}")
    if number:
        print(f"stopped by {signal.Signals(number).name}; go on with: {resume_command(argv)}")
        return 128 + number
    if not is_main():
        return None
    if not args.evaluate:
        print(f"next: python evaluate.py --ckpt {last}")
        return None
    import evaluate

    evaluate.main(["--ckpt", str(last), "--device", device])
    if args.dataset == "demo":
        video = surest(Path(args.out, "eval", "scores.npz"), prepared[1][0].test)
        print(
            f"next: python predict.py --ckpt {last} --clip {args.clip} {args.root}/{video}.mp4 --out {args.out}/report"
        )


if __name__ == "__main__":
    run_script(main)
