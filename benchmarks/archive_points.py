"""Points of the growth curves that have to do with videos and archives: what the scripts do, as a user starts them."""

import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clip_model
from benchmarks.inputs import SMALL, VIT_B16, random_clip
from benchmarks.measure import HERE, in_subprocess, peak_memory, take_turns
from benchmarks.video_rows import made_video

FPS, MINUTES, DIM = 25, 6, 512  # of made_video; of a file of an archive; of features that are searched
CLASSES, EACH, SECONDS = ("Normal", "Fire"), 4, 2  # of the videos that the checkpoint is trained with
ROWS_PER_HOUR = 2 * 3600  # of features that are searched


def start(script: str, *words: object) -> None:
    """A script in this process, whose memory is measured.

    Raises:
        RuntimeError: If it failed, which it has then told.
    """
    sys.argv = [script, *map(str, words)]
    try:
        runpy.run_path(str(HERE / script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{script} ended with status {ended.code}") from None


def small_clip(folder: Path) -> Path:
    path = folder / "clip.pt"
    torch.save(random_clip(SMALL).state_dict(), path)
    return path


def make_checkpoint(folder: str) -> str:
    """Trains one epoch on a few made videos with a small CLIP; the checkpoint's path."""
    root, clip = Path(folder, "train"), small_clip(Path(folder))
    made = made_video(Path(folder, "short.mp4"), SECONDS * FPS)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(EACH):
            os.link(made, root / name / f"{i}.mp4")
    words = ["--dataset", "custom", "--root", root, "--clip", clip, "--out", Path(folder, "run"), "--device", "cpu"]
    sizes = ["--embed-dim", "32", "--num-segments", "6", "--num-frames", "4", "--epochs", "1"]
    start("train.py", *words, *sizes, "--folds", "0")
    return str(Path(folder, "run", "last.pt"))


def of_predict(words: list[object], folder: Path, device: str) -> Callable[[], Any]:
    """A call of predict.py with a checkpoint that another process has trained."""
    ckpt = in_subprocess("benchmarks.archive_points", "make_checkpoint", str(folder))
    common = ["--ckpt", ckpt, "--clip", folder / "clip.pt", "--out", folder / "out", "--device", device]
    return lambda: start("predict.py", *common, *words)


def one_video(folder: Path, minutes: int) -> Path:
    (folder / "videos").mkdir()
    return made_video(folder / "videos" / "long.mp4", minutes * 60 * FPS)


def predict_work(minutes: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    return of_predict([one_video(folder, minutes), "--stride", 5], folder, device)


def extract_work(minutes: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    one_video(folder, minutes)
    words = ["--videos", folder / "videos", "--out", folder / "out", "--clip", small_clip(folder), "--device", device]
    return lambda: start("extract_features.py", *words, "--stride", 5)


def triage_work(hours: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    """An archive of one file's hard links."""
    first = one_video(folder, MINUTES)
    for i in range(1, hours * 60 // MINUTES):
        os.link(first, first.with_name(f"{i}.mp4"))
    return of_predict(["--triage", first.parent], folder, device)


def write_archive(folder: str, hours: int, dim: int) -> None:
    """Random float16 features of cameras, a file of at most 10 hours each, with 2 rows a second, and meta.json."""
    rng, videos = np.random.default_rng(0), {}
    for i, begin in enumerate(range(0, hours, 10)):
        num_rows = min(10, hours - begin) * ROWS_PER_HOUR
        rows = rng.standard_normal((num_rows, dim), np.float32).astype(np.float16)
        np.save(Path(folder, f"{i}.npy"), rows)
        videos[str(i)] = {"frames": num_rows, "fps": 2.0}
    model = clip_model.load(Path(folder, "clip.pt"))
    encoder = {"encoder": "clip random", "dim": dim, "weights_sha256": clip_model.weights_hash(model.visual)}
    meta = encoder | {"stride": 1, "crops": 1, "videos": videos}
    Path(folder, "meta.json").write_text(json.dumps(meta))


def search_work(hours: int, quick: bool, device: str, folder: Path) -> Callable[[], Any]:
    """Files are mapped, and stay in the system's memory of files as far as they fit."""
    sizes = SMALL | {"embed_dim": DIM} if quick else VIT_B16
    torch.save(random_clip(sizes).state_dict(), folder / "clip.pt")
    in_subprocess("benchmarks.archive_points", "write_archive", str(folder), hours, DIM)
    words = ["--features", folder, "--clip", folder / "clip.pt", "--device", device]
    return lambda: start("search.py", "a person climbing a fence", *words)


WORKS = {"search": search_work, "triage": triage_work, "predict": predict_work, "extract": extract_work}


def point(curve: str, count: int, quick: bool, device: str, threads: int) -> tuple[float, int]:
    """See points.point; a script is run once, as its second run would find all done."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        work = WORKS[curve](count, quick, device, Path(folder))
        _, seconds = take_turns({"work": work}, 1, device, warm_up=curve == "search")
    return seconds["work"][0], peak_memory(device)
