"""A folder that appears under its name complete, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output`, which takes its name once the block is through; what is left of a killed run is cleared.

    Raises:
        FileExistsError: `output` is there and not empty, can't be replaced, or is being written by another process.
    """
    named, output = output, output.resolve()
    folder = output.with_name(f".{output.name}.unfinished")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _locked(output.with_name(f".{output.name}.lock"), named):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{named} is there already. Choose another name, or remove it first.")
        if output == Path.cwd() or os.path.ismount(output):
            raise FileExistsError(f"{named} can't be replaced by the finished folder. Name a folder in it instead.")
        try:
            folder.mkdir(exist_ok=True)
            _clear(folder)
            yield folder
            for path in folder.iterdir():
                _flush(path)
            os.replace(folder, output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    """A lock that goes with this process however it ends; a second run must not write into the same folder."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FileExistsError(f"{output} is being written by another conversion. Wait for it, or end it.") from None
    except (OSError, NotImplementedError):  # a file system without locks
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # Windows removes it on release, and not before
                path.unlink()
            lock.release()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
