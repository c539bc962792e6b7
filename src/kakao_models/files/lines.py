"""Text files of a label, a caption or a template per line."""

import os
from pathlib import Path

from kakao_models.files.pointers import IS_POINTER, PointerError, starts_as_pointer


def lines_of(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are not blank. Only line feeds end a line: U+2028 may stand within a caption.

    Raises:
        ValueError: it is not UTF-8 text.
        OSError: it can't be read, or is a Git LFS pointer.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if starts_as_pointer(text[:64].encode()):
        raise PointerError(f"{os.fspath(path)}: {IS_POINTER}")
    return list(filter(None, map(str.strip, text.split("\n"))))
