"""Git LFS pointers: short texts that a clone has in the place of large files until `git lfs pull` downloads them."""

import os
import stat
from collections.abc import Iterable

_START = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_MOST_BYTES = 1024  # of a pointer, by its specification

IS_POINTER = "is a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository, or download it again"


class PointerError(OSError, ValueError):
    """A file is a Git LFS pointer."""


def starts_as_pointer(content: bytes) -> bool:
    return content.startswith(_START)


def is_pointer(file: str | os.PathLike) -> bool:
    """Whether a file is a Git LFS pointer; False where it can't be read. Only small files are looked into."""
    try:
        info = os.stat(file)
        if info.st_size > _MOST_BYTES or not stat.S_ISREG(info.st_mode):
            return False
        with open(file, "rb") as stream:
            return starts_as_pointer(stream.read(len(_START)))
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False


def refuse_pointers(files: Iterable[str | os.PathLike]) -> None:
    """Raises PointerError where one of `files` is a Git LFS pointer; the message names it and says what to do."""
    for file in files:
        if is_pointer(file):
            raise PointerError(f"{os.fspath(file)}: {IS_POINTER}")
