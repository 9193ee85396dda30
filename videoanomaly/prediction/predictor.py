"""Videos or features in, scores and results out."""

import sys
import time
from collections.abc import Iterator
from errno import EDQUOT, ENOSPC, EROFS
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from anomalyclip import AnomalyCLIP, Rows
from videoanomaly.data.features import load_array, matching_rows
from videoanomaly.frame_scores import FrameScores, score_frames
from videoanomaly.prediction import explain
from videoanomaly.prediction.recogniser import LoadedCheckpoint, PredictionOptions
from videoanomaly.prediction.results import (
    check_owner,
    kept_scores,
    read_result,
    result_settings,
    summary,
    write_index,
    write_results,
)
from videoanomaly.runtime.console import InputError, as_text, note
from videoanomaly.video.decoding import header_frames, why_skipped
from videoanomaly.video.encoders import Encoder, matching_encoder
from videoanomaly.video.encoding import Reading, encode_videos, interpolate, read_batches
from videoanomaly.video.finding import find_all_videos
from videoanomaly.video.picture_folder import picture_rate
from videoanomaly.weights.checkpoints import open_folders


def encoded(
    videos: dict[str, Path], options: PredictionOptions, recogniser: LoadedCheckpoint, encoder: Encoder | None = None
) -> Iterator[tuple[str, tuple[np.ndarray, Reading] | Exception]]:
    """Yields what `encode_videos` does, rows as the model takes them; a bar shows frames/s and the time left."""
    stride = options.stride or recogniser.spacing
    encoder = encoder or encoder_of(options, recogniser)
    read = partial(
        read_batches,
        to_inputs=encoder.inputs,
        stride=stride,
        batch_size=options.batch,
        pin_memory=options.device.startswith("cuda"),
        fps=picture_rate(videos.values(), options.fps),
    )
    total = sum(map(header_frames, videos.values())) // stride if sys.stderr.isatty() else None
    with tqdm(total=total, unit="frame", unit_scale=stride, disable=None) as bar:
        yield from encode_videos(videos, encoder.model, encoder.description, read, options.workers, encoder.crops, bar)


def encoder_of(options: PredictionOptions, recogniser: LoadedCheckpoint) -> Encoder:
    """The encoder of the checkpoint's features."""
    config = recogniser.model.config
    dims = config.feature_dim, config.temporal_feature_dim
    chosen: dict = {name: getattr(options, name) for name in ("clip", "encoder", "device", "precision")}
    return matching_encoder(options.ckpt, recogniser.checkpoint, dims, **chosen)


def score_rows(
    options: PredictionOptions,
    recogniser: LoadedCheckpoint,
    rows: Rows,
    *others: object,
    name: str,
    times: np.ndarray,
    fps: float,
) -> FrameScores:
    """Scores of a video's rows by frame, with the Selector's likelihood where an explanation is asked for."""
    spacing, num_frames = recogniser.spacing, len(times)
    p_A, p_class = score_frames(
        recogniser.model.predict, rows, *others, num_frames=num_frames, spacing=spacing, name=name
    )
    of_frames, model = None, recogniser.model
    assert p_class is not None, "a model knows classes"
    if options.explain and isinstance(model, AnomalyCLIP):
        of_frames = explain.likelihoods(model, rows)[np.arange(num_frames) // spacing]
    return FrameScores(p_A, p_class, times, fps, of_frames)


def fails_for_all(error: Exception) -> bool:
    """Whether the next video would fail, too: the disk is full, or not to be written to."""
    return isinstance(error, OSError) and getattr(error.__cause__ or error, "errno", None) in (ENOSPC, EDQUOT, EROFS)


def check_start_time(options: PredictionOptions, number: int) -> None:
    if options.start_time and number > 1:
        raise InputError(f"--start-time tells of one video, found {number}")


def scored(
    videos: dict[str, Path],
    folders: dict[str, Path],
    settings: dict[str, dict],
    options: PredictionOptions,
    recogniser: LoadedCheckpoint,
) -> Iterator[tuple[str, tuple[FrameScores | np.ndarray, Reading] | Exception]]:
    """Yields what `encoded` does, but first the videos that an earlier run scored, with these scores for rows."""
    todo = dict(videos)
    for name in videos:
        if not options.force and (kept := kept_scores(folders[name], settings[name], recogniser)):
            del todo[name]
            yield name, kept
    if todo:
        yield from encoded(todo, options, recogniser)


def predict_videos(sources: list[Path], options: PredictionOptions, recogniser: LoadedCheckpoint) -> int:
    """The exit status: 1 if a video gave no results, else 0."""
    out = options.out or Path()
    videos = find_all_videos(sources, out)
    check_start_time(options, len(videos))
    alone = sources == [*videos.values()]  # not a folder of videos
    folders = {name: out if alone else out / name for name in videos}
    settings = {name: result_settings(options, recogniser, path) for name, path in videos.items()}
    finished = {} if options.force else {name: read_result(folder) for name, folder in folders.items()}
    results = {name: result for name, result in finished.items() if result and result["settings"] == settings[name]}
    for name in finished:
        check_owner(folders[name], videos[name], settings[name])
    todo = {name: path for name, path in videos.items() if name not in results}
    failed, num_frames, num_again, start = {}, 0, 0, time.monotonic()
    for name, found in scored(todo, folders, settings, options, recogniser):
        try:
            if isinstance(found, Exception):
                raise found
            scores, read = found
            if again := isinstance(scores, FrameScores):
                num_again += 1
            else:
                for line in read.notes():
                    tqdm.write(as_text(f"{videos[name]}: {line}"), file=sys.stderr)
                rows = interpolate(scores, options.stride or recogniser.spacing, recogniser.spacing, len(read.times))
                scores = score_rows(options, recogniser, rows, name=name, times=read.times, fps=read.fps)
                num_frames += len(read.times)
            results[name] = write_results(
                folders[name], name, videos[name], scores, recogniser, options, settings[name], read, again
            )
        except Exception as error:  # whatever a video brings about costs that video alone
            if fails_for_all(error):
                raise
            failed[name] = why_skipped(error)
            tqdm.write(as_text(f"skipped {videos[name]}: {failed[name]}"), file=sys.stderr)
            continue
        tqdm.write(summary(folders[name], results[name]))
    if not alone:
        write_index(out, results, failed)
    again = f"{num_again} cut anew from their scores; " * bool(num_again)
    print(
        f"{as_text(str(out))}: {len(todo) - len(failed)} of {len(videos)} videos done, "
        f"{len(videos) - len(todo)} were there, {len(failed)} skipped; {again}"
        f"{num_frames} frames, {num_frames / (time.monotonic() - start):.1f} frames/s"
    )
    return int(bool(failed))


def open_rows(path: Path, options: PredictionOptions, recogniser: LoadedCheckpoint) -> tuple:
    """A feature file's rows, those of the Temporal model's own features (none or one), its frames and their rate."""
    array = load_array(path)  # a missing or damaged file is told as such
    name, checkpoint = path.stem, recogniser.checkpoint
    settings = checkpoint["settings"] | {"frames_per_feature": recogniser.spacing}
    features, temporal = open_folders(checkpoint | {"settings": settings}, str(path.parent), options.temporal_features)
    rows = features.open(name)  # (N, crops, D)
    if features.dim != recogniser.model.config.feature_dim:
        raise InputError(
            f"{path}: found features of {features.dim} values, expected {recogniser.model.config.feature_dim}"
        )
    if array.ndim == 3 and rows.shape[1] > 1 and features.meta is None:
        note(f"note: {path}: found an array {array.shape}, read as {len(rows)} rows of {rows.shape[1]} crops each")
    others = () if temporal is None else (matching_rows(temporal, name, len(rows), recogniser.spacing),)
    known = (features.meta or {"videos": {}})["videos"].get(name, {})
    fps = options.fps or known.get("fps")
    if not fps:
        raise InputError(f"{path}: nothing tells its frame rate, expected --fps")
    return rows, others, min(features.num_frames(name), len(rows) * recogniser.spacing), fps


def predict_features(paths: list[Path], options: PredictionOptions, recogniser: LoadedCheckpoint) -> int:
    out, names = options.out or Path(), [path.stem for path in paths]
    check_start_time(options, len(paths))
    for path in paths:
        if path.suffix != ".npy" or names.count(path.stem) > 1:
            raise InputError(f"{path}: expected feature files NAME.npy, each of another name")
    opened, results = [open_rows(path, options, recogniser) for path in paths], {}  # all looked at before any work
    folders = [out if len(names) == 1 else out / name for name in names]
    settings = [result_settings(options, recogniser, path) for path in paths]
    if not options.force:
        for of_one in zip(folders, paths, settings):
            check_owner(*of_one)
    for i, (path, name, (rows, others, num_frames, fps)) in enumerate(zip(paths, names, opened)):
        times = np.arange(num_frames) / fps
        scores = score_rows(options, recogniser, rows, *others, name=name, times=times, fps=fps)
        results[name] = write_results(folders[i], name, path, scores, recogniser, options, settings[i])
        print(summary(folders[i], results[name]), flush=True)
    if len(names) > 1:
        write_index(out, results, {})
    return 0
