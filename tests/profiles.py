"""ICC profiles of wide-gamut colour spaces, and pictures in them, computed from their definitions."""

import struct

import numpy as np

D50, D65 = (0.3457, 0.3585), (0.3127, 0.3290)  # chromaticities x, y
# primaries (red, green, blue), white, exponent
SPACES = {
    "Display P3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, 2.2),
    "Adobe RGB": (((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), D65, 563 / 256),
    "ProPhoto": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, 1.8),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def to_xyz(primaries, white) -> np.ndarray:
    """(3, 3): linear RGB → XYZ, adapted to D50."""
    columns = np.stack([_xyz(*primary) for primary in primaries], 1)
    columns = columns * np.linalg.solve(columns, _xyz(*white))
    cones = (_BRADFORD @ _xyz(*D50)) / (_BRADFORD @ _xyz(*white))
    return np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ columns


def profile(space: str) -> bytes:
    """An ICC profile of version 2: three primaries and an exponent."""
    primaries, white, exponent = SPACES[space]

    def fixed(values) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))

    name = space.encode() + b"\0"
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256))
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78)}
    tags |= {b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": b"XYZ " + bytes(4) + fixed(_xyz(*D50))}
    for letter, column in zip(b"rgb", to_xyz(primaries, white).T):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(column)
        tags[bytes([letter]) + b"TRC"] = curve
    table, data, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content = content + bytes(-len(content) % 4)
        table += tag + struct.pack(">II", place + len(data), len(content))
        data += content
    header = struct.pack(">I4sI4s4s4s", place + len(data), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ").ljust(
        36, b"\0"
    )
    header = (header + b"acsp").ljust(68, b"\0") + fixed(_xyz(*D50))
    return header.ljust(128, b"\0") + table + data


def in_space(srgb: np.ndarray, space: str) -> np.ndarray:
    """The numbers in which a colour space holds a picture that is given in sRGB; uint8 (H, W, 3) both."""
    primaries, white, exponent = SPACES[space]
    values = srgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = linear @ (np.linalg.inv(to_xyz(primaries, white)) @ to_xyz(_SRGB, D65)).T
    return np.rint(255 * linear.clip(0, 1) ** (1 / exponent)).astype(np.uint8)
