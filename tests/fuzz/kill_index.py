"""Kills the building of an index at random points, again and again; in the end its rows are those of one run, to the bit.

    python tests/fuzz/kill_index.py [KILLS] [SEED]

Each run is a child that builds an index of pictures, some of them twice, some broken, and is killed (SIGKILL) after a random
time or at a step of Milvus Lite that matters: around a rename, within a file of rows or of an index, within a record of its
log. The memory of Milvus Lite is made so small that it writes, merges and indexes files all the time. A stub of a model whose
embeddings depend on all images of a batch shows whether batches stay what they were.
"""

import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES", "6000")

import faiss
import milvus_lite.adapter.grpc.server  # noqa: F401  imported before the forks, for their sake; nothing is started here
import numpy as np
from milvus_lite.storage import data_file
from milvus_lite.storage.wal import WAL
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import kills

from kakao_models import AlignImageProcessor, Embedder
from kakao_models.inference.engine import Engine
from kakao_models.inference.inputs import ModelInputs
from kakao_models.search import SearchIndex

PICTURES, DIM, BATCH = 60, 8, 4
WHEN = ("time", "time", "time", "before", "after", "rows", "index", "log")
TYPES = (
    {},
    {},
    {"index_type": "HNSW", "index_params": {"M": 8}},
    {"index_type": "IVF_FLAT", "index_params": {"nlist": 2}},
)


class _Model:
    weights = [np.arange(4.0)]


class _Config:
    model_type = "vit"
    to_dict = staticmethod(dict)


class _Engine(Engine):
    """Embeddings (n, 8) that are others in another batch."""

    model, config, dim, classifies = _Model(), _Config(), DIM, False

    def features(self, values: np.ndarray) -> np.ndarray:
        time.sleep(0.002)
        rows = values.reshape(len(values), -1)[:, :DIM].astype(np.float32)
        return rows + np.float32(0.01) * values.mean() + np.arange(DIM, dtype=np.float32)


class _Stub(Embedder):
    def __init__(self):
        self.engine, self.name, self.batch_size, self.num_workers = _Engine(), "stub", BATCH, 2
        self.image_options, self._failures, self.fast_images = {}, SimpleNamespace(listed=[]), False
        self.inputs = ModelInputs("vit", None, {}, image_processor=AlignImageProcessor(size=8, crop_size=8))


def write_pictures(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for number in range(PICTURES):
        path = folder / f"{number:03}.png"
        if number % 13 == 7:
            path.write_bytes(b"no picture" * number)
        elif number % 11 == 5:
            shutil.copy(folder / f"{number - 4:03}.png", path)
        else:
            Image.fromarray(draw.integers(0, 256, (9, 10, 3), np.uint8)).save(path)
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"caption {number}")
    return folder


def change_pictures(folder: Path) -> None:
    """Some go, some are called otherwise, some are new."""
    for number in range(0, PICTURES, 5):
        (folder / f"{number:03}.png").unlink()
    for number in range(1, PICTURES, 5):
        (folder / f"{number:03}.png").rename(folder / f"moved{number}.png")
    draw = np.random.default_rng(1)
    for number in range(9):
        Image.fromarray(draw.integers(0, 256, (9, 10, 3), np.uint8)).save(folder / f"{number:03}new.png")


def run(pictures: Path, database: Path, options: dict, sync: bool = False) -> str:
    with SearchIndex.open(database, _Stub(), create=True, **options) as index:
        return str(index.build(pictures, sync=sync))


def contents(database: Path) -> dict[str, tuple]:
    """Every row of a database, with the bytes of its vector; and that a search finds each of them."""
    with SearchIndex.open(database, _Stub()) as index:
        rows = {}
        for hits, vectors in index.vectors(size=50):
            rows |= {hit.id: (hit.as_dict(), vector.tobytes()) for hit, vector in zip(hits, vectors)}
        assert index.count == len(rows), (index.count, len(rows))
        first = np.stack([np.frombuffer(vector, np.float32) for _, vector in rows.values()])
        found = index.search(first, k=1)
        assert all(hits[0].score > 0.999999 for hits in found)
        return rows


def in_child(work, *args):
    """The result of `work` in a process of its own: gRPC does not survive a fork."""
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                pickle.dump(work(*args), file)
                file.flush()
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0, f"{work.__name__} failed"
        file.seek(0)
        return pickle.load(file)


def kill_once(draw: random.Random, longest: float, *args) -> bool:
    """Runs in a child that is killed; whether it was killed before it had finished."""
    when, place, seconds = draw.choice(WHEN), draw.randrange(1, 40), draw.uniform(0, longest)
    child = os.fork()
    if child == 0:
        try:
            if when != "time":
                _die_at(when, place)
            run(*args)
        finally:
            os._exit(0)
    if when == "time":
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def _die_at(when: str, place: int) -> None:
    write_rows, write_index, log, last = data_file.pq.write_table, faiss.write_index, WAL.write_insert, kills.at(place)

    def half(path) -> None:
        os.truncate(path, os.path.getsize(path) // 2)
        kills.die()

    def writing_rows(table, path, **options):
        write_rows(table, path, **options)
        if last():
            half(path)

    def writing_index(index, path):
        write_index(index, path)
        if last():
            half(path)

    def logging(self, batch):
        start = os.path.getsize(self.data_path) if self.data_path else 0
        log(self, batch)
        if last():
            end = os.path.getsize(self.data_path)
            os.truncate(self.data_path, (start + end) // 2)
            kills.die()

    if when == "rows":
        data_file.pq.write_table = writing_rows
    elif when == "index":
        faiss.write_index = writing_index
    elif when == "log":
        WAL.write_insert = logging
    else:
        kills.die_at_rename(when, place)


def trial(folder: Path, wanted_kills: int, seed: int, inserted: int = 8) -> int:
    """Kills runs until `wanted_kills` were killed; whenever one gets through, compares. Returns how many databases.

    Raises:
        AssertionError: a finished database differs from that of an uninterrupted run.
    """
    import kakao_models.search.build as builder

    builder.INSERT = inserted  # rows of an insertion: many of them in so few pictures
    draw, killed, finished = random.Random(seed), 0, 0
    while killed < wanted_kills:
        options = draw.choice(TYPES)
        work = folder / f"{finished}"
        work.mkdir()
        pictures = write_pictures(work / "pictures")
        start = time.monotonic()
        said = in_child(run, pictures, work / "whole.db", options)
        longest = time.monotonic() - start
        for stage, sync in enumerate((False, True)):
            if stage:
                change_pictures(pictures)
                said = in_child(run, pictures, work / "whole.db", options, True)
            wanted = in_child(contents, work / "whole.db")
            for _ in range(draw.randrange(2, 8)):
                killed += kill_once(draw, longest, pictures, work / "killed.db", options, sync)
            in_child(run, pictures, work / "killed.db", options, sync)
            got = in_child(contents, work / "killed.db")
            assert got == wanted, f"seed {seed}, {options}, sync {sync}: {_difference(got, wanted)}; {said}"
        shutil.rmtree(work)
        finished += 1
    return finished


def _difference(got: dict, wanted: dict) -> str:
    other = [key for key in got.keys() & wanted.keys() if got[key] != wanted[key]]
    return f"{len(got.keys() - wanted.keys())} too many, {len(wanted.keys() - got.keys())} missing, {len(other)} other"


if __name__ == "__main__":
    kills.main(trial, 100, "databases, each as one run makes it")
