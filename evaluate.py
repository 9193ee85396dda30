"""Evaluates a checkpoint of train.py, frame by frame, on its test videos.

    python evaluate.py --ckpt runs/x/last.pt
    python evaluate.py --ckpt runs/x/last.pt --rules         # beside two simple rules on the same features
    python evaluate.py --ckpt runs/x/last.pt --projections   # and draw what re-centring does (Fig. 2a)
    python evaluate.py --ckpt released.ckpt --dataset ucfcrime --root data/UCFCrime   # a checkpoint of the paper's authors

Everything but the features is in the checkpoint. Writes into OUT: metrics.json, scores.npz (per video NAME.p_A (frames,)
and NAME.p_class (frames, classes)), roc.png, pr.png, confusion.png and timelines/*.png.
"""
import argparse
import json
from functools import partial
from pathlib import Path

from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import check_device
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.weights.checkpoints import load_checkpoint, open_folders


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", required=True, nargs="+", help="checkpoints that train.py wrote, or with --dataset those of the paper's "
        "authors; of several, such as seeds, also mean and standard deviation")
    add("--dataset", choices=("shanghaitech", "ucfcrime", "xdviolence"),
        help="the checkpoint is the authors' for this data set; its prototype is ncentroid.pt beside it, or computed anew")
    add("--root", help="with --dataset: folder of the lists and features")
    add("--convert", metavar="OUT.pt", help="write the authors' checkpoint as one of this project instead of evaluating it")
    add("--features", help="folder of .npy features (default: the one of the training)")
    add("--temporal-features", help="the Temporal model's own features, if it has any (default: those of the training)")
    add("--out", help="output folder (default: eval beside the checkpoint); several checkpoints get a folder in it each, and "
        "recognition.png compares them")
    add("--rules", action="store_true", help="also evaluate two simple rules: distance to the normality prototype, and a "
        "logistic regression of single frames on the labels of their videos")
    add("--projections", action="store_true", help="draw projections.png: where normal and abnormal frames lie along each "
        "direction, before and after re-centring")
    add("--vadclip-map", action="store_true", help="also the mAP of events as VadCLIP's published evaluation computes it")
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
        raise InputError("--dataset and --root go together, and --convert with them: they are for checkpoints of the authors")
    return args


def evaluate_checkpoint(ckpt: str, args, out: Path) -> dict:
    """Everything about one checkpoint: files into `out`, a table on the screen, the results as a dict."""
    import torch

    import metrics
    import plots
    import scoring
    import tables
    from anomalyclip import AnomalyCLIP
    from videoanomaly.data.annotations import VideoLists
    from videoanomaly.data.features import check_features

    checkpoint, model = load_checkpoint(ckpt, args)
    if args.projections and model.NAME != AnomalyCLIP.NAME:
        raise InputError(f"--projections: found {model.NAME} in {ckpt}, expected AnomalyCLIP, whose directions lead from a "
                         "prototype")
    model = model.to(check_device(args.device)).eval()
    torch.backends.cudnn.allow_tf32 = False  # scores as on a CPU
    lists = VideoLists.from_plain(checkpoint["lists"])
    features, temporal = open_folders(args, checkpoint)
    check_features(features, lists.test, temporal)
    if args.rules:
        check_features(features, lists.train)
    for folder, dim in ((features, model.config.feature_dim), (temporal, model.config.temporal_feature_dim)):
        if (folder and folder.dim) != dim:
            raise InputError(f"{folder and folder.root}: found features of {folder and folder.dim} values, expected {dim} as "
                             f"in {ckpt}")
    scores = scoring.score_videos(partial(model.predict, batch_size=args.batch_size), lists.test, features, temporal)
    rates = scoring.frame_rates(features, lists.test, args.fps)
    threshold = checkpoint.get("threshold") or 0.5
    results = scoring.all_metrics(scores, lists.classes, rates, threshold=threshold, num_draws=args.bootstrap)
    results |= {"epoch": checkpoint["epoch"], "system": model.NAME}
    results["rules"] = scoring.evaluate_rules(lists, model, features) if args.rules else {}
    if args.vadclip_map:
        normal_segments = checkpoint["settings"].get("dataset") == "xdviolence"
        results["vadclip"] = metrics.vadclip_map(list(scores.values()), lists.classes, normal_segments=normal_segments)
    scoring.write_scores(out / "scores.npz", scores)
    print(f"{ckpt}: epoch {checkpoint['epoch']}, {len(lists.test)} test videos, {results['frames']:,} frames, per cent with "
          f"95% intervals\n{tables.summary(results)}")
    if args.projections:
        plots.projections(out / "projections.png", *scoring.projections(model, lists.test, features), lists.classes)
    plots.draw_all(out, results, scores, lists, num_timelines=args.timelines, videos=args.videos)
    write_atomically(out / "metrics.json", lambda file: file.write(json.dumps(results, indent=1).encode()))  # all else is there
    print(f"metrics, scores and pictures: {out}\n")
    return results


def draw_bars(path: Path, runs: dict[str, dict]) -> None:
    """mAUC and mAP of several checkpoints (Fig. 1 of the paper), a bar for each."""
    import plots

    labels = [f"{results['system']}, {Path(ckpt).parent.name}" for ckpt, results in runs.items()]
    values = {metric: [[100 * results[metric]] if results[metric] is not None else [] for results in runs.values()]
              for metric in ("mAUC", "mAP")}
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
    import tables

    folders = [Path(args.out, str(i)) if args.out and len(args.ckpt) > 1 else Path(args.out or Path(ckpt).parent / "eval")
               for i, ckpt in enumerate(args.ckpt)]
    runs = {}
    for ckpt, folder in zip(args.ckpt, folders):
        with lock_folder(folder):  # which also tells at once whether it can be written
            runs[ckpt] = evaluate_checkpoint(ckpt, args, folder)
    if len(runs) > 1:
        print(tables.align(tables.run_rows(runs)))
        if args.out:
            draw_bars(Path(args.out, "recognition.png"), runs)
    contents = {args.json: lambda: json.dumps(runs, indent=1), args.csv: lambda: tables.to_csv(runs),
                args.markdown: lambda: tables.to_markdown(tables.all_rows(runs))}
    for path, text in contents.items():
        if path:
            write_atomically(path, lambda file: file.write(text().encode()))
            print(f"table: {path}")


if __name__ == "__main__":
    run_script(main)
