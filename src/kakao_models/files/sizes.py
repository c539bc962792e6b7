"""Sizes in bytes, as people write them."""

import math
import re

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(size: int | str, name: str) -> int:
    """Bytes of a number of them, or of text such as "5GB" or "1.5 MiB".

    Args:
        name: the option or argument, for the message.

    Raises:
        ValueError: neither, or less than one byte.
    """
    if isinstance(size, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)", size.strip().upper())):
        size = math.floor(float(match[1]) * _UNITS[match[2]])
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}: got {size!r}, expected a number of bytes, or text such as 5GB")
    return size
