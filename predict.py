"""Videos in, events out: what a checkpoint says of your own videos, as a page to look at and as files to go on with.

    python predict.py --ckpt runs/mine/last.pt video.mp4 --out out          # then open out/report.html
    python predict.py --ckpt runs/mine/last.pt folder/ --out out --annotate # out/index.html lists all videos
    python predict.py --ckpt runs/mine/last.pt --features x.npy --fps 25 --out out
    python predict.py --ckpt released.ckpt --dataset ucfcrime --root data/UCFCrime video.mp4 --out out
    python predict.py --ckpt runs/mine/last.pt video.mp4 --out out --classes "fire, person falling"  # never trained
    python predict.py --ckpt runs/mine/last.pt --triage archive/ --out out --budget 5%
    torchrun --nproc-per-node 8 predict.py --ckpt runs/mine/last.pt folder/ --out out    # a process for each of 8 GPUs
    python predict.py --ckpt runs/mine/last.pt --export model.onnx

For each video: report.html (one file, no network), events.json, events.csv, events.vtt (subtitles), scores.npz (per
frame p_A, p_class and time in seconds), timeline.png and key_frame.jpg. One video's files lie in OUT itself, those of
several in OUT/NAME/. Videos that an earlier run with the same settings has finished are left as they are; where only
the events change (--threshold and the like) they are cut anew from scores.npz, without encoding. --triage encodes some
key frames of each video, then fully what stands out most in all of them; each page says how much of it that was.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import argparse
import math
import os
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from videoanomaly.archives.budget import USUAL, read_budget
from videoanomaly.data.annotations import class_names
from videoanomaly.data.datasets import PUBLISHED
from videoanomaly.event_rule import EVENT_OPTIONS, LOW_SHARE, MERGE_GAP, MIN_LENGTH, check_event_options
from videoanomaly.runtime.addresses import LISTENING, STREAMS, WEBHOOKS, check_address, is_address, refuse_addresses
from videoanomaly.runtime.console import InputError, Parser, at_least, options_of, run_script
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.precision import AUTO, PRECISION_HELP, PRECISIONS
from videoanomaly.runtime.provenance import command_line
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.video.wall_clock import read_start, read_zone


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "videos",
        nargs="*",
        type=Path,
        metavar="VIDEO_OR_FOLDER",
        help="videos, and folders taken with their subfolders; a folder of pictures 000.jpg, 001.jpg, ... is a video",
    )
    add(
        "--triage",
        nargs="+",
        type=Path,
        metavar="VIDEO_OR_FOLDER",
        help="instead: an archive too long to encode whole; see --budget",
    )
    add("--ckpt", required=True, help="checkpoint that train.py wrote, or with --dataset one of the paper's authors")
    add("--out", type=Path, help="output folder")
    add(
        "--stride",
        type=at_least(1),
        help="encode every n-th frame and interpolate the features between them; faster, see docs/videos.md "
        "for what it costs (default: as the checkpoint was trained)",
    )
    add(
        "--annotate",
        action="store_true",
        help="also annotated.mp4, an H.264 copy without sound with the scores drawn in",
    )
    add(
        "--classes",
        metavar='"NAME, NAME"',
        help="also these classes, which were never trained; needs a checkpoint whose "
        "classes share their contexts (train.py --shared-ctx), or of train.py --normal-only on CLIP's features",
    )
    add(
        "--explain",
        action="store_true",
        help="also explain.txt and explain.json: the vocabulary words nearest to the "
        "learned contexts, and the segments that drove the score of each class",
    )
    add("--force", action="store_true", help="do finished videos again, and overwrite results of others")
    add = parser.add_argument_group("archives").add_argument
    add(
        "--budget",
        metavar="SHARE",
        help=f"with --triage: how much to encode of what all of it would take, such as 5%% (default: {USUAL:.0%}%)",
    )
    add("--seconds-per-hour", type=float, metavar="S", help="the same, as S seconds of each hour of video")
    add = parser.add_argument_group("events").add_argument
    add("--threshold", type=float, help="events begin at this p_A (default: the checkpoint's, else 0.5)")
    add(
        "--false-alarms-per-hour",
        type=float,
        metavar="R",
        help="instead: the lowest threshold with at most R false alarms per hour on the held-out folds of the training",
    )
    add(
        "--hysteresis",
        type=float,
        default=LOW_SHARE,
        metavar="SHARE",
        help="an event lasts while p_A is at least this share of the threshold (default: %(default)s)",
    )
    add(
        "--min-length",
        type=float,
        default=MIN_LENGTH,
        metavar="SECONDS",
        help="shorter events are dropped (default: %(default)s)",
    )
    add(
        "--merge-gap",
        type=float,
        default=MERGE_GAP,
        metavar="SECONDS",
        help="events at most so far apart are one (default: %(default)s)",
    )
    add(
        "--start-time",
        metavar="TIME",
        help="when the video began, such as 2024-05-01T12:00:00+02:00 (default: as its name or the file tells)",
    )
    add(
        "--time-zone",
        metavar="ZONE",
        help="of times without one, and in which times are told: Europe/Berlin, +02:00 (default: this machine's)",
    )
    add = parser.add_argument_group("the checkpoint's features").add_argument
    add("--clip", help="CLIP weights, a name or a file (default: those of the training, see docs/videos.md)")
    add("--encoder", metavar="FILE.py:CLASS", help="image encoder instead of CLIP; THIS RUNS THE CODE IN THE FILE")
    add(
        "--features",
        type=Path,
        nargs="+",
        metavar="X.npy",
        help="feature files instead of videos; no encoder is needed",
    )
    add("--temporal-features", help="with --features: folder of the Temporal model's own features, if it has any")
    add(
        "--fps",
        type=float,
        help="frames per second of --features (default: as meta.json beside them tells) and of folders of pictures "
        "(default: 25)",
    )
    add(
        "--frames-per-feature",
        type=at_least(1),
        help="frames from one row of features to the next (default: as in training)",
    )
    add("--dataset", choices=PUBLISHED, help="the checkpoint is the authors' for this one")
    add("--root", help="with --dataset: folder of its lists")
    add = parser.add_argument_group("other work").add_argument
    add(
        "--export",
        type=Path,
        metavar="MODEL.onnx",
        help="write the model for other programs, as .onnx or .pt2 (torch.export)",
    )
    add("--live", metavar="SOURCE", help="watch a camera (its number), a URL, a file, or - for standard input")
    add("--webhook", metavar="URL", help="with --live: post each event there as JSON")
    add = parser.add_argument_group("speed").add_argument
    add("--batch", type=at_least(1), default=32, help="pictures given to the encoder at once (default: 32)")
    add(
        "--workers",
        type=at_least(1),
        default=min(4, os.cpu_count()),
        help="videos read at once (default: %(default)s here)",
    )
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--precision", choices=PRECISIONS, default=AUTO, help=PRECISION_HELP)
    args = parser.parse_args(argv)
    check_args(args)
    args.command = command_line("predict.py", argv)
    return args


def check_args(args: argparse.Namespace) -> None:
    refuse_addresses({name: value for name, value in vars(args).items() if name not in ("live", "webhook", "classes")})
    if args.classes is not None:
        args.classes = class_names(args.classes)
    asked = [name for name in ("videos", "triage", "features", "live", "export") if getattr(args, name)]
    if len(asked) != 1:
        raise InputError(
            f"found {' and '.join(asked) or 'nothing'} to work on, expected one of: videos, --triage, --features, "
            "--live, --export"
        )
    if asked[0] in ("videos", "triage", "features") and not args.out:
        raise InputError("--out is missing: expected a folder for the results")
    if args.out and args.out.is_file():
        raise InputError(f"--out {args.out}: found a file, expected a folder or a new name")
    check_event_options(**{name: getattr(args, name) for name in EVENT_OPTIONS})
    if args.fps is not None and not (args.fps > 0 and math.isfinite(args.fps)):
        raise InputError(f"--fps {args.fps}: expected a positive number")
    if not args.triage and (args.budget or args.seconds_per_hour):
        raise InputError("--budget and --seconds-per-hour go with --triage")
    if args.triage:
        args.videos, args.budget = args.triage, read_budget(args.budget, args.seconds_per_hour)
    if args.annotate and not args.videos:
        raise InputError("--annotate draws into videos: expected some")
    zone = read_zone(args.time_zone) if args.time_zone is not None else None
    if args.start_time is not None:
        read_start(args.start_time, zone)
    if (args.start_time or zone) and not (args.videos or args.features):
        raise InputError("--start-time and --time-zone tell when videos began: expected some, or --features")
    if args.stride and args.live:
        raise InputError("--stride does not go with --live, which leaves out what the encoder cannot follow by itself")
    if args.explain and not (args.videos or args.features):
        raise InputError("--explain tells of videos or --features: expected some")
    if args.webhook and not args.live:
        raise InputError("--webhook goes with --live")
    if args.live and is_address(args.live):
        check_address("--live", args.live, STREAMS, LISTENING)
    if args.webhook:
        check_address("--webhook", args.webhook, WEBHOOKS)
    if (args.dataset is None) != (args.root is None):
        raise InputError("--dataset and --root go together: they are for checkpoints of the authors")
    if args.export and args.export.suffix not in (".onnx", ".pt2"):
        raise InputError(f"--export {args.export}: expected a name that ends in .onnx or .pt2")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a video could not be read, else 0."""
    keep_freed_memory()
    args = parse_args(argv)
    from videoanomaly.archives.triage import triage_videos
    from videoanomaly.live import service
    from videoanomaly.prediction.api import Recogniser
    from videoanomaly.prediction.explain import words_text
    from videoanomaly.prediction.predictor import predict_features, predict_videos
    from videoanomaly.prediction.recogniser import PredictionOptions
    from videoanomaly.runtime.processes import check_device, process_group, same_for_all
    from videoanomaly.runtime.torchrun import local_device, rank_and_world
    from videoanomaly.video.extraction import FOREVER
    from videoanomaly.weights import export

    if rank_and_world()[2] > 1 and not args.videos:
        raise InputError("torchrun shares out videos: expected some")
    args.device = check_device(local_device(check_device(args.device)))
    options = options_of(PredictionOptions, vars(args))
    ready = Recogniser(options)
    recogniser, spacing = ready.loaded, ready.loaded.spacing
    if args.explain:
        print(words_text(recogniser.words))
    if args.export:
        return export.write(args.export, recogniser.model)
    if args.live:
        with redirect_stdout(sys.stderr):  # standard output is for events alone; some encoders print when loaded
            encoder = ready.encoder
        how = {"crops": encoder.crops, "jpeg": encoder.jpeg, "n_px": encoder.n_px, "fps": args.fps}
        how |= {"settings": recogniser.event_settings, "threshold_rule": recogniser.threshold_rule}
        how |= {"stride": spacing, "webhook": args.webhook}
        return service.run(args.live, recogniser.model, encoder.model, **how)
    print(f"events begin at p_A {recogniser.threshold:.4g}: {recogniser.threshold_rule}", flush=True)
    with process_group("cpu", FOREVER), ExitStack() as stack:
        same_for_all(lambda: stack.enter_context(lock_folder(args.out)))
        if args.features:
            return predict_features(args.features, options, recogniser)
        if args.triage:
            return triage_videos(args.videos, args.budget, options, recogniser)
        return predict_videos(args.videos, options, recogniser)


if __name__ == "__main__":
    run_script(main)
