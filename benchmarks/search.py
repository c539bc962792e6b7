"""A search among vectors: exactness, latency, opening, disk and memory beside faiss, usearch and Milvus Lite's own search, in one run.

    python benchmarks/search.py --rows 100000
    python benchmarks/search.py --rows 1000000 --work big/
    python benchmarks/search.py --rows 100000 --only "SearchIndex,HNSW"
    python benchmarks/search.py --vectors align-small --rows 100000
    python benchmarks/search.py --images 4096

Rows are points around centres, 100 to a centre on the average, of length 1; or embeddings by align-small of random pieces of
the bundled photographs (256 wide). Every 50th row is a copy of the one before it, so that there are ties. Queries are drawn as rows
are, but every fifth is a row that has a copy.

"Differ" counts the queries whose results are not those of comparing all rows in float64, in this order, with ties in the order
of ids. Milvus Lite and `SearchIndex` share one database; "added" is the speed of its first 4,096 rows, and the others are written
as Milvus Lite's files. Each engine is built in one process and measured in another one:
"open" is the time until the first answer, "memory" what the process holds of its own after the queries, without mapped files, less
what the bare program holds. "CPU" is the time of all threads, which other work on the machine changes little. Queries are asked one
by one for at most --seconds per engine, at least ten of them, and then all of these at once. HNSW and IVF_FLAT are measured only if
--only names them: at a million rows their building takes longer than all else.

A million rows of 640 need 14 GB of disk and 8 GB of memory. --work keeps what was built, and a later run goes on with it.
With --images, a whole build instead: JPEG files of 640 x 480 on the disk to rows of an index, with align-small.
"""

import argparse
import json
import multiprocessing
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HNSW = {"M": 16, "efConstruction": 100}
EF = 128  # of every HNSW at search
COPIES, REPEATED = 50, 5  # every so many rows is a copy, every so many queries is a row that has one
LEAST = 10  # queries of each engine
INSERTED, IN_A_FILE = (
    16_384,
    100_000,
)  # rows that are inserted one by one into Milvus Lite; rows of each file of the others
_PART = 16_384  # rows at a time


def clusters(rows: int, dim: int, seed: int, centres: int) -> np.ndarray:
    """Unit vectors (rows, dim) around so many centres, which depend on their number alone."""
    means = np.random.default_rng(centres).standard_normal((centres, dim), np.float32)
    draw = np.random.default_rng(seed)
    found = np.empty((rows, dim), np.float32)
    for start in range(0, rows, _PART):
        part = found[start : start + _PART]
        part[:] = means[draw.integers(0, centres, len(part))]
        part += 0.7 * draw.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def crops(rows: int, seed: int) -> np.ndarray:
    """align-small's embeddings of random pieces of the bundled photographs."""
    from PIL import Image

    from kakao_models import Embedder

    folder = next(Path(__file__).parents[1].rglob("cat.jpg")).parent
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    draw = np.random.default_rng(seed)

    def pieces():
        for _ in range(rows):
            photo = photos[draw.integers(len(photos))]
            side = int(min(photo.size) * draw.uniform(0.15, 0.9))
            left, top = (int(draw.integers(0, length - side + 1)) for length in photo.size)
            piece = photo.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.BOX)
            yield piece if draw.random() < 0.5 else piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    return Embedder("align-small", batch_size=256).images(pieces(), normalize=True, progress=False)


class Faiss:
    def __init__(self, kind: str):
        import faiss  # noqa: F401  imports are no part of what is measured

        self.kind, self.file = kind, f"faiss-{kind}"

    def build(self, rows: np.ndarray, where: Path) -> float | None:
        import faiss

        if self.kind == "flat":
            index = faiss.IndexFlatIP(rows.shape[1])
        else:
            index = faiss.IndexHNSWFlat(rows.shape[1], HNSW["M"], faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = HNSW["efConstruction"]
        for start in range(0, len(rows), _PART):
            index.add(np.ascontiguousarray(rows[start : start + _PART]))
        faiss.write_index(index, str(where))

    def open(self, where: Path) -> None:
        import faiss

        self.index = faiss.read_index(str(where))
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = EF

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(queries, k)[1]


class UsearchExact:
    """usearch's comparison with every row, of a mapped file; it needs no index."""

    def __init__(self):
        from usearch import index

        self.file, self.usearch = "usearch-exact.npy", index

    def build(self, rows: np.ndarray, where: Path) -> float | None:
        os.link(rows.filename, where)
        return np.nan

    def open(self, where: Path) -> None:
        self.rows = np.load(where, mmap_mode="r")

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        found = self.usearch.search(self.rows, queries, k, self.usearch.MetricKind.IP, exact=True)
        return np.atleast_2d(found.keys)


class Usearch:
    def __init__(self):
        from usearch.index import Index

        self.file, self.Index = "usearch-hnsw", Index

    def build(self, rows: np.ndarray, where: Path) -> float | None:
        index = self.Index(
            ndim=rows.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=HNSW["M"],
            expansion_add=HNSW["efConstruction"],
            expansion_search=EF,
        )
        index.add(np.arange(len(rows)), rows, threads=os.cpu_count())
        index.save(str(where))

    def open(self, where: Path) -> None:
        self.index = self.Index.restore(str(where))
        self.index.expansion_search = EF

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return np.atleast_2d(self.index.search(queries, k).keys)


class Local:
    """`SearchIndex` on a local database, by its own search or by that of Milvus Lite.

    Args:
        kind, params: index type and its parameters.
        search: search parameters of Milvus Lite, whose own search is measured; None measures that of `SearchIndex`.
        half: search only the first half of the rows, by a filter.
    """

    def __init__(self, kind: str = "FLAT", params: dict | None = None, search: dict | None = None, half: bool = False):
        from milvus_lite.adapter.grpc import server  # noqa: F401

        from kakao_models.search import SearchIndex

        self.file, self.opened = f"{kind.lower()}.db", SearchIndex.open
        self.search_params, self.half, self.filter = search, half, ""
        self.options = {"index_type": kind, "index_params": params, "create": True}

    def build(self, rows: np.ndarray, where: Path) -> float:
        some = rows[:INSERTED]
        with self.opened(where, _Vectors(rows.shape[1]), **self.options) as index:
            start = time.perf_counter()
            columns = [{"path": f"/photos/{row}.jpg", "width": row} for row in range(len(some))]
            index.add([f"{row:064x}" for row in range(len(some))], some, columns)
            index.flush()
            speed = len(some) / (time.perf_counter() - start)
        append(where, rows, len(some))
        with self.opened(where) as index:  # the first search makes what is mapped
            index.search(rows[0], 1)
        return speed

    def open(self, where: Path) -> None:
        self.index = self.opened(where)
        self.filter = f"width < {self.index.count // 2}" if self.half else ""
        if self.search_params is not None:
            self.client = self.index.client

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.search_params is None:
            hits = self.index.search(queries, k, filter=self.filter)
            return np.array([[int(hit.id, 16) for hit in some] for some in hits])
        params = {"metric_type": "IP", "params": self.search_params}
        results = self.client.search("images", list(queries), limit=k, search_params=params, output_fields=["*"])
        return np.array([[int(row["entity"]["sha256"], 16) for row in some] for some in results])


class _Vectors:
    """Takes the place of an embedder: the index is given vectors."""

    def __init__(self, dim: int):
        self.dim, self.name, self.inputs, self.image_settings = dim, "vectors", self, ("none", {})
        self.engine, self.config, self.image_options, self.fast_images = self, self, {}, False
        self.model, self.weights, self.description = self, [np.zeros(1)], "none"
        self.reads_texts = False

    def to_dict(self) -> dict:
        return {}

    def images(self, *args, **options) -> np.ndarray:
        return np.ones((1, self.dim), np.float32)


ENGINES: dict[str, Callable] = {
    "SearchIndex": Local,
    "SearchIndex, half by a filter": lambda: Local(half=True),
    "faiss flat": lambda: Faiss("flat"),
    "usearch exact": UsearchExact,
    "Milvus Lite FLAT": lambda: Local(search={}),
    "usearch HNSW": Usearch,
    "faiss HNSW": lambda: Faiss("hnsw"),
    "Milvus Lite IVF_FLAT": lambda: Local("IVF_FLAT", {"nlist": 256}, {"nprobe": 32}),
    "Milvus Lite HNSW": lambda: Local("HNSW", HNSW, {"ef": EF}),
}
APPROXIMATE = ("HNSW", "IVF_FLAT")


def append(database: Path, rows: np.ndarray, start: int) -> None:
    """Adds the rows from `start` on in files, as Milvus Lite writes those that it has in memory: to insert a million takes it ten
    minutes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from milvus_lite.storage.data_file import write_data_file
    from milvus_lite.storage.manifest import Manifest

    from kakao_models.search.backend import collection_folder

    manifest = Manifest.load(str(collection_folder(str(database), "images")))
    (partition,) = manifest.list_partitions()
    folder = Path(manifest.data_dir, "partitions", partition)
    schema = pq.read_schema(folder / manifest.get_data_files(partition)[0])
    for first in range(start, len(rows), IN_A_FILE):
        part = rows[first : first + IN_A_FILE]
        numbers, count = range(first, first + len(part)), len(part)
        sequence = manifest.current_seq + 1 + np.arange(count)
        columns = {
            "_seq": sequence,
            "sha256": [f"{number:064x}" for number in numbers],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1]),
            "path": [f"/photos/{number}.jpg" for number in numbers],
            "width": numbers,
        }
        empty = {"digest": "", "caption": "", "height": 0, "bytes": 0}
        arrays = []
        for field in schema:
            values = columns.get(field.name)
            values = [empty.get(field.name)] * count if values is None else values
            arrays.append(values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type))
        table = pa.Table.from_arrays(arrays, schema=schema)
        name = write_data_file(table, str(folder), int(sequence[0]), int(sequence[-1]))
        manifest.add_data_file(partition, name)
        manifest.current_seq = int(sequence[-1])
        print(f"    {database.name}: {first + count:,} of {len(rows):,} rows", flush=True)
    manifest.save()


def best(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Numbers (Q, k) of the rows with the largest scores in float64, of equal ones the first.

    A matrix product may add the products of two equal rows in two orders, so it only chooses some more than k rows.
    """
    queries, spare = queries.astype(np.float64), k + 16
    scores, places = np.empty((len(queries), 0)), np.empty((len(queries), 0), int)
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART].astype(np.float64)
        numbers = np.broadcast_to(np.arange(start, start + len(part)), (len(queries), len(part)))
        scores = np.concatenate([scores, queries @ part.T], 1)
        places = np.concatenate([places, numbers], 1)
        if scores.shape[1] > spare:
            chosen = np.argpartition(-scores, spare, axis=1)[:, :spare]
            scores, places = (np.take_along_axis(values, chosen, 1) for values in (scores, places))
    found = []
    for query, some in zip(queries, places):
        exact = (rows[some].astype(np.float64) * query).sum(1)
        found.append(some[np.lexsort((some, -exact))[:k]])
    return np.array(found)


def held() -> float:
    """MiB of memory of its own that this process holds now; mapped files are not among it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def build(name: str, work: Path) -> dict:
    """Builds what an engine searches, unless it is there; an interrupted one is made again."""
    engine, rows = ENGINES[name](), np.load(work / "rows.npy", mmap_mode="r")
    where, done = work / engine.file, work / f"{engine.file}.json"
    if done.exists():
        return json.loads(done.read_text())
    if where.exists():
        (shutil.rmtree if where.is_dir() else os.remove)(where)
    start, spent = time.perf_counter(), time.process_time()
    speed = engine.build(rows, where)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    speed = len(rows) / seconds if speed is None else speed
    facts = {"added": speed, "seconds": seconds, "cpu_build": spent, "disk": size_of(where)}
    done.write_text(json.dumps(facts))
    return facts


def measure(name: str, work: Path, k: int, seconds: float) -> dict:
    queries, engine = np.load(work / "queries.npy"), ENGINES[name]()
    before, start = held(), time.perf_counter()
    engine.open(work / engine.file)
    engine.search(queries[:1], k)
    facts, took, found = {"open": time.perf_counter() - start}, [], []
    engine.search(queries[:1], k)
    spent, until = time.process_time(), time.perf_counter() + seconds
    for query in queries:
        start = time.perf_counter()
        if len(took) >= LEAST and start > until:
            break
        found.append(engine.search(query[None], k)[0].tolist())
        took.append(time.perf_counter() - start)
    facts["cpu"] = (time.process_time() - spent) / len(took) * 1e3
    facts |= {f"p{share}": float(np.percentile(took, share)) * 1e3 for share in (50, 95)}
    spent = time.process_time()
    together = engine.search(queries[: len(took)], k).tolist()
    facts["together"] = (time.process_time() - spent) / len(took) * 1e3
    return facts | {"memory": held() - before, "found": found, "batched": together}


def _answer(result, work: Callable, *args) -> None:
    try:
        result.put(work(*args))
        result.close()
        result.join_thread()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # Milvus Lite's server has threads that would be waited for


def in_process(work: Callable, *args) -> dict:
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_answer, args=(result, work, *args))
    process.start()
    found = None
    while found is None:
        try:
            found = result.get(timeout=0.2)
        except queue.Empty:
            if not process.is_alive() and result.empty():
                raise SystemExit(f"{work.__name__} {args[0]}: the process ended with {process.exitcode}") from None
    process.join()
    return found


def prepared(options, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and queries, made once; an interrupted making starts again."""
    made = {"rows": options.rows, "queries": options.queries, "dim": options.dim, "vectors": options.vectors}
    note = work / "vectors.json"
    if note.exists() and json.loads(note.read_text()) != made:
        raise SystemExit(f"{work}: has other vectors, {note.read_text()}. Name another folder")
    if not note.exists():
        centres = max(options.rows // 100, 1)
        if options.vectors == "clusters":
            rows, queries = (clusters(count, options.dim, seed, centres) for count, seed in
                             ((options.rows, 1), (options.queries, 2)))  # fmt: skip
        else:
            rows, queries = crops(options.rows, 1), crops(options.queries, 2)
        copies = np.arange(COPIES, len(rows), COPIES)
        rows[copies] = rows[copies - 1]
        repeated = queries[::REPEATED]
        if len(copies):
            repeated[:] = rows[np.random.default_rng(3).choice(copies, len(repeated))]
        np.save(work / "rows.npy", rows)
        np.save(work / "queries.npy", queries)
        note.write_text(json.dumps(made))
    return np.load(work / "rows.npy", mmap_mode="r"), np.load(work / "queries.npy")


def vectors(options, work: Path) -> None:
    from common import show

    rows, queries = prepared(options, work)
    print(f"    {len(rows):,} rows; comparing all in float64", flush=True)
    exact, half = (best(part, queries, options.k) for part in (rows, rows[: len(rows) // 2]))
    parts = [part for part in options.only.split(",") if part]
    chosen = [
        name for name in ENGINES if (any(part in name for part in parts) if parts else not name.endswith(APPROXIMATE))
    ]
    table = []
    for name in chosen:
        if name.startswith("usearch") and find_spec("usearch") is None:
            print(f"    {name} is left out: pip install usearch", flush=True)
            continue
        facts = in_process(build, name, work)
        facts |= in_process(measure, name, work, options.k, options.seconds)
        found, together = facts.pop("found"), facts.pop("batched")
        wanted = (half if "half" in name else exact)[: len(found)].tolist()
        recall = np.mean([len(set(a) & set(b)) / options.k for a, b in zip(found, wanted)])
        differ = sum(a != c or b != c for a, b, c in zip(found, together, wanted))
        line = [name, f"{recall:.4f}", f"{differ} of {len(found)}"]
        line += [f"{facts[key]:.3g}" for key in ("p50", "p95", "cpu", "together", "open")]
        line += [
            "" if np.isnan(facts["added"]) else f"{facts['added']:,.0f}",
            f"{facts['disk']:,.0f}",
            f"{facts['memory']:,.0f}",
        ]
        table.append(line)
        print(json.dumps([name, recall, differ, facts]), flush=True)
    columns = [
        "",
        f"recall@{options.k}",
        "differ",
        "p50, ms",
        "p95, ms",
        "CPU of a query, ms",
        "CPU of one of all at once, ms",
    ]
    columns += ["open, s", "rows/s added", "disk, MiB", "memory, MiB"]
    show(f"{len(rows):,} x {rows.shape[1]}, {options.vectors}, k = {options.k}", columns, table)


def images(options, work: Path) -> None:
    from common import show
    from PIL import Image

    from kakao_models import Embedder
    from kakao_models.search import SearchIndex

    folder = work / "photos"
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(options.images):
        pixels = draw.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(
            folder / f"{number:06}.jpg", quality=90
        )
    embedder, table = Embedder(options.model), []

    def build() -> None:
        with SearchIndex.open(work / "photos.db", embedder, create=True) as index:
            index.build(folder)

    runs = {"embedding alone": lambda: embedder.images(folder, progress=False), "build": build}
    for name, run in (runs | {"the same again, nothing new": build}).items():
        start, spent = time.perf_counter(), time.process_time()
        run()
        seconds, spent = time.perf_counter() - start, time.process_time() - spent
        table.append([name, options.images / seconds, options.images / spent])
    show(f"{options.images} JPEGs of 640 x 480, {options.model}", ["", "images/s", "images per CPU second"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--vectors", choices=("clusters", "align-small"), default="clusters")
    parser.add_argument("--only", default="", help="parts of engines' names, separated by commas")
    parser.add_argument("--seconds", type=float, default=20, help="time for the queries of an engine, one by one")
    parser.add_argument("--work", type=Path, help="keep vectors and indexes in this folder")
    parser.add_argument("--images", type=int, default=0, help="measure a build of so many images instead")
    parser.add_argument("--model", default="align-small", help="for --images")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    try:
        (images if options.images else vectors)(options, work)
    finally:
        if options.work is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
