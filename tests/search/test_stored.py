"""Embeddings on the disk become rows without the model: of data embed, of embed, of Milvus Lite 2."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kakao_models.data.embed import Settings, embed_table
from kakao_models.inference.output import write_embeddings
from kakao_models.search import SearchIndex
from kakao_models.search.stored import StoredEmbeddings

LITE_2 = Path(__file__).parent / "milvus-lite-2" / "photos.db"


def load(source, embedder, where):
    with SearchIndex.open(where, embedder, create=True) as index:
        loaded = StoredEmbeddings(source).load(index)
        rows = {hit.id: (hit, v) for hits, vectors in index.vectors() for hit, v in zip(hits, vectors)}
        assert index.count == len(rows)
        return loaded, rows


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_milvus_lite_2(embedder, tmp_path):
    loaded, rows = load(LITE_2, embedder, tmp_path / "new.db")
    assert loaded == 4 and set(rows) == {"id0", "id2", "id3", "id4"}  # id1 was deleted
    vectors = unit(np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32))
    for number in (0, 2, 3, 4):
        hit, vector = rows[f"id{number}"]
        np.testing.assert_allclose(vector, vectors[number], atol=1e-6)
        assert (hit.path, hit.metadata["w"], hit.metadata["t"]) == (f"p{number}", number, "x" * number)
    assert load(LITE_2, embedder, tmp_path / "new.db")[0] == 0  # a second time there is nothing to do


def test_embeddings_of_a_table(embedder, photos, tmp_path):
    pq.write_table(pa.table({"id": [5, 6], "path": ["000.png", "001.png"]}), photos / "t.parquet")
    embed_table(embedder, photos / "t.parquet", tmp_path / "e", Settings("images", 1), model=embedder.name)
    (photos / "t.parquet").unlink()
    loaded, rows = load(tmp_path / "e", embedder, tmp_path / "x.db")
    assert loaded == 2
    wanted = embedder.images([photos / "000.png", photos / "001.png"], normalize=True)
    np.testing.assert_allclose(np.stack([rows["5"][1], rows["6"][1]]), wanted, atol=1e-6)


def test_embeddings_with_columns_and_without_some(embedder, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float16)
    column = pa.array([*vectors[:2].tolist(), None], pa.list_(pa.float16(), 16))
    facts = {
        "id": ["a" * 100, "b", "c"],
        "embedding": column,
        "text": ["a cat", None, "x"],
        "width": ["wide", "5", "1"],
    }
    pq.write_table(pa.table(facts), tmp_path / "e.parquet")
    loaded, rows = load(tmp_path / "e.parquet", embedder, tmp_path / "x.db")
    assert loaded == 2 and "b" in rows
    (long,) = set(rows) - {"b"}
    assert (
        len(long) == 64
        and rows[long][0].caption == "a cat"
        and rows[long][0].metadata == {"width_": "wide", "id": "a" * 100}
    )


def test_an_array_with_names(embedder, photos, tmp_path):
    names = [str(photos / "000.png"), str(photos / "001.png")]
    write_embeddings(tmp_path / "e.npy", names, embedder.images(names))
    loaded, rows = load(tmp_path / "e.npy", embedder, tmp_path / "x.db")
    assert loaded == 2 and {hit.path for hit, _ in rows.values()} == set(names)


def test_what_does_not_fit(embedder, tmp_path):
    def refused(source, said):
        with pytest.raises(ValueError, match=said):
            StoredEmbeddings(source).check(embedder)

    np.save(tmp_path / "a.npy", np.ones((2, 16)))
    refused(tmp_path / "a.npy", "the names of its rows in")
    (tmp_path / "a.names.json").write_text('["one"]')
    refused(tmp_path / "a.npy", "has 1 names")
    (tmp_path / "a.names.json").write_text("5")
    refused(tmp_path / "a.npy", "a.names.json: expected a list of names, got int")
    write_embeddings(tmp_path / "b.npy", ["x"], np.ones((1, 8), np.float32))
    refused(tmp_path / "b.npy", "of dimension 8.*gives 16")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "c.parquet")
    refused(tmp_path / "c.parquet", "expected the columns embedding")
    (tmp_path / "d").mkdir()
    refused(tmp_path / "d", "no .parquet files")
    shutil.copy(tmp_path / "c.parquet", tmp_path / "e.db")
    refused(tmp_path / "e.db", "not a database of Milvus Lite 2")
    pq.write_table(pa.table({"id": [1], "embedding": [[1.0] * 16]}), tmp_path / "d" / "0.parquet")
    (tmp_path / "d" / "plan.json").write_text('{"model": "kakaobrain/align-base"}')
    refused(tmp_path / "d", "of kakaobrain/align-base, not of")


def test_rows_of_several_widths_are_not_shared_out(embedder, tmp_path):
    """Eight and 24 numbers are two rows of sixteen, and neither is an embedding; of a batch without any there is nothing."""
    ragged = pa.array([[1.0] * 8, [1.0] * 24], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": ragged}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="r.parquet: holds embeddings of dimensions 8 and 24"):
        load(tmp_path / "r.parquet", embedder, tmp_path / "x.db")
    pq.write_table(pa.table({"id": ["a"], "embedding": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has type string, expected lists of numbers"):
        load(tmp_path / "t.parquet", embedder, tmp_path / "x.db")
    lost = pa.array([None] * 600 + [[1.0] * 16], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": list(map(str, range(601))), "embedding": lost}), tmp_path / "l.parquet")
    assert load(tmp_path / "l.parquet", embedder, tmp_path / "y.db")[0] == 1


def _parquet(path, count=30, start=0, **columns):
    vectors = np.random.default_rng(start).standard_normal((count, 16)).astype(np.float32)
    facts = {"id": [f"r{start + n:03}" for n in range(count)], "embedding": vectors.tolist()}
    pq.write_table(
        pa.table(facts | {"width": list(range(count)), "tag": [n % 2 for n in range(count)]} | columns), path
    )
    return unit(vectors.astype(np.float64)).astype(np.float32)


def test_files_are_searched_as_they_are(embedder, tmp_path):
    """The results are those of an index of them; of an id that is there twice the last row counts."""
    folder = tmp_path / "e"
    folder.mkdir()
    first, second = _parquet(folder / "0.parquet"), _parquet(folder / "1.parquet", start=25, text=["a cat"] * 30)
    (folder / "plan.json").write_text(json.dumps({"model": embedder.name, "what": "images"}))
    rows = {f"r{n:03}": row for start, part in ((0, first), (25, second)) for n, row in enumerate(part, start)}
    load(folder, embedder, tmp_path / "x.db")
    before = sorted(tmp_path.rglob("*"))
    with SearchIndex.open(folder, embedder) as files, SearchIndex.open(tmp_path / "x.db", embedder) as index:
        assert files.count == index.count == len(rows) == 55 and files.metadata["model"] == embedder.name
        queries = np.random.default_rng(9).standard_normal((4, 16))
        for filter in (None, "width > 20 and tag == 1", 'caption like "%cat%"'):
            found = files.search(queries, 9, filter=filter)
            wanted = index.search(queries, 9, filter=filter)
            assert [[hit.id for hit in some] for some in found] == [[hit.id for hit in some] for some in wanted]
            for hits, query in zip(found, queries):
                scores = [rows[hit.id].astype(np.float64) @ query / np.linalg.norm(query) for hit in hits]
                np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-12)
        (hit,) = files.search(rows["r030"], 1)
        assert (hit.id, hit.path, hit.caption, hit.width, hit.metadata["tag"]) == ("r030", "r030", "a cat", 5, 1)
        assert len(files.search("a dog", 3)) == 3
        with pytest.raises(ValueError, match="filter 'width >>> 3'.*Milvus refused it"):
            files.search(queries[0], filter="width >>> 3")
        for change in (lambda: files.add(["a"], first[:1]), lambda: files.delete(["r000"]), lambda: files.client):
            with pytest.raises(
                ValueError, match="can only be searched. Make an index of them: kakao-models index load"
            ):
                change()
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="can only be searched"):
        SearchIndex.open(folder, embedder, create=True)


def test_files_that_can_not_be_searched(embedder, photos, tmp_path):
    names = [str(photos / "000.png"), str(photos / "001.png")]
    write_embeddings(tmp_path / "e.npy", names, embedder.images(names))
    with SearchIndex.open(tmp_path / "e.npy") as files:
        assert files.search(embedder.images(names)[1], 1)[0].path == names[1] and files.metadata["model"] is None
    _parquet(tmp_path / "wide.parquet", embedding=[[1.0] * 8] * 30)
    with pytest.raises(ValueError, match="of dimension 8.*gives 16"):
        SearchIndex.open(tmp_path / "wide.parquet", embedder)
    with (
        SearchIndex.open(tmp_path / "wide.parquet") as files,
        pytest.raises(ValueError, match="of dimension 8.*gives 16"),
    ):
        files.use(embedder)
    for broken in (np.nan, 0.0):
        _parquet(tmp_path / "broken.parquet", embedding=[[broken] * 16] * 30)
        with SearchIndex.open(tmp_path / "broken.parquet") as files, pytest.raises(ValueError, match="must be finite"):
            files.search(np.ones(16))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="this folder has no .parquet files"):
        SearchIndex.open(tmp_path / "empty")


def test_the_revision_of_a_model_is_not_its_name(embedder, tmp_path):
    pq.write_table(pa.table({"id": [1], "embedding": [[1.0] + [0.0] * (embedder.dim - 1)]}), tmp_path / "0.parquet")
    name = os.path.basename(embedder.name)
    for model, revision in ((f"someone/{name}@v1", "v1"), (f"models/{name}/", None)):
        (tmp_path / "plan.json").write_text(json.dumps({"model": model}))
        stored = StoredEmbeddings(tmp_path)
        stored.check(embedder)
        assert (stored.metadata["model"], stored.metadata["revision"]) == (model.partition("@")[0], revision)
