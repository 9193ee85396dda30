"""Checkpoints: saving, resuming and loading them, and the features that go with one.

Bit for bit: a run that was stopped or killed, as often as you like, and gone on with gives what an undisturbed one
gives.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.optim import Optimizer

from anomalyclip import AnomalyCLIPConfig
from videoanomaly.data.features import FeatureFolder
from videoanomaly.runtime.console import InputError, differences, note
from videoanomaly.runtime.files import write_atomically
from videoanomaly.runtime.precision import note_difference, precision_of, without_precision
from videoanomaly.runtime.torchrun import is_main
from videoanomaly.systems.base import Trainable
from videoanomaly.systems.catalogue import from_dict
from videoanomaly.systems.checks import check_tensors
from videoanomaly.weights import released
from videoanomaly.weights.entries import check_entries
from videoanomaly.weights.reading import HASH_LENGTH, SEAL, damage, read_checkpoint
from videoanomaly.winograd import accelerate

PATHS = ("root", "features", "temporal_features", "classes_csv", "clip", "encoder")
# may differ when a run is resumed, if what lies there does not
ANYTIME = (
    "out",
    "resume",
    "device",
    "workers",
    "evaluate",
    "stride",
    "fps",
    "folds",
    "group_by",
    "tensorboard",
    *PATHS,
)
SAME = ("config", "lists", "clip_sha256")  # of a checkpoint: these must not
ENCODERS = ("encoder", "temporal_encoder")  # nor these, but for the precision
RESUMED = ("lists", "settings", "encoder", "epoch", "optimizer", "rng")  # entries
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
        check_entries(checkpoint)
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
    if folder.encoder and checkpoint[encoder]:
        if without_precision(folder.encoder) != without_precision(checkpoint[encoder]):
            expected = f"expected those of the training, {checkpoint[encoder]}"
            raise InputError(f"{path}: found features of {folder.encoder}, {expected}")
        note_difference(path, precision_of(folder.encoder), precision_of(checkpoint[encoder]))
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


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Writes a checkpoint in which any changed byte shows on reading; the file is whole or the old one."""
    write_atomically(path, lambda file: write_sealed(file, checkpoint))


def write_sealed(file: BinaryIO, checkpoint: dict) -> None:
    """What torch.save writes, a zip archive; its comment is SEAL and the hash of all bytes before the hash."""
    torch.save(checkpoint, file)
    file.seek(-2, os.SEEK_END)  # where an archive tells how long its comment is
    file.write((len(SEAL) + HASH_LENGTH).to_bytes(2, "little") + SEAL)
    file.flush()
    with open(file.name, "rb") as written:
        file.write(hashlib.file_digest(written, "sha256").hexdigest().encode())


def save(path: Path, model: Trainable, optimizer: Optimizer, epoch: int, begun: dict, device: str, extra: dict) -> None:
    """Writes everything that evaluation and resumption need; the file that was there stays beside it, see `keep`.

    Raises:
        FloatingPointError: If a number became infinite; the files stay as they were.
    """
    state = (
        model.checkpoint()
        | extra
        | {"epoch": epoch, "begun": begun, "optimizer": optimizer.state_dict(), "rng": rng_state(device)}
    )
    for name in ("model", "optimizer"):
        if not all(x.isfinite().all() for x in tensors(state[name])):
            raise FloatingPointError(
                f"{path}: not written, the {name}'s numbers became infinite; what was saved before stays; try a lower "
                "--lr, or look at the features"
            )
    keep(path)
    write_checkpoint(path, state)


def tensors(value: object) -> Iterator[Tensor]:
    """All of nested dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)


def previous_of(path: Path) -> Path:
    """Where the checkpoint is kept that was at `path` before."""
    return path.with_name("previous.pt")


def keep(path: Path) -> None:
    """Makes a sound checkpoint the previous one; a damaged one never takes the place of a sound one."""
    if not path.exists() or damage(path):
        return
    previous_of(path).unlink(missing_ok=True)
    try:
        os.link(path, previous_of(path))
    except OSError:  # a file system without hard links
        os.replace(path, previous_of(path))


def read_earlier(path: Path) -> dict | None:
    """The checkpoint at `path`, or the one before it where that is damaged or gone, which one line tells; None if there
    is neither.

    Raises:
        InputError: If neither can be read, or its entries are none.
    """
    previous = previous_of(path)
    if not (path.exists() or previous.exists()):
        return None
    try:
        checkpoint = read_checkpoint(path, *RESUMED)
    except ValueError as error:
        try:
            checkpoint = read_checkpoint(previous, *RESUMED)
        except ValueError:
            raise InputError(str(error)) from None
        if is_main():
            note(f"{error}; goes on from {previous}, after {checkpoint.get('epoch')} epochs")
    try:
        check_entries(checkpoint)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return checkpoint


def check_resumed(path: Path, checkpoint: dict, config: AnomalyCLIPConfig, extra: dict) -> None:
    """Refuses to go on from the checkpoint of `path` with other settings or data than it was made with."""
    old, new = {"model": "anomalyclip"} | checkpoint["settings"], extra["settings"]  # older ones could be nothing else
    changed = [(k, old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if k not in ANYTIME]
    given = extra | {"config": config.to_plain()}
    changed += [(k, checkpoint.get(k), given[k]) for k in SAME]
    for k in ENCODERS:
        before, now = checkpoint.get(k), given[k]
        changed.append((k, without_precision(before), without_precision(now)))
        note_difference(f"{path}: {k}", precision_of(now), precision_of(before))
    for name, found, expected in changed:
        if found != expected:
            found, expected = ("other ones", "the same") if name == "lists" else (found, expected)
            raise InputError(
                f"{path}: {differences(name, found, expected)} as given now; resume with the same settings and data, "
                "or choose another --out"
            )


def restore(checkpoint: dict, model: Trainable, optimizer: Optimizer, device: str) -> tuple[int, dict]:
    """Puts model, optimiser and random states where they were; the epoch to go on with, and what is done of it."""
    try:
        check_tensors(model.fitting(checkpoint["model"]))
        model.load_trained_state(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        if device != "cpu" and checkpoint["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"the checkpoint to resume does not fit the training: {reason}") from None
    for parameter, values in optimizer.state.items():
        if any(x.shape not in ((), parameter.shape) for x in tensors(values)):
            raise InputError("the checkpoint to resume does not fit the training: its optimizer is of another model")
    return checkpoint["epoch"], checkpoint.get("begun", NOT_BEGUN)
