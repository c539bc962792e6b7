"""Embeddings that are on the disk already: rows of an index, or rows to search among, without running the model."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.inference.embedder import Embedder
from kakao_models.samples.manifest import read_json
from kakao_models.samples.rows import vectors_of
from kakao_models.search.collection import INSERT
from kakao_models.search.items import FIELDS, OWN, metadata_digest, plain
from kakao_models.search.rows import KEY, META, Rows, Segment
from kakao_models.search.scan import Vectors

if TYPE_CHECKING:
    from kakao_models.search.index import SearchIndex

StoredRows = tuple[list[str], np.ndarray, list[dict[str, Any]]]  # ids, (n, D), metadata


class StoredEmbeddings:
    """Embeddings and what lies beside them.

    Args:
        source: a folder of `kakao-models data embed` or a .parquet, with `id` or `name`, `embedding` and any further
            columns; a .npy with its .names.json; or a database file of Milvus Lite 2.

    Raises:
        ValueError: it is nothing of these.
    """

    def __init__(self, source: str | os.PathLike):
        self.source = Path(source)
        self.model: str | None = None  # name of the model that made them, where it is known
        self.revision: str | None = None
        self.kind = "images"
        self._loaded: Rows | None = None
        if self.source.suffix == ".npy":
            self.count, self._rows = self._npy()
        elif self.source.is_file() and self.source.suffix != ".parquet":
            self.count, self._rows = self._lite2()
        else:
            self.count, self._rows = self._parquet()

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of an index, as `SearchIndex.metadata`; model and revision are None where they are not known.

        Raises:
            ValueError: there are no embeddings.
        """
        return {"model": self.model, "revision": self.revision, "dim": self._dim(), "kind": self.kind}

    def now(self) -> Rows:
        """All rows, in memory, scaled to length 1; of an id that is there twice, the last one counts.

        Raises:
            ValueError: embeddings of several dimensions, that are not finite or all zeros.
        """
        if self._loaded is None:
            self._loaded = self._in_memory()
        return self._loaded

    def _in_memory(self) -> Rows:
        import pyarrow as pa
        from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema

        texts, numbers = (KEY, "path", "caption"), ("width", "height", "bytes")
        columns = (
            [(name, pa.string()) for name in texts] + [(name, pa.int64()) for name in numbers] + [(META, pa.string())]
        )
        values = np.empty((self.count, self._dim()), np.float32)
        last: dict[str, int] = {}
        tables, total = [], 0
        for ids, vectors, metadata in self._rows():
            if vectors.shape[1] != values.shape[1]:
                raise ValueError(
                    f"{self.source}: holds embeddings of dimensions {values.shape[1]} and {vectors.shape[1]}, expected one dimension"
                )
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            if not np.isfinite(lengths).all() or (lengths < 1e-6).any():
                raise ValueError(f"{self.source}: embeddings must be finite and not all zeros")
            values[total : total + len(ids)] = vectors / lengths
            last |= {key: total + place for place, key in enumerate(ids)}
            total += len(ids)
            records = [
                {KEY: key, "path": "", "caption": "", "width": 0, "height": 0, "bytes": 0}
                | {name: row[name] for name in FIELDS if name in row}
                | {META: json.dumps({name: value for name, value in row.items() if name not in FIELDS})}
                for key, row in zip(ids, metadata)
            ]
            tables.append(pa.Table.from_pylist(records, pa.schema(columns)))
        alive = np.zeros(total, bool)
        alive[list(last.values())] = True
        fields = [FieldSchema(name, DataType.VARCHAR, is_primary=name == KEY, max_length=65_535) for name in texts]
        fields += [FieldSchema(name, DataType.INT64) for name in numbers]
        segment = Segment(Vectors(values[:total]), pa.concat_tables(tables), None if alive.all() else alive)
        return Rows([segment], CollectionSchema(fields, enable_dynamic_field=True))

    def _dim(self) -> int:
        for _, vectors, _ in self._rows():
            return vectors.shape[1]
        raise ValueError(f"{self.source}: holds no embeddings")

    def load(self, index: "SearchIndex", *, advance: Callable[[int], None] = lambda rows: None) -> int:
        """Adds all rows that an index has not, or has with other metadata, and says how many these were.

        Raises:
            ValueError: embeddings of another width or of another model, or of no finite numbers.
        """
        self.check(index.metadata)
        loaded = 0
        for ids, vectors, metadata in self._rows():
            last = {key: place for place, key in enumerate(ids)}  # of an id that is there twice, the last one counts
            known = index.digests(list(last))
            fresh = [place for key, place in last.items() if known.get(key) != metadata_digest(metadata[place])]
            if fresh:
                index.add([ids[p] for p in fresh], vectors[fresh], [metadata[p] for p in fresh])
            loaded += len(fresh)
            advance(len(ids))
        index.flush()
        return loaded

    def check(self, expected: "Embedder | Mapping[str, Any]") -> None:
        """Refuses embeddings that can't be of a model: an `Embedder`, or an index's `metadata`.

        Raises:
            ValueError: they have another dimension, or are named as those of another model.
        """
        if not isinstance(expected, Mapping):
            expected = {"model": expected.name, "dim": expected.dim}
        if self.model is not None and _last_part(self.model) != _last_part(expected["model"]):
            raise ValueError(f"{self.source}: holds embeddings of {self.model}, not of {expected['model']}")
        if (dim := self._dim()) != expected["dim"]:
            raise ValueError(
                f"{self.source}: holds embeddings of dimension {dim}, but {expected['model']} gives {expected['dim']}"
            )

    def _npy(self) -> tuple[int, Callable[[], Iterator[StoredRows]]]:
        beside = self.source.with_suffix(".names.json")
        try:
            rows = np.load(self.source, mmap_mode="r", allow_pickle=False)
            names = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.source}: expected an array, and the names of its rows in {beside} ({error})"
            ) from error
        if not isinstance(names, list):
            raise ValueError(f"{beside}: expected a list of names, got {type(names).__name__}")
        if rows.ndim != 2 or len(names) != len(rows):
            raise ValueError(f"{self.source}: got an array of shape {rows.shape}, but {beside} has {len(names)} names")

        def read() -> Iterator[StoredRows]:
            for start in range(0, len(rows), INSERT):
                some = [plain(str(name)) for name in names[start : start + INSERT]]  # JSON may hold halves of pairs
                yield _ids(some), np.array(rows[start : start + INSERT], np.float32), [{"path": name} for name in some]

        return len(rows), read

    def _parquet(self) -> tuple[int, Callable[[], Iterator[StoredRows]]]:
        import pyarrow.parquet as pq

        if self.source.is_dir():
            files = sorted(path for path in self.source.glob("*.parquet") if path.name[0] not in "._")
            plan = read_json(self.source / "plan.json") if (self.source / "plan.json").is_file() else {}
            self.model, self.revision = _model_of(plan)
            self.kind = "texts" if plan.get("what") == "texts" else "images"
        else:
            files = [self.source]
        if not files:
            raise ValueError(f"{self.source}: this folder has no .parquet files")
        opened = [pq.ParquetFile(path) for path in files]
        for path, file in zip(files, opened):
            names = file.schema_arrow.names
            if "embedding" not in names or not {"id", "name"} & set(names):
                raise ValueError(f"{path}: expected the columns embedding, and id or name; got {', '.join(names)}")

        def read() -> Iterator[StoredRows]:
            for file in opened:
                for batch in file.iter_batches(INSERT):
                    batch = batch.filter(batch.column("embedding").is_valid())
                    if len(batch):
                        vectors = vectors_of(batch.column("embedding"), self.source)
                        yield _named(batch.drop_columns(["embedding"]).to_pylist(), vectors)

        return sum(file.metadata.num_rows for file in opened), read

    def _lite2(self) -> tuple[int, Callable[[], Iterator[StoredRows]]]:
        """Milvus Lite 2 kept each row as a message of Milvus' own fields in an SQLite table."""
        connection = sqlite3.connect(f"{self.source.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        connection.text_factory = bytes
        try:
            rows = connection.execute("SELECT DISTINCT collection_name FROM collection_meta").fetchall()
            names = [name.decode() for (name,) in rows]
            if len(names) != 1:
                raise ValueError(f"{self.source}: expected one collection, got {', '.join(names) or 'none'}")
            table = '"' + names[0].replace('"', '""') + '"'
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.source}: not a database of Milvus Lite 2 ({error})") from error

        def read() -> Iterator[StoredRows]:
            rows = connection.execute(f"SELECT milvus_id, data FROM {table} ORDER BY id")
            while some := rows.fetchmany(INSERT):
                fields = [_lite2_row(self.source, key, data) for key, data in some]
                yield _named([record for record, _ in fields], np.stack([vector for _, vector in fields]))

        return count, read


def _model_of(plan: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The model that the plan of `data embed` names, and its revision: it writes NAME@REVISION."""
    name = str(plan.get("model") or "")
    model, at, revision = name.rpartition("@")
    return (model, revision) if at and not os.path.exists(name) else (name or None, None)


def _last_part(model: str) -> str:
    return os.path.basename(model.rstrip("/"))


def is_stored(uri: str) -> bool:
    """Whether an index's address names files of embeddings."""
    path = Path(uri)
    return path.suffix in (".parquet", ".npy") or (path.suffix != ".db" and path.is_dir())


def _lite2_row(source: Path, key: bytes, data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    from google.protobuf.message import DecodeError
    from pymilvus.grpc_gen import schema_pb2

    row = schema_pb2.StructArrayField()  # the same bytes: a list of fields
    try:
        row.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{source}: row {key!r:.80} can't be read ({error})") from error
    record, vector = {"id": key.decode(errors="replace")}, None
    for field in row.fields:
        if field.WhichOneof("field") == "vectors":
            vector = np.array(field.vectors.float_vector.data, np.float32)
            continue
        values = getattr(field.scalars, field.scalars.WhichOneof("data") or "string_data").data
        if field.is_dynamic or field.field_name == "$meta":
            record |= json.loads(values[0]) if values else {}
        elif len(values) and not isinstance(values[0], bytes):
            record[field.field_name] = values[0]
    if vector is None or not len(vector):
        raise ValueError(f"{source}: row {key!r:.80} has no vector of floats")
    return record, vector


def _named(records: list[dict[str, Any]], vectors: np.ndarray) -> StoredRows:
    """Rows of records: `id`, or `name`, names them; the rest is metadata, as an index keeps it."""
    names = [plain(str(record["id"] if record.get("id") is not None else record.get("name"))) for record in records]
    metadata = []
    for name, record in zip(names, records):
        row = {key: plain(value) for key, value in record.items() if key not in ("embedding", *OWN)}
        row = {key: value for key, value in row.items() if value is not None}
        if "caption" not in row and (text := row.pop("text", None)):
            row["caption"] = str(text)
        row.setdefault("path", name)
        for key, expected in (("path", str), ("caption", str), ("width", int), ("height", int), ("bytes", int)):
            if key in row and not isinstance(row[key], expected):
                row[f"{key}_"] = row.pop(key)
        metadata.append(row)
    return _ids(names), vectors, metadata


def _ids(names: list[str]) -> list[str]:
    """Names that fit the column of ids; longer ones by their SHA-256."""
    return [name if 0 < len(name.encode()) <= 64 else hashlib.sha256(name.encode()).hexdigest() for name in names]
