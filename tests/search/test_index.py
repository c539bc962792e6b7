"""The index: what goes in comes out, searches are exact, and what doesn't fit is refused by name."""

import base64
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from kakao_models import AlignImageProcessor, Embedder
from kakao_models.inference.relevance import Relevance
from kakao_models.search import SearchIndex, backend, near_duplicates
from kakao_models.search.identity import check_identity, identity


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    return draw.standard_normal((700, 16)).astype(np.float32), [f"row{n}" for n in range(700)]


@pytest.fixture(scope="module", params=["FLAT", "HNSW"])
def filled(embedder, rows, tmp_path_factory, request):
    vectors, ids = rows
    path = tmp_path_factory.mktemp("filled") / "x.db"
    facts = [
        {"path": f"/p/{n}.jpg", "width": n, "license": "cc" if n % 2 else "no", "tags": ["a", n]} for n in range(700)
    ]
    options = {} if request.param == "FLAT" else {"index_type": "HNSW", "index_params": {"M": 32}}
    with SearchIndex.open(path, embedder, create=True, search_params={"ef": 400}, **options) as index:
        assert index.add(ids, vectors, facts) == 700
    with SearchIndex.open(path, embedder, search_params={"ef": 400}) as index:
        yield index


def brute(rows, query, k, keep=lambda n: True):
    vectors, ids = rows
    cosine = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = [n for n in np.argsort(-cosine, kind="stable") if keep(n)][:k]
    return [ids[n] for n in order], cosine[order]


def test_a_search_imports_no_slow_library(built, embedder):
    """pymilvus and pandas would take as long as all the rest of a search that one command makes."""
    script = f"""
import sys
from kakao_models.search import SearchIndex
hits = SearchIndex.open({str(built)!r}).search({[0.5] * embedder.dim}, k=3)
print(len(hits), [name for name in ("pymilvus", "pandas", "torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "3 []", done.stderr


def test_finds_what_comparing_with_all_finds(filled, rows):
    queries = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    for query, hits in zip(queries, filled.search(queries, 12)):
        ids, cosine = brute(rows, query, 12)
        assert [hit.id for hit in hits] == ids
        np.testing.assert_allclose([hit.score for hit in hits], cosine, atol=1e-5)
    assert [hit.id for hit in filled.search(queries[0], 3)] == brute(rows, queries[0], 3)[0]


def test_filters(filled, rows):
    query = np.ones(16, np.float32)
    hits = filled.search(query, 5, filter='width > 300 and license == "cc"')
    assert [hit.id for hit in hits] == brute(rows, query, 5, lambda n: n > 300 and n % 2)[0]
    n = int(hits[0].id[3:])
    assert (hits[0].path, hits[0].width, hits[0].metadata) == (f"/p/{n}.jpg", n, {"license": "cc", "tags": ["a", n]})
    assert filled.search(query, 5, filter="width < 0") == []
    with pytest.raises(ValueError, match="filter 'width >>> 3'.*Milvus refused it"):
        filled.search(query, filter="width >>> 3")


def test_all_rows_with_their_unit_vectors(filled, rows):
    vectors, ids = rows
    found = {}
    for hits, page in filled.vectors(size=300):
        found |= dict(zip([hit.id for hit in hits], page))
    assert sorted(found) == sorted(ids) and filled.count == len(filled) == 700
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack([found[key] for key in ids]), unit, atol=1e-6)
    assert sum(len(page) for _, page in filled.vectors(limit=150, size=100)) == 150
    assert sum(len(page) for _, page in filled.vectors(filter="width < 10")) == 10


@pytest.mark.parametrize(
    "query, k, said",
    [
        (np.ones(7, np.float32), 10, "dimension 7.*has 16"),
        (np.full(16, np.nan, np.float32), 10, "finite"),
        (np.zeros(16, np.float32), 10, "all zeros"),
        (np.ones(16, np.int64), 10, "floats"),
        (np.ones(16, np.float32), 0, "k: got 0"),
        (np.ones(16, np.float32), 10**6, "k: got 1000000"),
    ],
)
def test_queries_that_do_not_fit(filled, query, k, said):
    with pytest.raises(ValueError, match=said):
        filled.search(query, k)


@pytest.mark.parametrize("metric", ["IP", "COSINE", "L2"])
def test_scores_are_cosines_by_every_metric(embedder, tmp_path, metric):
    with SearchIndex.open(tmp_path / "m.db", embedder, create=True, metric=metric) as index:
        index.add(["a", "b", "c"], np.array([[3.0] + [0] * 15, [1, 1] + [0] * 14, [-1] + [0] * 15], np.float32))
        hits = index.search(np.eye(16, dtype=np.float32)[0], 3)
    assert [hit.id for hit in hits] == ["a", "b", "c"]
    np.testing.assert_allclose([hit.score for hit in hits], [1, 0.5**0.5, -1], atol=1e-6)


def test_numbers_and_texts_of_numpy_are_metadata(embedder, tmp_path):
    ids, vectors = np.array(["a", "b"]), np.eye(2, 16, dtype=np.float64)
    facts = [{"width": np.int64(7), "rating": np.float32(0.5), "tags": np.array([1, 2])}, {"seen": np.bool_(True)}]
    with SearchIndex.open(tmp_path / "n.db", embedder, create=True) as index:
        assert index.add(ids, vectors, facts) == 2
        (first,) = index.search(vectors[0], 1)
    assert (first.width, first.metadata) == (7, {"rating": 0.5, "tags": [1, 2]})


def test_an_index_remembers_whether_colours_were_converted(model, embedder, tmp_path):
    converting = Embedder(model, srgb=True)
    with SearchIndex.open(tmp_path / "c.db", converting, create=True) as index:
        assert index.metadata["srgb"] is True
        index.use(converting)
        with pytest.raises(ValueError, match=r"made with srgb=True, .* has srgb=False\. Pass srgb=True \(--srgb\)"):
            index.use(embedder)


def test_rows_are_replaced_and_deleted(copied, embedder):
    with SearchIndex.open(copied, embedder) as index:
        before = index.count
        new = np.ones((2, 16), np.float32)
        index.add(["x", "y"], new, [{"caption": "old"}, {}])
        index.add(["x"], -new[:1], [{"caption": "new"}])
        assert index.count == before + 2
        assert index.search(-new[0], 1)[0].caption == "new"
        assert index.delete(["x", "not there"]) == 1 and index.delete(filter='caption == "new"') == 0
        assert index.delete("y") == 1
    with SearchIndex.open(copied) as index:
        assert index.count == before
        for wrong in ({}, {"ids": ["x"], "filter": "width > 0"}, {"filter": ""}):
            with pytest.raises(ValueError, match="ids or a filter"):
                index.delete(**wrong)


@pytest.mark.parametrize(
    "ids, vectors, facts, said",
    [
        (["a"], np.ones((2, 16)), None, "1 ids, 2 vectors"),
        (["a", "a"], np.ones((2, 16)), None, "twice"),
        (["a" * 65], np.ones((1, 16)), None, "64 characters"),
        (["a"], np.ones((1, 8)), None, "dimension 8"),
        (["a"], np.full((1, 16), np.inf), None, "finite"),
        (["a"], np.ones((1, 16)), [{"vector": 1}], "column of the index itself"),
    ],
)
def test_rows_that_do_not_fit(copied, ids, vectors, facts, said):
    with SearchIndex.open(copied) as index, pytest.raises(ValueError, match=said):
        index.add(ids, vectors, facts)


def test_text_search_wants_an_embedder(copied, embedder):
    with SearchIndex.open(copied, embedder) as index:
        assert len(index.search("a dog", 3)) == 3
    with SearchIndex.open(copied) as index:
        with pytest.raises(ValueError, match="need an embedder"):
            index.search("a dog")
    with pytest.raises(ValueError, match="is closed"):
        index.search(np.ones(16, np.float32))
    index.close()


def test_two_in_one_process(copied):
    with SearchIndex.open(copied) as one, SearchIndex.open(copied) as two:
        one.close()
        assert two.count == 8


def test_another_model_is_refused(built, embedder, model, tmp_path):
    other = Embedder(tiny.align_folder(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match=f"holds embeddings of {model}.*not of {tmp_path}.*Search with the model"):
        SearchIndex.open(built, other)
    cropping = AlignImageProcessor(size=36, crop_size=32)
    with pytest.raises(ValueError, match="preprocessing differs.*size was .*40.*is .*36"):
        SearchIndex.open(built, Embedder(model, image_processor=cropping))
    with SearchIndex.open(built) as index:
        with pytest.raises(ValueError, match="not of"):
            index.use(other)
        assert index.metadata["model"] == model and index.metadata["dim"] == 16


def test_the_same_model_is_known_by_what_it_does(embedder, model, tmp_path, monkeypatch):
    """Weights that another program holds have another hash; what they make of a picture and a text is the same."""
    stored = json.loads(json.dumps(identity(embedder), default=str)) | {
        "weights": "as Flax holds them",
        "engine": "Flax 9",
    }
    check_identity("x.db", stored, embedder)
    other = Embedder(tiny.align_folder(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="their cosine is"):
        check_identity("x.db", stored, other)
    broken = base64.b64encode(np.full((2, 16), np.nan, "<f2").tobytes()).decode()
    with pytest.raises(ValueError, match="their cosine is nan"):
        check_identity("x.db", stored | {"probe": broken}, embedder)
    monkeypatch.setattr(embedder.engine, "texts", lambda ids, mask: np.full((len(ids), 16), np.inf, np.float32))
    with pytest.raises(ValueError, match="its embeddings have NaN or infinity"):
        identity(embedder)
    with pytest.raises(ValueError, match="of dimension 8"):
        check_identity("x.db", stored | {"dim": 8}, embedder)
    with pytest.raises(ValueError, match="tokenizer is another"):
        check_identity("x.db", stored | {"tokenizer": "0"}, embedder)


def test_what_is_no_index(embedder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such index. Build it"):
        SearchIndex.open(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    with pytest.raises(ValueError, match="ends in .db"):
        SearchIndex.open(tmp_path / "missing", embedder, create=True)
    sqlite3.connect(tmp_path / "old.db").execute("CREATE TABLE x (y)")
    with pytest.raises(ValueError, match="Milvus Lite 2.*index load"):
        SearchIndex.open(tmp_path / "old.db")
    (tmp_path / "text.db").write_text("text")
    with pytest.raises(ValueError, match="is a file, not an index"):
        SearchIndex.open(tmp_path / "text.db")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is a folder, but not an index"):
        SearchIndex.open(tmp_path / "folder.db", embedder, create=True)


def test_other_collections(copied, embedder):
    with pytest.raises(FileNotFoundError, match="no collection 'songs'; its collections: images"):
        SearchIndex.open(copied, collection="songs")
    with SearchIndex.open(copied, embedder, collection="songs", create=True, kind="texts") as index:
        index.add(["a"], np.ones((1, 16), np.float32))
        index.client.create_collection("foreign", dimension=4)
        with pytest.raises(ValueError, match="was not made by kakao-models"):
            SearchIndex.open(copied, collection="foreign")
    with pytest.raises(ValueError, match="an index of texts, not of images"):
        SearchIndex.open(copied, embedder, collection="songs", create=True)
    with SearchIndex.open(copied, collection="songs") as index:
        index.drop()
    with SearchIndex.open(copied) as index:
        assert index.client.list_collections() == ["foreign", "images"]


@pytest.mark.parametrize("option", ["kind", "metric", "consistency"])
def test_wrong_options(built, option):
    with pytest.raises(ValueError, match=f"{option}: got 'nonsense', expected one of"):
        SearchIndex.open(built, **{option: "nonsense"})


def test_an_index_type_that_is_none_leaves_nothing(embedder, tmp_path):
    with pytest.raises(ValueError, match="got 'NONSENSE', expected one of FLAT, HNSW"):
        SearchIndex.open(tmp_path / "x.db", embedder, create=True, index_type="NONSENSE")
    assert not list(tmp_path.iterdir())
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True, index_type="HNSW", index_params={"M": 8}) as index:
        index.add(["a"], np.ones((1, 16), np.float32))
        assert index.metadata["index"] == ["HNSW", {"M": 8}]
        assert index.client.describe_index("images", "vector")["params"] == {"M": 8}


@pytest.fixture
def clock(monkeypatch):
    """The waits of `patiently`, on a clock that moves by them alone."""
    waited = []
    clock = SimpleNamespace(sleep=waited.append, monotonic=lambda: float(sum(waited)))
    monkeypatch.setattr(backend, "time", clock)
    return waited


def test_a_server_that_is_not_there(clock):
    """It is tried again after longer and longer waits, and given up in time."""
    with pytest.raises(ConnectionError, match="no Milvus server answered within 15 seconds"):
        SearchIndex.open("http://127.0.0.1:1")
    assert clock == [0.5, 1, 2, 4, 4] and sum(clock) <= backend.PATIENCE


def test_what_a_server_refuses_is_not_tried_again(clock):
    from pymilvus.exceptions import MilvusException

    def refused(left):
        raise MilvusException(code=1100, message="no such filter")

    with pytest.raises(ValueError, match="x: Milvus reported: no such filter"), backend.explained("x"):
        backend.patiently(refused)
    assert not clock


def test_a_server(embedder, rows, tmp_path, monkeypatch):
    """The same by the address of a server: Milvus Lite's own stands for one. It goes, and comes again."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    vectors, ids = rows[0][:40], rows[1][:40]
    started = [start_server_in_thread(str(tmp_path / "data"), host="127.0.0.1", port=0)]
    port = started[0][2]

    def stop() -> None:
        server, database, _ = started.pop()
        server.stop(grace=0).wait()
        database.close()

    def start() -> None:
        started.append(start_server_in_thread(str(tmp_path / "data"), host="127.0.0.1", port=port))

    uri = f"http://127.0.0.1:{port}"
    with SearchIndex.open(uri, embedder, create=True) as index:
        index.add(ids, vectors, [{"width": n} for n in range(40)])
        assert index.count == 40 and index.metadata["index"] == ["AUTOINDEX", {}]
        assert [hit.id for hit in index.search(vectors[7], 3)] == brute((vectors, ids), vectors[7], 3)[0]
        assert index.delete(filter="width < 5") == 5
        index.flush()
        stop()
        monkeypatch.setattr(backend, "WAITS", (0.2,))
        coming = threading.Timer(0.3, start)
        coming.start()
        assert index.count == 35
        coming.join()
        stop()
        monkeypatch.setattr(backend, "PATIENCE", 0.5)
        with pytest.raises(ConnectionError, match="counting rows: .* Is the server still running"):
            index.count  # noqa: B018


def test_what_a_killed_creation_leaves(embedder, tmp_path):
    (tmp_path / "k.db" / "collections" / "images").mkdir(parents=True)
    with SearchIndex.open(tmp_path / "k.db", embedder, create=True) as index:
        assert index.count == 0


def test_nothing_is_cleared_that_was_finished(copied):
    backend.clear_unfinished(str(copied), "images")
    with SearchIndex.open(copied) as index:
        assert index.count == 8


def test_a_broken_file_of_an_index_is_made_again(embedder, rows, tmp_path):
    vectors, ids = rows
    with SearchIndex.open(tmp_path / "b.db", embedder, create=True, index_type="HNSW") as index:
        index.add(ids, vectors)
    with SearchIndex.open(tmp_path / "b.db") as index:  # opening makes it, at the latest
        wanted = index.search(vectors[:3], 5)
    (file,) = (tmp_path / "b.db").rglob("*.idx")
    file.write_bytes(file.read_bytes()[:1000])
    with SearchIndex.open(tmp_path / "b.db") as index:
        assert index.search(vectors[:3], 5) == wanted


def test_the_package_needs_no_pymilvus_until_an_index_is_opened(tmp_path):
    code = """
import sys
sys.modules["pymilvus"] = None
import kakao_models.search, kakao_models.cli
from kakao_models.search import SearchIndex, Hit, compose_query, hit_picture
try:
    SearchIndex.open("x.db")
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.strip() == "search needs pymilvus: pip install 'kakao-models[search]'", ran.stderr


def test_copies_are_whole(built, tmp_path):
    moved = shutil.copytree(built, tmp_path / "elsewhere.db")
    with SearchIndex.open(moved) as index:
        assert index.count == 8


def test_an_index_keeps_the_calibration_of_its_model(model, photos, tmp_path):
    levels = {"coverage": {"0.9": 0.0}, "precision": {"0.5": 1.0}}
    Relevance((-1.0, 1.0), (0.0, 1.0), guarantees=levels).write(tmp_path / "mine.json")
    calibrated = Embedder(model, calibration=tmp_path / "mine.json")
    query = calibrated.texts("a dog")[0]
    with SearchIndex.open(tmp_path / "x.db", calibrated, create=True) as index:
        index.build(photos)
    with SearchIndex.open(tmp_path / "x.db") as index:
        assert "relevance" not in index.metadata
        best = index.search(query, 1, min_relevance=0)[0]
        assert best.relevance == pytest.approx((1 + best.score) / 2) and best.as_dict()["relevance"] == best.relevance
        assert index.search([query, query], 8, min_relevance=1.0) == [[], []]
        assert index.search(query, 1)[0].relevance is None
        positive = [hit for hit in index.search(query, 8, min_relevance=0) if hit.score >= 0]
        assert index.search(query, 8, min_relevance="coverage=0.9") == positive
        assert index.search(query, 8, min_relevance="precision=0.4") == []
        with pytest.raises(ValueError, match="of at most 0.5. Ask for less"):
            index.search(query, min_relevance="precision=0.9")
        with pytest.raises(ValueError, match="min_relevance: got 50"):
            index.search(query, min_relevance=50)
        index.use(calibrated)
        assert index.search("a dog", 1, min_relevance=0)[0].relevance == pytest.approx(best.relevance)


def test_without_a_calibration_the_option_is_refused(built, model):
    with SearchIndex.open(built) as index, pytest.raises(ValueError, match=f"{model} has no calibration"):
        index.search(np.ones(16, np.float32), min_relevance=0.5)


def test_groups_of_near_duplicates(embedder, tmp_path):
    x, y, z = np.eye(16, dtype=np.float32)[:3]
    vectors = np.stack([x, x + 0.1 * y, x + 0.2 * y, z, z + 0.01 * x, y])
    facts = [{"path": f"/{name}.png", "width": width, "height": 1} for name, width in zip("bacdef", (1, 9, 5, 2, 2, 3))]
    with SearchIndex.open(tmp_path / "x.db", embedder, create=True) as index:
        index.add(list("bacdef"), vectors, facts)
        first, second = near_duplicates(index, 0.994, size=2)
        assert [hit.path for hit in first] == ["/a.png", "/c.png", "/b.png"]  # linked by their middle, largest first
        assert [round(hit.score, 3) for hit in first] == [1, 0.995, 0.995]
        assert [hit.path for hit in second] == ["/d.png", "/e.png"]
        assert [len(hits) for hits in near_duplicates(index, 0.994, filter='path like "/d%" or path like "/e%"')] == [2]
        assert near_duplicates(index, 1.0) == []
        with pytest.raises(ValueError, match="min_score: got 1.5, expected a cosine"):
            near_duplicates(index, 1.5)
