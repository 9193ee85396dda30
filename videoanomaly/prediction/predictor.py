"""Videos or features in, scores and results out."""

import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from videoanomaly.data.features import load_array, matching_rows
from videoanomaly.frame_scores import FrameScores
from videoanomaly.prediction.results import read_result, result_settings, summary, write_index, write_results
from videoanomaly.runtime.console import InputError
from videoanomaly.video.decoding import find_all_videos
from videoanomaly.video.encoding import read_timed


def encoded(videos: dict[str, Path], args, recogniser):
    """Yields (name, scores, or the error that a broken video gave) while a bar shows frames/s and the time left."""
    from tqdm import tqdm

    from videoanomaly.frame_scores import score_frames
    from videoanomaly.video.decoding import header_frames
    from videoanomaly.video.encoders import matching_encoder
    from videoanomaly.video.encoding import encode_videos, interpolate
    from videoanomaly.video.preprocessing import prepare

    encoder, stride = matching_encoder(args, recogniser), args.stride or recogniser.spacing
    to_inputs = partial(
        prepare, preprocess=encoder.model.preprocess, num_crops=encoder.crops, jpeg=encoder.jpeg, n_px=encoder.n_px
    )
    read = partial(
        read_timed, to_inputs=to_inputs, stride=stride, batch_size=args.batch, pin_memory=args.device.startswith("cuda")
    )
    total = sum(map(header_frames, videos.values())) // stride if sys.stderr.isatty() else None
    with tqdm(total=total, unit="frame", unit_scale=stride, disable=None) as bar:
        for name, features, info in encode_videos(
            videos, encoder.model, encoder.description, read, args.workers, encoder.crops, bar
        ):
            if features is None:
                yield name, info
                continue
            rows = interpolate(features, stride, recogniser.spacing, info["frames"])
            p_A, p_class = score_frames(recogniser, name, rows, info["frames"])
            of_frames = likelihood(args, recogniser, rows, info["frames"])
            yield name, FrameScores(p_A, p_class, info["times"], info["fps"], of_frames)


def likelihood(args, recogniser, rows, num_frames: int) -> np.ndarray | None:
    """The Selector's likelihood by frame, (N, C), where --explain needs it."""
    if not args.explain:
        return None
    from videoanomaly.prediction import explain

    return explain.likelihoods(recogniser.model, rows)[np.arange(num_frames) // recogniser.spacing]


def predict_videos(args, recogniser) -> int:
    """The exit status: 1 if a video could not be read, else 0."""
    from tqdm import tqdm

    from videoanomaly.video.decoding import why_skipped

    videos = find_all_videos(args.videos, args.out)
    alone = len(args.videos) == 1 and args.videos[0].is_file()
    folders = {name: args.out if alone else args.out / name for name in videos}
    settings = {name: result_settings(args, recogniser, path) for name, path in videos.items()}
    finished = {name: result for name in videos if (result := read_result(folders[name]))}
    results = {
        name: result for name, result in finished.items() if result["settings"] == settings[name] and not args.force
    }
    todo = {name: path for name, path in videos.items() if name not in results}
    failed, num_frames, start = {}, 0, time.monotonic()
    for name, scores in encoded(todo, args, recogniser) if todo else ():
        if isinstance(scores, Exception):
            failed[name] = why_skipped(scores)
            tqdm.write(f"skipped {videos[name]}: {failed[name]}", file=sys.stderr)
            continue
        results[name] = write_results(folders[name], name, videos[name], scores, recogniser, args, settings[name])
        num_frames += len(scores.times)
        tqdm.write(summary(folders[name], results[name]))
    if not alone:
        write_index(args.out, results, failed)
    print(
        f"{args.out}: {len(todo) - len(failed)} of {len(videos)} videos done, {len(videos) - len(todo)} were there, "
        f"{len(failed)} skipped; {num_frames} frames, {num_frames / (time.monotonic() - start):.1f} frames/s"
    )
    return int(bool(failed))


def open_rows(path: Path, args, recogniser) -> tuple:
    """A feature file's rows, those of the Temporal model's own features (none or one array), its frames and their rate."""
    from videoanomaly.weights import checkpoints

    load_array(path)  # a missing or damaged file is told as such
    name, checkpoint = path.stem, recogniser.checkpoint
    given = SimpleNamespace(features=str(path.parent), temporal_features=args.temporal_features)
    settings = checkpoint["settings"] | {"frames_per_feature": recogniser.spacing}
    features, temporal = checkpoints.open_folders(given, checkpoint | {"settings": settings})
    rows = features.open(name)  # (N, crops, D)
    if features.dim != recogniser.model.config.feature_dim:
        raise InputError(
            f"{path}: found features of {features.dim} values, expected {recogniser.model.config.feature_dim}"
        )
    others = () if temporal is None else (matching_rows(temporal, name, len(rows), recogniser.spacing),)
    known = (features.meta or {"videos": {}})["videos"].get(name, {})
    fps = args.fps or known.get("fps")
    if not fps:
        raise InputError(f"{path}: nothing tells its frame rate, expected --fps")
    return rows, others, min(features.num_frames(name), len(rows) * recogniser.spacing), fps


def predict_features(args, recogniser) -> int:
    from videoanomaly.frame_scores import score_frames

    names = [path.stem for path in args.features]
    for path in args.features:
        if path.suffix != ".npy" or names.count(path.stem) > 1:
            raise InputError(f"{path}: expected feature files NAME.npy, each of another name")
    opened, results = [open_rows(path, args, recogniser) for path in args.features], {}  # all looked at before any work
    for path, name, (rows, others, num_frames, fps) in zip(args.features, names, opened):
        p_A, p_class = score_frames(recogniser, name, rows, num_frames, *others)
        folder = args.out if len(names) == 1 else args.out / name
        of_frames = likelihood(args, recogniser, rows, num_frames)
        scores = FrameScores(p_A, p_class, np.arange(num_frames) / fps, fps, of_frames)
        results[name] = write_results(
            folder, name, None, scores, recogniser, args, result_settings(args, recogniser, path)
        )
        print(summary(folder, results[name]), flush=True)
    if len(names) > 1:
        write_index(args.out, results, {})
    return 0
