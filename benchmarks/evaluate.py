"""Nearest neighbours and retrieval: this package beside faiss' flat index and scikit-learn, on the same embeddings.

    python benchmarks/evaluate.py --rows 1000000 --queries 1000 --width 640 --max-memory 512

All give the same neighbours (the table says how many differ: faiss and scikit-learn order by rounded float32 products,
so nearly equal ones may change places). Memory is what the process grew by at most while it ran, beside the embeddings.
Needs faiss-cpu and scikit-learn.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import numpy as np
from common import machine, show

from kakao_models.evaluate import nearest, retrieval_scores


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ours(rows, queries, options):
    return nearest(queries, rows, options.k, max_memory=options.max_memory * 2**20)[1]


def with_faiss(rows, queries, options):
    import faiss

    faiss.omp_set_num_threads(options.threads)
    index = faiss.IndexFlatIP(rows.shape[1])  # copies the rows
    for start in range(0, len(rows), 65_536):
        index.add(unit(rows[start : start + 65_536]))
    return index.search(unit(queries), options.k)[1]


def with_scikit_learn(rows, queries, options):
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=options.k, algorithm="brute").fit(unit(rows))  # of length 1: the same order
    return model.kneighbors(unit(queries), return_distance=False)


CANDIDATES = {"kakao_models": ours, "faiss-cpu, IndexFlatIP": with_faiss, "scikit-learn, brute": with_scikit_learn}


def resident(field: str) -> float:
    """MiB that this process has in memory (VmRSS) or had at most (VmHWM); 0 where the system doesn't say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def embeddings(folder: Path, options) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.load(folder / f"{name}.npy") for name in ("rows", "queries"))


def measured(name: str, folder: Path, options, answer) -> None:
    """Runs in a new process, so that its peak memory is its own."""
    rows, queries = embeddings(folder, options)
    CANDIDATES[name](rows[:2000], queries[:10], options)  # imports, threads
    before = resident("VmRSS")
    if before:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = time.perf_counter()
    places = CANDIDATES[name](rows, queries, options)
    seconds = time.perf_counter() - start
    grown = resident("VmHWM") - before
    answer.send((seconds, grown, np.asarray(places)))


def in_a_process(name: str, folder: Path, options) -> tuple[float, float, np.ndarray]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=measured, args=(name, folder, options, theirs))
    process.start()
    found = mine.recv()
    process.join()
    return found


def neighbours(options) -> None:
    import tempfile

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        centres = draw.standard_normal((1000, options.width), np.float32)
        for name, count in (("rows", options.rows), ("queries", options.queries)):
            array = np.lib.format.open_memmap(path / f"{name}.npy", "w+", np.float32, (count, options.width))
            for start in range(0, count, 65_536):
                part = array[start : start + 65_536]
                noise = 2 * draw.standard_normal(part.shape, np.float32)
                part[:] = centres[draw.integers(0, 1000, len(part))] + noise
            array.flush()
        runs = {name: [] for name in CANDIDATES}
        for _ in range(options.repeats):  # in turns, so that a change of the machine's load meets all
            for name in CANDIDATES:
                runs[name].append(in_a_process(name, path, options))
    seconds = {name: statistics.median(run[0] for run in found) for name, found in runs.items()}
    reference, lines = runs["kakao_models"][0][2], []
    for name, found in runs.items():
        differ = f"{(found[0][2] != reference).mean():.1e}"
        lines.append([name, seconds[name], seconds["kakao_models"] / seconds[name], round(found[0][1]), differ])
    title = f"{options.k} nearest of {options.rows:,} rows × {options.width}, {options.queries:,} queries"
    title += f", max_memory {options.max_memory} MiB, {options.threads} threads"
    show(title, ["", "seconds", "times as fast as kakao_models", "memory grown, MiB", "places that differ"], lines)


def retrieval(options) -> None:
    draw = np.random.default_rng(1)
    images = draw.standard_normal((options.images, options.width), np.float32)
    owner = np.repeat(np.arange(options.images), 5)
    texts = images[owner] + 6 * draw.standard_normal((len(owner), options.width), np.float32)

    def of_ours():
        return retrieval_scores(images, texts, np.arange(options.images), owner).metrics()

    def by_faiss():
        import faiss

        faiss.omp_set_num_threads(options.threads)
        found, sides = {}, (unit(images), unit(texts))
        ids = (np.arange(options.images), owner)
        for name, (mine, others) in {"image_to_text": (0, 1), "text_to_image": (1, 0)}.items():
            index = faiss.IndexFlatIP(options.width)
            index.add(sides[others])
            hits = ids[others][index.search(sides[mine], 10)[1]] == ids[mine][:, None]
            found |= {f"{name}_r{k}": hits[:, :k].any(1).mean() for k in (1, 5, 10)}
        return found

    def whole_matrix():
        product = unit(images) @ unit(texts).T
        found = {}
        for name, matrix, mine, others in (("image_to_text", product, np.arange(options.images), owner),
                                           ("text_to_image", product.T, owner, np.arange(options.images))):  # fmt: skip
            hits = others[np.argsort(-matrix, axis=1)[:, :10]] == mine[:, None]
            found |= {f"{name}_r{k}": hits[:, :k].any(1).mean() for k in (1, 5, 10)}
        return found

    candidates = {"kakao_models (with ranks)": of_ours, "faiss-cpu, top 10 both ways": by_faiss,
                  "whole matrix, argsort": whole_matrix}  # fmt: skip
    seconds, results = {name: [] for name in candidates}, {}
    for _ in range(options.repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    first = results["kakao_models (with ranks)"]
    base = statistics.median(seconds["kakao_models (with ranks)"])
    lines = []
    for name, taken in seconds.items():
        gap = max(abs(first[metric] - value) for metric, value in results[name].items() if metric in first)
        lines.append([name, statistics.median(taken), base / statistics.median(taken), f"{gap:.1e}"])
    title = (
        f"Retrieval of {options.images:,} images × {len(owner):,} captions × {options.width}, {options.threads} threads"
    )
    show(title, ["", "seconds", "times as fast as kakao_models", "largest difference of R@K"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    defaults = dict(rows=1_000_000, queries=1000, width=640, k=10, images=5000, max_memory=512, repeats=3)
    for name, value in (defaults | dict(threads=threads)).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--only", choices=("knn", "retrieval"))
    options = parser.parse_args()
    print(machine())
    if options.only != "retrieval":
        neighbours(options)
    if options.only != "knn":
        retrieval(options)


if __name__ == "__main__":
    main()
