"""HDF5 files of weights, as Keras and older transformers wrote them: what datasets there are, and each when asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

try:
    import h5py
except ImportError:
    raise ImportError("reading HDF5 files of weights (.h5) needs h5py: pip install h5py") from None

from kakao_models.checkpoint.tensors import TensorEntry, float32


def read_datasets(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Lists an HDF5 file. No file is held open, and no link out of this one is followed.

    Returns:
        Path of every dataset → its shape and how to read it; path of a group → its attribute `name`, where it has one.

    Raises:
        ValueError: the file is damaged, or does not hold the values of a dataset.
    """
    entries, names = {}, {}

    def visit(path: str, item) -> None:  # not called for soft and external links
        if not isinstance(path, str):  # h5py's way to tell
            raise ValueError(f"{file}: the name {path!r} is not UTF-8. Is the file damaged?")
        if isinstance(item, h5py.Dataset):
            if item.dtype.kind == "f" and (item.external or item.id.get_storage_size() != item.nbytes):
                raise ValueError(f"{file}: {path}: expected {item.nbytes} bytes inside this file, uncompressed")
            entries[path] = item.shape, partial(_read, file, path)
        elif isinstance(item.attrs.get("name"), str):
            names[path] = item.attrs["name"]

    with _open(file) as root:
        root.visititems(visit)
    return entries, names


def _read(file: Path, path: str) -> np.ndarray:
    with _open(file) as root:
        return float32(root[path][()], f"{file}: {path}")


@contextmanager
def _open(file: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(file, "r") as root:
            yield root
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:  # h5py's words for damage
        raise ValueError(f"{file} can't be read: {error}. Is the download complete?") from error
