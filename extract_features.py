"""Videos -> frame features: the first step of the pipeline, for CLIP's image tower or an image encoder of your own.

    python extract_features.py --videos videos/ --out features/
    python extract_features.py --videos videos/ --out features/ --encoder my_encoder.py:MyEncoder --stride 2
    torchrun --nproc-per-node 8 extract_features.py --videos videos/ --out features/   # a process for each of 8 GPUs

VIDEOS/a/b.mp4 becomes OUT/a/b.npy, float16, (rows, D), or (rows, crops, D) with --crops 5 or 10. Row r is frame r of
the video, or frame r * n with --stride n. CLIP's features are what its projection gives in float32, not L2-normalised.
OUT/meta.json says how they were made and lists the finished videos, so that a second run does only what is missing.
Under torchrun each process takes a share of the missing videos, by their length; OUT is a folder that all machines see.
What the decoder promises: videoanomaly/video/decoding.py.
"""

import videoanomaly  # noqa: F401  (first: it tells whether this Python is new enough)

# isort: split

import argparse
import os
from pathlib import Path

from videoanomaly.runtime.addresses import refuse_addresses
from videoanomaly.runtime.console import InputError, Parser, at_least, options_of, run_script
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.precision import FULL, PRECISION_HELP, PRECISIONS


def parse_args(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--videos",
        type=Path,
        required=True,
        help="a folder, taken with its subfolders, or one video; a folder of pictures 000.jpg, 001.jpg, ... is a video",
    )
    add("--fps", type=float, help="frames per second of folders of pictures, for meta.json (default: 25)")
    add("--out", type=Path, required=True, help="folder of the .npy files and meta.json")
    add("--clip", default="ViT-B/16", help="CLIP weights: a name or a file (default: ViT-B/16)")
    add(
        "--encoder",
        metavar="FILE.py:CLASS",
        help="instead of CLIP a class with dim, preprocess(PIL image) -> (3, n, n) tensor and encode(batch) -> "
        "(batch, dim) tensor; THIS RUNS THE CODE IN THE FILE (default: CLIP)",
    )
    add("--stride", type=at_least(1), default=1, help="encode every n-th frame (default: 1, every frame)")
    add(
        "--crops",
        type=int,
        default=1,
        choices=(1, 5, 10),
        help="pictures cut from a frame: 1 as the encoder does it, 5 or 10 as VadCLIP does (default: 1)",
    )
    add(
        "--jpeg",
        type=int,
        metavar="QUALITY",
        help="1 to 100: save each frame as JPEG in between; 95 is what the published features saw (default: do not)",
    )
    add("--batch", type=at_least(1), default=32, help="pictures given to the encoder at once (default: 32)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--precision", choices=PRECISIONS, default=FULL, help=PRECISION_HELP)
    add(
        "--device-preprocess",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="CLIP: resize and normalise on the device, many frames at once; features within 1e-3 of PIL's "
        "(default: PIL)",
    )
    add(
        "--workers",
        type=at_least(1),
        default=max(1, min(8, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))),
        help="videos read at once, each in a thread; about 3 batches of memory for each (default: %(default)s here)",
    )
    args = parser.parse_args(argv)
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    refuse_addresses(vars(args))
    if args.jpeg is not None and not 1 <= args.jpeg <= 100:
        raise InputError(f"--jpeg {args.jpeg}: expected a quality of 1 to 100")
    if args.fps is not None and not 0.001 <= args.fps <= 1000:
        raise InputError(f"--fps {args.fps}: expected 0.001 to 1000 frames/s")
    if args.out.is_file():
        raise InputError(f"--out {args.out}: found a file, expected a folder or a new name")
    if args.device_preprocess and args.encoder:
        raise InputError(
            f"--device-preprocess: found --encoder {args.encoder}, whose preprocess works with PIL; expected CLIP"
        )


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a video could not be read, else 0."""
    keep_freed_memory()
    args = parse_args(argv)
    from videoanomaly.video.extraction import ExtractionOptions, extract_videos

    return extract_videos(options_of(ExtractionOptions, vars(args)))


if __name__ == "__main__":
    run_script(main)
