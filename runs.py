"""A run and its output folder: alone there, stopped by a signal in good order, saved, and gone on with.

Bit for bit: a run that was stopped or killed, as often as you like, and gone on with gives what an undisturbed one gives.
"""
import json
import os
import re
import shlex
import signal
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from distributed import is_main, rank_and_world
from files import InputError, write_atomically

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATHS = ("root", "features", "temporal_features", "classes_csv", "clip")
ANYTIME = ("out", "resume", "device", "workers", "evaluate", *PATHS)  # may differ when a run is resumed, if what lies there
SAME = ("config", "lists", "encoder", "temporal_encoder", "clip_sha256")  # of a checkpoint: this must not
NOT_BEGUN = {"steps": 0, "sums": {}, "seconds": 0.0}  # an epoch so far: steps done, sums of their losses, time they took


# ---------------------------------------------------------------- folder


@contextmanager
def lock_folder(path: Path):
    """Keeps other runs out of a folder, made if need be; a run that wrote nothing leaves no new folder behind.

    Of processes that torchrun started, the main one does this for all.

    The lock is the process's own: forked workers have no share in it, and it goes with the process, however that ends.

    Raises:
        InputError: If another process holds the lock, or the folder cannot be written.
    """
    if not is_main():
        yield
        return
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "ab")
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}), expected a folder to write in") from error
    with file:
        take_lock(file, path)
        try:
            yield
        finally:
            (path / ".lock").unlink(missing_ok=True)
            if is_new and not os.listdir(path):
                path.rmdir()


def take_lock(file, path: Path) -> None:
    """Until the file is closed; nothing where the file system, such as some of clusters, has no locks."""
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: workers would keep it when we are killed
            if not os.fstat(file.fileno()).st_nlink:  # another run has just ended and taken the file away
                raise BlockingIOError
    except (BlockingIOError, PermissionError):  # POSIX allows either
        raise InputError(f"--out {path}: found another run at work in this folder, expected none; wait for it, or choose "
                         "another --out") from None
    except OSError:
        pass


def remove_temporary_files(paths) -> None:
    """Those among the paths that `write_atomically` left when it was killed; call it with the folder locked."""
    for path in paths:
        if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink()


# ---------------------------------------------------------------- signals


@contextmanager
def stop_signals():
    """Gives a list to look at after each step: the numbers of the signals that asked to stop since.

    Only the first Ctrl-C is a request, a second one interrupts at once. More of SIGTERM change nothing: `timeout` sends two,
    and nor do more of either under torchrun, which passes on what the terminal has sent to all processes already.
    """
    received, before = [], {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def receive(number, frame):
        received.append(number)
        if number == signal.SIGINT and rank_and_world()[2] == 1:
            signal.signal(number, signal.default_int_handler)  # also where a shell started us in the background, deaf to it

    try:
        for number in STOP_SIGNALS:
            signal.signal(number, receive)
        yield received
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, before[number])


def survive_one_signal(worker_id: int = 0) -> None:
    """For DataLoader workers: Ctrl-C reaches them, too, and would end them before the step that waits for their data."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def resume_command(argv: list[str] | None) -> str:
    """The command line of this run, for a shell, with --resume; argv as `main` got it."""
    command = sys.orig_argv if argv is None else ["python", "train.py", *argv]
    if rank_and_world()[2] > 1:
        nodes, processes = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
        command = ["torchrun", "--nnodes", nodes, "--nproc-per-node", processes, *sys.argv]
    return shlex.join([word for word in command if word != "--resume"] + ["--resume"])


# ---------------------------------------------------------------- checkpoints


class RestOfEpoch:
    """A batch sampler that leaves out the batches that a stopped run has seen, and the videos of other processes.

    Neither are read. A process's share of a batch is as the batch: first half abnormal, second half normal.

    Args:
        batches: Batch sampler of whole epochs, with `set_epoch(epoch)`.
    """

    def __init__(self, batches):
        self.batches, self.num_seen = batches, 0

    def set_epoch(self, epoch: int, num_seen: int) -> None:
        self.batches.set_epoch(epoch)
        self.num_seen = num_seen

    def __len__(self):
        """Of a whole epoch."""
        return len(self.batches)

    def __iter__(self):
        rank, _, world_size = rank_and_world()
        for batch in islice(self.batches, self.num_seen, None):
            share = len(batch) // 2 // world_size
            yield [video for half in (0, len(batch) // 2) for video in batch[half + rank * share:half + (rank + 1) * share]]


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


def trim_log(log: Path, num_epochs: int) -> None:
    """Keeps the lines of the first epochs: a run may have been stopped between its line and its checkpoint."""
    lines = log.read_bytes().splitlines(keepends=True)[:num_epochs] if log.exists() else []
    write_atomically(log, lambda file: file.writelines(lines))


def report(log: Path, record: dict, epochs: int, config) -> None:
    """One line on the screen, without the losses that weigh nothing, and one in log.jsonl."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in record["losses"].items()
                       if getattr(config, f"lambda_{name}", 1))  # 'total' has no weight of its own
    print(f"epoch {record['epoch']}/{epochs}  {losses}  lr {record['lr']:.2e}  {record['seconds']:.1f} s", flush=True)
    with open(log, "a") as file:
        file.write(json.dumps(record) + "\n")
