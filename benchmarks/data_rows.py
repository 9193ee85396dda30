"""Rows of the benchmark's table about data and evaluation: a function each, from the setup to lines."""

import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from anomalyclip import AnomalyCLIPConfig
from benchmarks import peers
from benchmarks.inputs import evaluate_ours, make_pair, our_model, random_scores, video_lengths, write_features
from benchmarks.measure import Line, Setup, against, gib, in_subprocess, peak_memory, pick, rates, spread, take_turns
from videoanomaly.data.annotations import Video
from videoanomaly.data.features import FeatureFolder
from videoanomaly.data.sampling import SegmentDataset, training_rows
from videoanomaly.evaluation import metrics
from videoanomaly.runtime.files import write_atomically


def forget(folder: Path) -> None:
    """Drops the folder's files from the system's cache, where it can be asked to."""
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(setup: Setup) -> list[Line]:
    folder, count = setup.folder / "loading", pick(setup.quick, 16, 128)
    videos = write_features(
        folder, video_lengths(count, pick(setup.quick, 1000, 7000)), pick(setup.quick, 64, 512), np.float32
    )
    dataset = SegmentDataset(videos, FeatureFolder(folder), 32, 16)
    functions = {
        "ours": lambda: [dataset[i, i]["features"].numpy() for i in range(count)],
        "whole files": lambda: [
            peers.whole_file_sample(folder / f"{i}.npy", 32, 16, i, training_rows) for i in range(count)
        ],
    }
    results, warm = take_turns(functions, setup.rounds, "cpu")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(results["ours"], results["whole files"]))
    line = partial(
        against, peer="whole files", show=partial(rates, count=count, unit="samples/s"), difference=difference
    )
    lines = [line("training samples from disk, warm", ours=warm["ours"], theirs=warm["whole files"], least=20)]
    if not hasattr(os, "posix_fadvise"):
        return lines + [Line("training samples from disk, cold", note="this system cannot be told to drop its cache")]
    cold: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(setup.rounds):
        for name, function in functions.items():
            forget(folder)
            start = time.perf_counter()
            function()
            cold[name].append(time.perf_counter() - start)
    return lines + [line("training samples from disk, cold", ours=cold["ours"], theirs=cold["whole files"])]


def evaluate_released(
    model: peers.ReleasedModel, config: AnomalyCLIPConfig, videos: list[Video], folder: Path, device: str
) -> dict[str, float]:
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
    ours = our_model(quick, device)
    with tempfile.TemporaryDirectory() as folder:
        videos = write_features(Path(folder), [longest, 2000, 2000, 2000], ours.config.feature_dim, np.float16)
        evaluate_ours(ours.eval(), videos, Path(folder))
    return peak_memory(device)


def evaluation(setup: Setup) -> list[Line]:
    folder, count = setup.folder / "evaluation", pick(setup.quick, 24, 290)
    ours, theirs = make_pair(setup.quick, setup.device)
    ours.eval()
    theirs.eval()
    lengths = video_lengths(count, pick(setup.quick, 1500, 1_109_680 // 290))
    videos = write_features(folder, lengths, ours.config.feature_dim, np.float16)
    functions = {
        "ours": partial(evaluate_ours, ours, videos, folder),
        "released": partial(evaluate_released, theirs, ours.config, videos, folder, setup.device),
    }
    results, seconds = take_turns(functions, min(setup.rounds, 3), setup.device, warm_up=setup.quick)
    difference = max(abs(results["ours"][key] - value) for key, value in results["released"].items())
    short, long = pick(setup.quick, (2000, 8000), (5000, 100_000))
    memory = [
        in_subprocess("benchmarks.data_rows", "evaluation_memory", setup.quick, setup.device, longest)
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
        tolerance=pick(setup.quick, 1e-5, 1e-6),  # two frames whose order rounding decides weigh more among few
        note=f"peak memory {gib(memory[0])} with videos up to {short:,} frames, {gib(memory[1])} up to {long:,} "
        "(goal: under 2 GiB, independent)",
    )
    line.reached = line.reached and memory[1] < min(2 * 2**30, 1.1 * memory[0])
    return [line]


def bootstrap(setup: Setup) -> list[Line]:
    """Ours with all draws, scikit-learn with a few: the intervals from these few, of the same seed, are equal."""
    num_draws, few, classes = pick(setup.quick, 100, 1000), 2, tuple("ABCDEF")
    scores = random_scores(pick(setup.quick, 60, 800), pick(setup.quick, 300, 2875), len(classes))
    weights = np.random.default_rng(0).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), few)
    functions = {
        "ours": lambda: metrics.bootstrap_metrics(scores, classes, num_draws=num_draws),
        "scikit-learn": lambda: peers.sklearn_draws(scores, classes, weights),
    }
    results, seconds = take_turns(functions, min(setup.rounds, 3), "cpu", warm_up=setup.quick)
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
