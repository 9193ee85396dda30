"""The variables that torchrun sets for each process that it starts, all read here.

Outside torchrun there is one process, and every function says what is right for it.
"""

import os


def rank_and_world() -> tuple[int, int, int]:
    """Number of this process, its number on its machine, and how many there are: (0, 0, 1) outside torchrun."""
    rank, local_rank, world_size = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    return rank, local_rank, world_size


def processes_here() -> int:
    """How many processes torchrun started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that writes and prints for all."""
    return rank_and_world()[0] == 0


def local_device(device: str) -> str:
    """The accelerator of this process: of several on a machine each has its own, unless `device` names one."""
    _, local_rank, world_size = rank_and_world()
    return f"cuda:{local_rank}" if device == "cuda" and world_size > 1 else device
