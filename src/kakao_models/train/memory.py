"""Memory of training on a CPU."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)


def keep_memory() -> bool:
    """Has glibc keep freed memory for the next map instead of giving it back to the system after each operation.

    By default every map of more than 32 MB is asked of the system, filled with zeros and given back: on a CPU that takes
    longer than most operations on it. A process that trains needs the same memory in each step anyway; it is the peak
    of it that stays with the process.

    Returns:
        Whether it was done: not without glibc (macOS, Windows, musl, another allocator preloaded).
    """
    if os.name != "posix" or os.environ.get("LD_PRELOAD"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1)))
