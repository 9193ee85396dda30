"""Evaluates a checkpoint of train.py, frame by frame, on its test videos.

    python evaluate.py --ckpt runs/x/last.pt python evaluate.py --ckpt runs/x/last.pt --rules         # beside two
    simple rules on the same features python evaluate.py --ckpt runs/x/last.pt --projections   # and draw what
    re-centring does (Fig. 2a) python evaluate.py --ckpt released.ckpt --dataset ucfcrime --root data/UCFCrime   # a
    checkpoint of the paper's authors

Everything but the features is in the checkpoint. Writes into OUT: metrics.json, scores.npz (per video NAME.p_A
(frames,) and NAME.p_class (frames, classes)), roc.png, pr.png, confusion.png and timelines/*.png.
"""

import argparse
import json
from pathlib import Path

from videoanomaly.evaluation.evaluator import evaluate_checkpoint
from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.weights.checkpoints import load_checkpoint


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--ckpt",
        required=True,
        nargs="+",
        help="checkpoints that train.py wrote, or with --dataset those of the paper's "
        "authors; of several, such as seeds, also mean and standard deviation",
    )
    add(
        "--dataset",
        choices=("shanghaitech", "ucfcrime", "xdviolence"),
        help="the checkpoint is the authors' for this data set; its prototype is ncentroid.pt beside it, or computed anew",
    )
    add("--root", help="with --dataset: folder of the lists and features")
    add(
        "--convert",
        metavar="OUT.pt",
        help="write the authors' checkpoint as one of this project instead of evaluating it",
    )
    add("--features", help="folder of .npy features (default: the one of the training)")
    add("--temporal-features", help="the Temporal model's own features, if it has any (default: those of the training)")
    add(
        "--out",
        help="output folder (default: eval beside the checkpoint); several checkpoints get a folder in it each, and "
        "recognition.png compares them",
    )
    add(
        "--rules",
        action="store_true",
        help="also evaluate two simple rules: distance to the normality prototype, and a "
        "logistic regression of single frames on the labels of their videos",
    )
    add(
        "--projections",
        action="store_true",
        help="draw projections.png: where normal and abnormal frames lie along each "
        "direction, before and after re-centring",
    )
    add(
        "--vadclip-map",
        action="store_true",
        help="also the mAP of events as VadCLIP's published evaluation computes it",
    )
    add("--bootstrap", type=int, default=1000, help="draws of videos behind the 95%% intervals (default: 1000)")
    add("--fps", type=float, default=30.0, help="frames per second where meta.json does not tell (default: 30)")
    add("--json", help="write all numbers of all checkpoints into this file")
    add("--csv", help="the same as CSV, a column per checkpoint")
    add("--markdown", help="the tables as Markdown")
    add("--videos", help="folder of the video files: puts key frames into the timelines")
    add("--timelines", type=int, default=16, help="videos drawn as timelines, all classes in turn (default: 16)")
    add("--batch-size", type=int, default=16, help="passes of S * F rows per forward call (default: 16)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    args = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("timelines", 0), ("bootstrap", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {least}")
    if not args.fps > 0:
        raise InputError(f"--fps {args.fps}: expected a positive number")
    if (args.dataset is None) != (args.root is None) or args.convert and not args.dataset:
        raise InputError(
            "--dataset and --root go together, and --convert with them: they are for checkpoints of the authors"
        )
    return args


def draw_bars(path: Path, runs: dict[str, dict]) -> None:
    """mAUC and mAP of several checkpoints (Fig. 1 of the paper), a bar for each."""
    from videoanomaly import plots

    labels = [f"{results['system']}, {Path(ckpt).parent.name}" for ckpt, results in runs.items()]
    values = {
        metric: [[100 * results[metric]] if results[metric] is not None else [] for results in runs.values()]
        for metric in ("mAUC", "mAP")
    }
    plots.row_bars(path, labels, values, {}, title="Recognition of classes", paper_label="")
    print(f"picture: {path}")


def main(argv=None) -> None:
    keep_freed_memory()
    args = parse_args(argv)
    if args.convert:
        import torch

        checkpoint, _ = load_checkpoint(args.ckpt[0], args)
        write_atomically(args.convert, lambda file: torch.save(checkpoint, file))
        return print(f"converted: {args.convert}")
    from videoanomaly.evaluation import tables

    folders = [
        Path(args.out, str(i)) if args.out and len(args.ckpt) > 1 else Path(args.out or Path(ckpt).parent / "eval")
        for i, ckpt in enumerate(args.ckpt)
    ]
    runs = {}
    for ckpt, folder in zip(args.ckpt, folders):
        with lock_folder(folder):  # which also tells at once whether it can be written
            runs[ckpt] = evaluate_checkpoint(ckpt, args, folder)
    if len(runs) > 1:
        print(tables.align(tables.run_rows(runs)))
        if args.out:
            draw_bars(Path(args.out, "recognition.png"), runs)
    contents = {
        args.json: lambda: json.dumps(runs, indent=1),
        args.csv: lambda: tables.to_csv(runs),
        args.markdown: lambda: tables.to_markdown(tables.all_rows(runs)),
    }
    for path, text in contents.items():
        if path:
            write_atomically(path, lambda file: file.write(text().encode()))
            print(f"table: {path}")


if __name__ == "__main__":
    run_script(main)
