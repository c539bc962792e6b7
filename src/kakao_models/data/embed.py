"""A table of images or texts → embeddings in sharded Parquet, resumable at any point.

A shard is written under a temporary name and renamed when it is on the disk; what a killed run leaves are whole shards,
and the next run makes the others. Each shard is computed independently, so that its rows don't depend on what came before.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kakao_models.data.distribute import all_ranks, check_rank
from kakao_models.files.atomic import replacing
from kakao_models.inference.embedder import Embedder, l2_normalize
from kakao_models.samples.columns import BY_NAME, Columns
from kakao_models.samples.manifest import NAME, alone, begin, clear, cleared, entry, write_manifest
from kakao_models.samples.rows import Part, Rows

NEEDS = {"images": ("image",), "texts": ("caption",), "score": ("image", "caption")}
_AT_ONCE = 1000  # rows whose pictures, as files, are in memory


@dataclass(frozen=True)
class Settings:
    """The settings that must stay the same from run to run.

    what: "images" and "texts" write `embedding`; "score" the cosine of each row's image and text, `align_score`.
    dtype: type of embeddings as they are written, "float32" or "float16".
    computed: the type that the model computes in, as the caller calls it; None is its usual one.
    """

    what: str = "images"
    per_shard: int = 10_000
    dtype: str = "float32"
    normalize: bool = False
    computed: str | None = None

    def __post_init__(self):
        if self.what not in NEEDS:
            raise ValueError(f"what: got {self.what!r}, expected one of {', '.join(NEEDS)}")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype: got {self.dtype!r}, expected float32 or float16")
        if self.per_shard < 1:
            raise ValueError(f"per_shard: got {self.per_shard}, expected at least 1")


def embed_table(
    embedder: Embedder | Callable[[], Embedder],
    source: Any,
    output: Path,
    settings: Settings = Settings(),
    *,
    columns: Columns = BY_NAME,
    model: str = "",
    rank: int = 0,
    world_size: int = 1,
    distributor: str | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict | None:
    """Embeds all rows of a source, or resumes where an earlier run stopped.

    Writes 00000.parquet, ... with `id` and `embedding` (or `align_score`), in the source's order. Rows that can't be
    read are left out; a shard's metadata lists them (`failures`), and so does the manifest. Every machine of several
    takes each `world_size`-th shard; whoever finds all shards done writes the manifest.

    Args:
        embedder: an `Embedder`, or a function that gives one and is called once there is work.
        source, columns: passed to `Rows`; or `Rows` that have what `needs` names.
        model: what the plan calls the model; a folder of another model or source isn't continued.
        distributor: run all ranks, by "multiprocessing", "pyspark" or "ray", as `distribute.all_ranks` does; `embedder` is
            pickled, so it must be a function that gives one.

    Returns:
        the manifest when all shards exist, None while other ranks still work.

    Raises:
        ValueError: `output` was begun with other settings, another model or source.
        FileExistsError: the folder is not an output of this function, or another process already works with this rank.
    """
    check_rank(rank, world_size, distributor)
    rows = source if isinstance(source, Rows) else Rows(source, columns, NEEDS[settings.what])
    parts = rows.parts(settings.per_shard)
    output = Path(output)
    plan = {**asdict(settings), **rows.plan, "model": model, "rows": sum(rows.counts), "source": rows.fingerprint()}
    begin(output, plan)
    if distributor:
        if not callable(embedder):
            raise ValueError("embedder: got a model, expected a function that returns one, because each task calls it")
        run = partial(embed_table, embedder, rows.where, output.absolute(), settings, columns=rows.columns, model=model)
        all_ranks(run, world_size, distributor, output=output, parts=parts, advance=advance, gpu=True)
    else:
        with alone(output, rank):
            clear(output, range(rank, len(parts), world_size))
            for part in parts[rank::world_size]:
                path = output / f"{part.number:05d}.parquet"
                if not path.exists():
                    embedder = embedder() if callable(embedder) else embedder
                    _write(embedder, rows, part, settings, path)
                advance(part.stop - part.start)
    with cleared(output, NAME):
        return _finish(output, parts, plan)


def _write(embedder, rows: Rows, part: Part, settings: Settings, path: Path) -> None:
    pieces = [
        _embed(embedder, rows, replace(part, start=start, stop=min(start + _AT_ONCE, part.stop)), settings)
        for start in range(part.start, part.stop, _AT_ONCE)
    ]
    failures = json.dumps([failure for _, failed in pieces for failure in failed], ensure_ascii=False)
    table = pa.concat_tables(table for table, _ in pieces).replace_schema_metadata({"failures": failures})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _embed(embedder, rows: Rows, part: Part, settings: Settings) -> tuple[pa.Table, list[list[str]]]:
    """The embeddings of some rows; id and reason of each that has none."""
    records = rows.read(part)
    failures: dict[int, str] = {}
    images = [sample.image for sample in records] if settings.what != "texts" else []
    texts = [next(iter(sample.captions), None) for sample in records] if settings.what != "images" else []
    for name, values in (("text", texts), ("image", images)):
        failures |= {place: f"no {name}" for place, value in enumerate(values) if value is None}
    failures |= {place: sample.error for place, sample in enumerate(records) if sample.error}
    kept = [place for place in range(len(records)) if place not in failures]
    columns = {}
    if images:
        columns["images"], broken = _images(embedder, [images[place] for place in kept])
        failures |= {kept[place]: reason for place, reason in broken.items()}
        kept = [place for place in kept if place not in failures]
    if texts:
        columns["texts"] = embedder.texts([texts[place] for place in kept], progress=False)
    ids = pa.array([records[place].id for place in kept], pa.int64() if rows.numbered else pa.string())
    if settings.what == "score":
        cosine = (l2_normalize(columns["images"]) * l2_normalize(columns["texts"])).sum(1)
        table = pa.table({"id": ids, "align_score": pa.array(cosine.astype(np.float32))})
    else:
        values = l2_normalize(columns[settings.what]) if settings.normalize else columns[settings.what]
        flat = pa.array(np.ascontiguousarray(values, settings.dtype).reshape(-1))
        table = pa.table({"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, embedder.dim)})
    return table, [[str(records[place].id), failures[place]] for place in sorted(failures)]


def _images(embedder, sources: list) -> tuple[np.ndarray, dict[int, str]]:
    """Embeddings of the readable ones, and reasons by the places of the others."""
    rows = embedder.images(sources, on_error="ignore", progress=False)
    broken = {failure.index: failure.reason for failure in embedder.failures}
    return np.delete(rows, list(broken), axis=0), broken


def _finish(output: Path, parts: list[Part], plan: dict) -> dict | None:
    paths = [output / f"{part.number:05d}.parquet" for part in parts]
    if not all(path.exists() for path in paths):
        return None
    entries, failures = [], []
    for path in paths:
        file = pq.ParquetFile(path)
        listed = (file.schema_arrow.metadata or {}).get(b"failures")
        if listed is None:
            raise ValueError(f"{path}: data embed did not write this file. Remove it, and rerun the command.")
        entries.append(entry(path, file.metadata.num_rows))
        failures += [{"name": name, "reason": reason} for name, reason in json.loads(listed)]
    return write_manifest(output, "embeddings", entries, plan=plan, failures=failures)
