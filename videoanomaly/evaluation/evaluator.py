"""Everything about one checkpoint on its test videos: numbers, files and pictures."""

import itertools
import sys
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomalyclip import AnomalyCLIP, AnomalyCLIPConfig
from videoanomaly import plots
from videoanomaly.data.annotations import Video, VideoLists, note_rare_classes
from videoanomaly.data.datasets import DATASETS
from videoanomaly.data.features import FeatureFolder, check_features
from videoanomaly.evaluation import metrics, scoring, tables
from videoanomaly.evaluation.projections import projections
from videoanomaly.evaluation.rules import evaluate_rules
from videoanomaly.evaluation.scoring import Scores, class_masks, of_classes
from videoanomaly.operating_curve import OperatingCurve
from videoanomaly.runtime.console import InputError, as_text
from videoanomaly.runtime.fast_precision import choose_precision
from videoanomaly.runtime.files import write_json
from videoanomaly.runtime.precision import FULL
from videoanomaly.runtime.processes import check_device
from videoanomaly.runtime.provenance import provenance_text
from videoanomaly.video.decoding import BROKEN
from videoanomaly.video.key_frames import find_video, peak_frames, read_frames
from videoanomaly.weights.checkpoints import load_model, open_folders
from videoanomaly.winograd import narrow


@dataclass(frozen=True)
class EvaluationOptions:
    """What evaluate.py can be asked for; see its --help."""

    dataset: str | None = None  # with root: the checkpoint is the authors' for this data set
    root: str | None = None
    features: str | None = None
    temporal_features: str | None = None
    rules: bool = False
    projections: bool = False
    vadclip_map: bool = False
    bootstrap: int = 1000  # draws
    fps: float | None = None  # where meta.json does not tell
    videos: str | None = None
    timelines: int = 16
    batch_size: int = 16  # passes
    device: str | None = None
    precision: str = FULL  # of the Temporal model


def evaluate_checkpoint(ckpt: str, out: Path, options: EvaluationOptions) -> dict:
    """Everything about one checkpoint: files into `out`, a table on the screen, the results as a dict."""
    given = {"dataset": options.dataset, "root": options.root, "features": options.features}
    checkpoint, model = load_model(ckpt, **given)
    if options.projections and not isinstance(model, AnomalyCLIP):
        raise InputError(
            f"--projections: found {model.NAME} in {ckpt}, expected AnomalyCLIP, whose directions lead from a prototype"
        )
    device = check_device(options.device)
    model, precision = model.to(device).eval(), choose_precision(options.precision, device)
    narrow(model, getattr(torch, precision))
    torch.backends.cudnn.allow_tf32 = False  # scores as on a CPU
    lists = VideoLists.from_plain(checkpoint["lists"])
    if not lists.test:
        raise InputError(
            f"{ckpt}: was trained without test videos, expected some with the frames of their anomalies: train with "
            "videos in a folder test/CLASS, too, or in test.txt, and temporal_annotations.txt (docs/videos.md)"
        )
    features, temporal = open_folders(checkpoint, options.features, options.temporal_features)
    check_folders(ckpt, model.config, lists, features, temporal, rules=options.rules)
    note_rare_classes(ckpt, lists)
    predict = partial(model.predict, batch_size=options.batch_size)
    scores = scoring.score_videos(predict, lists.test, features, temporal)
    rates = [features.frame_rate(video.name, options.fps) for video in lists.test]
    threshold = checkpoint.get("threshold") or 0.5
    results = scoring.all_metrics(scores, lists.classes, rates, threshold=threshold, num_draws=options.bootstrap)
    results |= {"epoch": checkpoint["epoch"], "system": model.NAME, "precision": precision}
    if curve := checkpoint.get("operating_curve"):
        results["promised"] = OperatingCurve.from_plain(curve).at(threshold)
    results["rules"] = evaluate_rules(lists, model, features) if options.rules else {}
    if options.vadclip_map:
        dataset = DATASETS.get(checkpoint["settings"].get("dataset"))
        normal = dataset is not None and dataset.normal_segments
        results["vadclip"] = metrics.vadclip_map(list(scores.values()), lists.classes, normal_segments=normal)
    scoring.write_scores(out / "scores.npz", scores)
    print(
        f"{as_text(ckpt)}: epoch {checkpoint['epoch']}, {len(lists.test)} test videos, {results['frames']:,} frames, "
        f"per cent with 95% intervals\n{tables.summary(results)}"
    )
    if made := checkpoint.get("provenance"):
        print(f"made by {provenance_text(made)}")
    write_json(out / "metrics.json", results)
    if options.projections and isinstance(model, AnomalyCLIP):
        plots.projections(out / "projections.png", *projections(model, lists.test, features), lists.classes)
    draw_all(out, results, scores, lists, num_timelines=options.timelines, videos=options.videos)
    print(f"metrics, scores and pictures: {as_text(str(out))}\n")
    return results


def check_folders(
    ckpt: str,
    config: AnomalyCLIPConfig,
    lists: VideoLists,
    features: FeatureFolder,
    temporal: FeatureFolder | None,
    *,
    rules: bool,
) -> None:
    """Looks at every feature file that the work needs; the simple rules learn from the training videos."""
    check_features(features, lists.test, temporal)
    if rules:
        check_features(features, lists.train)
    for folder, dim in ((features, config.feature_dim), (temporal, config.temporal_feature_dim)):
        if (found := folder and folder.dim) != dim:
            place = folder and folder.root
            raise InputError(f"{place}: found features of {found} values, expected {dim} as in {ckpt}")


def surest(scores: Path, videos: list[Video]) -> str:
    """Name of the abnormal video with the highest p_A in a file of scores, whose report has something to show."""
    with np.load(scores) as arrays:
        return max((v.name for v in videos if v.label >= 0), key=lambda name: arrays[f"{name}.p_A"].max())


def timeline_pictures(folder: str, name: str, p_A: np.ndarray) -> list[tuple[int, Image.Image]]:
    """(frame number, picture) of the highest score in each of six equal stretches of a video, if its file is there."""
    spellings = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))  # Linux's, a Mac's
    path, pictures = next(filter(None, (find_video(folder, spelling) for spelling in spellings)), None), []
    if path is None:
        return []
    try:
        for found in read_frames(path, peak_frames(p_A, (), 6)):
            pictures.append(found)
    except BROKEN as error:
        print(as_text(f"no key frames of {path}: {error}"), file=sys.stderr)
    return pictures


def pick_videos(videos: list[Video], num_videos: int) -> list[str]:
    """Names of up to num_videos videos: the first of each label, then the second, and so on."""
    groups: dict[int, list[str]] = {}
    for video in videos:
        groups.setdefault(video.label, []).append(video.name)
    turns = itertools.zip_longest(*(groups[label] for label in sorted(groups)))
    return [name for turn in turns for name in turn if name is not None][:num_videos]


def draw_all(
    out: Path, results: dict, scores: dict[str, Scores], lists: VideoLists, *, num_timelines: int, videos: str | None
) -> None:
    """All pictures of an evaluation.

    Args:
        results: What metrics.json holds. scores: scoring.Scores of each video.
        videos: Folder of the video files, for key frames in the timelines.
    """
    p_A, p_class, _ = (np.concatenate(values) for values in zip(*scores.values()))
    truth = np.concatenate([class_masks(found) for found in scores.values()])
    plots.roc_curves(out / "roc.png", p_A, p_class, truth, lists.classes)
    plots.pr_curves(out / "pr.png", p_A, p_class, truth, lists.classes)
    plots.confusion_matrix(out / "confusion.png", p_A, p_class, truth, lists.classes)
    plots.reliability(out / "reliability.png", p_A, truth)
    for key in ("AUC", "AP"):
        plots.class_bars(out / f"class_{key.lower()}.png", results["per_class"], results["intervals"]["per_class"], key)
    for name in pick_videos(lists.test, num_timelines):
        pictures = timeline_pictures(videos, name, scores[name].p_A) if videos else []
        found = scores[name]
        path = out / "timelines" / f"{name}.png"
        plots.timeline(path, name, found.p_A, of_classes(found), class_masks(found), lists.classes, pictures)
