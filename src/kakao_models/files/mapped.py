"""Pages of files that are mapped into memory, given back once they have been looked at.

safetensors and torch map a file and read what is touched. What was touched counts as this process's memory as long as the
mapping lives, so that a walk through a file ends up holding all of it.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def forget_pages(files: Iterable[Path]) -> None:
    """Lets go of the pages of these files; who touches one again reads it again. Changes to a private mapping are lost.

    On other systems than Linux nothing happens.
    """
    if sys.platform != "linux":
        return
    expected = {os.path.realpath(file) for file in files}
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/maps", encoding=sys.getfilesystemencoding(), errors="surrogateescape") as maps:
        lines = maps.readlines()
    for line in lines:
        addresses, *_, path = line.rstrip("\n").split(maxsplit=5) if line.count("/") else ("", "")
        if path in expected:
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
