"""Evaluates a checkpoint of train.py, frame by frame, on its test videos.

    python evaluate.py --ckpt runs/x/last.pt
    python evaluate.py --ckpt runs/x/last.pt --rules         # beside two simple rules on the same features
    python evaluate.py --ckpt runs/x/last.pt --projections   # and draw what re-centring does (Fig. 2a)
    python evaluate.py --ckpt released.ckpt --dataset ucfcrime --root data/UCFCrime   # the paper's authors'

Everything but the features is in the checkpoint. Writes into OUT: metrics.json, scores.npz (per video NAME.p_A
(frames,) and NAME.p_class (frames, classes)), roc.png, pr.png, confusion.png and timelines/*.png.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import argparse
from pathlib import Path

from videoanomaly.data.datasets import PUBLISHED
from videoanomaly.runtime.addresses import refuse_addresses
from videoanomaly.runtime.console import InputError, Parser, at_least, options_of, run_script
from videoanomaly.runtime.files import write_atomically, write_json
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.precision import FULL, PRECISION_HELP, PRECISIONS
from videoanomaly.runtime.run_folder import lock_folder


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
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
        choices=PUBLISHED,
        help="the checkpoint is the authors' for this data set; its prototype is ncentroid.pt beside it, or computed "
        "anew",
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
    add("--bootstrap", type=at_least(1), default=1000, help="draws of videos behind the 95%% intervals (default: 1000)")
    add("--fps", type=float, help="frames per second where meta.json does not tell (default: 30)")
    add("--json", help="write all numbers of all checkpoints into this file")
    add("--csv", help="the same as CSV, a column per checkpoint")
    add("--markdown", help="the tables as Markdown")
    add("--videos", help="folder of the video files: puts key frames into the timelines")
    add(
        "--timelines", type=at_least(0), default=16, help="videos drawn as timelines, all classes in turn (default: 16)"
    )
    add("--batch-size", type=at_least(1), default=16, help="passes of S * F rows per forward call (default: 16)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--precision", choices=PRECISIONS, default=FULL, help=PRECISION_HELP)
    args = parser.parse_args(argv)
    refuse_addresses(vars(args))
    if args.fps is not None and not args.fps > 0:
        raise InputError(f"--fps {args.fps}: expected a positive number")
    if (args.dataset is None) != (args.root is None) or args.convert and not args.dataset:
        raise InputError(
            "--dataset and --root go together, and --convert with them: they are for checkpoints of the authors"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()
    args = parse_args(argv)
    from videoanomaly.evaluation import tables
    from videoanomaly.evaluation.evaluator import EvaluationOptions, evaluate_checkpoint
    from videoanomaly.plots import recognition_bars
    from videoanomaly.weights.checkpoints import load_model, write_checkpoint

    if args.convert:
        checkpoint, _ = load_model(args.ckpt[0], dataset=args.dataset, root=args.root, features=args.features)
        write_checkpoint(args.convert, checkpoint)
        return print(f"converted: {args.convert}")
    options = options_of(EvaluationOptions, vars(args))
    runs = {}
    for i, ckpt in enumerate(args.ckpt):
        several = args.out and len(args.ckpt) > 1
        folder = Path(args.out, str(i)) if several else Path(args.out or Path(ckpt).parent / "eval")
        with lock_folder(folder):  # which also tells at once whether it can be written
            runs[ckpt] = evaluate_checkpoint(ckpt, folder, options)
    if len(runs) > 1:
        print(tables.align(tables.run_rows(runs)))
        if args.out:
            recognition_bars(path := Path(args.out, "recognition.png"), runs)
            print(f"picture: {path}")
    if args.json:
        write_json(args.json, runs)
    if args.csv:
        write_atomically(args.csv, lambda file: file.write(tables.to_csv(runs).encode()))
    if args.markdown:
        write_atomically(args.markdown, lambda file: file.write(tables.to_markdown(tables.all_rows(runs)).encode()))
    for path in filter(None, (args.json, args.csv, args.markdown)):
        print(f"table: {path}")


if __name__ == "__main__":
    run_script(main)
