"""Cross-fitting: each training video is scored by a model that has not seen it, nor another video of its source.

What a threshold will do to videos that come later is read off these scores (operating_curve.py): the scores of the
model's own training videos flatter it. K folds, V training videos, N frames, C anomaly classes.
"""

import itertools
import json
import time
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from anomalyclip import AnomalyCLIPConfig
from videoanomaly import plots
from videoanomaly.clip_weights import load_prompts_clip
from videoanomaly.data.annotations import Video, VideoLists, video_name
from videoanomaly.data.training_data import TrainingData
from videoanomaly.evaluation.scoring import Scores, alarm_threshold, score_videos
from videoanomaly.evaluation.tables import align, threshold_rows
from videoanomaly.operating_curve import OperatingCurve, Watched, measure
from videoanomaly.runtime.console import InputError, count, note
from videoanomaly.runtime.files import read_lines, write_atomically
from videoanomaly.runtime.memory import copies_that_fit
from videoanomaly.runtime.processes import any_rank
from videoanomaly.runtime.side_by_side import side_by_side
from videoanomaly.runtime.torchrun import is_main, rank_and_world
from videoanomaly.settings import TrainingSettings
from videoanomaly.systems.base import Trainable
from videoanomaly.systems.catalogue import build, make_optimizer
from videoanomaly.training.epochs import make_training, train_epoch
from videoanomaly.weights.checkpoints import ANYTIME, NOT_BEGUN
from videoanomaly.winograd import accelerate

HELD_OUT = "held_out.npz"


def sources(videos: Sequence[Video], root: str | Path, separator: str | None) -> list[str]:
    """What each video comes from, (V,): videos of one source are never in different folds.

    Args:
        root: Its groups.txt, if there is one, has a line `video source` for each training video.
        separator: Without such a file: the source is the file's name up to the first one; None: each video is its own.
    """
    path, stems = Path(root, "groups.txt"), [video.name.rpartition("/")[2] for video in videos]
    if not path.exists():
        return [video.name if separator is None else stem.split(separator)[0] for video, stem in zip(videos, stems)]
    told = {}
    for where, line in read_lines(path):
        name, *source = line.rsplit(None, 1)
        if not source:
            raise InputError(f"{where}: found {line!r}, expected 'video source'")
        told[video_name(where, name)] = source[0]
    if missing := next((video.name for video in videos if video.name not in told), None):
        raise InputError(f"{path}: found no line for {missing}, expected one for each training video")
    return [told[video.name] for video in videos]


def split(labels: Sequence[int], groups: Sequence[str], num_folds: int, seed: int) -> np.ndarray | None:
    """Number of each video's fold, (V,): classes spread evenly, groups kept together.

    Fewer folds where there are fewer groups with normal or with abnormal videos; None where not even two can be made.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    labels_of, abnormal = np.asarray(labels), np.asarray(labels) >= 0
    kinds = [len({group for group, is_kind in zip(groups, kind) if is_kind}) for kind in (abnormal, ~abnormal)]
    num_folds = min(num_folds, *(n for n in kinds if n))
    if num_folds < 2:
        return None
    folds = np.zeros(len(labels_of), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer videos than folds
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        kind_of = labels_of if np.unique(labels_of, return_counts=True)[1].max() >= num_folds else abnormal
        for k, (_, held_out) in enumerate(splitter.split(labels_of, kind_of, groups)):
            folds[held_out] = k
    for k in range(num_folds):  # a fold's training needs both kinds
        if any(kind.any() and not kind[folds != k].any() for kind in (abnormal, ~abnormal)):
            return None
    return folds


class Folds(NamedTuple):
    """How the training videos are split."""

    groups: list[str]  # their `sources`
    numbers: np.ndarray  # of the fold of each, (V,)


def plan_folds(settings: TrainingSettings, videos: Sequence[Video]) -> Folds | None:
    """The folds that the settings ask for; None if they ask for none, or if none can be made, which one line tells."""
    if not settings.folds:
        return None
    groups, labels = sources(videos, settings.root, settings.group_by), [video.label for video in videos]
    numbers = split(labels, groups, settings.folds, settings.seed)
    if numbers is not None:
        return Folds(groups, numbers)
    kinds = {"normal": [label < 0 for label in labels], "abnormal": [label >= 0 for label in labels]}
    found = [
        f"{count(len(set(itertools.compress(groups, kind))), 'source')} of {name} videos"
        for name, kind in kinds.items()
        if any(kind)
    ]
    if is_main():
        note(
            f"note: --folds {settings.folds}: found {' and '.join(found)}, which cannot be split so that each part "
            "leaves some to learn from; trains without folds"
        )
    return None


def train_fold(
    settings: TrainingSettings, config: AnomalyCLIPConfig, data: TrainingData, clip: dict, device: str, signals: list
) -> Trainable | None:
    """A model of some of the training videos, made as train.py makes that of all; None if a signal stopped it."""
    torch.manual_seed(settings.seed)
    model = build(settings.model, config, **clip, **settings.system.learn(data, settings.seed)).to(device)
    accelerate(model)
    if settings.epochs:
        optimizer = make_optimizer(model, settings.lr, released=config.variant == "released")
        training = make_training(settings, config, model, optimizer, data, device)
        for epoch in range(settings.epochs):
            train_epoch(training, epoch, NOT_BEGUN, signals)
            if any_rank(bool(signals)):
                return None
    if is_main():
        model.finish(data)
    return model.eval()


class HeldOut:
    """OUT/held_out.npz: NAME.p_A (N,) and NAME.p_class (N, C) of the videos scored so far, and how they were split."""

    def __init__(self, path: Path, made_with: str):
        self.path, self.arrays = path, {"made_with": np.array(made_with)}
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["made_with"]) == made_with:
                    self.arrays = dict(file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # none yet, or one that is made anew

    def __contains__(self, video: Video) -> bool:
        return f"{video.name}.p_A" in self.arrays

    def add(self, scores: dict) -> None:
        for name, found in scores.items():
            self.arrays |= {f"{name}.p_A": found.p_A, f"{name}.p_class": found.p_class}
        write_atomically(self.path, lambda file: np.savez(file, allow_pickle=False, **self.arrays))

    def watched(self, video: Video, fps: float, source: str, fold: int) -> Watched:
        p_A, p_class = (self.arrays[f"{video.name}.{kind}"] for kind in ("p_A", "p_class"))
        return Watched(video.label, p_A, p_class, fps, source, fold)


class FoldScores(NamedTuple):
    """What a fold's model makes of the videos that it has not seen."""

    scores: dict[str, Scores] | None  # by name; None in other processes of torchrun, or if a signal stopped it
    seconds: float


def score_fold(
    settings: TrainingSettings,
    config: AnomalyCLIPConfig,
    data: TrainingData,
    numbers: np.ndarray,
    clip: dict,
    device: str,
    signals: list,
    k: int,
) -> FoldScores:
    """Trains on all folds but number k, whose videos it scores; the arguments are those of `cross_fit`."""
    start, videos = time.monotonic(), data.lists.train
    rest = VideoLists(data.lists.classes, [v for v, fold in zip(videos, numbers) if fold != k], [])
    with torch.random.fork_rng():
        model = train_fold(settings, config, data._replace(lists=rest), clip, device, signals)
    scores = None
    if model is not None and is_main():
        unseen = [v for v, fold in zip(videos, numbers) if fold == k]
        scores = score_videos(model.predict, unseen, data.features, data.temporal)
    return FoldScores(scores, time.monotonic() - start)


def score_fold_alone(
    settings: TrainingSettings, config: AnomalyCLIPConfig, data: TrainingData, numbers: np.ndarray, k: int
) -> FoldScores:
    """The same in a process of its own, which brings its own CLIP."""
    clip, _ = load_prompts_clip(settings.clip, config.directions, data.features.encoder)
    return score_fold(settings, config, data, numbers, clip, "cpu", [], k)


def folds_at_once(settings: TrainingSettings, device: str, num_folds: int) -> int:
    """How many folds to train side by side: as many as there are threads and memory for on a CPU, else one."""
    if device != "cpu" or settings.compile or not settings.workers or rank_and_world()[2] > 1:
        return 1
    return copies_that_fit(min(num_folds, torch.get_num_threads()))


def cross_fit(
    settings: TrainingSettings,
    config: AnomalyCLIPConfig,
    data: TrainingData,
    folds: Folds,
    clip: dict,
    device: str,
    signals: list,
) -> OperatingCurve | None:
    """The operating curve of the training videos, each scored by a model that has not seen it.

    OUT/held_out.npz keeps the scores of finished folds, so that a run that is gone on with trains the others alone.

    Args:
        clip: Arguments of the system that bring CLIP in.
        signals: Where one has come, see `stop_signals`, the curve is None.
    Returns:
        None, too, in other processes than the first.
    """
    videos, (groups, numbers) = data.lists.train, folds
    lasting = {name: value for name, value in settings.asdict().items() if name not in ANYTIME}
    made_with = json.dumps([lasting, numbers.tolist()], sort_keys=True)
    held_out = HeldOut(Path(settings.out, HELD_OUT), made_with)
    left = sorted({int(fold) for video, fold in zip(videos, numbers) if video not in held_out})
    at_once = folds_at_once(settings, device, len(left))
    if at_once > 1:
        alone = partial(score_fold_alone, replace(settings, workers=0), config, data, numbers)
        results = side_by_side(alone, left, at_once, max(torch.get_num_threads() // at_once, 1), signals)
    else:
        here = partial(score_fold, settings, config, data, numbers, clip, device, signals)
        results = ((k, here(k)) for k in left)
    for k, (scores, seconds) in results:
        if any_rank(bool(signals)):
            return None
        if scores is not None:
            held_out.add(scores)
            print(
                f"fold {k + 1}/{numbers.max() + 1}  {len(videos) - len(scores)} videos seen, {len(scores)} scored  "
                f"{seconds:.1f} s",
                flush=True,
            )
    if signals or not is_main():
        return None
    rates = [data.features.frame_rate(video.name) for video in videos]
    return measure([held_out.watched(*of_video) for of_video in zip(videos, rates, groups, numbers.tolist())])


def operating_point(out: Path, model: Trainable, data: TrainingData, curve: OperatingCurve | None) -> dict:
    """Entries of the checkpoint: the default threshold, and the curve if there is one, which is shown and drawn."""
    if curve is None:
        print(
            "thresholds: what they do to other videos is unknown without folds; the stored one is quiet on the normal "
            "training videos, which the model has seen"
        )
        return {"threshold": alarm_threshold(model, data.lists, data.features, data.temporal)}
    plots.operating_curve(out / "operating_curve.png", curve)
    print(f"on training videos that the model has not seen, with 95% intervals:\n{align(threshold_rows(curve))}")
    return {"threshold": curve.best_threshold(), "operating_curve": curve.to_plain()}
