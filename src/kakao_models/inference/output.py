"""Results for files and screens."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kakao_models.files.atomic import flush, replacing
from kakao_models.inference.stream import Failure
from kakao_models.samples.paths import in_utf8

if TYPE_CHECKING:
    from kakao_models.inference.embedder import Embedder

EMBEDDING_FORMATS = (".npy", ".parquet")


def write_embeddings(path: str | os.PathLike, names: Sequence[str], rows: np.ndarray) -> list[Path]:
    """Writes embeddings (N, D) with the N names of what they are of, and returns the files written.

    `out.npy` is the array, with the names in `out.names.json` beside it; `out.parquet` has the columns `name` and
    `embedding`. Files are complete or not there: they are written under another name first.

    Raises:
        ValueError: another suffix, or not as many names as rows.
        ImportError: .parquet without pyarrow.
    """
    path = Path(path)
    check_format(path)
    if len(names) != len(rows):
        raise ValueError(f"{path}: got {len(names)} names for {len(rows)} rows")
    if path.suffix == ".npy":
        beside = path.with_suffix(".names.json")
        with replacing(beside) as names_file, replacing(path) as rows_file:
            names_file.write_text(_json(list(names), 0), encoding="utf-8")
            with open(rows_file, "wb") as file:
                np.save(file, rows)
            flush(rows_file)
            # Killed between the two renamings, rows without names are left: names never stand by other rows
            beside.unlink(missing_ok=True)
        return [path, beside]
    import pyarrow
    import pyarrow.parquet

    names = list(map(in_utf8, names))
    values = pyarrow.array(np.ascontiguousarray(rows, np.float32).reshape(-1))
    table = pyarrow.table({"name": names, "embedding": pyarrow.FixedSizeListArray.from_arrays(values, rows.shape[1])})
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    return [path]


def check_format(path: str | os.PathLike) -> None:
    """Raises what `write_embeddings` would raise for this path, before there is anything to write."""
    path = Path(path)
    if path.suffix not in EMBEDDING_FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(EMBEDDING_FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else f'{path.parent} is not writable'}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(f"{path}: .parquet needs pyarrow: pip install pyarrow. Or write .npy") from error


def _json(value: object, indent: int) -> str:
    """Readable JSON; in ASCII if a file name is not in UTF-8, which Python holds as lone surrogates."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def scores_as_json(sources: Sequence[str], results: Sequence[list[dict] | None], failures: Sequence[Failure]) -> str:
    """`[{"image": ..., "scores": [{"score": ..., "label": ...}, ...]}, ...]`, or "error" instead of "scores"."""
    reasons = {failure.index: failure.reason for failure in failures}
    entries = [
        {"image": source, "error": reasons[index]} if scores is None else {"image": source, "scores": scores}
        for index, (source, scores) in enumerate(zip(sources, results))
    ]
    return _json(entries, 1)


def printable(text: str) -> str:
    """Escapes control characters, so that a stranger's file names and labels can't send commands to the terminal."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: match[0].encode("unicode_escape").decode(), text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_scores(sources: Sequence[str], results: Sequence[list[dict] | None]) -> None:
    """A table on stdout, a line per image that has results."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("photo", box=None, pad_edge=False, header_style="dim")
    shown = [(source, scores) for source, scores in zip(sources, results) if scores is not None]
    for place in range(max((len(scores) for _, scores in shown), default=0)):
        table.add_column("best label" if place == 0 else "", style="bold" if place == 0 else "dim")
    for source, scores in shown:
        table.add_row(
            escape(printable(source)),
            *(f"{escape(printable(entry['label']))} {_shares(entry)}" for entry in scores),
        )
    if shown:
        # labels and names are shown as they are: no :cat: becomes a picture
        Console(width=None if sys.stdout.isatty() else 200, emoji=False).print(table)


def _shares(entry: dict) -> str:
    """The score, and where it is known the relevance, in per cent."""
    fits = f", fits {entry['relevance']:.1%}" if "relevance" in entry else ""
    return f"{entry['score']:.1%}{fits}"


def say_engine(embedder: "Embedder") -> None:
    """One line on stderr for each part of the model that something was measured for."""
    checks = getattr(embedder.engine, "checks", None)
    if checks:
        from kakao_models.inference.selfcheck import explain

        print(explain(checks), file=sys.stderr)
