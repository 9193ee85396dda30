"""Everything about one checkpoint on its test videos: numbers, files and pictures."""

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np

from videoanomaly.plots import class_bars, confusion_matrix, pr_curves, reliability, roc_curves, timeline
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.processes import check_device
from videoanomaly.weights.checkpoints import load_checkpoint, open_folders


def evaluate_checkpoint(ckpt: str, args, out: Path) -> dict:
    """Everything about one checkpoint: files into `out`, a table on the screen, the results as a dict."""
    import torch

    from anomalyclip import AnomalyCLIP
    from videoanomaly import plots
    from videoanomaly.data.annotations import VideoLists
    from videoanomaly.data.features import check_features
    from videoanomaly.evaluation import metrics, projections, scoring, tables

    checkpoint, model = load_checkpoint(ckpt, args)
    if args.projections and model.NAME != AnomalyCLIP.NAME:
        raise InputError(
            f"--projections: found {model.NAME} in {ckpt}, expected AnomalyCLIP, whose directions lead from a prototype"
        )
    model = model.to(check_device(args.device)).eval()
    torch.backends.cudnn.allow_tf32 = False  # scores as on a CPU
    lists = VideoLists.from_plain(checkpoint["lists"])
    features, temporal = open_folders(args, checkpoint)
    check_features(features, lists.test, temporal)
    if args.rules:
        check_features(features, lists.train)
    for folder, dim in ((features, model.config.feature_dim), (temporal, model.config.temporal_feature_dim)):
        if (folder and folder.dim) != dim:
            raise InputError(
                f"{folder and folder.root}: found features of {folder and folder.dim} values, expected {dim} as "
                f"in {ckpt}"
            )
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
    print(
        f"{ckpt}: epoch {checkpoint['epoch']}, {len(lists.test)} test videos, {results['frames']:,} frames, per cent with "
        f"95% intervals\n{tables.summary(results)}"
    )
    if args.projections:
        plots.projections(out / "projections.png", *projections.projections(model, lists.test, features), lists.classes)
    draw_all(out, results, scores, lists, num_timelines=args.timelines, videos=args.videos)
    write_atomically(
        out / "metrics.json", lambda file: file.write(json.dumps(results, indent=1).encode())
    )  # all else is there
    print(f"metrics, scores and pictures: {out}\n")
    return results


def pick_videos(videos, num_videos: int) -> list[str]:
    """Names of up to num_videos videos: the first of each label, then the second, and so on."""
    groups: dict[int, list[str]] = {}
    for video in videos:
        groups.setdefault(video.label, []).append(video.name)
    turns = itertools.zip_longest(*(groups[label] for label in sorted(groups)))
    return [name for turn in turns for name in turn if name is not None][:num_videos]


def draw_all(out: Path, results: dict, scores: dict, lists, *, num_timelines: int, videos: str | None) -> None:
    """All pictures of an evaluation.

    Args:
        results: What metrics.json holds. scores: scoring.Scores of each video.
        videos: Folder of the video files, for key frames in the timelines.
    """
    p_A, p_class, labels = (np.concatenate(values) for values in zip(*scores.values()))
    roc_curves(out / "roc.png", p_A, p_class, labels, lists.classes)
    pr_curves(out / "pr.png", p_A, p_class, labels, lists.classes)
    confusion_matrix(out / "confusion.png", p_A, p_class, labels, lists.classes)
    reliability(out / "reliability.png", p_A, labels)
    for key in ("AUC", "AP"):
        class_bars(out / f"class_{key.lower()}.png", results["per_class"], results["intervals"]["per_class"], key)
    for name in pick_videos(lists.test, num_timelines):
        pictures = []
        if videos:
            from videoanomaly.video.key_frames import pictures_of

            pictures = pictures_of(videos, name, scores[name].p_A)
        timeline(out / "timelines" / f"{name}.png", name, *scores[name], lists.classes, pictures)
