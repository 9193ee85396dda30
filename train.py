"""Trains AnomalyCLIP on per-frame features of videos that carry one label each.

    python train.py --dataset demo                                   # synthetic features, two minutes, no files needed
    python train.py --dataset ucfcrime --root data/UCFCrime          # or shanghaitech, xdviolence
    python train.py --dataset custom --root data/mine --features features/mine --directions direct
    python train.py ... --out runs/x --resume                        # go on where runs/x/last.pt stopped

Writes OUT/last.pt after every epoch and a line per epoch to OUT/log.jsonl; evaluate.py reads last.pt.
"""
import argparse
import json
import math
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

from data import InputError, run_script, write_atomically

PRESETS = {  # what differs from the config's defaults, which are those of UCF-Crime (App. A and B)
    "shanghaitech": {"depth": 2, "temporal_input": "both", "lr": 5e-4, "epochs": 100},
    "ucfcrime": {"lr": 1e-5, "epochs": 50},
    "xdviolence": {"embed_dim": 128, "lr": 5e-6, "epochs": 50},
    "custom": {"lr": 5e-4, "epochs": 100},  # as ShanghaiTech, the smallest of the three
    "demo": {"lr": 2e-3, "epochs": 40, "batch_size": 32, "num_segments": 16, "num_frames": 8, "embed_dim": 32,
             "directions": "direct", "evaluate": True, "root": "runs/demo-data"},
}
SHAPE = ("classes", "feature_dim", "temporal_feature_dim")  # config fields that come from the data
PATHS = ("root", "features", "temporal_features", "classes_csv", "clip")
ANYTIME = ("out", "resume", "device", "workers", "evaluate", *PATHS)  # may differ when a run is resumed, if what lies there
SAME = ("config", "lists", "encoder", "temporal_encoder", "clip_sha256")  # of a checkpoint: this must not


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    add("--epochs", type=int, help="epochs; the first tenth warms up (default: as the preset)")
    add("--batch-size", type=int, help="videos per batch, half of them normal (default: 64)")
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    add("--amp", action=argparse.BooleanOptionalAction, default=False, help="bfloat16 autocast")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the model")
    add = parser.add_argument_group("run").add_argument
    add("--out", help="output folder (default: runs/DATASET)")
    add("--resume", action="store_true", help="go on from OUT/last.pt; start anew if there is none")
    add("--evaluate", action=argparse.BooleanOptionalAction, help="evaluate on the test list at the end (default: demo only)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--workers", type=int, default=2, help="processes that read features (default: 2)")
    args = parser.parse_args(argv)
    for name, value in ({"batch_size": 64, "evaluate": False} | PRESETS[args.dataset]).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.out = args.out or f"runs/{args.dataset}"
    check_args(args)
    return args


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option for each config field, and one for all weights of losses; None where the user gave nothing."""
    from anomalyclip import AnomalyCLIPConfig

    add = parser.add_argument_group("model").add_argument
    add("--clip", default="ViT-B/16", help="CLIP whose text tower gives the directions: a name or a file (default: ViT-B/16)")
    weights = []
    for f in fields(AnomalyCLIPConfig):
        if f.name in SHAPE:
            continue
        if f.name.startswith("lambda_"):
            weights.append(f"{f.name.removeprefix('lambda_')}={f.default:g}")
            continue
        others = [f"; {name}: {preset[f.name]}" for name, preset in PRESETS.items() if f.name in preset]
        text = {"help": f"{f.metadata['help']} (default: {f.default}{''.join(others)})"}
        kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else {
            "type": f.type, "choices": f.metadata["choices"]}
        add(f"--{f.name.replace('_', '-')}", **kind, **text)
    add("--lambdas", nargs="+", default=[], metavar="LOSS=WEIGHT", help=f"weights of losses (defaults: {' '.join(weights)})")


def check_args(args: argparse.Namespace) -> None:
    if args.root is None:
        raise InputError(f"--root is missing: expected the folder with the lists of --dataset {args.dataset}")
    if args.batch_size < 2 or args.batch_size % 2:
        raise InputError(f"--batch-size {args.batch_size}: expected an even number, half of it normal videos")
    least = dict.fromkeys(("epochs", "frames_per_feature", "temporal_frames_per_feature", "crops"), 1) | {"seed": 0, "workers": 0}
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


def make_config(args, classes, feature_dim: int, temporal_feature_dim: int | None):
    """The config of the data's sizes, the preset and what the user gave."""
    from anomalyclip import AnomalyCLIPConfig

    names = {f.name for f in fields(AnomalyCLIPConfig)} - set(SHAPE)
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    for text in args.lambdas:
        name, _, value = text.partition("=")
        if f"lambda_{name}" not in names:
            known = ", ".join(sorted(n.removeprefix("lambda_") for n in names if n.startswith("lambda_")))
            raise InputError(f"--lambdas {text}: found loss {name!r}, expected one of {known}")
        try:
            given[f"lambda_{name}"] = float(value)
        except ValueError:
            raise InputError(f"--lambdas {text}: found weight {value!r}, expected a number") from None
    try:
        return AnomalyCLIPConfig(classes=classes, feature_dim=feature_dim, temporal_feature_dim=temporal_feature_dim, **given)
    except ValueError as error:
        raise InputError(str(error)) from None


def learning_rate(step: int, steps_per_epoch: int, epochs: int, peak: float, released: bool) -> float:
    """Linear warm-up from zero over the first tenth of the epochs, then a cosine to zero (App. B).

    The released code changes it once an epoch, so that its whole first epoch has rate zero; we change it every step.
    """
    epoch = step // steps_per_epoch if released else (step + 1) / steps_per_epoch
    warmup = max(1, epochs // 10) if released else epochs / 10
    if epoch < warmup:
        return peak * epoch / warmup
    return peak * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2 if epochs > warmup else peak


def load_clip(args, config, encoder: dict | None) -> tuple[dict, str | None]:
    """The model's arguments that bring CLIP in where the directions need it, and its hash; it must have made the features."""
    if config.directions == "direct":
        return {}, None
    import clip_model

    try:
        clip = clip_model.load(args.clip)
    except ValueError as error:
        raise InputError(str(error)) from None
    made_by = encoder and encoder["weights_sha256"]
    if made_by and made_by != clip_model.weights_hash(clip.visual):
        raise InputError(f"--clip {args.clip}: its image tower did not make the features, {encoder['encoder']} did; expected "
                         "the same CLIP for pictures and prompts, or --directions direct")
    return {"clip": clip, "tokenize": clip_model.tokenize}, clip_model.weights_hash(clip)


def build_model(config, clip: dict, prototypes: dict):
    from anomalyclip import AnomalyCLIP

    try:
        return AnomalyCLIP(config, **clip, **prototypes)
    except ValueError as error:  # CLIP does not fit the features, or a prompt is too long
        raise InputError(str(error)) from None


def open_features(args, videos):
    """The feature folders of the Selector and, if it has its own, of the Temporal model; every file is looked at."""
    from data import FeatureFolder, check_features

    features = FeatureFolder(args.features or args.root, frames_per_feature=args.frames_per_feature, crops=args.crops)
    temporal = args.temporal_features and FeatureFolder(
        args.temporal_features, frames_per_feature=args.temporal_frames_per_feature, crops=args.crops)
    check_features(features, videos, temporal)
    return features, temporal


def train_epoch(model, forward, loader, optimizer, schedule, first_step: int, args, device) -> dict[str, float]:
    """One pass over the batches; means of all losses over the epoch."""
    import torch
    from tqdm import tqdm

    sums: dict[str, float] = {}
    model.train()
    for i, batch in enumerate(tqdm(loader, leave=False, unit="step", disable=not sys.stderr.isatty())):
        for group in optimizer.param_groups:
            group["lr"] = schedule(first_step + i)
        labels = batch["label"][:len(batch["label"]) // 2].to(device)
        inputs = [batch[k] for k in ("features", "temporal_features") if k in batch]
        check_finite(inputs, batch["video_idx"], loader.dataset.videos)
        inputs = [x.to(device, non_blocking=True) for x in inputs]
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=args.amp):
            prediction = forward(*inputs)
        losses = model.losses(prediction, labels)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        optimizer.step()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
    means = {name: float(value) / len(loader) for name, value in sums.items()}
    if not math.isfinite(means["total"]):
        raise FloatingPointError(f"the loss became {means['total']} in this epoch; try a lower --lr")
    return means


def check_finite(inputs, video_idx, videos) -> None:
    """Names the video whose features would spoil the training."""
    for x in inputs:
        finite = x.isfinite().flatten(1).all(dim=1)  # (B,)
        if not finite.all():
            name = videos[int(video_idx[~finite][0])].name
            raise InputError(f"{name}: found features that are infinite or not a number, expected finite ones")


def rng_state(device: str) -> dict:
    import torch

    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device != "cpu" else None}


def save(path: Path, model, optimizer, epoch: int, device: str, extra: dict) -> None:
    """Writes everything that evaluation and resumption need; the file is whole or the old one."""
    import torch

    state = model.checkpoint() | extra | {"epoch": epoch, "optimizer": optimizer.state_dict(), "rng": rng_state(device)}
    write_atomically(path, lambda file: torch.save(state, file))


def load_resumed(path: Path, config, extra: dict) -> dict | None:
    """The checkpoint to go on from, None if there is none; settings and data must be the ones it was made with."""
    from anomalyclip import read_checkpoint

    if not path.exists():
        return None
    try:
        checkpoint = read_checkpoint(path, "optimizer")
    except ValueError as error:
        raise InputError(str(error)) from None
    old, new = checkpoint["settings"], extra["settings"]
    changed = [(k, old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if k not in ANYTIME]
    changed += [(k, checkpoint.get(k), (extra | {"config": config.to_plain()})[k]) for k in SAME]
    for name, found, expected in changed:
        if found != expected:
            found, expected = ("other ones", "the same") if name == "lists" else (found, expected)
            raise InputError(f"{path}: found {name} = {found}, expected {expected} as given now; resume with the same settings "
                             "and data, or choose another --out")
    return checkpoint


def restore(checkpoint: dict, model, optimizer, device: str) -> int:
    """Puts model, optimiser and random states where they were; the epoch to go on with."""
    import torch

    model.load_trained_state(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if device != "cpu" and checkpoint["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
    return checkpoint["epoch"]


def trim_log(log: Path, num_epochs: int) -> None:
    """Keeps the lines of the first epochs: a run may have been stopped between its line and its checkpoint."""
    lines = log.read_bytes().splitlines(keepends=True)[:num_epochs] if log.exists() else []
    write_atomically(log, lambda file: file.writelines(lines))


def report(log: Path, record: dict, epochs: int, config) -> None:
    """One line on the screen, without the losses that weigh nothing, and one in log.jsonl."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in record["losses"].items()
                       if getattr(config, f"lambda_{name}", 1))  # 'total' has no weight of its own
    print(f"epoch {record['epoch']}/{epochs}  {losses}  lr {record['lr']:.2e}  {record['seconds']:.1f} s", flush=True)
    with open(log, "a") as file:
        file.write(json.dumps(record) + "\n")


def make_loader(args, config, lists, features, temporal, device: str):
    import torch

    from data import BalancedBatches, SegmentDataset

    released = config.variant == "released"
    dataset = SegmentDataset(lists.train, features, config.num_segments, config.num_frames, temporal, released=released)
    batches = BalancedBatches([v.label for v in lists.train], args.batch_size, args.seed, released=released)
    return torch.utils.data.DataLoader(dataset, batch_sampler=batches, num_workers=args.workers,
                                       pin_memory=device != "cpu", persistent_workers=args.workers > 0,
                                       generator=torch.Generator())  # of its own, so that workers change no other draw


def make_prototypes(lists, features, temporal) -> dict:
    from data import normality_prototype

    folders = {"prototype": features, "temporal_prototype": temporal}
    return {name: normality_prototype(folder, lists.train) for name, folder in folders.items() if folder}


def main(argv=None) -> None:
    args = parse_args(argv)
    import torch  # only now: bad arguments are told at once

    from annotations import load_lists
    from data import check_device
    from synthetic import write_demo

    device = check_device(args.device)
    log, last = Path(args.out) / "log.jsonl", Path(args.out) / "last.pt"
    if args.dataset == "demo":
        write_demo(args.root)
        print(f"demo: synthetic features with planted directions, not real video, in {args.root}")
    lists = load_lists("custom" if args.dataset == "demo" else args.dataset, args.root, args.classes_csv)
    features, temporal = open_features(args, lists.train + lists.test)
    config = make_config(args, lists.classes, features.dim, temporal and temporal.dim)
    clip, clip_sha256 = load_clip(args, config, features.encoder)
    extra = {"settings": vars(args), "lists": lists.to_plain(), "encoder": features.encoder,
             "temporal_encoder": temporal and temporal.encoder, "clip_sha256": clip_sha256}
    checkpoint = load_resumed(last, config, extra)

    torch.manual_seed(args.seed)
    model = build_model(config, clip, {} if checkpoint else make_prototypes(lists, features, temporal)).to(device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    released = config.variant == "released"
    betas = (0.9, 0.999 if released else 0.98)  # the released code leaves PyTorch's default; App. B says 0.98
    optimizer = torch.optim.AdamW(trainable, lr=args.lr, betas=betas, eps=1e-8, weight_decay=0.2)
    first_epoch = restore(checkpoint, model, optimizer, device) if checkpoint else 0
    trim_log(log, first_epoch)

    loader = make_loader(args, config, lists, features, temporal, device)
    forward = torch.compile(model) if args.compile else model
    num_normal = sum(v.label < 0 for v in lists.train)
    print(f"{args.dataset}: {len(lists.train) - num_normal} abnormal and {num_normal} normal videos, {len(lists.classes)} "
          f"classes, {sum(p.numel() for p in trainable):,} trainable parameters, {len(loader)} steps an epoch on {device}")
    schedule = partial(learning_rate, steps_per_epoch=len(loader), epochs=args.epochs, peak=args.lr, released=released)

    for epoch in range(first_epoch, args.epochs):
        start = time.perf_counter()
        loader.batch_sampler.set_epoch(epoch)
        first_step = epoch * len(loader)
        losses = train_epoch(model, forward, loader, optimizer, schedule, first_step, args, device)
        record = {"epoch": epoch + 1, "lr": schedule(first_step), "seconds": time.perf_counter() - start, "losses": losses}
        report(log, record, args.epochs, config)
        save(last, model, optimizer, epoch + 1, device, extra)
    print(f"checkpoint: {last}")
    if args.evaluate:
        import evaluate

        return evaluate.main(["--ckpt", str(last), "--device", device])
    print(f"next: python evaluate.py --ckpt {last}")


if __name__ == "__main__":
    run_script(main)
