"""A run and its output folder: alone there, stopped by a signal in good order, saved, and gone on with.

Bit for bit: a run that was stopped or killed, as often as you like, and gone on with gives what an undisturbed one gives.
"""
from pathlib import Path

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import write_atomically

PATHS = ("root", "features", "temporal_features", "classes_csv", "clip")
ANYTIME = ("out", "resume", "device", "workers", "evaluate", *PATHS)  # may differ when a run is resumed, if what lies there
SAME = ("config", "lists", "encoder", "temporal_encoder", "clip_sha256")  # of a checkpoint: this must not
NOT_BEGUN = {"steps": 0, "sums": {}, "seconds": 0.0}  # an epoch so far: steps done, sums of their losses, time they took


# ---------------------------------------------------------------- checkpoints


def rng_state(device: str) -> dict:
    import torch

    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device != "cpu" else None}


def save(path: Path, model, optimizer, epoch: int, begun: dict, device: str, extra: dict) -> None:
    """Writes everything that evaluation and resumption need; the file is whole or the old one."""
    import torch

    state = model.checkpoint() | extra | {"epoch": epoch, "begun": begun, "optimizer": optimizer.state_dict(),
                                          "rng": rng_state(device)}
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
            raise InputError(f"{path}: found {name} = {found}, expected {expected} as given now; resume with the same settings "
                             "and data, or choose another --out")
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
