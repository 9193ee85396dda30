"""A made data set of planted anomalies, trainings on it, and comparing what they leave."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train

CLASSES = ("fire", "fall")
SMALL = [
    "--num-segments",
    "6",
    "--num-frames",
    "4",
    "--topk",
    "2",
    "--embed-dim",
    "16",
    "--num-heads",
    "2",
    "--batch-size",
    "8",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--folds",
    "0",
]


def write_dataset(root: Path, dim: int = 64, frames_per_feature: int = 1, encoder: str = "synthetic") -> Path:
    """Videos whose anomalies lie 4 units along an axis of their class; 8 normal and 8 abnormal ones in each list."""
    rng = np.random.default_rng(0)
    (root / "features").mkdir(parents=True)
    lists, annotations, videos = {"train": [], "test": []}, [], {}
    for split in lists:
        for i in range(16):
            label = -1 if i < 8 else i % 2
            name, kind = f"{split}{i:02d}", "Normal" if label < 0 else CLASSES[label]
            num_rows = 20 + (37 * i + len(split)) % 70
            rows = rng.normal(size=(num_rows, dim)).astype(np.float16)
            start, end = sorted(rng.choice(num_rows, 2, replace=False))
            if label >= 0:
                rows[start : end + 1, label] += 4
                interval = f"{start * frames_per_feature}  {(end + 1) * frames_per_feature - 1}"
            np.save(root / "features" / f"{name}.npy", rows)
            videos[name] = {"frames": num_rows * frames_per_feature - frames_per_feature // 2, "fps": 25.0}
            lists[split].append(f"{name}.mp4 {kind}")
            if split == "test":
                annotations.append(f"{name}.mp4  {kind}  {interval if label >= 0 else '-1  -1'}  -1  -1  ")
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("\n".join(lines))
    (root / "temporal_annotations.txt").write_text("\n".join(annotations))
    (root / "classes.txt").write_text("\n".join(["Normal", *CLASSES]))
    meta = {
        "encoder": encoder,
        "weights_sha256": None,
        "dim": dim,
        "stride": frames_per_feature,
        "crops": 1,
        "jpeg": None,
    }
    (root / "features" / "meta.json").write_text(json.dumps(meta | {"videos": videos}))
    return root


def arguments(dataset: Path, out: Path, *options: str) -> list[str]:
    """Of train.py, with the small settings and without CLIP."""
    data = ["--dataset", "custom", "--root", str(dataset), "--out", str(out)]
    return [*data, "--directions", "direct", *SMALL, *options]


def run(dataset: Path, out: Path, *options: str) -> dict:
    """Trains with the small settings, returns the checkpoint."""
    train.main(arguments(dataset, out, *options))
    return torch.load(out / "last.pt", weights_only=True)


def equal(a, b) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def stop_in_the_third_epoch(monkeypatch, begin) -> None:
    """Begins a run, which is interrupted where its third epoch would begin."""
    calls, real = [], train.train_epoch

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(train, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        begin()
    torch.rand(5)  # the state of the process must not matter
    monkeypatch.setattr(train, "train_epoch", real)
