"""Checkpoints: saving, resuming and loading them, and the features that go with one.

Bit for bit: a run that was stopped or killed, as often as you like, and gone on with gives what an undisturbed one
gives.
"""

from pathlib import Path

import torch
from torch.optim import Optimizer

from anomalyclip import AnomalyCLIPConfig, read_checkpoint
from videoanomaly.data.features import FeatureFolder
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically
from videoanomaly.systems.base import Trainable
from videoanomaly.systems.catalogue import from_dict
from videoanomaly.weights import released
from videoanomaly.winograd import accelerate

PATHS = ("root", "features", "temporal_features", "classes_csv", "clip")
# may differ when a run is resumed, if what lies there does not
ANYTIME = ("out", "resume", "device", "workers", "evaluate", *PATHS)
SAME = ("config", "lists", "encoder", "temporal_encoder", "clip_sha256")  # of a checkpoint: this must not
# of an epoch: steps done, sums of their losses, seconds they took
NOT_BEGUN: dict = {"steps": 0, "sums": {}, "seconds": 0.0}


def load_model(
    ckpt: str, *, dataset: str | None = None, root: str | None = None, features: str | None = None
) -> tuple[dict, Trainable]:
    """The checkpoint's dict and its model, of this project's making or, with a data set, of the authors'.

    Args:
        dataset, root, features: See `released.load`.
    Raises:
        InputError: If it is no such checkpoint, or one of a system whose class head is not fitted yet.
    """
    try:
        if dataset and root:
            checkpoint = released.load(ckpt, dataset, root, features)
        else:
            checkpoint = read_checkpoint(ckpt, "lists", "settings", "encoder", "epoch")
        model = from_dict(checkpoint)
    except ValueError as error:
        text = " ".join(str(error).splitlines())  # names inside a hostile file may hold line ends
        raise InputError(text if str(ckpt) in text else f"{ckpt}: {text}") from None
    if model.FITS_HEAD and "threshold" not in checkpoint:
        raise InputError(
            f"{ckpt}: found {model.NAME} without its class head, which train.py fits after the last epoch, "
            "expected a finished run; go on with train.py --resume"
        )
    accelerate(model)
    return checkpoint, model


def open_folders(
    checkpoint: dict, features: str | None = None, temporal_features: str | None = None
) -> tuple[FeatureFolder, FeatureFolder | None]:
    """Feature folders of the checkpoint's training, or those given; their encoders must be the same.

    Returns:
        That of the Selector, and the Temporal model's own, if it has one.
    """
    settings = checkpoint["settings"]
    own = open_folder(checkpoint, features or settings["features"] or settings["root"], "features", "encoder")
    path = temporal_features or settings["temporal_features"]
    other = open_folder(checkpoint, path, "temporal_features", "temporal_encoder") if path else None
    return own, other


def open_folder(checkpoint: dict, path: str, name: str, encoder: str) -> FeatureFolder:
    """One of them, by the name of its setting and of its encoder in the checkpoint."""
    settings = checkpoint["settings"]
    if not Path(path).is_dir():
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{path}: is no folder, expected the one with the features; give {option}")
    spacing = settings[f"{name.removesuffix('features')}frames_per_feature"]
    folder = FeatureFolder(path, frames_per_feature=spacing, crops=settings["crops"])
    if folder.encoder and checkpoint[encoder] and folder.encoder != checkpoint[encoder]:
        expected = f"expected those of the training, {checkpoint[encoder]}"
        raise InputError(f"{path}: found features of {folder.encoder}, {expected}")
    return folder


def frames_per_feature(checkpoint: dict) -> int:
    """Frames between the rows of the training features; older checkpoints do not hold it, but name the features'
    folder.
    """
    settings = checkpoint["settings"]
    folder = settings["features"] or settings["root"]
    known = checkpoint.get("frames_per_feature") or settings["frames_per_feature"]
    return known or (FeatureFolder(folder).frames_per_feature if folder and Path(folder).is_dir() else 1)


def rng_state(device: str) -> dict:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device != "cpu" else None}


def save(path: Path, model: Trainable, optimizer: Optimizer, epoch: int, begun: dict, device: str, extra: dict) -> None:
    """Writes everything that evaluation and resumption need; the file is whole or the old one."""
    state = (
        model.checkpoint()
        | extra
        | {"epoch": epoch, "begun": begun, "optimizer": optimizer.state_dict(), "rng": rng_state(device)}
    )
    write_atomically(path, lambda file: torch.save(state, file))


def load_resumed(path: Path, config: AnomalyCLIPConfig, extra: dict) -> dict | None:
    """The checkpoint to go on from, None if there is none; settings and data must be the ones it was made with."""
    if not path.exists():
        return None
    try:
        checkpoint = read_checkpoint(path, "optimizer")
    except ValueError as error:
        raise InputError(str(error)) from None
    old, new = {"model": "anomalyclip"} | checkpoint["settings"], extra["settings"]  # older ones could be nothing else
    changed = [(k, old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if k not in ANYTIME]
    changed += [(k, checkpoint.get(k), (extra | {"config": config.to_plain()})[k]) for k in SAME]
    for name, found, expected in changed:
        if found != expected:
            found, expected = ("other ones", "the same") if name == "lists" else (found, expected)
            raise InputError(
                f"{path}: found {name} = {found}, expected {expected} as given now; resume with the same settings "
                "and data, or choose another --out"
            )
    return checkpoint


def restore(checkpoint: dict, model: Trainable, optimizer: Optimizer, device: str) -> tuple[int, dict]:
    """Puts model, optimiser and random states where they were; the epoch to go on with, and what is done of it."""
    model.load_trained_state(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if device != "cpu" and checkpoint["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
    return checkpoint["epoch"], checkpoint.get("begun", NOT_BEGUN)
