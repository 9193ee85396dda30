"""Videos in, events out: what a checkpoint says of your own videos, as a page to look at and as files to go on with.

    python predict.py --ckpt runs/mine/last.pt video.mp4 --out out          # then open out/report.html
    python predict.py --ckpt runs/mine/last.pt folder/ --out out --annotate # out/index.html lists all videos
    python predict.py --ckpt runs/mine/last.pt --features x.npy --fps 25 --out out
    python predict.py --ckpt released.ckpt --dataset ucfcrime --root data/UCFCrime video.mp4 --out out
    python predict.py --ckpt runs/mine/last.pt video.mp4 --out out --classes "fire, person falling"  # never trained; README
    python predict.py --ckpt runs/mine/last.pt --export model.onnx

For each video: report.html (one file, no network), events.json, events.csv, events.vtt (subtitles), scores.npz (per frame
p_A, p_class and time in seconds), timeline.png and key_frame.jpg. One video's files lie in OUT itself, those of several in
OUT/NAME/. Videos that an earlier run with the same settings has finished are left as they are.
"""
import argparse
import json
import math
import os
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from events import count, find_events, to_csv, to_vtt
from videoanomaly.data.features import load_array, matching_rows
from videoanomaly.frame_scores import FrameScores
from videoanomaly.runtime.console import CONTROLS, InputError, as_text, run_script
from videoanomaly.runtime.files import remove_temporary_files, write_atomically
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import check_device
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.video.decoding import find_all_videos
from videoanomaly.video.encoding import read_timed


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("videos", nargs="*", type=Path, metavar="VIDEO_OR_FOLDER", help="videos, and folders taken with their subfolders")
    add("--ckpt", required=True, help="checkpoint that train.py wrote, or with --dataset one of the paper's authors")
    add("--out", type=Path, help="output folder")
    add("--threshold", type=float, help="events begin at this p_A (default: the one stored in the checkpoint, else 0.5)")
    add("--stride", type=int, help="encode every n-th frame and interpolate the features between them; faster, see the README "
        "for what it costs (default: as the checkpoint was trained)")
    add("--annotate", action="store_true", help="also annotated.mp4, an H.264 copy without sound with the scores drawn in")
    add("--classes", metavar='"NAME, NAME"', help="also these classes, which were never trained; needs a checkpoint whose "
        "classes share their contexts (train.py --shared-ctx)")
    add("--explain", action="store_true", help="also explain.txt and explain.json: the vocabulary words nearest to the "
        "learned contexts, and the segments that drove the score of each class")
    add("--force", action="store_true", help="do finished videos again")
    add = parser.add_argument_group("the checkpoint's features").add_argument
    add("--clip", help="CLIP weights, a name or a file (default: those of the training, else ViT-B/16)")
    add("--encoder", metavar="FILE.py:CLASS", help="image encoder instead of CLIP; THIS RUNS THE CODE IN THE FILE")
    add("--features", type=Path, nargs="+", metavar="X.npy", help="feature files instead of videos; no encoder is needed")
    add("--temporal-features", help="with --features: folder of the Temporal model's own features, if it has any")
    add("--fps", type=float, help="with --features: frames per second (default: as meta.json beside them tells)")
    add("--frames-per-feature", type=int, help="frames from one row of features to the next (default: as in training)")
    add("--dataset", choices=("shanghaitech", "ucfcrime", "xdviolence"), help="the checkpoint is the authors' for this one")
    add("--root", help="with --dataset: folder of its lists")
    add = parser.add_argument_group("other work").add_argument
    add("--export", type=Path, metavar="MODEL.onnx", help="write the model for other programs, as .onnx or .pt2 (torch.export)")
    add("--live", metavar="SOURCE", help="watch a camera (its number), a URL, a file, or - for standard input")
    add("--webhook", metavar="URL", help="with --live: post each event there as JSON")
    add = parser.add_argument_group("speed").add_argument
    add("--batch", type=int, default=32, help="pictures given to the encoder at once (default: 32)")
    add("--workers", type=int, default=min(4, os.cpu_count()), help="videos read at once (default: %(default)s here)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    args = parser.parse_args(argv)
    check_args(args)
    return args


def class_names(text: str) -> tuple[str, ...]:
    """The names of --classes, cleaned of surplus blanks."""
    if odd := CONTROLS.search(text):
        raise InputError(f"--classes: found the control character {odd[0]!r}, expected names")
    names = tuple(" ".join(name.split()) for name in text.split(","))
    if not all(name.replace("_", "").strip() for name in names):
        raise InputError(f"--classes {text!r}: found an empty name, expected names with commas between them")
    if len({name.replace("_", " ").lower() for name in names}) < len(names):
        raise InputError(f"--classes {text!r}: found a name twice, expected different ones")
    return names


def check_args(args: argparse.Namespace) -> None:
    if args.classes is not None:
        args.classes = class_names(args.classes)
    asked = [name for name in ("videos", "features", "live", "export") if getattr(args, name)]
    if len(asked) != 1:
        raise InputError(f"found {' and '.join(asked) or 'nothing'} to work on, expected one of: videos, --features, --live, "
                         "--export")
    if asked[0] in ("videos", "features") and not args.out:
        raise InputError("--out is missing: expected a folder for the results")
    if args.out and args.out.is_file():
        raise InputError(f"--out {args.out}: found a file, expected a folder or a new name")
    for name in ("stride", "batch", "workers", "frames_per_feature"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold}: expected a number above 0, at most 1")
    if args.fps is not None and not (args.fps > 0 and math.isfinite(args.fps)):
        raise InputError(f"--fps {args.fps}: expected a positive number")
    if args.annotate and not args.videos:
        raise InputError("--annotate draws into videos: expected some")
    if args.stride and args.live:
        raise InputError("--stride does not go with --live, which leaves out what the encoder cannot follow by itself")
    if args.explain and not (args.videos or args.features):
        raise InputError("--explain tells of videos or --features: expected some")
    if args.webhook and not args.live:
        raise InputError("--webhook goes with --live")
    if (args.dataset is None) != (args.root is None):
        raise InputError("--dataset and --root go together: they are for checkpoints of the authors")
    if args.export and args.export.suffix not in (".onnx", ".pt2"):
        raise InputError(f"--export {args.export}: expected a name that ends in .onnx or .pt2")
    args.device = check_device(args.device)


# ---------------------------------------------------------------- results


def result_settings(args, recogniser, path: Path) -> dict:
    """What the results of a video depend on; equal settings need no second run."""
    stat = path.stat()
    return {"checkpoint": recogniser.sha256, "threshold": recogniser.threshold, "frames_per_feature": recogniser.spacing,
            "stride": args.stride or recogniser.spacing, "annotate": args.annotate, "fps": args.fps,
            "encoder": [args.clip, args.encoder], "new_classes": list(args.classes or ()), "explain": args.explain,
            "source": [path.name, stat.st_size, stat.st_mtime_ns]}


def read_result(folder: Path) -> dict | None:
    """The events.json of a finished video; it is written last."""
    try:
        result = json.loads((folder / "events.json").read_text(encoding="utf-8"))
        return result if {"settings", "video", "events"} <= result.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def write_results(folder: Path, name: str, video: Path | None, scores: FrameScores, recogniser, args, settings: dict) -> dict:
    """All files of a video, events.json last; returns what that holds."""
    import report
    from videoanomaly import plots
    from videoanomaly.video import key_frames

    classes, threshold = recogniser.model.config.classes, recogniser.threshold
    events = find_events(scores, classes, threshold)
    result = {"video": as_text(name), "frames": len(scores.times), "fps": scores.fps, "duration": scores.duration,
              "threshold": threshold, "highest_p_A": float(scores.p_A.max()), "classes": list(classes), "events": events,
              "new_classes": list(args.classes or ()), "settings": settings}
    arrays = {"p_A": scores.p_A, "p_class": scores.p_class, "time": scores.times, "classes": np.array(classes)}
    write_atomically(folder / "scores.npz", lambda file: np.savez(file, **arrays))
    no_truth = np.full(len(scores.p_A), -1)
    title = as_text(name).replace("$", r"\$")  # matplotlib would take it for a formula
    plots.timeline(folder / "timeline.png", title, scores.p_A, scores.p_class, no_truth, classes)
    if args.annotate:
        import annotate

        annotate.write_video(folder / "annotated.mp4", video, scores, events, classes, threshold)
    pictures = key_frames.key_frames(video, scores, events) if video else []
    if pictures:
        best = max(pictures, key=lambda picture: picture.score)
        write_atomically(folder / "key_frame.jpg", lambda file: file.write(best.jpeg))
    if args.explain:
        write_explanation(folder, result["video"], scores, recogniser)
    page = report.page(result, scores, video, pictures, folder, Path(args.ckpt).name)
    for file_name, text in (("events.csv", to_csv(events)), ("events.vtt", to_vtt(events)), ("report.html", page),
                            ("events.json", json.dumps(result, indent=1))):
        write_atomically(folder / file_name, partial(write_text, text=text))
    return result


def write_explanation(folder: Path, video: str, scores: FrameScores, recogniser) -> None:
    from tqdm import tqdm

    import explain

    config = recogniser.model.config
    segments = explain.driving_segments(scores, config.classes, config.num_frames * recogniser.spacing)
    text = f"{video}: {explain.segments_text(segments)}"
    found = json.dumps({"video": video, "contexts": recogniser.words, "segments": segments}, indent=1)
    for name, content in (("explain.txt", f"{text}\n\n{explain.words_text(recogniser.words)}\n"), ("explain.json", found)):
        write_atomically(folder / name, partial(write_text, text=content))
    tqdm.write(text)


def write_text(file, text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))  # names of files may hold bytes that are no text


def summary(folder: Path, result: dict) -> str:
    best = max(result["events"], key=lambda event: event["confidence"], default=None)
    found = f"highest {best['class']} {best['confidence']:.2f} at {best['start_time']}" if best else \
        f"highest p_A {result['highest_p_A']:.2f}"
    page = as_text(str(folder / "report.html"))
    return f"{result['video']}: {count(len(result['events']), 'event')}, {found}; {page}"


# ---------------------------------------------------------------- work


def encoded(videos: dict[str, Path], args, recogniser):
    """Yields (name, scores, or the error that a broken video gave) while a bar shows frames/s and the time left."""
    from tqdm import tqdm

    from videoanomaly.frame_scores import score_frames
    from videoanomaly.video.decoding import header_frames
    from videoanomaly.video.encoders import matching_encoder
    from videoanomaly.video.encoding import encode_videos, interpolate
    from videoanomaly.video.preprocessing import prepare

    encoder, stride = matching_encoder(args, recogniser), args.stride or recogniser.spacing
    to_inputs = partial(prepare, preprocess=encoder.model.preprocess, num_crops=encoder.crops, jpeg=encoder.jpeg,
                        n_px=encoder.n_px)
    read = partial(read_timed, to_inputs=to_inputs, stride=stride, batch_size=args.batch,
                   pin_memory=args.device.startswith("cuda"))
    total = sum(map(header_frames, videos.values())) // stride if sys.stderr.isatty() else None
    with tqdm(total=total, unit="frame", unit_scale=stride, disable=None) as bar:
        for name, features, info in encode_videos(videos, encoder.model, encoder.description, read, args.workers,
                                                  encoder.crops, bar):
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
    import explain

    return explain.likelihoods(recogniser.model, rows)[np.arange(num_frames) // recogniser.spacing]


def write_index(out: Path, results: dict, failed: dict) -> None:
    import report

    write_atomically(out / "index.html", partial(write_text, text=report.index(results, failed, out)))


def predict_videos(args, recogniser) -> int:
    """The exit status: 1 if a video could not be read, else 0."""
    from tqdm import tqdm

    from videoanomaly.video.decoding import why_skipped

    videos = find_all_videos(args.videos, args.out)
    alone = len(args.videos) == 1 and args.videos[0].is_file()
    folders = {name: args.out if alone else args.out / name for name in videos}
    settings = {name: result_settings(args, recogniser, path) for name, path in videos.items()}
    finished = {name: result for name in videos if (result := read_result(folders[name]))}
    results = {name: result for name, result in finished.items() if result["settings"] == settings[name] and not args.force}
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
    print(f"{args.out}: {len(todo) - len(failed)} of {len(videos)} videos done, {len(videos) - len(todo)} were there, "
          f"{len(failed)} skipped; {num_frames} frames, {num_frames / (time.monotonic() - start):.1f} frames/s")
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
        raise InputError(f"{path}: found features of {features.dim} values, expected {recogniser.model.config.feature_dim}")
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
        results[name] = write_results(folder, name, None, scores, recogniser, args, result_settings(args, recogniser, path))
        print(summary(folder, results[name]), flush=True)
    if len(names) > 1:
        write_index(args.out, results, {})
    return 0


def watch(args, recogniser) -> int:
    import live
    from videoanomaly.video.encoders import matching_encoder

    with redirect_stdout(sys.stderr):  # standard output is for events alone; some encoders print when they are loaded
        encoder = matching_encoder(args, recogniser)
    return live.run(args.live, recogniser.model, encoder.model, threshold=recogniser.threshold,
                    stride=recogniser.spacing, crops=encoder.crops, jpeg=encoder.jpeg, n_px=encoder.n_px,
                    fps=args.fps, webhook=args.webhook)


def main(argv=None) -> int:
    """Returns the exit status: 1 if a video could not be read, else 0."""
    keep_freed_memory()
    args = parse_args(argv)
    import torch  # only now: bad arguments are told at once

    import recogniser

    torch.backends.cudnn.allow_tf32 = False  # scores as on a CPU
    loaded = recogniser.load(args)
    if args.stride and args.stride < loaded.spacing:
        raise InputError(f"--stride {args.stride}: expected at least {loaded.spacing}, the spacing that {args.ckpt} was "
                         "trained with")
    if args.explain:
        import explain

        print(explain.words_text(loaded.words))
    if args.export:
        from videoanomaly.weights import export

        return export.write(args.export, loaded.model)
    if args.live:
        return watch(args, loaded)
    with lock_folder(args.out):
        remove_temporary_files(args.out.rglob(".*.tmp"))
        return (predict_features if args.features else predict_videos)(args, loaded)


if __name__ == "__main__":
    run_script(main)
