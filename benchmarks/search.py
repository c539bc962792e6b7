"""An index of vectors: recall, latency, insertion, disk and memory beside faiss and usearch, in one run.

    python benchmarks/search.py --rows 100000
    python benchmarks/search.py --rows 1000000 --only "SearchIndex,faiss flat" --work big/
    python benchmarks/search.py --vectors align-small --rows 100000
    python benchmarks/search.py --images 4096

Rows are points around centres, 100 to a centre on the average, of length 1; or embeddings by align-small of random pieces of
the bundled photographs (256 wide). Queries are drawn as rows are, and are not among them. Each candidate is a process of its
own; its memory is the operating system's figure of what it holds after the queries, less what the bare program holds. "CPU" is
the time of all its threads, which other work on the machine changes little. "Differ" counts the queries whose results are not those
of comparing all rows in float64, in this order, with ties in the order of ids.
With --images, a whole build instead: JPEG files of 640 x 480 on the disk to rows of an index, with align-small.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

HNSW = {"M": 16, "efConstruction": 100}
EF = 128  # of every HNSW at search


def clusters(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors around rows / 100 centres, which depend on the number of rows alone."""
    centres = np.random.default_rng(rows).standard_normal((max(rows // 100, 1), dim), np.float32)
    draw = np.random.default_rng(seed)
    found = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 65_536):
        part = found[start : start + 65_536]
        part[:] = centres[draw.integers(0, len(centres), len(part))]
        part += 0.7 * draw.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def crops(rows: int, dim: int, seed: int) -> np.ndarray:
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

        self.kind = kind

    def build(self, rows: np.ndarray, where: Path) -> None:
        import faiss

        if self.kind == "flat":
            self.index = faiss.IndexFlatIP(rows.shape[1])
        else:
            self.index = faiss.IndexHNSWFlat(rows.shape[1], HNSW["M"], faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efConstruction, self.index.hnsw.efSearch = HNSW["efConstruction"], EF
        self.index.add(rows)
        faiss.write_index(self.index, str(where))

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.index.search(queries, k)[1]


class Usearch:
    def __init__(self):
        import usearch.index  # noqa: F401

    def build(self, rows: np.ndarray, where: Path) -> None:
        from usearch.index import Index

        self.index = Index(
            ndim=rows.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=HNSW["M"],
            expansion_add=HNSW["efConstruction"],
            expansion_search=EF,
        )
        self.index.add(np.arange(len(rows)), rows, threads=os.cpu_count())
        self.index.save(str(where))

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

        self.open, self.search_params, self.half, self.filter = SearchIndex.open, search, half, ""
        self.options = {"index_type": kind, "index_params": params, "create": True}
        self.vectors = _Vectors()

    def build(self, rows: np.ndarray, where: Path) -> None:
        self.vectors.dim = rows.shape[1]
        with self.open(where, self.vectors, **self.options) as index:
            for start in range(0, len(rows), 4096):
                part = rows[start : start + 4096]
                ids = [f"{start + place:064x}" for place in range(len(part))]
                index.add(ids, part, [{"path": f"/photos/{key}.jpg", "width": int(key, 16)} for key in ids])
        # opened again, as a search finds it: what was left to build in the background is built
        start = time.perf_counter()
        self.index = self.open(where)
        print(f"    opened, {self.index.count:,} rows, in {time.perf_counter() - start:.3f} s", flush=True)
        if self.half:
            self.filter = f"width < {len(rows) // 2}"

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.search_params is None:
            hits = self.index.search(queries, k, filter=self.filter)
            return np.array([[int(hit.id, 16) for hit in some] for some in hits])
        params = {"metric_type": "IP", "params": self.search_params}
        results = self.index.client.search("images", list(queries), limit=k, search_params=params, output_fields=["*"])
        return np.array([[int(row["entity"]["sha256"], 16) for row in some] for some in results])


class _Vectors:
    """Takes the place of an embedder: the index is given vectors."""

    def __init__(self):
        from kakao_models import AlignImageProcessor

        self.dim, self.name, self.tokenizer, self.image_processor = 0, "vectors", None, AlignImageProcessor()
        self.engine, self.config, self.image_options, self.fast_images = self, self, {}, False
        self.model, self.weights, self.description = self, [np.zeros(1)], "none"
        self.reads_texts = False

    def to_dict(self) -> dict:
        return {}

    def images(self, *args, **options) -> np.ndarray:
        return np.ones((1, self.dim), np.float32)


CANDIDATES = {
    "SearchIndex": Local,
    "SearchIndex, half by a filter": lambda: Local(half=True),
    "faiss flat": lambda: Faiss("flat"),
    "milvus-lite FLAT": lambda: Local(search={}),
    "usearch HNSW": Usearch,
    "faiss HNSW": lambda: Faiss("hnsw"),
    "milvus-lite IVF_FLAT": lambda: Local("IVF_FLAT", {"nlist": 256}, {"nprobe": 32}),
    "milvus-lite HNSW": lambda: Local("HNSW", HNSW, {"ef": EF}),
}


def best(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Numbers (Q, k) of the rows with the largest scores in float64, of equal ones the first."""
    scores, places = np.empty((len(queries), 0)), np.empty((len(queries), 0), int)
    for start in range(0, len(rows), 16_384):
        part = rows[start : start + 16_384].astype(np.float64)
        scores = np.concatenate([scores, queries.astype(np.float64) @ part.T], 1)
        places = np.concatenate(
            [places, np.broadcast_to(np.arange(start, start + len(part)), (len(queries), len(part)))], 1
        )
        order = np.lexsort((places, -scores))[:, :k]
        scores, places = (np.take_along_axis(values, order, 1) for values in (scores, places))
    return places


def held() -> float:
    """MiB of memory of its own that this process holds now; mapped files are not among it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def measure(name: str, work: Path, k: int, result) -> None:
    rows, queries = np.load(work / "rows.npy", mmap_mode="r"), np.load(work / "queries.npy")
    candidate, where = CANDIDATES[name](), work / f"{name.replace(' ', '-')}.db"
    before, start, spent = held(), time.perf_counter(), time.process_time()
    candidate.build(rows, where)
    facts = {"seconds": time.perf_counter() - start, "cpu_build": time.process_time() - spent, "disk": size_of(where)}
    seconds, found = [], []
    for _ in range(2):
        candidate.search(queries[:1], k)
    spent = time.process_time()
    for query in queries:
        start = time.perf_counter()
        found.append(candidate.search(query[None], k)[0])
        seconds.append(time.perf_counter() - start)
    facts["cpu"] = (time.process_time() - spent) / len(queries) * 1e3
    facts |= {"p50": np.percentile(seconds, 50) * 1e3, "p99": np.percentile(seconds, 99) * 1e3}
    spent = time.process_time()
    candidate.search(queries, k)
    facts["together"] = (time.process_time() - spent) / len(queries) * 1e3
    facts["memory"] = held() - before
    result.put((facts, np.array(found)))


def in_process(name: str, work: Path, k: int) -> tuple[dict, np.ndarray]:
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=measure, args=(name, work, k, result))
    process.start()
    while process.is_alive() and result.empty():
        time.sleep(0.2)
    if result.empty():
        raise SystemExit(f"{name}: the process ended with {process.exitcode}")
    found = result.get()
    process.join()
    return found


def vectors(options, work: Path) -> None:
    from common import show

    make = {"clusters": clusters, "align-small": crops}[options.vectors]
    if not (work / "rows.npy").exists():
        np.save(work / "rows.npy", make(options.rows, options.dim, 1))
        np.save(work / "queries.npy", make(options.queries, options.dim, 2) if options.vectors == "align-small"
                else clusters_like(options.rows, options.dim, options.queries))  # fmt: skip
    chosen = [name for name in CANDIDATES if not options.only or any(part in name for part in options.only.split(","))]
    rows, queries, table = np.load(work / "rows.npy", mmap_mode="r"), np.load(work / "queries.npy"), []
    exact, half = (best(part, queries, options.k) for part in (rows, rows[: len(rows) // 2]))
    for name in chosen:
        facts, found = in_process(name, work, options.k)
        wanted = half if "half" in name else exact
        recall = np.mean([len(set(a) & set(b)) / options.k for a, b in zip(found, wanted)])
        differ = sum(list(a) != list(b) for a, b in zip(found, wanted))
        line = [name, f"{recall:.4f}", differ, *(f"{facts[key]:.3g}" for key in ("p50", "p99", "cpu", "together"))]
        line += [f"{options.rows / facts[key]:,.0f}" for key in ("seconds", "cpu_build")]
        line += [f"{facts['disk']:,.0f}", f"{facts['memory']:,.0f}"]
        table.append(line)
        print(json.dumps([name, recall, facts]), flush=True)
    columns = [
        "",
        f"recall@{options.k}",
        "differ",
        "p50, ms",
        "p99, ms",
        "CPU of a query, ms",
        f"of one of {options.queries} at once",
    ]
    columns += ["rows/s", "rows per CPU second", "disk, MiB", "memory, MiB"]
    show(f"{len(rows):,} x {rows.shape[1]}, {options.vectors}, {options.queries} queries", columns, table)


def clusters_like(rows: int, dim: int, queries: int) -> np.ndarray:
    centres = np.random.default_rng(rows).standard_normal((max(rows // 100, 1), dim), np.float32)
    draw = np.random.default_rng(2)
    found = centres[draw.integers(0, len(centres), queries)] + 0.7 * draw.standard_normal((queries, dim), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


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
    parser.add_argument("--only", default="", help="parts of candidates' names, separated by commas")
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
