"""Pictures for tests, and the originals' recorded preprocessing of some."""

import errno
import json
import os

import numpy as np
from golden import inputs
from goldens import FOLDER
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 (height, width, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def shut(monkeypatch, folder) -> None:
    """Makes a folder one that this user must not list, even for an administrator."""
    scandir = os.scandir

    def listing(path="."):
        if os.fspath(path) == os.fspath(folder):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listing)


def recorded(name: str) -> list[tuple[int, np.ndarray]]:
    """The five pictures that the original "align" or "vit" program was given, with their numbers."""
    facts = json.loads((FOLDER / f"golden_preprocess_{name}.json").read_text())
    pictures = [inputs.image(facts["seed"], i, *entry["size"]) for i, entry in enumerate(facts["images"])]
    assert [inputs.digest(p) for p in pictures] == [entry["image_sha256"] for entry in facts["images"]]
    return list(enumerate(pictures))


def difference(result: np.ndarray, golden: dict, prefix: str, scale: float = 1.0, offset: float = 0.0) -> float:
    """The largest difference of a picture (H, W, 3) from a recorded one times scale plus offset, over all that is
    recorded of it."""
    assert result.shape == tuple(golden[f"{prefix}/shape"])
    found = {
        "slice": result[::16, ::16],
        "corner": result[-3:, -3:],
        "mean": result.mean((0, 1), dtype=np.float64),
        "row_mean": result.mean(1, dtype=np.float64),
        "column_mean": result.mean(0, dtype=np.float64),
    }
    return max(np.abs(value - (golden[f"{prefix}/{name}"] * scale + offset)).max() for name, value in found.items())
