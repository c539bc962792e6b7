"""Opening Milvus: a file of Milvus Lite or a server, by the same address."""

import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kakao_models.files.atomic import is_alive
from kakao_models.lazy import is_installed

if TYPE_CHECKING:
    from pymilvus import MilvusClient

WAITS = (0.5, 1, 2, 4)  # seconds between attempts to reach a server; then always the last
PATIENCE = 15.0  # seconds until a server that does not answer is given up
_ATTEMPT = 5.0  # seconds for an attempt to connect
T = TypeVar("T")
_SQLITE = b"SQLite format 3\0"  # how a file of Milvus Lite 2 begins
_WRITER = "WRITER.json"  # in a local database: who has it open
_opened: Counter[str] = Counter()  # path of a local database → how often this process has it open
_lock = threading.Lock()


def is_local(uri: str) -> bool:
    return "://" not in uri and not uri.startswith("unix:")


def connect(uri: str, token: str | None = None, *, create: bool = False):
    """A `MilvusClient`.

    Args:
        uri: NAME.db, a database of Milvus Lite in that folder, or a server's address such as http://host:19530.
        create: make a local database that is not there.

    Raises:
        ImportError: pymilvus or milvus-lite is missing.
        FileNotFoundError: a local database that is not there.
        ValueError: the name is of neither kind, or what is there is no database of Milvus Lite 3.2 or newer.
        BlockingIOError: another process writes to it.
        ConnectionError: no server answers.
    """
    prepare()
    return _local(check_local(uri, create), uri) if is_local(uri) else _remote(uri, token or "")


def prepare() -> None:
    """Keeps Milvus from printing tracebacks of errors that are raised, and explained, as well. pymilvus itself is not imported:
    that takes as long as all the rest of a search of a local index, which can do without.

    Raises:
        ImportError: pymilvus is missing.
    """
    # gRPC writes to stderr, past Python's logging, what is raised as well
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if not is_installed("pymilvus"):
        raise ImportError("search needs pymilvus: pip install 'kakao-models[search]'")
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).setLevel(logging.CRITICAL)


def disconnect(uri: str, client: "MilvusClient") -> None:
    """Closes a client; the last one of a local database writes what is in memory and lets go of the database."""
    client.close()
    if is_local(uri):
        from milvus_lite.server_manager import server_manager_instance

        path = os.path.abspath(uri)
        with _lock:
            _opened[path] -= 1
            if _opened[path] <= 0:
                Path(path, _WRITER).unlink(missing_ok=True)
                server_manager_instance.release_server(path)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of Milvus as ValueError, or ConnectionError where the server is gone, that say what was being done."""
    try:
        yield
    except Exception as error:
        milvus = sys.modules.get("pymilvus.exceptions")  # which is imported if the error is its own
        if milvus is None or not isinstance(error, milvus.MilvusException):
            raise
        message = f"{what}: Milvus reported: {error.message or error}"
        if _is_gone(error):
            raise ConnectionError(
                f"{message}. Is the server still running? Rerun the same command to resume"
            ) from error
        raise ValueError(message) from error


def patiently(work: Callable[[float], T]) -> T:
    """The result of `work`, which is retried with exponential backoff while no server answers.

    Args:
        work: is told how many seconds are left.

    Raises:
        MilvusException: the last attempt failed after `PATIENCE` seconds, or the error is another one.
    """
    from pymilvus.exceptions import MilvusException

    waits, end = iter(WAITS), time.monotonic() + PATIENCE
    while True:
        try:
            return work(end - time.monotonic())
        except MilvusException as error:
            wait = next(waits, WAITS[-1])
            if not _is_gone(error) or time.monotonic() + wait > end:
                raise
        time.sleep(wait)


def clear_unfinished(uri: str, collection: str) -> None:
    """Removes what a killed process left of a collection it was about to create in a local database."""
    folder = collection_folder(uri, collection)
    if is_local(uri) and folder.is_dir() and not (folder / "schema.json").exists():
        shutil.rmtree(folder)


def collection_folder(uri: str, collection: str) -> Path:
    """The folder of a collection of a local database."""
    return Path(uri, "collections", collection)


def local_schema(uri: str, collection: str) -> dict[str, Any]:
    """The schema.json of a collection of a local database.

    Raises:
        FileNotFoundError: there is no such collection.
    """
    try:
        return json.loads((collection_folder(uri, collection) / "schema.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        there = sorted(path.parent.name for path in Path(uri).glob("collections/*/schema.json"))
        raise no_collection(uri, collection, there) from error


def no_collection(uri: str, collection: str, there: list[str]) -> FileNotFoundError:
    return FileNotFoundError(f"{uri}: has no collection {collection!r}; its collections: {', '.join(there) or 'none'}")


def check_local(uri: str, create: bool = False) -> Path:
    """The folder of a local database.

    Raises:
        ImportError: milvus-lite is missing.
        FileNotFoundError: it is not there, and is not to be made.
        ValueError: the name does not end in .db, or what is there is not a database of Milvus Lite 3.2 or newer.
    """
    path = Path(uri)
    if path.suffix != ".db":
        raise ValueError(
            f"{uri}: expected a name that ends in .db, a folder of Parquet files that data embed wrote, or a server's "
            "address such as http://localhost:19530"
        )
    _check_format(path)
    if not path.exists() and not create:
        raise FileNotFoundError(f"{uri}: no such index. Build it: kakao-models index build FOLDER --index {uri}")
    try:
        import milvus_lite  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"{uri}: a local index needs milvus-lite: pip install 'kakao-models[search]'") from error
    return path


def _local(path: Path, uri: str):
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _lock:
            client = MilvusClient(uri)
            _opened[os.path.abspath(uri)] += 1
            _sign(path)
    except MilvusException as error:
        if _is_locked(path):
            raise BlockingIOError(
                f"{uri}: {_writer(path)} is writing to this index, and only one process can write at a time. Wait for it or "
                "end it; you can search meanwhile. For several writers use a Milvus server (--index http://host:19530)"
            ) from error
        hint = "May this user write there, and is the disk full?"
        raise OSError(f"{uri} can't be opened ({error.message}). {hint}") from error
    return client


def _sign(path: Path) -> None:
    """Writes which process has a database open, for the errors of others."""
    who = {"program": Path(sys.argv[0]).name, "process": os.getpid(), "host": socket.gethostname()}
    with contextlib.suppress(OSError):
        (path / _WRITER).write_text(json.dumps(who | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}), encoding="utf-8")


def _writer(path: Path) -> str:
    """The process that has a database open, as far as it is known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        who = json.loads((path / _WRITER).read_text(encoding="utf-8"))
        if who["host"] != socket.gethostname() or is_alive(who["process"]):  # else it was killed, and another one came
            return f"another process ({who['program']}, number {who['process']} on {who['host']}, since {who['since']})"
    return "another process"


def _check_format(path: Path) -> None:
    if path.is_file():
        with open(path, "rb") as file:
            old = file.read(len(_SQLITE)) == _SQLITE
        if old:
            raise ValueError(
                f"{path}: is a database of Milvus Lite 2, and Milvus Lite 3 has another format. Convert it without "
                f"embedding again: kakao-models index load {path} --index NEW.db --model MODEL"
            )
        raise ValueError(f"{path}: is a file, not an index: expected the folder that kakao-models index build makes")
    if path.is_dir() and any(path.iterdir()) and not (path / "collections").is_dir():
        raise ValueError(f"{path}: is a folder, but not an index. Choose another name")


def _is_locked(path: Path) -> bool:
    try:
        import fcntl

        with open(path / "LOCK", "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # ImportError: Windows
        pass
    return False


def _remote(uri: str, token: str):
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    def attempt(left: float):
        return MilvusClient(uri, token=token, timeout=min(_ATTEMPT, max(left, 0.1)))

    try:
        return patiently(attempt)
    except MilvusException as error:
        if _is_gone(error):
            raise ConnectionError(
                f"{uri}: no Milvus server answered within {PATIENCE:g} seconds ({error.message}). "
                "Is it running, and is the address right?"
            ) from error
        raise ValueError(
            f"{uri}: Milvus refused the connection: {error.message}. Are the address and the token right?"
        ) from error


def _is_gone(error) -> bool:
    """Whether no server answered, so that trying again may help."""
    import grpc
    from pymilvus.client.types import Status

    codes = (Status.CONNECT_FAILED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return error.code in codes or (isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() in codes)
