"""Rows of the benchmark's table about data, videos and evaluation: a function each, from the command line's arguments
to lines.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks import peers
from benchmarks.inputs import (
    SMALL,
    VIT_B16,
    evaluate_ours,
    make_pair,
    our_model,
    random_clip,
    random_scores,
    video_lengths,
    write_features,
)
from benchmarks.measure import HERE, Line, against, gib, in_subprocess, peak_memory, pick, rates, spread, take_turns
from videoanomaly.runtime.files import write_atomically

CCTV = HERE.parent / "shared" / "data" / "cctv"


def gemm_rate(dtype: torch.dtype, args) -> list[float]:
    """FLOP/s of a matrix product of the image tower's feed-forward, for more images where that takes no time."""
    n = 197 * pick(args, 16, 1024 if args.device.startswith("cuda") else 64)
    x, weight = torch.randn(n, 768, device=args.device).to(dtype), torch.randn(3072, 768, device=args.device).to(dtype)
    _, seconds = take_turns({"linear": partial(torch.nn.functional.linear, x, weight)}, pick(args, 2, 7), args.device)
    return [2 * n * 768 * 3072 / s for s in seconds["linear"]]


def copy_rate(args) -> list[float]:
    """Bytes/s read and written by a copy that no cache holds."""
    source = torch.ones(pick(args, 2**26, 2**28), dtype=torch.float32, device=args.device)
    target = torch.empty_like(source)
    _, seconds = take_turns({"copy": lambda: target.copy_(source)}, pick(args, 2, 7), args.device)
    return [2 * source.nbytes / s for s in seconds["copy"]]


def limits(args) -> list[Line]:
    video = sample_videos(args)[0]
    num_frames, seconds = take_turns({"decode": lambda: sum(1 for _ in decoded(video))}, args.rounds, args.device)
    return [
        Line("limit: matrix product, fp32", spread(gemm_rate(torch.float32, args), "GFLOP/s", 1e-9)),
        Line("limit: matrix product, bf16", spread(gemm_rate(torch.bfloat16, args), "GFLOP/s", 1e-9)),
        Line("limit: memory, reading and writing", spread(copy_rate(args), "GB/s", 1e-9)),
        Line(
            "limit: decoding, one thread", rates(seconds["decode"], num_frames["decode"], "frames/s"), note=video.name
        ),
    ]


def forget(folder: Path) -> None:
    """Drops the folder's files from the system's cache, where it can be asked to."""
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(args) -> list[Line]:
    from videoanomaly.data.features import FeatureFolder
    from videoanomaly.data.sampling import SegmentDataset, training_rows

    folder, count = args.folder / "loading", pick(args, 16, 128)
    videos = write_features(folder, video_lengths(count, pick(args, 1000, 7000)), pick(args, 64, 512), np.float32)
    dataset = SegmentDataset(videos, FeatureFolder(folder), 32, 16)
    functions = {
        "ours": lambda: [dataset[i, i]["features"].numpy() for i in range(count)],
        "whole files": lambda: [
            peers.whole_file_sample(folder / f"{i}.npy", 32, 16, i, training_rows) for i in range(count)
        ],
    }
    results, warm = take_turns(functions, args.rounds, "cpu")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(results["ours"], results["whole files"]))
    line = partial(
        against, peer="whole files", show=partial(rates, count=count, unit="samples/s"), difference=difference
    )
    lines = [line("training samples from disk, warm", ours=warm["ours"], theirs=warm["whole files"], least=20)]
    if not hasattr(os, "posix_fadvise"):
        return lines + [Line("training samples from disk, cold", note="this system cannot be told to drop its cache")]
    cold = {name: [] for name in functions}
    for _ in range(args.rounds):
        for name, function in functions.items():
            forget(folder)
            start = time.perf_counter()
            function()
            cold[name].append(time.perf_counter() - start)
    return lines + [line("training samples from disk, cold", ours=cold["ours"], theirs=cold["whole files"])]


def evaluate_released(model, config, videos, folder: Path, device: str) -> dict:
    p_A, p_class, labels = [], [], []
    for video in videos:
        path = folder / f"{video.name}.npy"
        score, per_class = peers.loop_scores(model, path, config.num_segments, config.num_frames, device)
        p_A += score.tolist()
        p_class += per_class.tolist()
        labels += peers.loop_labels(video, len(score))
    results = peers.loop_metrics(p_A, p_class, labels, config.classes)
    write_atomically(folder / "metrics_released.json", lambda file: file.write(json.dumps(results).encode()))
    return results


def evaluation_memory(quick: bool, device: str, longest: int) -> int:
    """Peak bytes of a process that evaluates a few videos, the longest of so many frames."""
    args = SimpleNamespace(quick=quick, device=device)
    ours = our_model(args)
    with tempfile.TemporaryDirectory() as folder:
        videos = write_features(Path(folder), [longest, 2000, 2000, 2000], ours.config.feature_dim, np.float16)
        evaluate_ours(ours.eval(), videos, Path(folder))
    return peak_memory(device)


def evaluation(args) -> list[Line]:
    folder, count = args.folder / "evaluation", pick(args, 24, 290)
    ours, theirs = (model.eval() for model in make_pair(args))
    lengths = video_lengths(count, pick(args, 1500, 1_109_680 // 290))
    videos = write_features(folder, lengths, ours.config.feature_dim, np.float16)
    functions = {
        "ours": partial(evaluate_ours, ours, videos, folder),
        "released": partial(evaluate_released, theirs, ours.config, videos, folder, args.device),
    }
    results, seconds = take_turns(functions, min(args.rounds, 3), args.device, warm_up=args.quick)
    difference = max(abs(results["ours"][key] - value) for key, value in results["released"].items())
    short, long = pick(args, (2000, 8000), (5000, 100_000))
    memory = [
        in_subprocess("benchmarks.data_rows", "evaluation_memory", args.quick, args.device, longest)
        for longest in (short, long)
    ]
    work = f"evaluation, {count} videos, {lengths.sum():,} frames, features to metrics.json"
    line = against(
        work,
        "text tower per video, loops over frames",
        seconds["ours"],
        seconds["released"],
        partial(spread, unit="s"),
        10,
        difference=difference,
        tolerance=pick(args, 1e-5, 1e-6),  # two frames whose order rounding decides weigh more among few
        note=f"peak memory {gib(memory[0])} with videos up to {short:,} frames, {gib(memory[1])} up to {long:,} "
        "(goal: under 2 GiB, independent)",
    )
    line.reached = line.reached and memory[1] < min(2 * 2**30, 1.1 * memory[0])
    return [line]


def bootstrap(args) -> list[Line]:
    """Ours with all draws, scikit-learn with a few; equality is that of the intervals from these few, of the same seed."""
    from videoanomaly.evaluation import metrics

    num_draws, few, classes = pick(args, 100, 1000), 2, tuple("ABCDEF")
    scores = random_scores(pick(args, 60, 800), pick(args, 300, 2875), len(classes))
    weights = np.random.default_rng(0).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), few)
    functions = {
        "ours": lambda: metrics.bootstrap_metrics(scores, classes, num_draws=num_draws),
        "scikit-learn": lambda: peers.sklearn_draws(scores, classes, weights),
    }
    results, seconds = take_turns(functions, min(args.rounds, 3), "cpu", warm_up=args.quick)
    intervals = metrics.bootstrap_metrics(scores, classes, num_draws=few)
    difference = max(
        float(np.abs(np.percentile(draws, (2.5, 97.5)) - intervals[key]).max())
        for key, draws in results["scikit-learn"].items()
    )
    theirs = [s * num_draws / few for s in seconds["scikit-learn"]]
    num_frames = sum(len(s.labels) for s in scores)
    work = f"bootstrap, {num_frames:,} frames, {len(classes)} classes, {num_draws} draws"
    return [
        against(
            work,
            "scikit-learn",
            seconds["ours"],
            theirs,
            partial(spread, unit="s"),
            50,
            difference=difference,
            tolerance=1e-9,
            note=f"scikit-learn's time is that of {few} draws, times {num_draws // few}",
        )
    ]


def sample_videos(args) -> list[Path]:
    """The shortest of the real videos, or made ones where those are absent."""
    found = sorted(CCTV.rglob("*.mp4"), key=lambda path: (path.stat().st_size, path.name))
    return found[: pick(args, 1, 2)] or [made_video(args.folder / "made.mp4", pick(args, 60, 300))]


def made_video(path: Path, num_frames: int) -> Path:
    """Moving coloured noise, 320x240, 25 frames/s."""
    import av

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


def decoded(path: Path):
    """Frames of a video as PIL images, decoded in one thread, with the same conversion of colours as ours."""
    import av
    from av.video.reformatter import VideoReformatter

    from videoanomaly.video.decoding import to_image

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        reformatter = VideoReformatter()
        for frame in container.decode(video=0):
            yield to_image(frame, reformatter)


def extract_in_turn(paths: list[Path], encoder, batch_size: int) -> list[np.ndarray]:
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


def extract_ours(args, sources: Path, weights: Path, batch_size: int) -> tuple[list[np.ndarray], float]:
    """Features and seconds of extract_features.py; a second start, with nothing to do, tells what starting costs."""
    with tempfile.TemporaryDirectory(dir=args.folder) as out:
        command = [
            sys.executable,
            HERE / "extract_features.py",
            "--videos",
            sources,
            "--out",
            out,
            "--clip",
            weights,
            "--batch",
            str(batch_size),
            "--device",
            args.device,
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        middle = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = (middle - start) - (time.perf_counter() - middle)
        return [np.load(path) for path in sorted(Path(out).rglob("*.npy"))], seconds


def encoder_alone(encoder, batch_size: int, num_batches: int = 4) -> float:
    """Seconds per image where the encoder has nothing to wait for."""
    batch = torch.randn(batch_size, 3, *[encoder.visual.input_resolution] * 2)
    start = time.perf_counter()
    for _ in range(num_batches):
        encoder.encode(batch)
    return (time.perf_counter() - start) / num_batches / batch_size


def extraction(args) -> list[Line]:
    from videoanomaly.video.encoders import ClipEncoder

    sources, weights, batch_size = args.folder / "videos", args.folder / "clip.pt", pick(args, 16, 32)
    sources.mkdir(exist_ok=True)
    paths = sorted(Path(shutil.copy(path, sources)) for path in sample_videos(args))
    torch.save(random_clip(pick(args, SMALL, VIT_B16)).state_dict(), weights)
    encoder = ClipEncoder(str(weights), args.device)
    seconds, results = {"ours": [], "in turn": [], "encoder": []}, {}
    for _ in range(pick(args, 1, min(args.rounds, 3))):
        results["ours"], took = extract_ours(args, sources, weights, batch_size)
        seconds["ours"].append(took)
        start = time.perf_counter()
        results["in turn"] = extract_in_turn(paths, encoder, batch_size)
        seconds["in turn"].append(time.perf_counter() - start)
        num_frames = sum(map(len, results["ours"]))
        seconds["encoder"].append(encoder_alone(encoder, batch_size) * num_frames)
    show = partial(rates, count=num_frames, unit="frames/s")
    difference = max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(results["ours"], results["in turn"]))
    work = f"video to features, {len(paths)} videos, {num_frames} frames"
    return [
        against(work, "decode, PIL, encode in turn", seconds["ours"], seconds["in turn"], show, difference=difference),
        against(work, "the encoder alone", seconds["ours"], seconds["encoder"], show, 0.95),
    ]


def startup(args) -> list[Line]:
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
    _, seconds = take_turns(calls, pick(args, args.rounds, max(args.rounds, 3)), "cpu")
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
