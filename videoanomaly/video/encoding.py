"""Several videos at once -> rows of features.

Shapes: N frames of a video, D feature size.
"""

import queue
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from tqdm import tqdm

from videoanomaly.runtime.console import InputError
from videoanomaly.video.decoding import BROKEN, decode, frame_times, to_image, video_stream


def join_batches(batches: list[np.ndarray], num_crops: int) -> np.ndarray:
    """Features of a video, (rows, D), or with several crops (rows, crops, D)."""
    features = np.concatenate(batches)  # (rows * crops, D)
    return features.reshape(-1, num_crops, features.shape[1]) if num_crops > 1 else features


def read_batches(path: Path, to_inputs, stride: int, batch_size: int, pin_memory: bool, times: list | None = None):
    """Yields the encoder's inputs of a video, (n, 3, n_px, n_px), and at last {"frames": count, "fps": frames/s}.

    Frames that go to the encoder as they are have the video's size, (n, 3, H, W); where that changes, a batch ends.
    `times`, if given, gets the second from the start of the file at which each frame is shown, None where it does not
    tell.
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

    # one torch thread each: with more, they and the encoder wait for each other (preprocessing took 5 times the CPU
    # time)
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
        raise InputError(
            f"{description}: encode gave infinite features or ones beyond 65504, expected finite float16 ones"
        )
    return array


def encode_videos(
    videos: dict[str, Path], encoder, description: str, read, num_workers: int, num_crops: int, bar: tqdm
):
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


def read_timed(path: Path, **how):
    """As extract_features.read_batches, and at last also "times" and their "fps"."""
    from torch import Tensor

    found = []
    for item in read_batches(path, times=found, **how):
        if isinstance(item, Tensor):
            yield item
    times, fps = frame_times(found, item["fps"])
    yield {"frames": len(times), "fps": fps, "times": times}


def interpolate(features: np.ndarray, stride: int, spacing: int, num_frames: int) -> np.ndarray:
    """Features of every stride-th frame -> those of every spacing-th, linear in between, float16.

    The model keeps the spacing that it was trained with, and so its notion of speed.
    """
    if stride == spacing:
        return features
    at = np.minimum(np.arange(0, num_frames, spacing) / stride, len(features) - 1)
    before = at.astype(int)
    weight = (at - before).reshape(-1, *[1] * (features.ndim - 1)).astype(np.float32)
    after = features[np.minimum(before + 1, len(features) - 1)]
    return (features[before] * (1 - weight) + after * weight).astype(np.float16)
