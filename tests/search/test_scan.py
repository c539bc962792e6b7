"""The scan by codes finds what comparing all rows in float64 finds, in the same order, with ties."""

import numpy as np
import pytest

from kakao_models.search import scan
from kakao_models.search.scan import Codes, Vectors, nearest

ROWS, DIM = 6000, 24


def _rows(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((ROWS, DIM))
    if kind == "clusters":
        rows = rows[draw.integers(0, 30, ROWS)] + 0.1 * rows
    elif kind == "far from zero":
        rows[:, 3] += 20
    elif kind == "equal":
        rows = rows[draw.integers(0, 7, ROWS)]
    elif kind == "constant":
        rows[:, 4:] = 0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows.astype(np.float32)
    rows[3000:3020] = rows[11]
    return rows


def _expected(rows, query, k, alive):
    scores = (rows.astype(np.float64) * query).sum(1)
    scores[~alive] = -np.inf
    return np.lexsort((np.arange(ROWS), -scores))[: min(k, np.count_nonzero(alive))].tolist()


@pytest.mark.parametrize("kind", ["random", "clusters", "far from zero", "equal", "constant"])
def test_the_best_rows_are_those_of_float64(kind, monkeypatch):
    monkeypatch.setattr(scan, "FEW", 100)
    rows, draw = _rows(kind), np.random.default_rng(1)
    queries = np.concatenate([rows[[11, 5]], draw.standard_normal((4, DIM))])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    vectors = Vectors(rows, Codes.of(rows))
    assert (np.abs(rows[3000:3020] - rows[11]) == 0).all()
    for share in (1.0, 0.8, 0.2, 0.01):
        alive = draw.random(ROWS) < share
        for k in (1, 15):
            found = list(nearest([(vectors, None if share == 1 else alive)], queries, k))
            for query, best in zip(queries, found):
                ordered = sorted((-score, row) for score, part, row in best)
                assert [row for _, row in ordered][:k] == _expected(rows, query, k, alive), (share, k)


def test_codes_bound_every_score():
    rows = _rows("clusters")
    codes, query = Codes.of(rows), np.random.default_rng(2).standard_normal((1, DIM))
    query /= np.linalg.norm(query)
    found = codes.best(query, 100, 5000, None, 4900)
    assert sorted(found.rows[0]) == list(range(100, 5000)) and found.errors[0] < 0.05
    difference = np.abs(found.scores[0] - rows[found.rows[0]].astype(np.float64) @ query[0])
    assert difference.max() <= found.errors[0]
    few = codes.best(query, 100, 5000, None, 50)
    others = np.setdiff1d(np.arange(100, 5000), few.rows[0])
    assert few.scores.min() < (rows[others].astype(np.float64) @ query[0]).max() <= few.highest[0]


def test_codes_on_the_disk(tmp_path):
    rows = _rows("random")
    Codes.of(rows).save(tmp_path)
    loaded, query = Codes.load(tmp_path, rows.shape), rows[:1].astype(np.float64)
    (before,), (after,) = (list(nearest([(Vectors(rows, codes), None)], query, 3)) for codes in (None, loaded))
    assert sorted(before) == sorted(after)
    with pytest.raises(ValueError, match=r"has 6000 codes of 24, expected \(5, 24\)"):
        Codes.load(tmp_path, (5, 24))
    (tmp_path / "codes.faiss").write_bytes(b"IxSQ")
    with pytest.raises(RuntimeError):
        Codes.load(tmp_path, rows.shape)


def test_rows_in_memory_get_codes_at_the_second_search():
    vectors = Vectors(_rows("random"))
    query = vectors.values[:1].astype(np.float64)
    first, second = (list(nearest([(vectors, None)], query, 5)) for _ in range(2))
    assert first == second or sorted(first[0]) == sorted(second[0])
    assert vectors.coded() is not None


def test_several_parts_and_none():
    rows = _rows("random")
    query = rows[:1].astype(np.float64)
    (whole,) = nearest([(Vectors(rows), None)], query, 9)
    (parts,) = nearest([(Vectors(rows[:10]), None), (Vectors(rows[10:]), None)], query, 9)
    assert sorted((score, row) for score, _, row in whole) == sorted((s, row + 10 * part) for s, part, row in parts)
    assert list(nearest([], query, 9)) == [[]]
