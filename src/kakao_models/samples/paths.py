"""The files of a source by a name, a pattern or a folder, and their kind."""

import glob
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from kakao_models.files.pointers import refuse_pointers

# suffix -> kind
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
SHARDS = {".tar": "tar", ".tfrecord": "tfrecord", ".tfrecords": "tfrecord", ".parquet": "parquet"}
KINDS = TABLES | SHARDS
SAVED = ("dataset_info.json", "dataset_dict.json")  # files that datasets.save_to_disk writes
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # tables of an ImageFolder of `datasets`
_OURS = ("manifest.json", "plan.json")  # files that `shard`, `download` and `embed` write about their folder


class NoSuchSource(FileNotFoundError, ValueError):
    """Raised if a file or folder does not exist, or a pattern matches nothing."""


def in_utf8(name: str) -> str:
    """A file name as text that can be stored. Of a name in another encoding than UTF-8 the odd bytes become \\xe9, as Python
    holds them as lone surrogates, which no format takes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def distinct_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """The names of files; where two files have the same name, the paths below the folder that all of them share."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    whole = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath(map(os.path.dirname, whole))
    return [Path(os.path.relpath(path, shared)).as_posix() for path in whole]


def suffix_of(path: str | os.PathLike) -> str:
    """The suffix that tells a file's kind, in lower case: `.csv` for "A.CSV" and "a.csv.gz", `.tfrecord` for
    "train.tfrecord-00001-of-00128"."""
    name = os.fspath(path).lower()
    inner = os.path.splitext(name.removesuffix(".gz"))[1]
    if name.endswith(".gz") and TABLES.get(inner) not in ("csv", "json"):
        return f"{inner}.gz"
    match = re.match(r"\.[a-z]+", inner)
    return match.group() if match else ""


def kind_of(path: str | os.PathLike) -> str | None:
    return KINDS.get(suffix_of(path))


def is_hub(source: str) -> bool:
    """Whether a source is a data set of the Hub: hf://owner/name, or owner/name where there is no such file."""
    if source.startswith("hf://"):
        return True
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)) and not (matches(source) or kind_of(source))


def matches(source: str | os.PathLike) -> list[str]:
    """The files and folders of a name or pattern (`*`, `{000..127}`), sorted."""
    name = os.fspath(source)
    if os.path.exists(name):
        return [name]
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if not braces:
        return sorted(glob.glob(name)) if glob.has_magic(name) else []
    first, last = braces.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    parts = [name[: braces.start()] + number + name[braces.end() :] for number in numbers]
    if absent := next((part for part in parts if not matches(part)), None):
        raise NoSuchSource(f"{source}: no such file: {absent}")
    return [path for part in parts for path in matches(part)]


def files_of(source: str | os.PathLike, suffixes: Collection[str] = tuple(TABLES)) -> list[str]:
    """The files of a local source: a file, a pattern, or a folder of such files; all of one kind.

    Hidden files and what `shard`, `download` and `embed` keep beside their shards are not among them; so a folder of
    .tar with .parquet and _stats.json of the same name, as img2dataset writes it, is one of tars.

    Raises:
        ValueError: no files, files of several formats, or a Git LFS pointer.
    """
    paths = matches(source)
    if len(paths) == 1 and os.path.isdir(paths[0]):
        paths = files_in(paths[0], suffixes)
    if not paths and not os.path.isdir(source):
        raise NoSuchSource(f"{source}: no such file or folder")
    if not paths:
        raise ValueError(f"{source}: this folder has no {', '.join(suffixes)} files")
    one_suffix(paths, source, suffixes)
    refuse_pointers(paths)
    return paths


def one_suffix(paths: Collection[str], source: str | os.PathLike, suffixes: Collection[str]) -> str:
    """The suffix that all of these paths have.

    Raises:
        ValueError: they have several, or not one of `suffixes`.
    """
    suffix, *others = sorted({suffix_of(path) for path in paths})
    if others or suffix not in suffixes:
        listed = ", ".join(name or "no ending" for name in (suffix, *others))
        packed = ". Unpack them first" if any(name.endswith(("gz", ".zip")) for name in (suffix, *others)) else ""
        raise ValueError(f"{source}: got files of {listed}, expected files of one kind: {', '.join(suffixes)}{packed}")
    return suffix


def files_in(folder: str | os.PathLike, suffixes: Collection[str], deep: bool = True) -> list[str]:
    """The files in a folder, and with `deep` under it, that have one of these suffixes.

    img2dataset writes 00000.parquet, the report of a shard, beside the shard: 00000.tar, 00000.tfrecord, or a folder 00000 of
    images. Where there is such a shard, its report is left out.
    """
    root, files = Path(folder), []
    for path in sorted(root.rglob("*") if deep else root.iterdir()):
        hidden = any(part.startswith(("_", ".")) for part in path.relative_to(root).parts)
        own = path.name in (*_OURS, *SAVED) or path.name.endswith("_stats.json")
        if not hidden and not own and suffix_of(path) in suffixes and path.is_file():
            files.append(path)
    kept = {path for path in files if SHARDS.get(suffix_of(path)) in ("tar", "tfrecord")}
    stems = {path.with_suffix("") for path in kept}
    return [str(path) for path in files if path in kept or not _is_report(path, stems)]


def _is_report(path: Path, shards: Collection[Path]) -> bool:
    stem = path.with_suffix("")
    return stem in shards or (stem.is_dir() and stem.with_name(f"{stem.name}_stats.json").is_file())
