"""Checkpoints: saving, resuming and loading them, and the features that go with one.

Bit for bit: a run that was stopped or killed, as often as you like, and gone on with gives what an undisturbed one
gives.
"""

from pathlib import Path

from videoanomaly.data.features import FeatureFolder
from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically


def load_checkpoint(ckpt: str, args) -> tuple:
    """The checkpoint's dict and its model, of this project's making or of the authors'.

    Raises:
        InputError: If it is no such checkpoint, or one of a system whose class head is not fitted yet.
    """
    from anomalyclip import read_checkpoint
    from videoanomaly.systems import catalogue
    from videoanomaly.systems.binary import BinarySystem
    from videoanomaly.winograd import accelerate

    try:
        if args.dataset:
            from videoanomaly.weights import released

            checkpoint = released.load(ckpt, args.dataset, args.root, args.features)
        else:
            checkpoint = read_checkpoint(ckpt, "lists", "settings", "encoder", "epoch")
        model = catalogue.from_dict(checkpoint)
    except ValueError as error:
        text = " ".join(str(error).splitlines())  # names inside a hostile file may hold line ends
        raise InputError(text if str(ckpt) in text else f"{ckpt}: {text}") from None
    if isinstance(model, BinarySystem) and "threshold" not in checkpoint:
        raise InputError(
            f"{ckpt}: found {model.NAME} without its class head, which train.py fits after the last epoch, "
            "expected a finished run; go on with train.py --resume"
        )
    accelerate(model)
    return checkpoint, model


def open_folders(args, checkpoint: dict):
    """Feature folders of the checkpoint's training, or those given; their encoders must be the same."""
    from videoanomaly.data.features import FeatureFolder

    settings, folders = checkpoint["settings"], []
    for given, name, encoder in (
        (args.features, "features", "encoder"),
        (args.temporal_features, "temporal_features", "temporal_encoder"),
    ):
        path = given or settings[name] or (settings["root"] if name == "features" else None)
        prefix = name.removesuffix("features")
        if path and not Path(path).is_dir():
            raise InputError(
                f"{path}: is no folder, expected the one with the features; give --{name.replace('_', '-')}"
            )
        spacing = settings[f"{prefix}frames_per_feature"]
        folder = path and FeatureFolder(path, frames_per_feature=spacing, crops=settings["crops"])
        if folder and folder.encoder and checkpoint[encoder] and folder.encoder != checkpoint[encoder]:
            raise InputError(
                f"{path}: found features of {folder.encoder}, expected those of the training, {checkpoint[encoder]}"
            )
        folders.append(folder or None)
    return folders


def frames_per_feature(checkpoint: dict) -> int:
    """Frames between the rows of the training features; older checkpoints do not hold it, but name the features'
    folder.
    """
    settings = checkpoint["settings"]
    folder = settings["features"] or settings["root"]
    known = checkpoint.get("frames_per_feature") or settings["frames_per_feature"]
    return known or (FeatureFolder(folder).frames_per_feature if folder and Path(folder).is_dir() else 1)


PATHS = ("root", "features", "temporal_features", "classes_csv", "clip")
ANYTIME = (
    "out",
    "resume",
    "device",
    "workers",
    "evaluate",
    *PATHS,
)  # may differ when a run is resumed, if what lies there
SAME = ("config", "lists", "encoder", "temporal_encoder", "clip_sha256")  # of a checkpoint: this must not
NOT_BEGUN = {
    "steps": 0,
    "sums": {},
    "seconds": 0.0,
}  # an epoch so far: steps done, sums of their losses, time they took


def rng_state(device: str) -> dict:
    import torch

    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device != "cpu" else None}


def save(path: Path, model, optimizer, epoch: int, begun: dict, device: str, extra: dict) -> None:
    """Writes everything that evaluation and resumption need; the file is whole or the old one."""
    import torch

    state = (
        model.checkpoint()
        | extra
        | {"epoch": epoch, "begun": begun, "optimizer": optimizer.state_dict(), "rng": rng_state(device)}
    )
    write_atomically(path, lambda file: torch.save(state, file))


def load_resumed(path: Path, config, extra: dict) -> dict | None:
    """The checkpoint to go on from, None if there is none; settings and data must be the ones it was made with."""
    from anomalyclip import read_checkpoint

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


def restore(checkpoint: dict, model, optimizer, device: str) -> tuple[int, dict]:
    """Puts model, optimiser and random states where they were; the epoch to go on with, and what is done of it."""
    import torch

    model.load_trained_state(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if device != "cpu" and checkpoint["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], device)
    return checkpoint["epoch"], checkpoint.get("begun", NOT_BEGUN)
