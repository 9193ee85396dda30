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

import argparse
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import check_device, gather, process_group, same_for_all, wait_for_all
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.runtime.torchrun import is_main, local_device
from videoanomaly.video.decoding import find_videos, header_frames
from videoanomaly.video.encoders import DevicePreprocessing, input_size, load_encoder
from videoanomaly.video.encoding import read_batches
from videoanomaly.video.extraction import FOREVER, Record, check_same, extract, finish, own_share, prepare_folder
from videoanomaly.video.preprocessing import prepare

# ---------------------------------------------------------------- work


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, required=True, help="a folder, taken with its subfolders, or one video")
    add("--out", type=Path, required=True, help="folder of the .npy files and meta.json")
    add("--clip", default="ViT-B/16", help="CLIP weights: a name or a file (default: ViT-B/16)")
    add(
        "--encoder",
        metavar="FILE.py:CLASS",
        help="instead of CLIP a class with dim, preprocess(PIL image) -> (3, n, n) tensor and encode(batch) -> (batch, dim) "
        "tensor; THIS RUNS THE CODE IN THE FILE (default: CLIP)",
    )
    add("--stride", type=int, default=1, help="encode every n-th frame (default: 1, every frame)")
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
    add("--batch", type=int, default=32, help="pictures given to the encoder at once (default: 32)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add(
        "--device-preprocess",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="CLIP: resize and normalise on the device, many frames at once; features within 1e-3 of PIL's (default: PIL)",
    )
    add(
        "--workers",
        type=int,
        default=max(1, min(8, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))),
        help="videos read at once, each in a thread; about 3 batches of memory for each (default: %(default)s here)",
    )
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    for name in ("stride", "batch", "workers"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.jpeg is not None and not 1 <= args.jpeg <= 100:
        raise InputError(f"--jpeg {args.jpeg}: expected a quality of 1 to 100")
    if args.out.is_file():
        raise InputError(f"--out {args.out}: found a file, expected a folder or a new name")
    if args.device_preprocess and args.encoder:
        raise InputError(
            f"--device-preprocess: found --encoder {args.encoder}, whose preprocess works with PIL; expected CLIP"
        )
    args.device = check_device(local_device(check_device(args.device)))


def extract_missing(args, videos: dict[str, Path], meta: dict, encoder, n_px: int) -> int:
    """Extracts what an earlier run has not, in each process its share; the exit status."""
    todo = {key: path for key, path in videos.items() if key not in meta["videos"]}
    own = own_share(todo)
    if args.device_preprocess:
        encoder = DevicePreprocessing(encoder)
    to_inputs = partial(prepare, preprocess=encoder.preprocess, num_crops=args.crops, jpeg=args.jpeg, n_px=n_px)
    read = partial(
        read_batches,
        to_inputs=to_inputs,
        stride=args.stride,
        batch_size=args.batch,
        pin_memory=args.device.startswith("cuda"),
    )
    shows_bar = is_main() and sys.stderr.isatty()
    num_rows = sum(map(header_frames, own.values())) // args.stride if shows_bar else None
    start, record = time.monotonic(), Record(args.out, meta)
    with tqdm(total=num_rows, unit="frame", disable=not shows_bar) as bar, record.file:
        extract(own, record, encoder, read, args.workers, bar)
    wait_for_all()
    return finish(record, len(videos), todo, args.stride, time.monotonic() - start) if is_main() else 0


def load(args) -> tuple:
    """All that can be wrong besides the folder shows here: videos, encoder, settings for meta.json, side of its input."""
    check_args(args)
    videos = find_videos(args.videos)
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would round the patches of CLIP's first layer to 10 bits
    encoder, settings = load_encoder(args.clip, args.encoder, args.device)
    n_px = input_size(encoder, settings["encoder"])
    settings |= {"stride": args.stride, "crops": args.crops, "jpeg": args.jpeg}
    return videos, encoder, settings | ({"preprocess": "device"} if args.device_preprocess else {}), n_px


def main(argv=None) -> int:
    """Returns the exit status: 1 if a video could not be read, else 0."""
    keep_freed_memory()
    args = parse_args(argv)
    with process_group("cpu", timeout=FOREVER), ExitStack() as stack:
        videos, encoder, settings, n_px = same_for_all(lambda: load(args))
        check_same(settings, videos)
        same_for_all(lambda: stack.enter_context(lock_folder(args.out)))
        meta = same_for_all(lambda: prepare_folder(args.out, settings, videos) if is_main() else None)
        return extract_missing(args, videos, gather(meta)[0], encoder, n_px)


if __name__ == "__main__":
    run_script(main)
