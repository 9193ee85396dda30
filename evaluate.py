"""Evaluates a checkpoint of train.py, frame by frame, on its test videos.

    python evaluate.py --ckpt runs/x/last.pt
    python evaluate.py --ckpt runs/x/last.pt --rules         # beside two simple rules on the same features
    python evaluate.py --ckpt released.ckpt --dataset ucfcrime --root data/UCFCrime   # a checkpoint of the paper's authors

Everything but the features is in the checkpoint. Writes into OUT: metrics.json, scores.npz (per video NAME.p_A (frames,)
and NAME.p_class (frames, classes)), roc.png, pr.png, confusion.png and timelines/*.png.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import InputError, run_script, write_atomically


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", required=True, help="checkpoint that train.py wrote, or with --dataset one of the paper's authors")
    add("--dataset", choices=("shanghaitech", "ucfcrime", "xdviolence"),
        help="the checkpoint is the authors' for this data set; its prototype is ncentroid.pt beside it, or computed anew")
    add("--root", help="with --dataset: folder of the lists and features")
    add("--convert", metavar="OUT.pt", help="write the authors' checkpoint as one of this project instead of evaluating it")
    add("--features", help="folder of .npy features (default: the one of the training)")
    add("--temporal-features", help="the Temporal model's own features, if it has any (default: those of the training)")
    add("--out", help="output folder (default: eval beside the checkpoint)")
    add("--rules", action="store_true", help="also evaluate two simple rules: distance to the normality prototype, and a "
        "logistic regression of single frames on the labels of their videos")
    add("--timelines", type=int, default=16, help="videos drawn as timelines, all classes in turn (default: 16)")
    add("--batch-size", type=int, default=16, help="passes of S * F rows per forward call (default: 16)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    args = parser.parse_args(argv)
    for name, least in (("batch_size", 1), ("timelines", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {least}")
    if (args.dataset is None) != (args.root is None) or args.convert and not args.dataset:
        raise InputError("--dataset and --root go together, and --convert with them: they are for checkpoints of the authors")
    return args


class Scores(NamedTuple):
    """Of one video, per frame."""

    p_A: np.ndarray  # (N,)
    p_class: np.ndarray | None  # (N, C); None where a rule knows no classes
    labels: np.ndarray  # (N,), -1 normal


def load_checkpoint(args) -> tuple:
    """The checkpoint's dict and its model, of this project's making or of the authors'."""
    from anomalyclip import AnomalyCLIP, read_checkpoint

    try:
        if args.dataset:
            import released

            checkpoint = released.load(args.ckpt, args.dataset, args.root, args.features)
        else:
            checkpoint = read_checkpoint(args.ckpt, "lists", "settings", "encoder", "epoch")
        return checkpoint, AnomalyCLIP.from_dict(checkpoint)
    except ValueError as error:
        raise InputError(str(error)) from None


def open_folders(args, checkpoint: dict):
    """Feature folders of the checkpoint's training, or those given; their encoders must be the same."""
    from data import FeatureFolder

    settings, folders = checkpoint["settings"], []
    for given, name, encoder in ((args.features, "features", "encoder"),
                                 (args.temporal_features, "temporal_features", "temporal_encoder")):
        path = given or settings[name] or (settings["root"] if name == "features" else None)
        prefix = name.removesuffix("features")
        if path and not Path(path).is_dir():
            raise InputError(f"{path}: is no folder, expected the one with the features; give --{name.replace('_', '-')}")
        folder = path and FeatureFolder(path, frames_per_feature=settings[f"{prefix}frames_per_feature"], crops=settings["crops"])
        if folder and folder.encoder and checkpoint[encoder] and folder.encoder != checkpoint[encoder]:
            raise InputError(f"{path}: found features of {folder.encoder}, expected those of the training, {checkpoint[encoder]}")
        folders.append(folder or None)
    return folders


def score_videos(predict, videos, features, temporal=None) -> dict[str, Scores]:
    """Runs predict(rows of a video[, rows of its other features]) on every video and spreads the rows over its frames."""
    from tqdm import tqdm

    from annotations import frame_labels
    from data import matching_rows

    scores = {}
    for video in tqdm(videos, unit="video", leave=False, disable=not sys.stderr.isatty()):
        rows = features.open(video.name)  # (N, crops, D)
        others = () if temporal is None else (matching_rows(temporal, video.name, len(rows), features.frames_per_feature),)
        num_frames = min(features.num_frames(video.name), len(rows) * features.frames_per_feature)
        row_of_frame = np.arange(num_frames) // features.frames_per_feature
        p_A, p_class = predict(rows, *others)
        if not np.isfinite(p_A).all():
            raise InputError(f"{video.name}: found features that are infinite or not a number, expected finite ones")
        scores[video.name] = Scores(p_A[row_of_frame], None if p_class is None else p_class[row_of_frame],
                                    frame_labels(video, num_frames))
    return scores


def frame_metrics(scores: dict[str, Scores], classes) -> dict:
    """Metrics over all frames of all videos; a rule without classes has AUC and AP alone."""
    from anomalyclip import auc_ap, metrics

    p_A, labels = (np.concatenate([getattr(s, name) for s in scores.values()]) for name in ("p_A", "labels"))
    if next(iter(scores.values())).p_class is None:
        return auc_ap(p_A, labels >= 0)
    return metrics(p_A, np.concatenate([s.p_class for s in scores.values()]), labels, classes)


def evaluate_rules(lists, model, features) -> dict[str, dict]:
    """Metrics of the two simple rules, on the same videos and features."""
    import baselines

    prototype = model.prototype.cpu().numpy()
    rules = {"distance to the prototype": lambda rows: (baselines.distance_to_prototype(rows, prototype), None),
             "logistic regression": baselines.FrameLogisticRegression(lists.train, features, len(lists.classes)).predict}
    return {name: frame_metrics(score_videos(rule, lists.test, features), lists.classes) for name, rule in rules.items()}


def percent(value: float | None) -> str:
    return "absent" if value is None else f"{100 * value:.2f}"


def table(results: dict, rules: dict[str, dict]) -> str:
    """The headline metrics in per cent, the simple rules, then each class."""
    keys = ("AUC", "AP", "mAUC", "mAP")
    lines = [f"{'':28}" + "".join(f"{key:>8}" for key in keys)]
    for name, values in ({"AnomalyCLIP": results} | rules).items():
        lines.append(f"{name:28}" + "".join(f"{percent(values[key]) if key in values else '':>8}" for key in keys))
    lines.append(f"\n{'class':28}{'AUC':>8}{'AP':>8}{'frames':>10}")
    for name, values in results["per_class"].items():
        lines.append(f"{name:28}{percent(values['AUC']):>8}{percent(values['AP']):>8}{values['frames']:>10,}")
    normal = results["frames"] - results["anomalous_frames"]
    return "\n".join([*lines, f"{'(normal frames)':28}{'':16}{normal:>10,}"])


def write_results(out: Path, results: dict, scores: dict[str, Scores]) -> None:
    arrays = {f"{name}.{key}": getattr(s, key) for name, s in scores.items() for key in ("p_A", "p_class")}
    write_atomically(out / "scores.npz", lambda file: np.savez(file, **arrays))
    write_atomically(out / "metrics.json", lambda file: file.write(json.dumps(results, indent=1).encode()))


def draw(out: Path, scores: dict[str, Scores], lists, num_timelines: int) -> None:
    import plots

    p_A, p_class, labels = (np.concatenate(values) for values in zip(*scores.values()))
    plots.roc_curves(out / "roc.png", p_A, p_class, labels, lists.classes)
    plots.pr_curves(out / "pr.png", p_A, p_class, labels, lists.classes)
    plots.confusion_matrix(out / "confusion.png", p_A, p_class, labels, lists.classes)
    for name in plots.pick_videos(lists.test, num_timelines):
        plots.timeline(out / "timelines" / f"{name}.png", name, *scores[name], lists.classes)


def main(argv=None) -> None:
    args = parse_args(argv)
    import torch

    from annotations import VideoLists
    from data import check_device, check_features

    checkpoint, model = load_checkpoint(args)
    if args.convert:
        write_atomically(args.convert, lambda file: torch.save(checkpoint, file))
        return print(f"converted: {args.convert}")
    model = model.to(check_device(args.device)).eval()
    torch.backends.cudnn.allow_tf32 = False  # scores as on a CPU
    lists = VideoLists.from_plain(checkpoint["lists"])
    features, temporal = open_folders(args, checkpoint)
    check_features(features, lists.test, temporal)
    if args.rules:
        check_features(features, lists.train)
    for folder, dim in ((features, model.config.feature_dim), (temporal, model.config.temporal_feature_dim)):
        if (folder and folder.dim) != dim:
            raise InputError(f"{folder and folder.root}: found features of {folder and folder.dim} values, expected {dim} as in "
                             f"{args.ckpt}")

    def predict(*rows):
        return model.predict(*rows, batch_size=args.batch_size)

    scores = score_videos(predict, lists.test, features, temporal)
    results = frame_metrics(scores, lists.classes)
    rules = evaluate_rules(lists, model, features) if args.rules else {}
    print(f"{args.ckpt}: epoch {checkpoint['epoch']}, {len(lists.test)} test videos, {results['frames']:,} frames, per cent")
    print(table(results, rules))
    out = Path(args.out or Path(args.ckpt).parent / "eval")
    write_results(out, results | {"rules": rules, "videos": len(scores), "epoch": checkpoint["epoch"]}, scores)
    draw(out, scores, lists, args.timelines)
    print(f"metrics, scores and pictures: {out}")


if __name__ == "__main__":
    run_script(main)
