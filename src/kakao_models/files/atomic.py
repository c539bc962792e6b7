"""Files and folders that appear under their names complete, or not at all, and their SHA-256."""

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path`, durably, when the block is through. What killed processes left
    for the same path is cleared.

    Raises:
        OSError: it can't be written; the message names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _clear_leftovers(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        # a cause: another path's, already explained
        if error.filename not in (None, str(temporary), temporary) or isinstance(error.__cause__, OSError):
            raise
        # numpy and the system do not always say which file
        message = f"{path} can't be written: {error.strerror or error}"
        raise (OSError(message) if error.errno is None else OSError(error.errno, message)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _clear_leftovers(path: Path) -> None:
    """Removes the temporary files of `replacing` of processes that have ended."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.removesuffix(".tmp").rpartition(".")[2]
        with suppress(OSError):  # Windows does not remove open files, so it needs no check
            if process.isdecimal() and not (os.name == "posix" and is_alive(int(process))):
                leftover.unlink()


def is_alive(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output`, which takes its name once the block is through; what is left of a killed run is cleared.

    Raises:
        FileExistsError: `output` exists and is not empty, can't be replaced, or is being written by another process.
        OSError: the disk is full, or the like.
    """
    named, output = output, output.resolve()
    with workplace(output, named) as folder:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{named} already exists. Choose another name, or remove it first.")
        if output == Path.cwd() or os.path.ismount(output):
            raise FileExistsError(f"{named} can't be replaced. Name a new folder inside it instead.")
        yield folder
        for path in folder.rglob("*"):
            if path.is_file():
                flush(path)
        os.replace(folder, output)


@contextmanager
def workplace(output: Path, named: Path) -> Iterator[Path]:
    """An empty folder beside `output` that no other process has; it goes when the block is left, unless it was renamed.

    Args:
        named: name of `output` in errors.

    Raises:
        FileExistsError: another process works there.
        OSError: the disk is full, or the like.
    """
    folder = output.with_name(f".{output.name}.unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _locked(output.with_name(f".{output.name}.lock"), named):
            try:
                _clear(folder)
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if error.filename is None and error.errno is not None and error.strerror == os.strerror(error.errno):
            raise OSError(error.errno, f"{named} can't be written: {error.strerror}") from error  # where, at least
        raise


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    """A lock that goes with this process however it ends; a second run must not write into the same folder."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FileExistsError(f"{output} is being written by another process. Wait for it, or end it.") from None
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
    """Removes what a killed run left; a link is removed, and not its target."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Forces a file, or the names in a folder, onto the disk, so that a power cut after a renaming finds it whole."""
    if path.is_dir() and os.name != "posix":  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
