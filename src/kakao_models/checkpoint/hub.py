"""Checkpoints as folders: where they are found (the Hub, a path, inside this package) and how they are written."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints"


def bundled_checkpoints() -> list[str]:
    """Names of the checkpoints that ship inside the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "config.json").is_file())


def resolve(name_or_path: str | os.PathLike) -> str:
    """What transformers and huggingface_hub should be given for `name_or_path`.

    A folder of that name wins, then a checkpoint inside the package; anything else is left to the Hub.
    """
    name = os.fspath(name_or_path)
    if not os.path.isdir(name) and name in bundled_checkpoints():
        return str(BUNDLED / name)
    return name


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes canonical arrays to `path`, under another name first: the file is there complete or not at all."""
    # safetensors writes an array's memory as it lies, whatever its strides
    contiguous = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        save_file(contiguous, unfinished, metadata={"format": "pt"})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
