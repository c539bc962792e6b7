"""JPEG files whose decoding would take too long."""

import re
from typing import BinaryIO

from kakao_models.pixels.formats import ImageError

# Scans of a JPEG that are decoded at most: 100, as libtiff does, and of a large one fewer, as each may cost the time of the whole
# picture. A progressive photograph has about ten; twenty thousand fit into 2 MB.
_MOST_SCANS, _FEW_SCANS = 100, 20
_MOST_SCANNED = 10**9  # pixels times scans, some ten seconds
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff+[^\x00\x01\xd0-\xd8\xff]")  # with a length behind it; within scans others follow 0xff
_PART, _MOST_COUNTED = 2**20, 2**28  # bytes


def check_scans(file: BinaryIO, name: str, pixels: int) -> None:
    """Counts the scans of a JPEG, before it is decoded.

    Args:
        name: of the image, in the error.
        pixels: number of its pixels.

    Raises:
        ImageError: there are more than an image of this size may have.
    """
    most = max(_FEW_SCANS, min(_MOST_SCANS, _MOST_SCANNED // max(1, pixels)))
    file.seek(0)
    alike, last = 0, b""  # markers of scans, and what looks like one within metadata
    while part := file.read(_PART):  # a part at a time: a file may be of any size
        alike += (last + part).count(_SCAN)
        last = part[-1:]
        if alike > most:
            break
    else:
        return
    file.seek(0)
    data, place, scans = file.read(_MOST_COUNTED), 2, 0
    while marker := _MARKER.search(data, place):
        kind = data[marker.end() - 1]
        if kind == 0xD9:  # the end of the picture; of another, such as an MPO's, nothing is decoded
            return
        scans += kind == 0xDA
        if scans > most:
            raise ImageError(
                name, f"this JPEG has more than {most} scans, too many for its size: decoding it would take too long"
            )
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
