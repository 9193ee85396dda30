"""Memory that the system need not hand out again and again."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


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
