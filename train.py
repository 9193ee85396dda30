"""Trains AnomalyCLIP, or a system to compare it with, on per-frame features of videos that carry one label each.

    python train.py --dataset demo                                   # rendered videos, three minutes, no files needed
    python train.py --dataset ucfcrime --root data/UCFCrime          # or shanghaitech, xdviolence
    python train.py --dataset custom --root videos                   # videos/Normal/a.mp4, videos/Fighting/b.mp4, ...
    python train.py ... --out runs/x --resume                        # go on where runs/x/last.pt stopped
    python train.py ... --normal-only                                # where there are no abnormal videos
    python train.py ... --model rtfm                                 # another system on the same features
    torchrun --nproc-per-node 8 --max-restarts 3 train.py ...        # 8 processes, one per GPU, train as one

Writes OUT/last.pt after every epoch, of 200 and more after every hundredth part, and a line per epoch to OUT/log.jsonl;
evaluate.py reads last.pt; OUT/previous.pt is the one before, from which --resume goes on if last.pt is damaged.
OUT/settings.json tells what is trained, OUT/training.json at the end what it took. Ctrl-C or SIGTERM: it finishes the
step, saves, tells how to go on there, and exits with status 130 or 143; a second Ctrl-C stops at once.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from videoanomaly.clip_weights import file_size, load_prompts_clip
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.training_data import TrainingData
from videoanomaly.demo.prepare import prepare
from videoanomaly.evaluation.evaluator import EvaluationOptions, evaluate_checkpoint, surest
from videoanomaly.runtime.addresses import refuse_addresses
from videoanomaly.runtime.console import InputError, Parser, at_least, run_script
from videoanomaly.runtime.files import write_json
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import any_rank, check_device, process_group
from videoanomaly.runtime.provenance import command_line, provenance
from videoanomaly.runtime.run_folder import (
    command,
    lock_folder,
    report,
    resume_command,
    scalar_writer,
    seconds_of,
    trim_log,
    write_settings,
)
from videoanomaly.runtime.signals import stop_signals
from videoanomaly.runtime.torchrun import is_main, local_device, rank_and_world
from videoanomaly.settings import CONFIG_FIELDS, RECIPES, TrainingSettings, make_config, resolve
from videoanomaly.systems.catalogue import SYSTEMS, build, make_optimizer, num_trained
from videoanomaly.systems.one_class import OneClassGaussian
from videoanomaly.training.cross_fitting import Folds, cross_fit, operating_point, plan_folds
from videoanomaly.training.epochs import TimeLeft, make_training, mean_losses, train_epoch
from videoanomaly.training.preparation import predict_command, ready_data
from videoanomaly.video.extraction import FOREVER
from videoanomaly.weights.checkpoints import NOT_BEGUN, check_resumed, read_earlier, restore, save
from videoanomaly.winograd import accelerate


def parse_args(argv: list[str] | None = None) -> tuple[TrainingSettings, bool]:
    """The settings, and whether to check the input alone."""
    parser = Parser(__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--dataset", required=True, choices=DATASETS, help="annotation format and preset of settings")
    add("--root", help="folder of lists and annotations; custom: or of videos, each in a folder with its class's name")
    where = "default: found under --root; custom: else OUT/features, made there of the videos"
    add("--features", help=f"folder of .npy features ({where})")
    runs = "custom: encode videos without features by this class, not by CLIP; THIS RUNS THE CODE IN THE FILE"
    add("--encoder", metavar="FILE.py:CLASS", help=runs)
    stride = "custom: encode every n-th frame (default: by number and length of the videos, docs/videos.md)"
    add("--stride", type=at_least(1), help=stride)
    add("--fps", type=float, help="custom: frames per second of videos that are folders of pictures (default: 25)")
    add("--temporal-features", help="other features for the Temporal model, such as I3D (Table 15)")
    rows = "video frames per feature row (default: as meta.json says, else 1)"
    add("--frames-per-feature", type=at_least(1), help=rows)
    add("--temporal-frames-per-feature", type=at_least(1), help="the same for --temporal-features")
    add("--crops", type=at_least(1), default=1, help="crops per frame in files of shape (N * crops, D) (default: 1)")
    add("--classes-csv", help="ShanghaiTech: CSV of video,class; released lists: CSV of id,name")
    add_config_options(parser)
    add = parser.add_argument_group("optimisation").add_argument
    add("--lr", type=float, help="peak learning rate (default: as the preset)")
    steps = "epochs; the first tenth warms up (default: as the preset; with another --model as many as take its steps)"
    add("--epochs", type=at_least(1), help=steps)
    add("--batch-size", type=int, help="videos per batch, half of them normal (default: 64)")
    add("--seed", type=at_least(0), default=0, help="seed of everything random (default: 0)")
    add("--amp", action=argparse.BooleanOptionalAction, default=False, help="bfloat16 autocast")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the model")
    add = parser.add_argument_group("what a threshold means").add_argument
    folds = "score each training video by a model of the other folds, K in all, for the table of thresholds; 0: do not"
    add("--folds", type=at_least(0), metavar="K", help=f"{folds} (default: custom 5, demo 3, else 0)")
    group_by = "videos whose file names agree up to the first TEXT, such as _, come from one source: into one fold"
    add("--group-by", metavar="TEXT", help=f"{group_by} (default: as ROOT/groups.txt says, else each its own)")
    add = parser.add_argument_group("run").add_argument
    add("--out", help="output folder (default: runs/DATASET)")
    add("--resume", action="store_true", help="go on from OUT/last.pt; start anew if there is none")
    at_end = "evaluate on the test list at the end (default: demo only)"
    add("--evaluate", action=argparse.BooleanOptionalAction, help=at_end)
    check = "look at options, lists and all features, write OUT/settings.json, and stop"
    add("--check", action="store_true", help=check)
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    readers = "processes that read features; 0: none, and folds are not trained side by side (default: 2)"
    add("--workers", type=at_least(0), default=2, help=readers)
    board = (
        "also write losses, learning rate and the evaluation's numbers there for TensorBoard, which must be installed"
    )
    add("--tensorboard", metavar="DIR", help=board)
    args = parser.parse_args(argv)
    args.resume |= int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # torchrun has started us anew
    given = vars(args)
    refuse_addresses(given)
    check_only = given.pop("check")
    settings = resolve(DATASETS[args.dataset], SYSTEMS[args.model], given)
    check_settings(settings)
    return settings, check_only


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """An option for each config field, and one for all weights of losses; None where the user gave nothing."""
    group = parser.add_argument_group("model")
    add, what = group.add_argument, group.add_mutually_exclusive_group().add_argument
    which = "what to train; the others have the settings of their papers and of systems/ (default: anomalyclip)"
    what("--model", default="anomalyclip", choices=SYSTEMS, help=which)
    alone = "learn from the normal videos alone how far from them is odd; finds anomalies, without their classes"
    what("--normal-only", dest="model", action="store_const", const=OneClassGaussian.NAME, help=alone)
    recipe = "settings of AnomalyCLIP: the paper's, or those that docs/recipe.md found to be better (default: paper)"
    add("--recipe", choices=RECIPES, help=recipe)
    clip = "CLIP whose text tower gives the directions, and that encodes: a name or a file"
    clip = f"{clip} (default: ViT-B/16; demo: its own)"
    add("--clip", help=clip)
    weights = []
    for f in CONFIG_FIELDS.values():
        if f.name.startswith("lambda_"):
            weights.append(f"{f.name.removeprefix('lambda_')}={f.default:g}")
            continue
        others = [f"; {d.name}: {d.settings[f.name]}" for d in DATASETS.values() if f.name in d.settings]
        text = f"{f.metadata['help']} (default: {f.default}{''.join(others)})"
        option = f"--{f.name.replace('_', '-')}"
        if f.type is bool:
            add(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            add(option, type=f.type, choices=f.metadata["choices"], help=text)
    text = f"weights of losses (defaults: {' '.join(weights)})"
    add("--lambdas", nargs="+", default=[], metavar="LOSS=WEIGHT", help=text)


def check_settings(settings: TrainingSettings) -> None:
    batch_size, out = settings.batch_size, Path(settings.out)
    if settings.root is None:
        raise InputError(f"--root is missing: expected the folder with the lists of --dataset {settings.dataset}")
    for name in ("encoder", "stride", "fps"):
        if name in settings.given and not DATASETS[settings.dataset].is_own:
            raise InputError(
                f"--{name}: found with --dataset {settings.dataset}, expected custom, whose videos it encodes"
            )
    if settings.fps is not None and not 0.001 <= settings.fps <= 1000:
        raise InputError(f"--fps {settings.fps}: expected 0.001 to 1000 frames/s")
    if batch_size < 2 or batch_size % 2:
        raise InputError(f"--batch-size {batch_size}: expected an even number, half of it normal videos")
    if batch_size % (twice := 2 * rank_and_world()[2]):
        raise InputError(f"--batch-size {batch_size}: expected a multiple of {twice}, twice the processes")
    earlier = next((out / name for name in ("last.pt", "previous.pt") if (out / name).exists()), None)
    if earlier and not settings.resume:
        raise InputError(f"{earlier}: found the result of an earlier run; go on with --resume, or choose another --out")
    if settings.folds == 1:
        raise InputError("--folds 1: expected 0, or 2 and more")
    if out.is_file():
        raise InputError(f"--out {settings.out}: found a file, expected a folder or a new name")
    if not settings.lr > 0:
        raise InputError(f"--lr {settings.lr}: expected a positive number")


def fit(
    settings: TrainingSettings,
    config,
    data: TrainingData,
    folds: Folds | None,
    checkpoint: dict | None,
    clip: dict,
    extra: dict,
    device: str,
    board: Callable,
) -> tuple[int, str]:
    """Trains from the folder's checkpoint or from the start, to the end or a signal.

    Args:
        checkpoint: That of the folder, to go on from.
        clip: Arguments of the system that bring CLIP in.
        extra: Entries of the checkpoint that do not change.
        board: See `scalar_writer`.
    Returns:
        The number of the signal that stopped it, 0 if none did, and how far it came.
    """
    out, system, epochs = Path(settings.out), settings.system, settings.epochs
    last = out / "last.pt"
    if checkpoint:
        check_resumed(last, checkpoint, config, extra)
    torch.manual_seed(settings.seed)
    learned = {} if checkpoint else system.learn(data, settings.seed)
    model = build(settings.model, config, **clip, **learned).to(device)
    kept = (*system.EXTRAS, "provenance")  # a run that goes on comes from where it began
    old = {name: checkpoint[name] for name in kept if name in checkpoint} if checkpoint else model.extras(data)
    extra = extra | old
    accelerate(model)
    optimizer = make_optimizer(model, settings.lr, released=config.variant == "released")
    first_epoch, begun = restore(checkpoint, model, optimizer, device) if checkpoint else (0, NOT_BEGUN)
    training = make_training(settings, config, model, optimizer, data, device) if epochs else None
    if is_main():
        trim_log(out / "log.jsonl", first_epoch)
        write_settings(out, settings.asdict())
    num_steps, parameters = len(training.loader) if training else 0, num_trained(model, epochs)
    print(
        f"{settings.dataset}: {data.num_abnormal} abnormal and {data.num_normal} normal videos, "
        f"{len(config.classes)} classes, {config.num_segments} segments of {config.num_frames} rows, "
        f"{parameters:,} trainable parameters, {num_steps} steps an epoch on {device}"
    )
    if training and data.dataset.is_own and is_main():
        training = training._replace(tell_time=TimeLeft(num_steps * epochs))
    with stop_signals() as signals:
        for epoch in range(first_epoch, epochs) if training else ():
            begun = train_epoch(training, epoch, begun, signals)
            losses, num_epochs = mean_losses(begun), epoch
            if begun["steps"] == num_steps:
                rate = training.schedule(epoch * num_steps)
                record = {"epoch": epoch + 1, "lr": rate, "seconds": begun["seconds"], "losses": losses}
                if is_main():
                    report(out / "log.jsonl", record, epochs, config)
                    board({"learning rate": rate} | {f"loss/{name}": loss for name, loss in losses.items()}, epoch + 1)
                num_epochs, begun = epoch + 1, NOT_BEGUN
            stop = any_rank(bool(signals))
            if is_main() and (stop or num_epochs % max(epochs // 100, 1) == 0 or num_epochs == epochs):
                save(last, model, optimizer, num_epochs, begun, device, extra)
            if stop:
                number = signals[0] if signals else signal.SIGTERM  # of another process
                return number, f"{num_epochs} epochs and {begun['steps']} of {num_steps} steps"
        if not checkpoint or first_epoch < epochs or "threshold" not in checkpoint:
            curve = cross_fit(settings, config, data, folds, clip, device, signals) if folds else None
            if any_rank(bool(signals)):
                return signals[0] if signals else signal.SIGTERM, f"{epochs} epochs, before the last fold"
            if is_main():
                model.finish(data)
                extra = extra | operating_point(out, model, data, curve)
                save(last, model, optimizer, epochs, NOT_BEGUN, device, extra)
    if is_main():
        took = {"segment rows": config.num_frames, "parameters": parameters}
        write_json(out / "training.json", took | {"training seconds": seconds_of(out / "log.jsonl")})
    return 0, f"{epochs} epochs"


def main(argv: list[str] | None = None) -> int | None:
    """Returns the exit status: 128 and the signal that stopped the training, if one did."""
    keep_freed_memory()
    settings, check = parse_args(argv)
    out, device = Path(settings.out), local_device(check_device(settings.device))
    board = scalar_writer(None if check else settings.tensorboard)
    dataset, lists = DATASETS[settings.dataset], None
    with process_group(device, timeout=FOREVER if dataset.is_own else None):
        earlier = read_earlier(out / "last.pt") if settings.resume else None
        if dataset.is_made:
            prepare(settings.root, settings.clip, device)
        if dataset.is_own:
            settings, lists = ready_data(settings, earlier, argv, device, check=check)
            if lists is None:
                return write_settings(out, settings.asdict()) if is_main() else None
        data = settings.open_data(lists)
        given, settings = settings, settings.for_data(data)
        config = make_config(settings, data.lists.classes, data.features.dim, data.temporal and data.temporal.dim)
        folds = plan_folds(settings, data.lists.train)
        if check:
            return write_settings(out, given.asdict()) if is_main() else None
        clip, clip_sha256 = load_prompts_clip(settings.clip, config.directions, data.features.encoder)
        known = {"clip_sha256": clip_sha256, "clip_bytes": file_size(settings.clip) if clip_sha256 else None}
        known["provenance"] = provenance(command_line("train.py", argv), data.features.encoder)
        extra = {"settings": settings.asdict()} | known | data.to_plain()
        with lock_folder(out):
            number, done = fit(settings, config, data, folds, earlier, clip, extra, device, board)
    print(f"checkpoint: {out / 'last.pt'}, after {done}")
    if number:
        print(f"stopped by {signal.Signals(number).name}; go on with: {resume_command(argv)}")
        return 128 + number
    if not is_main():
        return None
    if not data.lists.test:
        print(f"next: {predict_command(settings, out / 'last.pt')}")
        return None
    if not settings.evaluate:
        print(f"next: {command('evaluate.py', '--ckpt', out / 'last.pt')}")
        return None
    with lock_folder(out / "eval"):
        results = evaluate_checkpoint(str(out / "last.pt"), out / "eval", EvaluationOptions(device=device))
    if settings.tensorboard:
        board({f"test/{name}": value for name, value in results.items() if isinstance(value, float)}, settings.epochs)
    if data.dataset.is_made:
        video = surest(out / "eval" / "scores.npz", data.lists.test)
        use = ["--ckpt", out / "last.pt", f"{settings.root}/{video}.mp4"]
        print(f"next: {command('predict.py', *use, '--out', out / 'report')}")
    return None


if __name__ == "__main__":
    run_script(main)
