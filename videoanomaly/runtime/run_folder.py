"""The output folder of a run: locked against others, its log, and the command line that goes on with it."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from videoanomaly.runtime.console import InputError
from videoanomaly.runtime.files import remove_temporary_files, write_atomically, write_json
from videoanomaly.runtime.torchrun import is_main, processes_here, rank_and_world

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None


@contextmanager
def lock_folder(path: Path, option: str = "--out") -> Iterator[None]:
    """Keeps other runs out of a folder, made if need be, and clears up after those that were killed in it; a run that
    wrote nothing leaves no new folder behind.

    Of processes that torchrun started, the main one does this for all. `option` named the folder.

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
        raise InputError(
            f"{option} {path}: cannot be written ({error.strerror}), expected a folder to write in"
        ) from error
    with file:
        take_lock(file, path, option)
        try:
            remove_temporary_files(path)
            yield
        finally:
            (path / ".lock").unlink(missing_ok=True)
            if is_new and not os.listdir(path):
                path.rmdir()


def take_lock(file: BinaryIO, path: Path, option: str) -> None:
    """Until the file is closed; nothing where the file system, such as some of clusters, has no locks.

    Raises:
        InputError: If another process holds it.
    """
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: workers would keep it when we are killed
            if not os.fstat(file.fileno()).st_nlink:  # another run has just ended and taken the file away
                raise BlockingIOError
    except (BlockingIOError, PermissionError):  # POSIX allows either
        raise InputError(
            f"{option} {path}: found another run at work in this folder, expected none; wait for it, or choose "
            f"another {option}"
        ) from None
    except OSError:
        pass


def command(script: str, *words: object) -> str:
    """A command line for a shell, whatever the words hold."""
    return shlex.join(["python", script, *map(str, words)])


def once_each(words: Sequence[str]) -> list[str]:
    """The words of a command line in which an option that was given several times stands as it was given last."""
    found: dict[str, list[str]] = {"": []}  # options with their values, behind what stands before the first one
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("--no-", "--", 1)
            found.pop(name, None)
        found.setdefault(name, []).append(word)
    return [word for group in found.values() for word in group]


def given_command(argv: list[str] | None, *more: object) -> str:
    """The command line of this run with more options; argv as `main` got it."""
    return command("train.py", *once_each(sys.argv[1:] if argv is None else argv), *more)


def resume_command(argv: list[str] | None) -> str:
    """The command line of this run, for a shell, with --resume; argv as `main` got it."""
    words = sys.orig_argv if argv is None else ["python", "train.py", *argv]
    if rank_and_world()[2] > 1:
        nodes, processes = os.environ.get("GROUP_WORLD_SIZE", "1"), str(processes_here())
        words = ["torchrun", "--nnodes", nodes, "--nproc-per-node", processes, *sys.argv]
    return shlex.join([word for word in once_each(words) if word != "--resume"] + ["--resume"])


def trim_log(log: Path, num_epochs: int) -> None:
    """Keeps the lines of the first epochs: a run may have been stopped between its line and its checkpoint."""
    lines = log.read_bytes().splitlines(keepends=True)[:num_epochs] if log.exists() else []
    write_atomically(log, lambda file: file.writelines(lines))


def report(log: Path, record: dict, epochs: int, config: object) -> None:
    """One line on the screen, without the losses that weigh nothing, and one in log.jsonl.

    Args:
        log: The file log.jsonl.
        record: Of an epoch: epoch (from 1), losses by name, lr, seconds.
        epochs: Of the whole training.
        config: Its attributes lambda_NAME weigh the losses.
    """
    losses = "  ".join(
        f"{name} {value:.4f}" for name, value in record["losses"].items() if getattr(config, f"lambda_{name}", 1)
    )  # 'total' has no weight of its own
    print(f"epoch {record['epoch']}/{epochs}  {losses}  lr {record['lr']:.2e}  {record['seconds']:.1f} s", flush=True)
    with open(log, "a") as file:
        file.write(json.dumps(record) + "\n")


def scalar_writer(folder: str | None) -> Callable[[dict[str, float], int], None]:
    """A function that adds numbers by name, and the step (epoch) they belong to, to TensorBoard's files in a folder.

    Without a folder, and in all processes but the main one, it does nothing.

    Raises:
        InputError: If TensorBoard is not installed, or the folder cannot be written.
    """
    if not folder or not is_main():
        return lambda numbers, step: None
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder)
    except ImportError as error:
        found = str(error).splitlines()[0]
        raise InputError(f"--tensorboard: cannot be used ({found}); pip install tensorboard, or leave it out") from None
    except OSError as error:
        raise InputError(f"--tensorboard {folder}: cannot be written ({error.strerror}), expected a folder") from error

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def write_settings(folder: Path, settings: dict) -> None:
    """settings.json: what is trained, with which versions, since when."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy")}
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(folder / "settings.json", {"settings": settings, "versions": versions, "date": date})


def seconds_of(log: Path) -> float | None:
    """What the epochs of a log took together; None without any."""
    seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    return sum(seconds) if seconds else None
