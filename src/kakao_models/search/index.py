"""`SearchIndex`: embeddings and what is known about each, in a Milvus database or in files of embeddings.

Axes: N rows  Q queries  D width of an embedding
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kakao_models.inference.embedder import Embedder, l2_normalize
from kakao_models.inference.relevance import Limit, Relevance, read_least
from kakao_models.search import backend
from kakao_models.search.collection import INSERT, create_collection, load_collection, read_metadata, row_of
from kakao_models.search.identity import check_identity, identity
from kakao_models.search.items import FIELDS, OWN
from kakao_models.search.local import LocalRows
from kakao_models.search.rows import FilterRefused, Rows
from kakao_models.search.stored import StoredEmbeddings, is_stored

if TYPE_CHECKING:
    from pymilvus import MilvusClient

DEFAULT_URI = "./kakao.db"
COLLECTION = "images"
METRICS = ("IP", "COSINE", "L2")
CONSISTENCY = ("Strong", "Bounded", "Session", "Eventually")
LOCAL_TYPES = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8", "AUTOINDEX")  # that Milvus Lite has
_PAGE = 1000  # rows of a page of all rows
_MOST = 16_384  # hits that Milvus gives at most
_READ_ONLY = (
    "holds embeddings that can only be searched. Make an index of them: kakao-models index load {uri} --index NEW.db"
)


@dataclass(frozen=True)
class Hit:
    """A search result: one row of the index.

    score: cosine similarity, in -1..1.
    path: path of the image: a file, an address, or CONTAINER::NAME of one in a tar or table.
    metadata: the further columns.
    relevance: probability that it fits the query, in 0..1; None where it was not asked for.
    """

    id: str
    score: float
    path: str = ""
    caption: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    relevance: float | None = None

    def as_dict(self) -> dict[str, Any]:
        fits = {} if self.relevance is None else {"relevance": self.relevance}
        known = {name: getattr(self, name) for name in FIELDS}
        return {"id": self.id, "score": self.score} | fits | known | {"metadata": self.metadata}


class SearchIndex:
    """An open index: use `SearchIndex.open`, and close it or use it in a `with` statement."""

    def __init__(
        self,
        uri: str,
        collection: str,
        metadata: dict[str, Any],
        embedder: Embedder | None,
        params: dict,
        *,
        client: "MilvusClient | None" = None,
        rows: LocalRows | StoredEmbeddings | None = None,
    ):
        self.uri, self.collection, self.embedder = uri, collection, embedder
        self._metadata, self._search_params = metadata, dict(params)
        self._client, self._source = client, rows  # reads of files need no client
        self._written = self._closed = False

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike = DEFAULT_URI,
        embedder: "Embedder | str | None" = None,
        *,
        token: str | None = None,
        collection: str = COLLECTION,
        create: bool = False,
        kind: str = "images",
        index_type: str | None = None,
        index_params: Mapping[str, Any] | None = None,
        metric: str = "IP",
        consistency: str = "Strong",
        shards: int = 1,
        search_params: Mapping[str, Any] | None = None,
    ) -> "SearchIndex":
        """Opens an index.

        A local index can be searched by any number of processes while one writes to it.

        Args:
            uri: NAME.db, a database of Milvus Lite, or the address of a Milvus server or cluster. Or files of embeddings, which
                can only be searched: a folder of `data embed`, a .parquet or a .npy; they are read into memory.
            embedder: embedder of queries, or a model for `Embedder`; it is refused if it doesn't go with the index. Without
                one only vectors can be searched for.
            token: credentials of a server, "user:password" or an API key.
            create: make the index if it is not there; it then is of this embedder, and the arguments to `shards` count.
            kind: content of the index, "images" or "texts".
            index_type: FLAT, HNSW, IVF_FLAT, AUTOINDEX or another that Milvus knows; by default FLAT in a local database,
                and AUTOINDEX on a server. A search of a local database is exact, whatever its index type.
            index_params: parameters of the index type, such as {"M": 32, "efConstruction": 200}.
            metric: IP, COSINE or L2. Vectors are kept with length 1, so that all three give the same order, and IP, the
                quickest, is the cosine.
            consistency: Strong, Bounded, Session or Eventually: how soon a server's readers see what was written.
            shards: number of shards of a server's collection: how many nodes may write to it at a time.
            search_params: search parameters of the index type, such as {"ef": 128} or {"nprobe": 32}.

        Raises:
            FileNotFoundError: there is no such index.
            BlockingIOError: it is to be made or changed (`create`), and another process writes to it.
            ConnectionError: no server answers.
            ValueError: it is no index of this package, or of another model or preprocessing; a wrong option.
        """
        uri = os.fspath(uri)
        _one_of("kind", kind, ("images", "texts"))
        _one_of("metric", metric, METRICS)
        _one_of("consistency", consistency, CONSISTENCY)
        if embedder is not None and not isinstance(embedder, Embedder) and not hasattr(embedder, "dim"):
            embedder = Embedder(embedder)
        if index_type and backend.is_local(uri):  # Milvus Lite would take any name, and fail when it builds the index
            _one_of("index_type", index_type, LOCAL_TYPES)
        if create and embedder is None:
            raise ValueError("create: expected an embedder, got None")
        params = dict(search_params or {})
        if is_stored(uri):
            if create:
                raise ValueError(f"{uri}: {_READ_ONLY.format(uri=uri)}")
            stored = StoredEmbeddings(uri)
            if embedder is not None:
                stored.check(embedder)
            return cls(uri, collection, stored.metadata, embedder, params, rows=stored)
        rows = None
        if backend.is_local(uri):
            rows = LocalRows(backend.collection_folder(uri, collection), Path(uri, f"search-{collection}.lock"))
        if rows is not None and not create:
            backend.prepare()
            backend.check_local(uri)
            metadata = read_metadata(backend.local_schema(uri, collection), uri, collection)
            if embedder is not None:
                check_identity(uri, metadata, embedder)
            return cls(uri, collection, metadata, embedder, params, rows=rows)
        client = backend.connect(uri, token, create=create)
        try:
            with backend.explained(uri):
                made = not client.has_collection(collection)
                if made and not create:
                    raise backend.no_collection(uri, collection, client.list_collections())
                if made:
                    backend.clear_unfinished(uri, collection)
                    default = "FLAT" if backend.is_local(uri) else "AUTOINDEX"
                    options = {"kind": kind, "metric": metric, "consistency": consistency}
                    options |= _calibration(embedder)
                    options["index"] = [index_type or default, dict(index_params or {})]
                    create_collection(client, collection, identity(embedder) | options, shards)
                metadata = read_metadata(client.describe_collection(collection), uri, collection)
                try:
                    load_collection(client, uri, collection, metadata)
                except Exception:
                    if made:  # of an index type that the server hasn't, say
                        client.drop_collection(collection)
                    raise
            if embedder is not None:
                check_identity(uri, metadata, embedder)
            if create and metadata["kind"] != kind:
                raise ValueError(f"{uri}: is an index of {metadata['kind']}, not of {kind}. Choose another index")
        except BaseException:
            backend.disconnect(uri, client)
            raise
        return cls(uri, collection, metadata, embedder, params, client=client, rows=rows)

    def __enter__(self) -> "SearchIndex":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is in memory to a local database and lets go of it; closing twice is no error."""
        if self._closed:
            return
        try:
            with contextlib.suppress(ConnectionError):
                self.flush()
        finally:
            self._closed = True
            client, self._client = self._client, None
            if client is not None:
                backend.disconnect(self.uri, client)

    @property
    def metadata(self) -> dict[str, Any]:
        """The model and options of the index: model, weights (SHA-256), dim, preprocessing, kind, metric, index type."""
        return {name: value for name, value in self._metadata.items() if name not in ("probe", "relevance")}

    @property
    def relevance(self) -> Relevance | None:
        """The calibration of the embedder's model, or the one that was stored when the index was made; None without either.

        Raises:
            OSError, ValueError: see `Embedder.relevance`.
        """
        own = getattr(self.embedder, "relevance", None)
        stored = self._metadata.get("relevance")
        return Relevance.from_dict(stored, self.uri) if own is None and stored else own

    @property
    def dim(self) -> int:
        """D."""
        return self._metadata["dim"]

    @property
    def count(self) -> int:
        """N."""
        if rows := self._rows():
            return rows.count
        (row,) = self._call("counting rows", self.client.query, output_fields=["count(*)"], **self._read)
        return int(row["count(*)"])

    @property
    def client(self):
        """The `pymilvus.MilvusClient`, for whatever this class has no method for.

        Raises:
            BlockingIOError: another process writes to the local database.
            ValueError: the index is closed, or is one of files that can only be searched.
        """
        self._check_open()
        if isinstance(self._source, StoredEmbeddings):
            raise ValueError(f"{self.uri}: {_READ_ONLY.format(uri=self.uri)}")
        if self._client is None:
            client = backend.connect(self.uri)
            try:
                with backend.explained(self.uri):
                    load_collection(client, self.uri, self.collection, self._metadata)
            except BaseException:
                backend.disconnect(self.uri, client)
                raise
            self._client = client
        return self._client

    def __len__(self) -> int:
        return self.count

    def build(self, sources: str | os.PathLike | Iterable[str | os.PathLike], **options: Any):
        """Embeds and adds images or texts: see `kakao_models.search.build.build`."""
        from kakao_models.search.build import build

        return build(self, sources, **options)

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        metadata: Iterable[Mapping[str, Any]] | None = None,
        *,
        at_once: int = INSERT,
    ) -> int:
        """Adds rows, or replaces those of the same ids.

        Args:
            ids: N, of at most 64 characters; `build` takes the SHA-256 of the content.
            vectors: (N, D), of any length but zero.
            at_once: rows of an insertion, which is made as a whole or not at all.
            metadata: N, with any of path, caption, width, height, bytes and further names of JSON values.

        Raises:
            ValueError: other shapes, a width that is not the index's, numbers that are not finite, an id twice.
        """
        vectors = _unit(self._checked(vectors))
        metadata = [{}] * len(ids) if metadata is None else list(metadata)
        if not len(ids) == len(vectors) == len(metadata):
            raise ValueError(f"add: got {len(ids)} ids, {len(vectors)} vectors, {len(metadata)} rows of metadata")
        if len(set(ids)) < len(ids):
            raise ValueError("add: an id occurs twice")
        rows = [row_of(key, vector, columns) for key, vector, columns in zip(ids, vectors, metadata)]
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            if backend.is_local(self.uri):
                self._forget_columns(some)
            self._call("adding rows", self.client.upsert, some)
            self._written = True
        return len(rows)

    def _forget_columns(self, rows: list[dict[str, Any]]) -> None:
        """Names the columns that a row had and has no more: Milvus Lite keeps what an upsert does not name."""
        there = {row["sha256"]: row for row in self._get([row["sha256"] for row in rows], ["*"])}
        for row in rows:
            row |= {name: None for name in there.get(row["sha256"], ()) if name not in row}

    def delete(self, ids: Sequence[str] | None = None, *, filter: str | None = None) -> int:
        """Removes rows by their ids or by a filter, and says how many there were.

        Raises:
            ValueError: neither or both, or a filter that Milvus does not understand.
        """
        if (ids is None) == (filter is None) or filter == "":
            raise ValueError("delete: give ids or a filter")
        if filter is not None:
            ids = [row["sha256"] for page in self._pages(filter, ["sha256"]) for row in page]
        ids, removed = [ids] if isinstance(ids, str) else list(ids), 0
        for start in range(0, len(ids), INSERT):
            some = [row["sha256"] for row in self._get(ids[start : start + INSERT], ["sha256"])]
            if some:
                self._call("deleting rows", self.client.delete, ids=some)
                self._written = True
            removed += len(some)
        return removed

    def search(
        self,
        query: str | np.ndarray | Sequence,
        k: int = 10,
        *,
        filter: str | None = None,
        min_relevance: float | str | None = None,
    ) -> "list[Hit] | list[list[Hit]]":
        """The k most similar rows of a query, the most similar first; a list of such lists for several queries.

        In a local database, and in files of embeddings, rows are compared in float64; of equally similar ones the row with
        the smallest id comes first.

        Args:
            query: a vector (D,) such as `compose_query` gives, vectors (Q, D), or a text.
            filter: an expression of Milvus on the metadata, such as 'width > 500 and caption like "%dog%"'.
            min_relevance: give each hit its `relevance`, the probability in 0..1 that it fits, and leave out hits below this:
                where nothing fits the list is empty. It is that of a text and an image, so the query has to be of texts in
                an index of images, or of images in one of texts. "coverage=0.9" and "precision=0.5" leave out hits by the
                least score with that guarantee.

        Raises:
            ValueError: another width, a filter that Milvus does not understand, or no calibration for `min_relevance`.
        """
        limit = None
        if min_relevance is not None:
            read_least("min_relevance", min_relevance)
            if isinstance(query, str) and self._metadata["kind"] == "texts":
                raise ValueError(
                    f"min_relevance: {self.uri} is an index of texts, but a relevance compares a text with an image"
                )
            limit = Limit.of(self.relevance, "min_relevance", min_relevance, self._metadata["model"] or self.uri)
        if isinstance(query, str):
            query = self._needed().texts([query], progress=False)[0]
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= _MOST:
            raise ValueError(f"k: got {k!r}, expected a whole number from 1 to {_MOST}")
        single = np.ndim(query) == 1
        vectors = self._checked(np.atleast_2d(query), "the query")
        if rows := self._rows():
            with self._filtering(filter):
                found = rows.search(vectors, int(k), filter or "")
        else:
            results = self._call(
                f"filter {filter!r:.300}" if filter else "searching",
                self.client.search,
                data=list(_unit(vectors)),
                limit=int(k),
                filter=filter or "",
                output_fields=["*"],
                search_params={"metric_type": self._metadata["metric"], "params": self._search_params},
                **self._read,
            )
            found = [[(row["entity"], self._score(row["distance"])) for row in rows] for rows in results]
        hits = [[_hit(row, score) for row, score in some] for some in found]
        if limit is not None:
            judged = [zip(some, *limit(np.array([hit.score for hit in some]))) for some in hits]
            hits = [[replace(hit, relevance=float(fits)) for hit, fits, kept in some if kept] for some in judged]
        return hits[0] if single else hits

    def vectors(
        self, limit: int | None = None, *, filter: str | None = None, size: int = _PAGE
    ) -> Iterator[tuple[list[Hit], np.ndarray]]:
        """Rows and their unit vectors (n, D), page by page in the order of their ids; scores are 1."""
        for page in self._pages(filter or "", ["*", "vector"], limit=limit, size=size):
            hits = [_hit(row, 1.0) for row in page]
            yield hits, np.array([row["vector"] for row in page], np.float32)

    def digests(self, ids: Sequence[str]) -> dict[str, str]:
        """The digest of the metadata of each of these ids that is in the index."""
        return {row["sha256"]: row["digest"] for row in self._get(ids, ["sha256", "digest"])}

    def vectors_of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The unit vectors of ids."""
        rows = self._get(ids, ["sha256", "vector"])
        return {row["sha256"]: np.asarray(row["vector"], np.float32) for row in rows}

    def all_ids(self) -> Iterator[tuple[str, str]]:
        """(id, path) of every row."""
        for page in self._pages("", ["sha256", "path"], size=_MOST):
            yield from ((row["sha256"], row["path"]) for row in page)

    def drop(self) -> None:
        """Removes the collection with all its rows; the index is closed then."""
        with self._source.alone() if isinstance(self._source, LocalRows) else contextlib.nullcontext():
            self._call("removing the collection", self.client.drop_collection)
        self._written = False
        self.close()

    def use(self, embedder: Embedder) -> Embedder:
        """Embeds queries by `embedder` from now on. An embedder of another model is refused, as by `open`."""
        if isinstance(self._source, StoredEmbeddings):
            self._source.check(embedder)
        else:
            check_identity(self.uri, self._metadata, embedder)
        self.embedder = embedder
        return embedder

    def flush(self) -> None:
        """Writes added rows to the disk and into the index."""
        if self._written:
            self._call("writing to the disk", self.client.flush)
            self._written = False
            with contextlib.suppress(OSError):  # the rows are on the disk: what readers map can be made later
                self._rows()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.uri}: this index is closed")

    def _rows(self) -> Rows | None:
        """The rows of files as they are now; None where a server has them."""
        self._check_open()
        return None if self._source is None else self._source.now()

    @contextlib.contextmanager
    def _filtering(self, filter: str | None) -> Iterator[None]:
        try:
            yield
        except FilterRefused as error:
            raise ValueError(f"{self.uri}: filter {filter!r:.300}: Milvus refused it: {error}") from error

    @property
    def _read(self) -> dict[str, Any]:
        return {"consistency_level": self._metadata["consistency"]}

    def _call(self, what: str, method: Callable, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the client on the collection, again while a server does not answer: none does harm twice."""
        return self._retried(what, lambda: method(self.collection, *arguments, **options))

    def _retried(self, what: str, work: Callable[[], Any]) -> Any:
        with backend.explained(f"{self.uri}: {what}"):
            return work() if backend.is_local(self.uri) else backend.patiently(lambda left: work())

    def _needed(self) -> Embedder:
        if self.embedder is None:
            raise ValueError(f"{self.uri}: texts and images need an embedder, but this index was opened without one")
        return self.embedder

    def _get(self, ids: Sequence[str], columns: list[str]) -> list[dict]:
        if not len(ids):
            return []
        get = self.client.get
        return self._call("looking rows up", get, ids=list(ids), output_fields=columns, **self._read)

    def _pages(
        self, filter: str, columns: list[str], limit: int | None = None, size: int = _PAGE
    ) -> Iterator[list[dict]]:
        if rows := self._rows():
            with self._filtering(filter):
                yield from rows.pages(filter, columns, limit, size)
            return
        what = f"filter {filter!r:.300}" if filter else "reading rows"
        pages = self._call(
            what,
            self.client.query_iterator,
            batch_size=size,
            limit=-1 if limit is None else limit,
            filter=filter,
            output_fields=columns,
            **self._read,
        )
        try:
            while page := self._retried(what, pages.next):
                yield page
        finally:
            pages.close()

    def _score(self, distance: float) -> float:
        """The cosine of unit vectors: their squared distance is 2 - 2 cos."""
        return 1 - distance / 2 if self._metadata["metric"] == "L2" else distance

    def _checked(self, vectors: np.ndarray, name: str = "vectors") -> np.ndarray:
        """`vectors` as an array of floats (N, D), none of them without a direction."""
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise ValueError(f"{name}: got {vectors.dtype} of shape {vectors.shape}, expected floats (N, {self.dim})")
        if vectors.shape[1] != self.dim:
            raise ValueError(
                f"{name}: got dimension {vectors.shape[1]}, but the index {self.uri} has {self.dim} ({self._metadata['model']}). "
                "Are they from another model?"
            )
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
        if not np.isfinite(lengths).all() or (lengths < 1e-6).any():
            raise ValueError(f"{name}: vectors must be finite and not all zeros")
        return vectors


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) as float32 of length 1."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    return l2_normalize(vectors) if (np.abs(lengths - 1) > 1e-6).any() else vectors


def _calibration(embedder: Embedder) -> dict[str, Any]:
    """The calibration to store in a new index; nothing where there is none that can be used."""
    with contextlib.suppress(OSError, ValueError):
        if relevance := getattr(embedder, "relevance", None):
            return {"relevance": {name: value for name, value in relevance.as_dict().items() if name != "fitted"}}
    return {}


def _hit(row: Mapping[str, Any], score: float) -> Hit:
    known = {name: row[name] for name in FIELDS if name in row}
    further = {name: value for name, value in row.items() if name not in (*FIELDS, *OWN) and value is not None}
    return Hit(id=row["sha256"], score=float(score), metadata=further, **known)


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
