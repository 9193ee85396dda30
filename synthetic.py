"""A synthetic data set for trying the scripts: planted directions in noise, no video behind them."""

import json
from pathlib import Path

import numpy as np

from data import read_meta
from files import InputError, write_atomically

DEMO_CLASSES = ("Alpha", "Beta", "Gamma", "Delta")
DEMO_COUNTS = {"train": (48, 12), "test": (16, 6)}  # normal videos, videos of each anomaly class
DEMO_DIM = 64


def write_demo(root, seed=0):
    """Writes synthetic features (no video behind them) in the `custom` layout: 13 MB in 2 s.

    A feature is a common mean, the offset of one of six scenes, a slow drift and noise. Anomalies are pulses along
    the direction of their class; pulses of the same size along other directions occur in all videos, so that the
    distance to the prototype alone does not find the anomalies.

    Args:
        root: Folder for train.txt, test.txt, temporal_annotations.txt, classes.txt and features/.
        seed: Seed of everything.
    Returns:
        The planted class directions, (C, D) float64, orthonormal.
    Raises:
        InputError: If the folder holds anything but an earlier data set of this kind.
    """
    meta_path = Path(root, "features", "meta.json")
    if any(Path(root).glob("*")) and not (meta_path.exists() and read_meta(meta_path)["encoder"] == "synthetic"):
        raise InputError(f"{root}: found files of somebody else, expected a new folder or one with an earlier demo")
    rng, texts = np.random.default_rng(seed), {"classes.txt": ["Normal", *DEMO_CLASSES], "temporal_annotations.txt": []}
    basis = np.linalg.qr(rng.normal(size=(DEMO_DIM, DEMO_DIM)))[0]  # 4 class, 8 distractor, 52 background directions
    scenes = basis.sum(axis=0) + rng.normal(size=(6, DEMO_DIM - 12)) @ basis[12:]
    meta = {"encoder": "synthetic", "weights_sha256": None, "dim": DEMO_DIM, "stride": 1, "crops": 1, "jpeg": None,
            "videos": {}}
    for split, (num_normal, num_abnormal) in DEMO_COUNTS.items():
        texts[f"{split}.txt"] = []
        for i, label in enumerate([-1] * num_normal + list(range(len(DEMO_CLASSES))) * num_abnormal):
            kind = DEMO_CLASSES[label] if label >= 0 else "Normal"
            name = f"{kind}/{kind}_{split}{i:03d}"
            features, numbers = demo_video(rng, label, scenes[rng.integers(len(scenes))], basis)
            write_atomically(Path(root, "features", f"{name}.npy"), lambda file: np.save(file, features))
            meta["videos"][name] = {"frames": len(features), "fps": 30.0}
            texts[f"{split}.txt"].append(f"{name}.mp4 {kind}")
            if split == "test":
                texts["temporal_annotations.txt"].append(f"{name}.mp4  {kind}  {'  '.join(map(str, numbers))}")
    texts["features/meta.json"] = [json.dumps(meta)]
    for file_name, lines in texts.items():
        write_atomically(Path(root, file_name), lambda file: file.write("\n".join([*lines, ""]).encode()))
    return basis[:len(DEMO_CLASSES)]


def demo_video(rng, label, scene, basis):
    """Features (N, D) float16 and the inclusive frame numbers of the anomalous intervals (-1 -1 for none)."""
    num_frames = int(rng.integers(300, 1201))
    time = np.arange(num_frames)[:, None]
    waves = np.sin(2 * np.pi * (time / rng.uniform(300, 900, size=4) + rng.uniform(size=4)))  # (N, 4)
    features = scene + waves @ rng.normal(scale=0.4, size=(4, DEMO_DIM - 12)) @ basis[12:]
    features += rng.normal(scale=0.8, size=features.shape)
    for _ in range(rng.integers(1, 4)):
        features += 5 * demo_pulse(rng, time, 0, num_frames)[0] * basis[rng.integers(4, 12)]  # a distractor
    numbers = []
    borders = np.linspace(0, num_frames, rng.integers(2, 4)).astype(int) if label >= 0 else []
    for start, end in zip(borders[:-1], borders[1:]):
        pulse, interval = demo_pulse(rng, time, start, end)
        features += 5 * pulse * basis[label]
        numbers += interval
    return features.astype(np.float16), numbers or [-1, -1]


def demo_pulse(rng, time, start, end):
    """A soft pulse inside [start, end), (N, 1) in [0, 1], and its first and last frame of one half or more."""
    first = int(rng.integers(start + 10, end - 100))
    last = int(rng.integers(first + 40, min(first + 160, end - 10)))
    return 1 / (1 + np.exp((first - time) / 3)) / (1 + np.exp((time - last) / 3)), [first, last]
