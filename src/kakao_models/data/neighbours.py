"""Images that are near to those of an evaluation set: by perceptual hash, or by embedding as in ALIGN's paper."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from kakao_models.inference.embedder import l2_normalize
from kakao_models.pixels.formats import list_images
from kakao_models.pixels.images import load_image
from kakao_models.samples.columns import find_column
from kakao_models.samples.paths import kind_of
from kakao_models.samples.rows import vectors_of
from kakao_models.samples.sources import open_source
from kakao_models.samples.tables import files_of, without

_HASHES = ("image_phash", "imagehash", "phash")
MAX_BITS = 7
_DIGITS = 16
_WORD = 4  # hexadecimal digits of a word of 16 bits


@ibis.udf.scalar.builtin
def bit_count(number: int) -> int: ...  # of DuckDB and of Spark


@lru_cache(maxsize=4)
def read_hashes(file: str | Path) -> list[str]:
    """Perceptual hashes, each once: computed of a folder of pictures; or read from a file with a line each, or a table with a
    column image_phash, imagehash or phash.

    Raises:
        ValueError: a hash that is not 16 hexadecimal digits, an unreadable image, or no hashes.
    """
    path = Path(file)
    if path.is_dir():
        values = [perceptual_hash(load_image(picture)) for picture in list_images(path)]
    elif kind_of(path):
        records = [sample.record for sample in open_source(path, needs=(), keep=_HASHES, merge=False)]
        name = find_column(tuple(dict.fromkeys(name for record in records for name in record)), None, _HASHES)
        if name is None:
            raise ValueError(f"{path}: has no column {', '.join(_HASHES)}")
        values = [str(record[name]) for record in records if record.get(name)]
    else:
        values = path.read_text(encoding="utf-8-sig").split()
    hashes = sorted({value.lower() for value in values})
    if wrong := next((value for value in hashes if not re.fullmatch(r"[0-9a-f]{16}", value)), None):
        raise ValueError(f"{path}: {wrong!r:.60} is not a perceptual hash of 16 hexadecimal digits")
    if not hashes:
        raise ValueError(f"{path}: expected perceptual hashes, or images to compute them from")
    return hashes


def perceptual_hash(picture: Image.Image) -> str:
    """16 hexadecimal digits of a picture: which of its 64 slowest cosine waves are stronger than their median.

    As the package ImageHash computes `phash`, whose digits COYO's look like; the dataset does not say what made them.
    """
    from scipy.fft import dct

    pixels = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    waves = dct(dct(pixels, axis=0), axis=1)[:8, :8]
    return np.packbits(waves > np.median(waves)).tobytes().hex()


def near_hashes(table: ir.Table, column: str, file: str, bits: int, hold: Callable[[ir.Table], ir.Table]) -> ir.Table:
    """The rows whose hash differs in more than `bits` bits from all hashes of `file`.

    Exact, without comparing all with all: two hashes that differ in at most k bits agree in one of any k + 1 parts.
    A value that is no hash is near to none.

    Args:
        hold: computes the near hashes once, as `Context.hold`.
    """
    if not isinstance(bits, int) or not 0 <= bits <= MAX_BITS:
        raise ValueError(f"eval-hashes: bits: got {bits}, expected a whole number from 0 to {MAX_BITS}")
    theirs = read_hashes(file)
    value = table[column].cast("string").lower()
    ours = table.select(hash=value).filter(ibis._.hash.re_search("^[0-9a-f]{16}$")).distinct()
    starts = range(0, _DIGITS, _WORD)
    ours = ours.mutate(**{f"word{start}": _word(ours.hash, start) for start in starts})
    words = {f"other{start}": [int(text[start : start + _WORD], 16) for text in theirs] for start in starts}
    edges = np.linspace(0, _DIGITS, bits + 2).round().astype(int).tolist()
    near = []
    for first, last in zip(edges, edges[1:]):
        parts = {"part": [text[first:last] for text in theirs]}
        joined = ours.mutate(part=ours.hash.substr(first, last - first)).join(ibis.memtable(parts | words), "part")
        distance = sum(bit_count(joined[f"word{start}"] ^ joined[f"other{start}"]) for start in starts)
        near.append(joined.filter(distance <= bits).select(key="hash"))
    return without(table, value, hold(ibis.union(*near).distinct()))


def near_embeddings(table: ir.Table, embeddings: str, file: str, above: float) -> ir.Table:
    """The rows whose image's embedding has a cosine of at most `above` with all of a file.

    Args:
        embeddings: what `data embed` wrote of the table: Parquet with `id` and `embedding`. A row without one is kept.
        file: the evaluation set's, likewise, or a .npy of (images, width).
        above: 0.975 in ALIGN's paper (section 3).
    """
    near = _as_ids(_near_ids(str(embeddings), str(file), above), table.id.type(), embeddings)
    dropped = ibis.memtable({"key": near or [None]}, schema={"key": str(table.id.type())})
    return without(table, table.id, dropped.distinct())


def _as_ids(ids: list, kind: dt.DataType, embeddings: str) -> list:
    """Ids of embeddings as those of the table.

    Raises:
        ValueError: the table's are whole numbers, and these are names.
    """
    if not kind.is_integer():
        return [str(name) for name in ids]
    try:
        return [int(name) for name in ids]
    except ValueError as error:
        raise ValueError(
            f"{embeddings}: its ids are names ({error}), but those of the table are whole numbers. Is it of this table?"
        ) from error


@lru_cache(maxsize=4)
def _near_ids(embeddings: str, file: str, above: float) -> list:
    theirs, near = _evaluated(file), []
    for ids, rows in _embedded(embeddings):
        if rows.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"{embeddings}: embeddings of dimension {rows.shape[1]}, but {file} has {theirs.shape[1]}. Are both from the same model?"
            )
        best = (l2_normalize(rows) @ theirs.T).max(1)
        near += ids[best > above].tolist()
    return near


def _evaluated(file: str) -> np.ndarray:
    """(images, width) of length 1, without the rows of NaN that stand for pictures that couldn't be read.

    With one of them, the largest cosine of any image would be NaN, and no image near.
    """
    if file.endswith(".npy"):
        theirs = np.load(file)
    else:
        theirs = np.concatenate([rows for _, rows in _embedded(file)] or [np.empty((0, 0))])
    if theirs.ndim != 2 or theirs.dtype.kind not in "fiu":
        raise ValueError(f"{file}: expected numbers of shape (images, dimension), got {theirs.dtype} {theirs.shape}")
    theirs = theirs[np.isfinite(theirs).all(1)]
    if not len(theirs):
        raise ValueError(f"{file}: the file has no embeddings")
    return l2_normalize(theirs.astype(np.float32))


def _embedded(source: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and embeddings (n, width) of the rows that have one; few at a time, as each is compared with a whole set."""
    for path in files_of(source):
        for batch in pq.ParquetFile(path).iter_batches(1024, columns=["id", "embedding"]):
            batch = batch.filter(batch.column("embedding").is_valid())
            if len(batch):
                ids = batch.column("id").to_numpy(zero_copy_only=False)
                yield ids, vectors_of(batch.column("embedding"), path)


def _word(text: ir.StringValue, start: int) -> ir.IntegerValue:
    """16 bits of hexadecimal text as a number; no function for that is in all backends."""
    digits = ibis.literal("0123456789abcdef")
    number = ibis.literal(0, "int64")
    for place in range(start, start + _WORD):
        number = number * 16 + digits.find(text.substr(place, 1))
    return number
