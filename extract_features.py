"""Videos -> frame features: the first step of the pipeline, for CLIP's image tower or an image encoder of your own.

    python extract_features.py --videos videos/ --out features/
    python extract_features.py --videos videos/ --out features/ --encoder my_encoder.py:MyEncoder --stride 2
    torchrun --nproc-per-node 8 extract_features.py --videos videos/ --out features/   # a process for each of 8 GPUs

VIDEOS/a/b.mp4 becomes OUT/a/b.npy, float16, (rows, D), or (rows, crops, D) with --crops 5 or 10. Row r is frame r of
the video, or frame r * n with --stride n. CLIP's features are what its projection gives in float32, not L2-normalised.
OUT/meta.json says how they were made and lists the finished videos, so that a second run does only what is missing.
Under torchrun each process takes a share of the missing videos, by their length; OUT is a folder that all machines see.

Decoding (PyAV, i.e. FFmpeg) gives the frames of OpenCV's VideoCapture: as many, and the same pixels bit by bit. Compared
with OpenCV 5.0 and 4.14 for H.264, HEVC, MPEG-2, MPEG-4, MJPEG, VP9, FLV, WMV and FFV1, 8 and 10 bits, 4:2:0 to 4:4:4,
limited and full range, BT.601 and BT.709, odd sizes, variable frame rate and rotated videos. It differs
- from OpenCV 4.5.5, which the paper's code names: it takes every video for BT.601, so the colours of videos tagged BT.709
  (most HD ones) are up to 41 of 255 levels off there; full-range VP9 (21), 10 bits (45) and MPEG-4 with odd sides (53)
  are off, too. Ours are the right colours;
- where a video is damaged: OpenCV ends it there silently, we name it and leave it out. A .mkv, .webm or .ts file that is
  cut off does not show it, and gives the frames up to there, as in OpenCV.
"""
import argparse
import heapq
import importlib.util
import inspect
import io
import json
import math
import os
import queue
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

import clip_model
from videoanomaly.data.features import VIDEO_SUFFIXES, read_meta
from videoanomaly.runtime.console import InputError, run_script
from videoanomaly.runtime.files import remove_temporary_files, write_atomically
from videoanomaly.runtime.memory import keep_freed_memory
from videoanomaly.runtime.processes import check_device, gather, process_group, same_for_all, wait_for_all
from videoanomaly.runtime.run_folder import lock_folder
from videoanomaly.runtime.torchrun import is_main, local_device, rank_and_world

TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, -180: Image.Transpose.ROTATE_180,
         -90: Image.Transpose.ROTATE_270}  # by the display matrix, degrees; OpenCV ignores other angles
FOREVER = timedelta(days=365)  # how long a process waits for the others' videos; torchrun ends it if one of them dies
BROKEN = (av.FFmpegError, OSError, InputError)  # what an unreadable video raises; anything else ends the run


# ---------------------------------------------------------------- decoding


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that OpenCV reads: the first with pictures."""
    if not container.streams.video:
        raise InputError("found no pictures in it, expected a video stream")
    return container.streams.video[0]


def decode(stream: av.VideoStream):
    """Yields every frame, an av.VideoFrame, in the order of showing.

    One thread a video: it is as fast for small videos, and with more of them FFmpeg hides errors near the end.

    Raises:
        av.FFmpegError: At the first damage that the decoder cannot conceal.
        InputError: If the file ends in the middle of a frame.
    """
    is_cut_off = False
    for packet in stream.container.demux(stream):
        is_cut_off = packet.is_corrupt if packet.size else is_cut_off  # an empty packet only flushes the decoder
        yield from packet.decode()
    if is_cut_off:
        raise InputError("the file is cut off in the middle of a frame")


def to_image(frame: av.VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    """A decoded frame as PIL RGB image, upright. The reformatter keeps the conversion tables: one a video."""
    # bgr24 is what OpenCV asks for; rgb24 takes another path in FFmpeg, some levels apart for 10 bits
    bgr = reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1)
    plane, size = bgr.planes[0], (bgr.width, bgr.height)
    image = Image.frombytes("RGB", size, memoryview(plane), "raw", "BGR", plane.line_size)  # one copy, in C
    return image.transpose(TURNS[frame.rotation]) if frame.rotation in TURNS else image


# ---------------------------------------------------------------- images


def jpeg_round_trip(image: Image.Image, quality: int) -> Image.Image:
    """What cv2.imwrite to a .jpg file and reading it leave of an image; quality in [1, 100], OpenCV's default is 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(file).convert("RGB")


def resize_like_opencv(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear as cv2.resize: without the low-pass filter of Image.resize, so making an image smaller aliases."""
    to_source = (image.width / width, 0, 0, 0, image.height / height, 0)
    return image.transform((width, height), Image.Transform.AFFINE, to_source, Image.Resampling.BILINEAR)


def cut_crops(image: Image.Image, num_crops: int, n_px: int) -> list[Image.Image]:
    """VadCLIP's crops: centre, top left, top right, bottom left, bottom right, then the mirror image of each.

    Args:
        image: A frame of any size; it is first stretched to 340x256 for `n_px` 224, in proportion for others.
        num_crops: 5, or 10 with the mirror images.
        n_px: Side of a crop, pixels.
    """
    width, height = round(340 * n_px / 224), round(256 * n_px / 224)
    image = resize_like_opencv(image, width, height)
    right, bottom = width - n_px, height - n_px
    corners = [(right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom)]
    crops = [image.crop((x, y, x + n_px, y + n_px)) for x, y in corners]
    return (crops + [ImageOps.mirror(crop) for crop in crops])[:num_crops]


def prepare(image: Image.Image, preprocess, num_crops: int, jpeg: int | None, n_px: int) -> list[Tensor]:
    """A frame -> the encoder's input for each of its crops, (3, n_px, n_px)."""
    image = jpeg_round_trip(image, jpeg) if jpeg else image
    crops = cut_crops(image, num_crops, n_px) if num_crops > 1 else [image]
    return [preprocess(crop) for crop in crops]


# ---------------------------------------------------------------- encoders


class ClipEncoder:
    """CLIP's image tower with the three members that every encoder has: dim, preprocess, encode."""

    def __init__(self, name_or_path: str, device: str):
        try:
            model = clip_model.load(name_or_path, device)
        except clip_model.WeightsError as error:
            raise InputError(f"--clip {error}") from None
        self.visual, self.device, self.dim = model.visual, device, model.text_projection.shape[1]
        self.preprocess = clip_model.preprocess(self.visual.input_resolution)
        self.encode_image = model.encode_image

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, n_px, n_px) -> (n, D) float32, on the CPU."""
        return self.encode_image(images.to(self.device, non_blocking=True)).cpu()


def resize_like_pil(frames: Tensor, n_px: int) -> Tensor:
    """Shorter side to n_px as PIL's bicubic does it: first the width, then the height, whole numbers after each.

    (n, 3, H, W) in [0, 255], uint8 or float -> (n, 3, H', W') float32.
    """
    *_, H, W = frames.shape
    height, width = n_px * H // min(H, W), n_px * W // min(H, W)
    frames = frames.float()
    for size in ((H, width), (height, width)):
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 255).round()  # bicubic overshoots
    return frames


class DevicePreprocessing:
    """CLIP's encoder, but frames go to the device as they are, and are resized, cropped and normalised there, all at once."""

    def __init__(self, encoder: ClipEncoder):
        self.encoder, self.dim = encoder, encoder.dim
        _, self.crop, _, _, self.normalize = encoder.preprocess.transforms

    @staticmethod
    def preprocess(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W) uint8

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, D) float32, on the CPU."""
        frames = frames.to(self.encoder.device, non_blocking=True)
        images = self.crop(resize_like_pil(frames, self.encoder.visual.input_resolution))
        return self.encoder.encode(self.normalize(images / 255))


def clip_description(name_or_path: str, encoder: ClipEncoder) -> str:
    """The published name, or for other weights what they look like: a path would tie the features to one machine."""
    if name_or_path in clip_model.available_models():
        return f"clip {name_or_path}"
    conv1 = encoder.visual.conv1
    return (f"clip embed {encoder.dim}, width {conv1.out_channels}, patch {conv1.kernel_size[0]}, "
            f"resolution {encoder.visual.input_resolution}")


def custom_encoder(spec: str, device: str):
    """An object of the class that FILE.py:CLASS names. This runs the code in the file."""
    file, _, class_name = spec.rpartition(":")
    if not (file.endswith(".py") and Path(file).is_file()):
        raise InputError(f"--encoder {spec}: found no file {file!r}, expected FILE.py:CLASS")
    module_spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    encoder_class = getattr(module, class_name, None)
    if not inspect.isclass(encoder_class):
        raise InputError(f"--encoder {spec}: found no class {class_name!r} in {file}")
    takes_device = "device" in inspect.signature(encoder_class).parameters
    return encoder_class(device=device) if takes_device else encoder_class()


def weights_sha256(encoder) -> str | None:
    """Hash of the weights of the nn.Modules among the encoder's attributes; None without any."""
    modules = {name: value for name, value in sorted(vars(encoder).items()) if isinstance(value, nn.Module)}
    if len(modules) < 2:
        return next(map(clip_model.weights_hash, modules.values()), None)
    return clip_model.weights_hash(nn.ModuleDict(modules))


def load_encoder(clip: str, encoder_spec: str | None, device: str):
    """Returns the encoder and what meta.json says of it: encoder, weights_sha256, dim."""
    if encoder_spec:
        encoder = custom_encoder(encoder_spec, device)
        description = type(encoder).__name__
    else:
        encoder = ClipEncoder(clip, device)
        description = clip_description(clip, encoder)
    return encoder, {"encoder": description, "weights_sha256": weights_sha256(encoder), "dim": encoder.dim}


def input_size(encoder, description: str) -> int:
    """Side of the encoder's input, pixels, found with a black picture, which also tells whether the encoder works."""
    image = encoder.preprocess(Image.new("RGB", (64, 48)))
    features = encoder.encode(image[None])
    if features.shape != (1, encoder.dim):
        raise InputError(f"{description}: encode gave {tuple(features.shape)} for one image, expected (1, {encoder.dim})")
    return image.shape[-1]


# ---------------------------------------------------------------- files


def find_videos(source: Path) -> dict[str, Path]:
    """Every video in a folder and its subfolders, or the one file, by its path without extension, with "/"."""
    if not source.exists():
        raise InputError(f"--videos {source}: found nothing there, expected a video or a folder of videos")
    root, files = (source.parent, [source]) if source.is_file() else (source, sorted(source.rglob("*")))
    videos = {}
    for path in files:
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in videos:
            raise InputError(f"{videos[key]} and {path} would both give {key}.npy: rename one of them")
        videos[key] = path
    if not videos:
        raise InputError(f"--videos {source}: found no video, expected files with {' '.join(sorted(VIDEO_SUFFIXES))}")
    return videos


def open_meta(path: Path, settings: dict, videos: dict[str, Path]) -> dict:
    """What an earlier run wrote, or the start of a new meta.json: the settings and no finished video."""
    if not path.exists():
        foreign = [key for key in videos if (path.parent / f"{key}.npy").exists()]
        if foreign:  # never overwrite features that came from elsewhere
            raise InputError(f"{path.parent}: found {foreign[0]}.npy but no meta.json, expected a folder of this script or "
                             "a new one")
        return settings | {"videos": {}}
    meta = read_meta(path)
    names = dict.fromkeys((*settings, *meta))
    differing = [name for name in names if name != "videos" and meta.get(name) != settings.get(name)]
    if differing:
        found, asked = (", ".join(f"{name} {d.get(name)}" for name in differing) for d in (meta, settings))
        raise InputError(f"{path}: its features have {found}, now asked for {asked}: choose another --out")
    return meta


def write_meta(path: Path, meta: dict) -> None:
    meta["videos"] = dict(sorted(meta["videos"].items()))
    write_atomically(path, lambda file: file.write(json.dumps(meta, indent=1).encode()))


def finished_videos(out: Path) -> dict[str, dict]:
    """What the processes of this run, or of one that was killed, have noted in their .done-RANK files (see `Record`)."""
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

    def __init__(self, out: Path, meta: dict):
        self.out, self.meta, self.next_write = out, meta, 0.0
        self.file = open(out / f".done-{rank_and_world()[0]}", "ab", buffering=0)  # whole lines, also when we are killed

    def add(self, key: str, info: dict) -> None:
        self.file.write(json.dumps({key: info}).encode() + b"\n")
        if is_main() and time.monotonic() >= self.next_write:
            self.gather()

    def gather(self) -> None:
        start = time.monotonic()
        self.meta["videos"] |= finished_videos(self.out)
        write_meta(self.out / "meta.json", self.meta)
        self.next_write = time.monotonic() + 20 * (time.monotonic() - start)


def join_batches(batches: list[np.ndarray], num_crops: int) -> np.ndarray:
    """Features of a video, (rows, D), or with several crops (rows, crops, D)."""
    features = np.concatenate(batches)  # (rows * crops, D)
    return features.reshape(-1, num_crops, features.shape[1]) if num_crops > 1 else features


# ---------------------------------------------------------------- work


def header_frames(path: Path) -> int:
    """Number of frames by the file's header, for shares and the time left only: it may be wrong, or 0."""
    try:
        with av.open(str(path)) as container:
            return video_stream(container).frames
    except BROKEN:
        return 0


def split_by_size(sizes: dict[str, tuple[int, int]], num_parts: int) -> list[list[str]]:
    """Shares of about as many frames each: the longest video first, always to the share that has least so far.

    Args:
        sizes: Frames by the header, or 0, and bytes of each video.
        num_parts: Number of shares.
    Returns:
        Keys of `sizes`, a list for each share. The largest share is at most 4/3 of the least possible (R. L. Graham, 1969),
        and at most the longest video above the smallest one.
    """
    known = [size for size in sizes.values() if size[0] > 0]
    rate = sum(frames for frames, _ in known) / max(sum(num_bytes for _, num_bytes in known), 1) or 1.0  # frames per byte
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
    seen = gather({key: (header_frames(todo[key]), todo[key].stat().st_size) for key in list(todo)[rank::world_size]})
    sizes = {key: size for part in seen for key, size in part.items()}
    return {key: todo[key] for key in split_by_size(sizes, world_size)[rank]}


def read_batches(path: Path, to_inputs, stride: int, batch_size: int, pin_memory: bool, times: list | None = None):
    """Yields the encoder's inputs of a video, (n, 3, n_px, n_px), and at last {"frames": count, "fps": frames/s}.

    Frames that go to the encoder as they are have the video's size, (n, 3, H, W); where that changes, a batch ends.
    `times`, if given, gets the second from the start of the file at which each frame is shown, None where it does not tell.
    """
    def stack(images):
        batch = torch.stack(images)
        return batch.pin_memory() if pin_memory else batch  # so that its way to the GPU is a copy in the background

    with av.open(str(path)) as container:
        stream, reformatter = video_stream(container), VideoReformatter()
        start = (container.start_time or 0) / av.time_base
        images, num_frames = [], 0
        for num_frames, frame in enumerate(decode(stream), start=1):
            if times is not None:
                times.append(None if frame.time is None else frame.time - start)
            if (num_frames - 1) % stride:
                continue
            inputs = to_inputs(to_image(frame, reformatter))
            if len(images) >= batch_size or images and images[0].shape != inputs[0].shape:
                yield stack(images)
                images = []
            images += inputs
        if not num_frames:
            raise InputError("found no frame in it, expected at least one")
        if images:
            yield stack(images)
        rate = stream.average_rate or stream.guessed_rate
        yield {"frames": num_frames, "fps": rate and float(rate)}


@contextmanager
def reading_ahead(videos: dict[str, Path], read, num_workers: int):
    """Reads several videos at once, each in a thread, so that the encoder never waits at the border of two.

    Gives a function that returns the next (key, item) of any video; an exception in a thread is an item, too. There are
    at most 3 * num_workers items at a time: two a thread in the queue, and one that each is making.
    """
    items, stop = queue.Queue(2 * num_workers), threading.Event()

    def put(*item):
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work(key, path):
        try:
            for item in read(path):
                put(key, item)
                if stop.is_set():
                    return
        except Exception as error:
            put(key, error)

    # one torch thread each: with more, they and the encoder wait for each other (preprocessing took 5 times the CPU time)
    pool = ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for key, path in videos.items():
            pool.submit(work, key, path)
        yield items.get
    finally:  # also on Ctrl-C and when the encoder fails: no thread is left waiting for room in the queue
        stop.set()
        pool.shutdown(cancel_futures=True)


def to_float16(features: Tensor, description: str) -> np.ndarray:
    array = features.detach().cpu().half().numpy()
    if not np.isfinite(array).all():
        raise InputError(f"{description}: encode gave infinite features or ones beyond 65504, expected finite float16 ones")
    return array


def encode_videos(videos: dict[str, Path], encoder, description: str, read, num_workers: int, num_crops: int, bar: tqdm):
    """Yields (key, float16 features or None, what `read` gave at last) of each video, in the order in which they end.

    An unreadable video has no features; what it gives at last is the exception.
    """
    batches = defaultdict(list)
    with reading_ahead(videos, read, num_workers) as next_item:
        num_open = len(videos)
        while num_open:
            key, item = next_item()
            if isinstance(item, Tensor):
                batches[key].append(to_float16(encoder.encode(item), description))
                bar.update(len(item) // num_crops)
                continue
            num_open -= 1
            done = batches.pop(key, None)
            if isinstance(item, Exception) and not isinstance(item, BROKEN):
                raise item
            yield key, None if isinstance(item, BROKEN) else join_batches(done, num_crops), item


def why_skipped(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def extract(videos: dict[str, Path], record: Record, encoder, read, num_workers: int, bar: tqdm) -> None:
    """Encodes the videos; each one's file is written, and `record` extended, when its last frame is done."""
    meta = record.meta
    for key, features, info in encode_videos(videos, encoder, meta["encoder"], read, num_workers, meta["crops"], bar):
        if features is None:
            bar.write(f"skipped {videos[key]}: {why_skipped(info)}", file=sys.stderr)
            continue
        write_atomically(record.out / f"{key}.npy", partial(np.save, arr=features))
        record.add(key, info)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, required=True, help="a folder, taken with its subfolders, or one video")
    add("--out", type=Path, required=True, help="folder of the .npy files and meta.json")
    add("--clip", default="ViT-B/16", help="CLIP weights: a name or a file (default: ViT-B/16)")
    add("--encoder", metavar="FILE.py:CLASS",
        help="instead of CLIP a class with dim, preprocess(PIL image) -> (3, n, n) tensor and encode(batch) -> (batch, dim) "
             "tensor; THIS RUNS THE CODE IN THE FILE (default: CLIP)")
    add("--stride", type=int, default=1, help="encode every n-th frame (default: 1, every frame)")
    add("--crops", type=int, default=1, choices=(1, 5, 10),
        help="pictures cut from a frame: 1 as the encoder does it, 5 or 10 as VadCLIP does (default: 1)")
    add("--jpeg", type=int, metavar="QUALITY",
        help="1 to 100: save each frame as JPEG in between; 95 is what the published features saw (default: do not)")
    add("--batch", type=int, default=32, help="pictures given to the encoder at once (default: 32)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    add("--device-preprocess", action=argparse.BooleanOptionalAction, default=False,
        help="CLIP: resize and normalise on the device, many frames at once; features within 1e-3 of PIL's (default: PIL)")
    add("--workers", type=int, default=max(1, min(8, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))),
        help="videos read at once, each in a thread; about 3 batches of memory for each (default: %(default)s here)")
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
        raise InputError(f"--device-preprocess: found --encoder {args.encoder}, whose preprocess works with PIL; expected CLIP")
    args.device = check_device(local_device(check_device(args.device)))


def prepare_folder(out: Path, settings: dict, videos: dict[str, Path]) -> dict:
    """Clears up after runs that were killed, and writes and returns what is meta.json now."""
    meta = open_meta(out / "meta.json", settings, videos)
    remove_temporary_files(out.rglob(".*.tmp"))
    meta["videos"] |= finished_videos(out)
    meta["videos"] = {key: info for key, info in meta["videos"].items() if (out / f"{key}.npy").exists()}
    write_meta(out / "meta.json", meta)
    remove_notes(out)
    return meta


def remove_notes(out: Path) -> None:
    for path in out.glob(".done-*"):
        path.unlink()


def extract_missing(args, videos: dict[str, Path], meta: dict, encoder, n_px: int) -> int:
    """Extracts what an earlier run has not, in each process its share; the exit status."""
    todo = {key: path for key, path in videos.items() if key not in meta["videos"]}
    own = own_share(todo)
    if args.device_preprocess:
        encoder = DevicePreprocessing(encoder)
    to_inputs = partial(prepare, preprocess=encoder.preprocess, num_crops=args.crops, jpeg=args.jpeg, n_px=n_px)
    read = partial(read_batches, to_inputs=to_inputs, stride=args.stride, batch_size=args.batch,
                   pin_memory=args.device.startswith("cuda"))
    shows_bar = is_main() and sys.stderr.isatty()
    num_rows = sum(map(header_frames, own.values())) // args.stride if shows_bar else None
    start, record = time.monotonic(), Record(args.out, meta)
    with tqdm(total=num_rows, unit="frame", disable=not shows_bar) as bar, record.file:
        extract(own, record, encoder, read, args.workers, bar)
    wait_for_all()
    return finish(record, len(videos), todo, args.stride, time.monotonic() - start) if is_main() else 0


def finish(record: Record, num_videos: int, todo: dict[str, Path], stride: int, seconds: float) -> int:
    """The last meta.json and one line on all that was done; the exit status."""
    record.gather()
    remove_notes(record.out)
    videos = record.meta["videos"]
    done = todo.keys() & videos.keys()
    num_rows = sum(math.ceil(videos[key]["frames"] / stride) for key in done)
    print(f"{record.out}: {len(done)} of {num_videos} videos written, {num_videos - len(todo)} were there, "
          f"{len(todo) - len(done)} skipped; {num_rows} frames, {num_rows / seconds:.1f} frames/s")
    return int(len(done) < len(todo))


def load(args) -> tuple:
    """All that can be wrong besides the folder shows here: videos, encoder, settings for meta.json, side of its input."""
    check_args(args)
    videos = find_videos(args.videos)
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would round the patches of CLIP's first layer to 10 bits
    encoder, settings = load_encoder(args.clip, args.encoder, args.device)
    n_px = input_size(encoder, settings["encoder"])
    settings |= {"stride": args.stride, "crops": args.crops, "jpeg": args.jpeg}
    return videos, encoder, settings | ({"preprocess": "device"} if args.device_preprocess else {}), n_px


def check_same(settings: dict, videos: dict[str, Path]) -> None:
    """Another machine's weights would give other features in the same folder."""
    of_all = gather(settings | {"videos": sorted(videos)})
    for name, expected in of_all[0].items():
        if differing := [rank for rank, found in enumerate(of_all) if found.get(name) != expected]:
            raise InputError(f"process {differing[0]}: found another {name} than in process 0, expected the same in all")


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
