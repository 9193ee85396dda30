"""A folder of videos -> a folder of features: several processes, resumed where it stopped."""

import heapq
import json
import math
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videoanomaly.clip_weights import DEFAULT_CLIP
from videoanomaly.data.features import read_meta
from videoanomaly.runtime.console import InputError, as_text, duration, note, some_of
from videoanomaly.runtime.files import write_atomically, write_json
from videoanomaly.runtime.precision import FULL, note_difference, precision_of
from videoanomaly.runtime.processes import check_device, gather, process_group, same_for_all, wait_for_all
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.runtime.torchrun import is_main, local_device, rank_and_world
from videoanomaly.video.decoding import BROKEN, header_frames, why_skipped
from videoanomaly.video.encoders import ClipEncoder, DevicePreprocessing, input_size, load_encoder
from videoanomaly.video.encoding import Read, encode_videos, read_batches
from videoanomaly.video.finding import find_videos, size_and_time
from videoanomaly.video.picture_folder import is_picture_folder, picture_rate
from videoanomaly.video.preprocessing import ImageEncoder, prepare

TRIAL = 1.0  # seconds of encoding that tell how long the whole takes
FOREVER = timedelta(days=365)  # how long a process waits for the others' videos; torchrun ends it if one of them dies


@dataclass(frozen=True)
class ExtractionOptions:
    """What extract_features.py can be asked for; see its --help."""

    videos: Path
    out: Path
    clip: str = DEFAULT_CLIP
    encoder: str | None = None
    stride: int = 1
    crops: int = 1
    jpeg: int | None = None
    batch: int = 32
    device: str | None = None
    device_preprocess: bool = False
    fps: float | None = None
    workers: int = 1
    precision: str = FULL


def is_done(meta: dict, key: str, video: Path) -> bool:
    """Whether meta.json tells of features of this very video."""
    return key in meta["videos"] and not is_other(meta["videos"][key], video)


def open_meta(path: Path, settings: dict, videos: dict[str, Path]) -> dict:
    """What an earlier run wrote, or the start of a new meta.json: the settings and no finished video."""
    if not path.exists():
        foreign = [key for key in videos if (path.parent / f"{key}.npy").exists()]
        if foreign:  # never overwrite features that came from elsewhere
            raise InputError(
                f"{path.parent}: found {foreign[0]}.npy but no meta.json, expected a folder of this script or a new one"
            )
        return settings | {"videos": {}}
    meta = read_meta(path)
    names = [name for name in dict.fromkeys((*settings, *meta)) if name not in ("videos", "precision")]
    differing = [name for name in names if meta.get(name) != settings.get(name)]
    if differing:
        found, asked = (", ".join(f"{name} {d.get(name)}" for name in differing) for d in (meta, settings))
        raise InputError(f"{path}: its features have {found}, now asked for {asked}: choose another --out")
    note_difference(str(path), precision_of(settings), precision_of(meta))
    return meta if "precision" in meta else {"precision": FULL} | meta


def write_meta(path: Path, meta: dict) -> None:
    meta["videos"] = dict(sorted(meta["videos"].items()))
    write_json(path, meta)


def finished_videos(out: Path) -> dict[str, dict]:
    """What the processes of this run, or of one that was killed, have noted in .done-RANK files (see `Record`)."""
    videos = {}
    for path in out.glob(".done-*"):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):  # else it was killed in the middle of it, and the video is done again
                videos |= json.loads(line)
    return {key: info for key, info in videos.items() if (out / f"{key}.npy").exists()}


class Record:
    """Finished videos: each process notes its own, a line each, and the first gathers all of them in meta.json.

    meta.json is written after each video, but at most a twentieth of the time: with 100,000 videos it has 5 MB.
    """

    def __init__(self, out: Path, meta: dict, precision: str = FULL):
        self.out, self.meta, self.next_write = out, meta, 0.0
        self.other = {} if precision == precision_of(meta) else {"precision": precision}  # told of each video
        self.file = open(
            out / f".done-{rank_and_world()[0]}", "ab", buffering=0
        )  # whole lines, also when we are killed

    def add(self, key: str, info: dict) -> None:
        self.file.write(json.dumps({key: info}).encode() + b"\n")
        if is_main() and time.monotonic() >= self.next_write:
            self.gather()

    def gather(self) -> None:
        start = time.monotonic()
        self.meta["videos"] |= finished_videos(self.out)
        write_meta(self.out / "meta.json", self.meta)
        self.next_write = time.monotonic() + 20 * (time.monotonic() - start)


def split_by_size(sizes: dict[str, tuple[int, int]], num_parts: int) -> list[list[str]]:
    """Shares of about as many frames each: the longest video first, always to the share that has least so far.

    Args:
        sizes: Frames by the header, or 0, and bytes of each video.
        num_parts: Number of shares.
    Returns:
        Keys of `sizes`, a list for each share. The largest share is at most 4/3 of the least possible (R. L. Graham,
        1969), and at most the longest video above the smallest one.
    """
    known = [size for size in sizes.values() if size[0] > 0]
    rate = (
        sum(frames for frames, _ in known) / max(sum(num_bytes for _, num_bytes in known), 1) or 1.0
    )  # frames per byte
    frames = {key: frames if frames > 0 else num_bytes * rate for key, (frames, num_bytes) in sizes.items()}
    parts = [(0.0, i, []) for i in range(num_parts)]  # a heap: (frames, number, keys)
    for key in sorted(frames, key=lambda key: (-frames[key], key)):
        total, i, keys = parts[0]
        heapq.heapreplace(parts, (total + frames[key], i, [*keys, key]))
    return [keys for _, _, keys in sorted(parts, key=lambda part: part[1])]


def own_share(todo: dict[str, Path]) -> dict[str, Path]:
    """The videos of this process; all of them look at the files' headers, and reach the same split."""
    rank, _, world_size = rank_and_world()
    if world_size == 1:
        return todo
    seen = gather(
        {key: (header_frames(todo[key]), size_and_time(todo[key])["size"]) for key in list(todo)[rank::world_size]}
    )
    sizes = {key: size for part in seen for key, size in part.items()}
    return {key: todo[key] for key in split_by_size(sizes, world_size)[rank]}


def extract(
    videos: dict[str, Path], record: Record, encoder: ImageEncoder, read: Read, num_workers: int, bar: tqdm
) -> None:
    """Encodes the videos; each one's file is written, and `record` extended, when its last frame is done."""
    meta, sources = record.meta, {key: size_and_time(path) for key, path in videos.items()}
    for key, found in encode_videos(videos, encoder, meta["encoder"], read, num_workers, meta["crops"], bar):
        if isinstance(found, Exception):
            bar.write(as_text(f"skipped {videos[key]}: {why_skipped(found)}"), file=sys.stderr)
            continue
        features, info = found
        for line in info.notes():
            bar.write(as_text(f"{videos[key]}: {line}"), file=sys.stderr)
        write_atomically(record.out / f"{key}.npy", partial(np.save, arr=features))
        noted = {"frames": len(info.times), "fps": info.header_rate} | sources[key] | record.other
        record.add(key, noted | ({"damage": [d._asdict() for d in info.damage]} if info.damage else {}))


def prepare_folder(out: Path, settings: dict, videos: dict[str, Path], fps: float | None) -> dict:
    """Clears up after runs that were killed, and writes and returns what is meta.json now."""
    meta = open_meta(out / "meta.json", settings, videos)
    meta["videos"] |= finished_videos(out)
    meta["videos"] = {key: info for key, info in meta["videos"].items() if (out / f"{key}.npy").exists()}
    if changed := {key for key in meta["videos"].keys() & videos.keys() if is_other(meta["videos"][key], videos[key])}:
        note(f"done anew, since the video is another: {some_of(changed)}")
        meta["videos"] = {key: info for key, info in meta["videos"].items() if key not in changed}
    for key, info in meta["videos"].items():
        if fps and key in videos and is_picture_folder(videos[key]):
            info["fps"] = fps
    write_meta(out / "meta.json", meta)
    remove_notes(out)
    return meta


def is_other(info: dict, video: Path) -> bool:
    """Whether a video took the place of the one that `info` is about; older versions noted neither size nor time."""
    return any(info.get(name, now) != now for name, now in size_and_time(video).items())


def remove_notes(out: Path) -> None:
    for path in out.glob(".done-*"):
        path.unlink()


def finish(record: Record, num_videos: int, todo: dict[str, Path], stride: int, seconds: float) -> int:
    """The last meta.json and one line on all that was done; the exit status."""
    record.gather()
    remove_notes(record.out)
    videos = record.meta["videos"]
    done = todo.keys() & videos.keys()
    num_rows = sum(math.ceil(videos[key]["frames"] / stride) for key in done)
    print(
        f"{as_text(str(record.out))}: {len(done)} of {num_videos} videos written, {num_videos - len(todo)} were there, "
        f"{len(todo) - len(done)} skipped; {num_rows} frames, {num_rows / seconds:.1f} frames/s"
    )
    return int(len(done) < len(todo))


def check_same(settings: dict, videos: dict[str, Path]) -> None:
    """Another machine's weights would give other features in the same folder."""
    of_all = gather(settings | {"videos": sorted(videos)})
    for name, expected in of_all[0].items():
        if differing := [rank for rank, found in enumerate(of_all) if found.get(name) != expected]:
            raise InputError(
                f"process {differing[0]}: found another {name} than in process 0, expected the same in all"
            )


def open_all(
    options: ExtractionOptions, videos: dict[str, Path] | None
) -> tuple[ExtractionOptions, dict[str, Path], ImageEncoder, dict, int]:
    """All that can be wrong but the folder shows here: videos, encoder, settings for meta.json, side of its input."""
    device = check_device(local_device(check_device(options.device)))
    options = replace(options, device=device)
    videos = find_videos(options.videos) if videos is None else videos
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would round the patches of CLIP's first layer to 10 bits
    encoder, settings = load_encoder(options.clip, options.encoder, device, options.precision)
    options = replace(options, precision=settings["precision"])
    n_px = input_size(encoder, settings["encoder"])
    settings |= {"stride": options.stride, "crops": options.crops, "jpeg": options.jpeg}
    return options, videos, encoder, settings | ({"preprocess": "device"} if options.device_preprocess else {}), n_px


def make_reader(options: ExtractionOptions, todo: dict[str, Path], encoder: ImageEncoder, n_px: int) -> Read:
    """What gives the encoder's inputs of a video."""
    to_inputs = partial(prepare, preprocess=encoder.preprocess, num_crops=options.crops, jpeg=options.jpeg, n_px=n_px)
    return partial(
        read_batches,
        to_inputs=to_inputs,
        stride=options.stride,
        batch_size=options.batch,
        pin_memory=str(options.device).startswith("cuda"),
        fps=picture_rate(todo.values(), options.fps),
    )


def rows_per_second(encoder: ImageEncoder, read: Read, video: Path, crops: int) -> float:
    """Rows that are read and encoded in a second, by the first second of a video; 0 if it is too short or broken."""
    num_rows, start = 0, time.monotonic()
    try:
        for item in read(video):
            if not isinstance(item, Tensor):
                break
            encoder.encode(item)
            num_rows += len(item) // crops
            if time.monotonic() - start > TRIAL:
                break
    except BROKEN:
        return 0.0
    return num_rows / (time.monotonic() - start)


def tell_time(rate: float, num_rows: int, num_videos: int) -> None:
    """One line on what a process has before it."""
    about = f", about {duration(num_rows / rate)} at {rate:.0f} frames/s" if rate and num_rows else ""
    print(f"encoding: {num_rows:,} frames of {num_videos} videos{about}", flush=True)


def extract_missing(
    options: ExtractionOptions, videos: dict[str, Path], meta: dict, encoder: ImageEncoder, n_px: int, tells_time: bool
) -> int:
    """Extracts what an earlier run has not, in each process its share; the exit status."""
    todo = {key: path for key, path in videos.items() if key not in meta["videos"]}
    own = own_share(todo)
    if options.device_preprocess and isinstance(encoder, ClipEncoder):
        encoder = DevicePreprocessing(encoder)
    read = make_reader(options, todo, encoder, n_px)
    shows_bar, num_rows = is_main() and sys.stderr.isatty(), None
    if shows_bar or tells_time:
        num_rows = sum(map(header_frames, own.values())) // options.stride
    if tells_time and own and is_main():
        rate = rows_per_second(encoder, read, next(iter(own.values())), options.crops)
        tell_time(rate, num_rows or 0, len(own))
    start, record = time.monotonic(), Record(options.out, meta, options.precision)
    with tqdm(total=num_rows, unit="frame", disable=not shows_bar) as bar, record.file:
        extract(own, record, encoder, read, options.workers, bar)
    wait_for_all()
    return finish(record, len(videos), todo, options.stride, time.monotonic() - start) if is_main() else 0


def extract_videos(options: ExtractionOptions) -> int:
    """Features of a folder of videos, by all processes together; the exit status: 1 if a video could not be read."""
    with process_group("cpu", timeout=FOREVER):
        return extract_connected(options)


def extract_connected(
    options: ExtractionOptions, videos: dict[str, Path] | None = None, *, tells_time: bool = False
) -> int:
    """The same where the processes are connected already.

    Args:
        videos: By name, instead of all that are found.
        tells_time: Say beforehand how long it takes, by a second of it.
    """
    with ExitStack() as stack:
        options, videos, encoder, settings, n_px = same_for_all(partial(open_all, options, videos))
        check_same(settings, videos)
        same_for_all(lambda: stack.enter_context(lock_folder(options.out)))
        meta = same_for_all(lambda: prepare_folder(options.out, settings, videos, options.fps) if is_main() else {})
        return extract_missing(options, videos, gather(meta)[0], encoder, n_px, tells_time)
