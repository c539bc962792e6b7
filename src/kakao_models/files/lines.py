"""Text files of a label, a caption or a template per line, and small JSON files."""

import json
import os
from pathlib import Path
from typing import Any

from kakao_models.files.pointers import IS_POINTER, PointerError, starts_as_pointer


def lines_of(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are not blank. Only line feeds end a line: U+2028 may stand within a caption.

    Raises:
        ValueError: it is not UTF-8 text.
        OSError: it can't be read, or is a Git LFS pointer.
    """
    return lines_in(Path(path).read_bytes(), os.fspath(path))


def lines_in(data: bytes, name: str) -> list[str]:
    """The lines of a text file by its content; otherwise as `lines_of`."""
    if starts_as_pointer(data[:64]):
        raise PointerError(f"{name}: {IS_POINTER}")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from error
    return list(filter(None, map(str.strip, text.split("\n"))))


def json_of(path: str | os.PathLike) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
        OSError: it can't be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
