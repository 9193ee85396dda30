"""Several videos at once -> rows of features.

Shapes: N frames of a video, D feature size.
"""

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from videoanomaly.runtime.console import InputError
from videoanomaly.video.decoding import BROKEN, mean_rate, open_video, to_image, with_holes
from videoanomaly.video.frame_clock import Damage, Jump, clock
from videoanomaly.video.picture_folder import FPS
from videoanomaly.video.preprocessing import ImageEncoder

TOLD = 3  # places of damage that a line names


class Reading(NamedTuple):
    """What is known of a video once it was read to its end."""

    times: np.ndarray  # (N,) seconds, when each frame is shown
    header_rate: float | None  # frames/s
    damage: list[Damage]
    jumps: list[Jump]
    may_seek: bool  # see VideoFile

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        return mean_rate(self.times, self.header_rate)

    def notes(self) -> list[str]:
        """Lines on what is not as it should be."""
        lines = []
        if self.damage:
            places = [damage.text() for damage in self.damage[:TOLD]]
            more = f" and {len(self.damage) - TOLD} more" if len(self.damage) > TOLD else ""
            lines.append(f"cannot be decoded: {', '.join(places)}{more}; the rest was used")
        if self.jumps:
            first, times = self.jumps[0], "once" if len(self.jumps) == 1 else f"{len(self.jumps)} times"
            lines.append(
                f"time stamps jump {times}, first by {first.by:+.3f} s at {clock(first.time)}; "
                "times go on there as if they did not"
            )
        return lines


T = TypeVar("T")  # what a video's reader yields behind the last batch, such as a Reading
Read = Callable[[Path], Iterator[Tensor | T]]  # a video -> what `read_batches` yields


def join_batches(batches: list[np.ndarray], num_crops: int) -> np.ndarray:
    """Features of a video, (rows, D), or with several crops (rows, crops, D)."""
    features = np.concatenate(batches)  # (rows * crops, D)
    num_rows, dim = len(features) // num_crops, features.shape[1]
    return features.reshape(num_rows, num_crops, dim) if num_crops > 1 else features


def stack_inputs(inputs: Iterable[list[Tensor]], batch_size: int, pin_memory: bool) -> Iterator[Tensor]:
    """Yields the inputs of frames, a list of each, as batches (n, 3, n_px, n_px); where their size changes one ends."""

    def stack(images: list[Tensor]) -> Tensor:
        batch = torch.stack(images)
        return batch.pin_memory() if pin_memory else batch  # so that its way to the GPU is a copy in the background

    images: list[Tensor] = []
    for of_frame in inputs:
        if len(images) >= batch_size or images and images[0].shape != of_frame[0].shape:
            yield stack(images)
            images = []
        images += of_frame
    if images:
        yield stack(images)


def read_batches(
    path: Path,
    to_inputs: Callable[[Image.Image], list[Tensor]],
    stride: int,
    batch_size: int,
    pin_memory: bool,
    fps: float = FPS,
) -> Iterator[Tensor | Reading]:
    """Yields the encoder's inputs of a video, (n, 3, n_px, n_px), and at last what else was read.

    Frames that go to the encoder as they are have the video's size, (n, 3, H, W); where that changes, a batch ends.
    Pictures of a folder come `fps` a second.

    Raises:
        One of decoding.BROKEN: If the video cannot be read.
    """

    with open_video(path, fps) as video:
        reformatter, times = VideoReformatter(), []

        def chosen() -> Iterator[list[Tensor]]:
            for time, frame in video.frames():
                times.append(time)
                if (len(times) - 1) % stride == 0:
                    yield to_inputs(to_image(frame, reformatter))

        yield from stack_inputs(chosen(), batch_size, pin_memory)
        shown = np.array(times)
        yield Reading(shown, video.rate, with_holes(video.damage, shown), [*video.jumps], video.may_seek)


@contextmanager
def reading_ahead(
    videos: dict[str, Path], read: Read[T], num_workers: int
) -> Iterator[Callable[[], tuple[str, Tensor | T | Exception]]]:
    """Reads several videos at once, each in a thread, so that the encoder never waits at the border of two.

    Gives a function that returns the next (key, item) of any video; an exception in a thread is an item, too. There are
    at most 3 * num_workers items at a time: two a thread in the queue, and one that each is making.
    """
    items: queue.Queue[tuple[str, Tensor | T | Exception]] = queue.Queue(2 * num_workers)
    stop = threading.Event()

    def put(key: str, item: Tensor | T | Exception) -> None:
        while not stop.is_set():
            try:
                return items.put((key, item), timeout=0.1)
            except queue.Full:
                pass

    def work(key: str, path: Path) -> None:
        try:
            for item in read(path):
                put(key, item)
                if stop.is_set():
                    return
        except Exception as error:
            put(key, error)

    # one torch thread each: with more, they and the encoder wait for each other (preprocessing took 5 times as long)
    pool = ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for key, path in videos.items():
            pool.submit(work, key, path)
        yield items.get
    finally:  # also on Ctrl-C and when the encoder fails: no thread is left waiting for room in the queue
        stop.set()
        pool.shutdown(cancel_futures=True)


def to_float16(features: Tensor, description: str) -> np.ndarray:
    """Features as feature files hold them; an InputError, which names the encoder, where they do not fit in."""
    array = features.detach().cpu().half().numpy()
    if not np.isfinite(array).all():
        raise InputError(
            f"{description}: encode gave infinite features or ones beyond 65504, expected finite float16 ones"
        )
    return array


def encode_videos(
    videos: dict[str, Path],
    encoder: ImageEncoder,
    description: str,
    read: Read[T],
    num_workers: int,
    num_crops: int,
    bar: tqdm,
) -> Iterator[tuple[str, tuple[np.ndarray, T] | Exception]]:
    """Yields (key, (float16 features, what else was read)) of each video, or (key, the exception) of an unreadable one.

    They come in the order in which they end.
    """
    batches: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    with reading_ahead(videos, read, num_workers) as next_item:
        num_open = len(videos)
        while num_open:
            key, item = next_item()
            if isinstance(item, Tensor):
                batches[key].append(to_float16(encoder.encode(item), description))
                bar.update(len(item) // num_crops)
                continue
            num_open -= 1
            done = batches.pop(key, [np.zeros((0, encoder.dim), np.float16)])
            if isinstance(item, Exception) and not isinstance(item, BROKEN):
                raise item
            yield key, item if isinstance(item, Exception) else (join_batches(done, num_crops), item)


def interpolate(features: np.ndarray, stride: int, spacing: int, num_frames: int) -> np.ndarray:
    """Features of every stride-th of N frames, (rows, ...), -> those of every spacing-th, linear in between, float16.

    The model keeps the spacing that it was trained with, and so its notion of speed.
    """
    if stride == spacing:
        return features
    at = np.minimum(np.arange(0, num_frames, spacing) / stride, len(features) - 1)
    before = at.astype(int)
    weight = (at - before).reshape(-1, *[1] * (features.ndim - 1)).astype(np.float32)
    after = features[np.minimum(before + 1, len(features) - 1)]
    return (features[before] * (1 - weight) + after * weight).astype(np.float16)
