"""Memory that the system need not hand out again and again, and memory that processes share."""

import ctypes
import os
from pathlib import Path

from videoanomaly.runtime.console import note
from videoanomaly.runtime.torchrun import is_main

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SHARED = Path("/dev/shm")


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for the next use, instead of returning large blocks to the kernel at once.

    A network asks for the same blocks of many megabytes in every step; the kernel would clear each page of them again.
    The peak can grow a little (by 0 to 31 % for two image encoders). Nothing happens where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows cannot open None
        return
    mallopt(M_MMAP_MAX, 0)  # no block apart from the heap: such ones go back when they are freed
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes, an int


def copies_that_fit(wished: int, proc: Path = Path("/proc")) -> int:
    """How many processes that need as much memory as this one did at most there is room for, one at least.

    Args:
        wished: The number without that limit, and where the system does not tell.
        proc: Where Linux tells.
    """
    try:
        needed = kilobytes(proc / "self" / "status", "VmHWM")
        return max(min(wished, kilobytes(proc / "meminfo", "MemAvailable") // needed), 1)
    except (OSError, LookupError, ValueError, ZeroDivisionError):
        return wished


def kilobytes(path: Path, name: str) -> int:
    """A line `NAME: 123 kB` of a file."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if words[-1:] == ["kB"]}[f"{name}:"]


def workers_that_fit(num_workers: int, batch_bytes: int, num_processes: int = 1, folder: Path = SHARED) -> int:
    """The number of a DataLoader's workers: none where shared memory cannot hold their batches, as often in Docker.

    Args:
        num_workers: As wished.
        batch_bytes: Of one batch.
        num_processes: That load so on this machine.
        folder: Where the system keeps shared memory; without one there is no such limit.
    """
    needed = num_processes * (2 * num_workers + 2) * batch_bytes  # two for each worker, one in use, one just read
    if not num_workers or not folder.is_dir():
        return num_workers
    status = os.statvfs(folder)
    if (free := status.f_bavail * status.f_frsize) >= needed:
        return num_workers
    if is_main():
        note(
            f"note: {folder} has {free / 1e6:.0f} MB left, and {num_workers} workers need {needed / 1e6:.0f}: going on "
            f"with --workers 0; Docker gives more by --shm-size {-(-needed // 10**9)}g"
        )
    return 0
