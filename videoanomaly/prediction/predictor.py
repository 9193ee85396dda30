"""Videos or features in, scores and results out."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from videoanomaly.data.features import load_array, matching_rows
from videoanomaly.prediction.recogniser import LoadedCheckpoint, PredictionOptions
from videoanomaly.prediction.results import check_owner, result_settings, summary, write_index, write_results
from videoanomaly.prediction.work import RowsOfVideo, check_start_time, find_work, finish, score_rows
from videoanomaly.runtime.console import InputError, note
from videoanomaly.runtime.processes import same_for_all
from videoanomaly.video.decoding import header_frames
from videoanomaly.video.encoders import Encoder, matching_encoder
from videoanomaly.video.encoding import Reading, encode_videos, interpolate, read_batches
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


def predict_videos(sources: list[Path], options: PredictionOptions, recogniser: LoadedCheckpoint) -> int:
    """The exit status: 1 if a video gave no results, else 0. Of several processes each does a share of the videos."""
    work = same_for_all(partial(find_work, sources, options, recogniser))
    stride = options.stride or recogniser.spacing

    def rows_of(todo: dict[str, Path]) -> Iterator[tuple[str, RowsOfVideo]]:
        for name, found in encoded(todo, options, recogniser):
            if not isinstance(found, Exception):
                rows, read = found
                found = interpolate(rows, stride, recogniser.spacing, len(read.times)), read
            yield name, found

    return finish(work, rows_of, options, recogniser)


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
