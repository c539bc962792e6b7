"""A local database read from its files: beside a writer, after a kill, and whatever became of what is derived from them."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from kakao_models.search import SearchIndex, local, rows

DIM = 16


def _vectors(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def databases(embedder, tmp_path_factory):
    """Copies of a database: as it was closed, and as it was while two additions and a deletion were in its log."""
    folder = tmp_path_factory.mktemp("local")
    with SearchIndex.open(folder / "x.db", embedder, create=True) as index:
        index.add([f"row{n:02}" for n in range(40)], _vectors(40), [{"width": n, "tag": n % 3} for n in range(40)])
    shutil.copytree(folder / "x.db", folder / "closed.db")
    with SearchIndex.open(folder / "x.db") as index:
        index.add(["a", "b"], _vectors(2, 1))
        index.delete(["row01"])
        index.add(["c", "d"], _vectors(2, 2))
        shutil.copytree(folder / "x.db", folder / "killed.db")
    return folder


@pytest.fixture
def filled(databases, tmp_path):
    """A closed index of 40 rows."""
    return shutil.copytree(databases / "closed.db", tmp_path / "x.db")


def _derived(path):
    return path / "collections" / "images" / "search"


def _ids(index, query=None, **options):
    return [hit.id for hit in index.search(_vectors(1, 9)[0] if query is None else query, 50, **options)]


def test_readers_see_every_commit_of_a_writer(embedder, filled):
    with SearchIndex.open(filled) as reader, SearchIndex.open(filled, embedder, create=True) as writer:
        assert reader.count == 40 and reader._client is None  # no server of Milvus Lite, and no lock
        writer.add(["new"], _vectors(1, 5), [{"tag": 7}])
        assert reader.count == 41 and reader.search(_vectors(1, 5)[0], 1)[0].metadata == {"tag": 7}
        writer.add(["new"], -_vectors(1, 5), [{"caption": "other"}])
        assert reader.count == 41 and reader.search(-_vectors(1, 5)[0], 1)[0].caption == "other"
        writer.delete(["new", "row03"])
        assert reader.count == 39 and not {"new", "row03"} & set(_ids(reader))
        writer.flush()
        assert _ids(reader) == _ids(writer) and len(_ids(reader)) == 39


def test_a_second_writer_is_told_who_is_the_first(filled, embedder):
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2); print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, filled / "LOCK"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        with SearchIndex.open(filled) as reader:
            assert len(_ids(reader)) == 40
            with pytest.raises(BlockingIOError, match="another process is writing to this index"):
                reader.delete(["row00"])
        who = {"program": "kakao-models", "process": holder.pid, "host": socket.gethostname(), "since": "noon"}
        (filled / "WRITER.json").write_text(json.dumps(who))
        with pytest.raises(BlockingIOError, match=rf"kakao-models, number {holder.pid} on .*, since noon"):
            SearchIndex.open(filled, embedder, create=True)
        (filled / "WRITER.json").write_text(json.dumps(who | {"process": 2**22 + 1}))  # it was killed
        with pytest.raises(BlockingIOError, match="another process is writing to this index"):
            SearchIndex.open(filled, embedder, create=True)
        holder.stdin.close()
    with SearchIndex.open(filled, embedder, create=True):
        assert json.loads((filled / "WRITER.json").read_text())["process"]
    assert not (filled / "WRITER.json").exists()


def test_rows_that_a_killed_writer_left_in_the_log(databases, tmp_path):
    """A whole record counts, a part of one does not, as when Milvus Lite opens the database."""
    filled = shutil.copytree(databases / "killed.db", tmp_path / "x.db")
    with SearchIndex.open(filled) as reader:
        assert reader.count == 43 and {"a", "b", "c", "d"} <= set(_ids(reader)) and "row01" not in _ids(reader)
    (log,) = (filled / "collections" / "images" / "wal").glob("wal_data_*")
    log.write_bytes(log.read_bytes()[:-300])
    with SearchIndex.open(filled) as reader:
        before = _ids(reader)
        assert reader.count == 41 and {"a", "b"} <= set(before) and not {"c", "d"} & set(before)
        reader.delete(["nothing"])  # opens it to write, by which Milvus Lite recovers what it can
        assert _ids(reader) == before
    with SearchIndex.open(filled) as reader:
        assert _ids(reader) == before


def _remove(path):
    shutil.rmtree(_derived(path))


def _no_state(path):
    (_derived(path) / "state.json").write_text("{")


def _short_codes(path):
    (codes,) = _derived(path).glob("*/codes.faiss")
    codes.write_bytes(codes.read_bytes()[:50])


def _short_vectors(path):
    (values,) = _derived(path).glob("*/vectors.npy")
    values.write_bytes(values.read_bytes()[:500])


def _another_format(path):
    state = json.loads((_derived(path) / "state.json").read_text())
    (_derived(path) / "state.json").write_text(json.dumps(state | {"format": 0}))


@pytest.mark.parametrize("harm", [_remove, _no_state, _short_codes, _short_vectors, _another_format])
def test_what_is_derived_is_made_again(filled, harm):
    with SearchIndex.open(filled) as index:
        wanted = index.search(_vectors(3, 9), 5)
    harm(filled)
    with SearchIndex.open(filled) as index:
        assert index.search(_vectors(3, 9), 5) == wanted
    with SearchIndex.open(filled) as index:  # from the disk again
        assert index.search(_vectors(3, 9), 5) == wanted


def test_what_is_derived_of_another_state(databases, tmp_path):
    wanted = {}
    for name in ("closed", "x"):
        with SearchIndex.open(databases / f"{name}.db") as index:
            wanted[name] = _ids(index)
    for name, other in (("closed", "x"), ("x", "closed")):
        mixed = shutil.copytree(databases / f"{name}.db", tmp_path / f"{name}.db")
        _remove(mixed)
        shutil.copytree(_derived(databases / f"{other}.db"), _derived(mixed))
        with SearchIndex.open(mixed) as index:
            assert _ids(index) == wanted[name]


def test_a_disk_that_can_only_be_read(filled, monkeypatch):
    wanted = _ids(SearchIndex.open(filled))
    _remove(filled)
    _derived(filled).mkdir()
    monkeypatch.setattr(local.os, "access", lambda *_: False)
    with SearchIndex.open(filled) as index:
        assert _ids(index) == wanted
        index.add(["new"], _vectors(1, 5))
        assert set(_ids(index)) == {*wanted, "new"}
    assert not list(_derived(filled).iterdir())


def test_any_order_of_additions_and_deletions(embedder, tmp_path, monkeypatch):
    """Milvus Lite writes, merges and forgets all the time here; readers see what a dictionary has."""
    from milvus_lite.engine import collection

    monkeypatch.setattr(collection, "MEMTABLE_MEMORY_LIMIT", 3000)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(rows, "BATCH", 7)
    monkeypatch.setattr(local, "BATCH", 7)
    draw, expected = np.random.default_rng(3), {}
    with (
        SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index,
        SearchIndex.open(tmp_path / "x.db") as sometimes,
    ):
        for step in range(40):
            names = [f"r{n}" for n in draw.choice(40, draw.integers(1, 12), replace=False)]
            if draw.random() < 0.6:
                vectors = _vectors(len(names), step)
                index.add(names, vectors, [{"width": step}] * len(names))
                expected |= {name: (vector, step) for name, vector in zip(names, vectors)}
            else:
                index.delete(names)
                expected = {name: row for name, row in expected.items() if name not in names}
            for reader in [index] + [sometimes] * (step % 7 == 0):
                query = _vectors(1, 1000 + step)[0].astype(np.float64)
                hits = reader.search(query, 50, filter="width >= 5")
                scores = {n: float((v.astype(np.float64) * query).sum()) for n, (v, w) in expected.items() if w >= 5}
                assert [hit.id for hit in hits] == sorted(scores, key=lambda name: (-scores[name], name)), step
                assert reader.count == len(expected)
        pages = [hit.id for hits, _ in sometimes.vectors(size=7) for hit in hits]
        assert pages == sorted(expected)
        with pytest.raises(ValueError, match="Milvus refused it"):
            index.search(_vectors(1)[0], filter="width >")


def test_small_segments_and_those_with_many_deletions_are_written_again(embedder, filled):
    def segments() -> dict[str, int]:
        with SearchIndex.open(filled) as index:
            _ids(index)
        return {path.parent.name: len(np.load(path)) for path in _derived(filled).glob("*/vectors.npy")}

    def change(added: list[str], deleted: list[str]) -> dict[str, int]:
        with SearchIndex.open(filled, embedder, create=True) as index:
            if deleted:
                index.delete(deleted)
            index.add(added, _vectors(len(added), 5))
        return segments()

    (first,) = before = segments()
    assert list(before.values()) == [40]
    two = change([f"a{n}" for n in range(5)], [])
    assert first in two and sorted(two.values()) == [5, 40]
    merged = change([f"b{n}" for n in range(4)], [])  # five rows are too few beside four to stay alone
    assert first in merged and sorted(merged.values()) == [9, 40]
    shrunk = change(["c"], [f"row{n:02}" for n in range(25)])  # 15 of 40 are left
    assert first not in shrunk and sum(shrunk.values()) < 40


def test_a_collection_that_is_made_again(embedder, filled):
    with SearchIndex.open(filled) as reader:
        assert reader.count == 40
        with SearchIndex.open(filled) as index:
            index.drop()
        with pytest.raises(FileNotFoundError, match="the collection was removed"):
            reader.count  # noqa: B018
        with SearchIndex.open(filled, embedder, create=True) as index:
            index.add([f"other{n}" for n in range(50)], _vectors(50, 2))
            assert reader.count == 50 and all(key.startswith("other") for key in _ids(reader))


def test_equal_rows_are_in_the_order_of_their_ids(embedder, tmp_path):
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        for key in ("c", "a", "b"):
            index.add([key], _vectors(1))
            index.flush()
        assert _ids(index) == ["a", "b", "c"] and [hit.id for hit in index.search(_vectors(1)[0], 2)] == ["a", "b"]


def test_a_partition_that_is_dropped(filled):
    """Its rows leave no deletions behind."""
    with SearchIndex.open(filled) as reader, SearchIndex.open(filled) as writer:
        writer.client.create_partition("images", "further")
        row = {"sha256": "new", "vector": _vectors(1, 5)[0].tolist(), "digest": "", "path": "", "caption": ""}
        row |= {"width": 0, "height": 0, "bytes": 0}
        writer.client.insert("images", [row], partition_name="further")
        writer.client.flush("images")
        assert reader.count == 41
        writer.client.release_collection("images")
        writer.client.drop_partition("images", "further")
        assert reader.count == 40
