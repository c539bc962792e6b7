import brute
import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from kakao_models.evaluate import read_ratings, similarity, similarity_scores, spearman
from kakao_models.evaluate.similarity import rated_retrieval, rated_similarities

STS = """caption1,caption2,agg_score,sampling_method
COCO_val2014:sentid:7,COCO_val2014:sentid:8,4.5,c2c_isim
COCO_val2014:sentid:7,COCO_val2014:sentid:9,1.25,c2c_cocaption
"""


def test_spearman_is_scipys_with_ties():
    draw = np.random.default_rng(0)
    for _ in range(1000):
        count = draw.integers(2, 30)
        a, b = draw.integers(0, 5, (2, count))
        wanted = 0.0 if len(set(a)) == 1 or len(set(b)) == 1 else spearmanr(a, b).statistic
        assert spearman(a, b) == pytest.approx(wanted, abs=1e-12)


def test_published_format(tmp_path):
    file = tmp_path / "sts_val.csv"
    file.write_text(STS)
    found = read_ratings(file)
    assert found.kind == "sts" and found.scores.tolist() == [4.5, 1.25]
    assert found.left == ["COCO_val2014:sentid:7"] * 2 and found.methods[1] == "c2c_cocaption"
    for header, kind in (("image1,image2", "sis"), ("caption,image", "sits")):
        file.write_text(f"{header},agg_score,sampling_method\na,b,2,x\n")
        assert read_ratings(file).kind == kind
    for text, message in (
        ("a,b,c\n1,2,3\n", "got the header 'a,b,c'"),
        (STS + "x,y\n", "line 4: expected two ids and a score"),
        (STS.splitlines()[0] + "\n", "at least one pair"),
        ("", "got the header ''"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ratings(file)


def test_samples_have_half_of_the_queries_and_one_pair_of_each():
    """A query has nine pairs that agree and, among the others, one that disagrees: only single pairs are drawn."""
    draw = np.random.default_rng(1)
    queries = np.repeat(np.arange(40), 3)
    ratings = draw.random(120)
    found = similarity_scores(ratings, ratings, queries, samples=50)
    assert found.mean == pytest.approx(1) and found.std == pytest.approx(0, abs=1e-9) and found.all_pairs == 1
    noisy = ratings + draw.standard_normal(120)
    by_query, by_pair = (similarity_scores(ratings, noisy, q, samples=400) for q in (queries, None))
    # 20 pairs a sample against 60: Spearman's standard error goes with the root of their number
    assert 1.3 < by_query.std / by_pair.std < 3.5
    assert abs(by_query.mean - by_query.all_pairs) < 0.05
    assert similarity_scores(ratings, noisy, queries, samples=50) == similarity_scores(
        ratings, noisy, queries, samples=50
    )
    heavy = np.concatenate([np.repeat(0, 1000), np.arange(1, 41)])  # one query with 1,000 pairs that agree backwards
    scores = np.concatenate([np.linspace(0, 1, 1000), ratings[:40]])
    likeness = np.concatenate([-np.linspace(0, 1, 1000), ratings[:40]])
    found = similarity_scores(scores, likeness, heavy, samples=100)
    assert found.mean > 0.7 and found.all_pairs < 0


@pytest.mark.parametrize("queries, half", [(2, 2), (3, 2), (40, 20), (41, 20)])
def test_a_sample_is_half_of_the_queries_and_no_less_than_two(queries, half, monkeypatch):
    lengths = []
    monkeypatch.setattr(similarity, "spearman", lambda a, b: lengths.append(len(a)) or 0.0)
    pairs = 2 * queries
    similarity_scores(np.arange(pairs), np.arange(pairs), np.repeat(np.arange(queries), 2), samples=3)
    assert lengths == [half] * 3 + [pairs]


def test_pairs_are_looked_up_by_id(tmp_path):
    file = tmp_path / "sts_val.csv"
    file.write_text(STS)
    rows = np.random.default_rng(0).standard_normal((3, 5))
    place = {f"COCO_val2014:sentid:{number}": row for row, number in enumerate((9, 7, 8))}
    found = rated_similarities(read_ratings(file), rows, rows, place, place)
    wanted = brute.similarities(rows, rows)
    assert found.tolist() == [wanted[1, 2], wanted[1, 0]]
    del place["COCO_val2014:sentid:9"]
    with pytest.raises(ValueError, match="1 ids of the right column have no embedding, such as COCO_val2014:sentid:9"):
        rated_similarities(read_ratings(file), rows, rows, place, place)


def test_retrieval_within_one_kind_never_finds_itself():
    draw = np.random.default_rng(2)
    for _ in range(300):
        rows = brute.rows(draw, draw.integers(3, 15), draw.integers(1, 5))
        pairs = {(int(a), int(b)) for a, b in draw.integers(0, len(rows), (4, 2))} | {(0, 1)}
        found = rated_retrieval(rows, rows, pairs, within=True)
        order = brute.order(brute.similarities(rows, rows))
        kept = sorted({a for a, b in pairs if a != b})
        wanted = []
        for a in kept:
            others = [j for j in order[a] if j != a]
            wanted.append(1 + min(others.index(b) for q, b in pairs if q == a and b != a))
        assert found.ranks.tolist() == wanted and found.targets == len(rows) - 1


@pytest.mark.parametrize(
    "ratings, likeness, message",
    [
        ([1, 2, 3], [1, 2, 3], "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3], "the same number"),
        ([1, 2, 3, np.nan], [1] * 4, "finite"),
    ],
)
def test_bad_input(ratings, likeness, message):
    with pytest.raises(ValueError, match=message):
        similarity_scores(ratings, likeness)


def test_samples_and_queries_that_give_no_correlation():
    with pytest.raises(ValueError, match="samples: got 0"):
        similarity_scores([1, 2, 3, 4], [1, 2, 3, 4], samples=0)
    with pytest.raises(ValueError, match="all pairs have the same query"):
        similarity_scores([1, 2, 3, 4], [1, 2, 3, 4], ["a"] * 4)


def test_mean_and_deviation_are_those_of_a_bootstrap_by_hand():
    draw = np.random.default_rng(3)
    queries = np.repeat(np.arange(60), draw.integers(1, 5, 60))
    ratings = draw.random(len(queries))
    likeness = ratings + draw.standard_normal(len(queries)) / 2
    found = similarity_scores(ratings, likeness, queries, samples=1000)
    by_hand = []
    for _ in range(600):
        pairs = [draw.choice(np.flatnonzero(queries == q)) for q in draw.choice(60, 30, replace=False)]
        by_hand.append(np.corrcoef(rankdata(ratings[pairs]), rankdata(likeness[pairs]))[0, 1])
    assert found.mean == pytest.approx(np.mean(by_hand), abs=0.02)  # above three standard errors of the difference
    assert found.std == pytest.approx(np.std(by_hand), rel=0.1)
