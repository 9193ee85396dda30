"""Rows of the benchmark's table about the machine's limits, videos and start-up: a function each, from the setup to
lines.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from benchmarks.inputs import SMALL, VIT_B16, random_clip
from benchmarks.measure import HERE, Line, Setup, against, gemm_rate, pick, rates, spread, take_turns
from videoanomaly.data.annotations import VIDEO_SUFFIXES
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.fast_precision import fast_precision
from videoanomaly.runtime.precision import FULL
from videoanomaly.video.decoding import to_image
from videoanomaly.video.encoders import ClipEncoder, input_size, with_precision
from videoanomaly.video.preprocessing import ImageEncoder


def copy_rate(setup: Setup) -> list[float]:
    """Bytes/s read and written by a copy that no cache holds."""
    source = torch.ones(pick(setup.quick, 2**26, 2**28), dtype=torch.float32, device=setup.device)
    target = torch.empty_like(source)
    _, seconds = take_turns({"copy": lambda: target.copy_(source)}, pick(setup.quick, 2, 7), setup.device)
    return [2 * source.nbytes / s for s in seconds["copy"]]


def limits(setup: Setup) -> list[Line]:
    video = sample_videos(setup)[0]
    num_frames, seconds = take_turns({"decode": lambda: sum(1 for _ in decoded(video))}, setup.rounds, setup.device)
    return [
        Line("limit: matrix product, fp32", spread(gemm_rate(torch.float32, setup), "GFLOP/s", 1e-9)),
        Line("limit: matrix product, bf16", spread(gemm_rate(torch.bfloat16, setup), "GFLOP/s", 1e-9)),
        Line("limit: memory, reading and writing", spread(copy_rate(setup), "GB/s", 1e-9)),
        Line(
            "limit: decoding, one thread", rates(seconds["decode"], num_frames["decode"], "frames/s"), note=video.name
        ),
    ]


def real_videos(folder: str | Path) -> tuple[Path, ...]:
    """The videos below a folder, the smallest first.

    Raises:
        InputError: If there are none.
    """
    found = [path for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if not found:
        raise InputError(f"--videos {folder}: found no video file, expected a folder with some, such as .mp4")
    return tuple(sorted(found, key=lambda path: (path.stat().st_size, path.name)))


def sample_videos(setup: Setup) -> list[Path]:
    """The smallest of the real videos, or a made one where there are none."""
    found = setup.videos[: pick(setup.quick, 1, 2)]
    return list(found) or [made_video(setup.folder / "made.mp4", pick(setup.quick, 60, 300))]


def made_video(path: Path, num_frames: int) -> Path:
    """Moving coloured noise, 320x240, 25 frames/s."""
    if path.exists():
        return path
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * i, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return path


def decoded(path: Path) -> Iterator[Image.Image]:
    """Frames of a video as PIL images, decoded in one thread, with the same conversion of colours as ours."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        reformatter = VideoReformatter()
        for frame in container.decode(video=0):
            yield to_image(frame, reformatter)


def extract_in_turn(paths: list[Path], encoder: ImageEncoder, batch_size: int) -> list[np.ndarray]:
    """Decode, PIL, encode, one after the other, float16 (N, D) of each video."""
    features = []
    for path in paths:
        done, images = [], []
        for image in decoded(path):
            images.append(encoder.preprocess(image))
            if len(images) == batch_size:
                done.append(encoder.encode(torch.stack(images)))
                images = []
        done += [encoder.encode(torch.stack(images))] if images else []
        features.append(torch.cat(done).half().numpy())
    return features


def extract_ours(
    setup: Setup, sources: Path, weights: Path, batch_size: int, precision: str
) -> tuple[list[np.ndarray], float]:
    """Features and seconds of extract_features.py; a second start, with nothing to do, tells what starting costs."""
    with tempfile.TemporaryDirectory(dir=setup.folder) as out:
        options = {
            "--videos": sources,
            "--out": out,
            "--clip": weights,
            "--batch": batch_size,
            "--device": setup.device,
            "--precision": precision,
        }
        command = [
            sys.executable,
            HERE / "extract_features.py",
            *(str(part) for pair in options.items() for part in pair),
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        middle = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = (middle - start) - (time.perf_counter() - middle)
        return [np.load(path) for path in sorted(Path(out).rglob("*.npy"))], seconds


def encoder_alone(encoder: ImageEncoder, batch_size: int, num_batches: int = 4) -> float:
    """Seconds per image where the encoder has nothing to wait for."""
    batch = torch.randn(batch_size, 3, *[input_size(encoder, "the encoder")] * 2)
    start = time.perf_counter()
    for _ in range(num_batches):
        encoder.encode(batch)
    return (time.perf_counter() - start) / num_batches / batch_size


def extraction(setup: Setup) -> list[Line]:
    """In float32, and in the precision that the device is fast in, if that is another."""
    sources, weights = setup.folder / "videos", setup.folder / "clip.pt"
    sources.mkdir(exist_ok=True)
    found = sample_videos(setup)
    paths = [Path(shutil.copy(path, sources / f"{i}{path.suffix}")) for i, path in enumerate(found)]
    torch.save(random_clip(pick(setup.quick, SMALL, VIT_B16)).state_dict(), weights)
    precisions = dict.fromkeys((FULL, fast_precision(setup.device)))
    return [line for precision in precisions for line in extraction_in(precision, setup, paths, weights)]


def extraction_in(precision: str, setup: Setup, paths: list[Path], weights: Path) -> list[Line]:
    batch_size = pick(setup.quick, 16, 32)
    encoder, _ = with_precision(ClipEncoder(str(weights), setup.device), setup.device, precision)
    seconds: dict[str, list[float]] = {"ours": [], "in turn": []}
    results: dict[str, list[np.ndarray]] = {}
    per_image = []
    for _ in range(pick(setup.quick, 1, min(setup.rounds, 3))):
        results["ours"], took = extract_ours(setup, paths[0].parent, weights, batch_size, precision)
        seconds["ours"].append(took)
        start = time.perf_counter()
        results["in turn"] = extract_in_turn(paths, encoder, batch_size)
        seconds["in turn"].append(time.perf_counter() - start)
        per_image.append(encoder_alone(encoder, batch_size))
    num_frames = sum(map(len, results["ours"]))
    alone = [s * num_frames for s in per_image]
    show = partial(rates, count=num_frames, unit="frames/s")
    difference = max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(results["ours"], results["in turn"]))
    work = f"video to features, {precision}, {len(paths)} videos, {num_frames} frames"
    last_bits = 1e-3 if precision == FULL else 2e-2  # of float16 near 1; bfloat16 depends on how frames are batched
    in_turn = "decode, PIL, encode in turn", seconds["ours"], seconds["in turn"]
    return [
        against(work, *in_turn, show, difference=difference, tolerance=last_bits),
        against(work, "the encoder alone", seconds["ours"], alone, show, 0.95),
    ]


def startup(setup: Setup) -> list[Line]:
    works = {
        "evaluate.py --help": ["evaluate.py", "--help"],
        "python -c pass": ["-c", "pass"],
        "import anomalyclip": ["-c", "import anomalyclip"],
        "import torch": ["-c", "import torch"],
    }
    calls = {
        work: partial(subprocess.run, [sys.executable, *command], cwd=HERE, check=True, capture_output=True)
        for work, command in works.items()
    }
    _, seconds = take_turns(calls, pick(setup.quick, setup.rounds, max(setup.rounds, 3)), "cpu")
    goals = (("evaluate.py --help", "python -c pass", 0.3), ("import anomalyclip", "import torch", 3))
    return [
        against(
            f"start-up: {work}",
            bound,
            seconds[work],
            seconds[bound],
            partial(spread, unit="s"),
            goal=f"under {most} s",
            reached=bool(np.median(seconds[work]) < most),
        )
        for work, bound, most in goals
    ]
