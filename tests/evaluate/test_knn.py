import brute
import numpy as np
import pytest
from golden import inputs
from sklearn.neighbors import KNeighborsClassifier

from kakao_models.evaluate import knn_scores, nearest
from kakao_models.evaluate.knn import vote
from kakao_models.evaluate.tiles import unit_rows


def test_scores_of_the_original_program(metrics_align):
    facts, embeddings = metrics_align
    for case in facts["knn"]:
        centres = embeddings("knn/centres", case["classes"], case["width"])
        rows, labels = {}, {}
        for part in ("train", "val"):
            labels[part] = inputs.integers(f"knn/{part}/labels", facts["seed"], (case[part],), 0, case["classes"])
            noise = np.float32(case["noise"]) * embeddings(f"knn/{part}", case[part], case["width"])
            rows[part] = centres[labels[part]] + noise
        found = knn_scores(rows["train"], labels["train"], rows["val"], labels["val"])
        assert {"R@1": f"{100 * found.top1:.3f}"} == case["scores"]


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_are_those_of_brute_force_with_ties_and_copies(seed):
    draw = np.random.default_rng(seed)
    for _ in range(250):
        width = draw.integers(1, 6)
        rows = brute.rows(draw, draw.integers(1, 60), width)
        queries = brute.rows(draw, draw.integers(1, 9), width, copies=rows)
        k = int(draw.integers(1, 12))
        values, places = nearest(queries, rows, k)
        similarity = brute.similarities(queries, rows)
        wanted = brute.order(similarity)[:, :k]
        assert np.array_equal(places, wanted)
        assert np.array_equal(values, np.take_along_axis(similarity, wanted, 1))


def test_memory_maps_and_little_memory_change_nothing(tmp_path):
    draw = np.random.default_rng(3)
    rows = draw.standard_normal((9000, 16)).astype(np.float32)
    rows[::7] = rows[3]  # far more copies than neighbours asked for
    queries = np.concatenate([rows[3:4], draw.standard_normal((80, 16)).astype(np.float32)])
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    wanted = nearest(queries, rows, 10)
    found = nearest(queries, mapped, 10, max_memory=2**20)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found))
    assert wanted[1][0].tolist() == sorted([3, *range(0, 9000, 7)])[:10]


def test_rows_closer_to_each_other_than_a_matrix_product_can_tell():
    """Similarities are the same few float32 numbers, and products in tiles of 51 rows are off by more than they differ."""
    draw = np.random.default_rng(8)
    base = draw.standard_normal((1, 640))
    rows, queries = (base + 3e-4 * draw.standard_normal((n, 640)) for n in (400, 40))
    similarity = brute.similarities(queries, rows)
    for k in (5, 20):  # a tile has more than four times as many candidates, or fewer
        values, places = nearest(queries, rows, k, max_memory=2**20)
        wanted = brute.order(similarity)[:, :k]
        assert np.array_equal(places, wanted)
        assert np.array_equal(values, np.take_along_axis(similarity, wanted, 1))


def test_predictions_are_scikit_learns():
    draw = np.random.default_rng(4)
    for k in (1, 5, 20):
        train, test = draw.standard_normal((300, 8)), draw.standard_normal((90, 8))
        labels = draw.integers(0, 6, 300)
        truth = draw.integers(0, 6, 90)
        weights = (lambda gaps: np.exp((1 - gaps) / 0.07)) if k > 1 else "uniform"
        theirs = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(train, labels).predict(test)
        ours = knn_scores(train, labels, test, truth, k=k)
        assert np.array_equal(ours.predictions, theirs)
        assert ours.top1 == np.mean(theirs == truth)
        assert ours.mean_per_class == pytest.approx(
            np.mean([(theirs == c)[truth == c].mean() for c in np.unique(truth)])
        )


def test_the_temperature_says_how_much_nearer_outvotes_more():
    rows, labels = np.array([[1, 0], [1, 0.5], [1, 0.5]]), np.array([0, 1, 1])
    for temperature, predicted in ((0.1, 0), (0.5, 1)):  # cosines 1 and 0.894: exp(0.106 / t) against 2
        found = knn_scores(rows, labels, rows[:1], [0], k=3, temperature=temperature)
        assert found.predictions.tolist() == [predicted]


def test_votes_and_their_ties():
    labels = np.array([[2, 1, 1], [2, 1, 0], [0, 1, 1]])
    assert vote(labels).tolist() == [1, 2, 1]  # of one vote each, the nearest neighbour's label
    heavy_first = np.log(np.array([[5.0, 2.0, 2.0]] * 3))
    assert vote(labels, heavy_first).tolist() == [2, 2, 0]
    assert vote(labels, heavy_first + 1e4).tolist() == [2, 2, 0]  # no overflow


def test_missing_labels_are_left_out_and_one_class_is_enough():
    train = np.eye(3)
    found = knn_scores(train, np.array([-1, 7, 7]), np.eye(3), np.array([7, -1, 5]), k=20)
    assert found.predictions.tolist() == [7, 7, 7] and found.queries == 2 and found.top1 == 0.5
    with pytest.raises(ValueError, match="train_labels are all missing"):
        knn_scores(train, np.full(3, -1), train, np.zeros(3, int))


@pytest.mark.parametrize(
    "train, labels, message",
    [
        (np.array([[1.0, 0], [np.inf, 0]]), [0, 1], "rows|targets: row 1 is not finite"),
        (np.ones((2, 3)), [0, 1], "rows have dimension 3"),
        (np.ones((2, 2)), [0], "train_labels: got int64 of shape \\(1,\\), expected 2 integers"),
        (np.ones((2, 2)), [0.5, 1], "expected 2 integers"),
    ],
)
def test_bad_input(train, labels, message):
    with pytest.raises(ValueError, match=message):
        knn_scores(train, labels, np.ones((1, 2)), [0])


def test_order_among_rows_nearer_to_each_other_than_products_are_exact():
    """All similarities lie within the error of a float32 product, in many tiles; only the exact ones say the order."""
    draw = np.random.default_rng(6)
    base = draw.standard_normal(64)
    rows = (base + 3e-7 * draw.standard_normal((4000, 64))).astype(np.float32)
    queries = (base + 0.5 * draw.standard_normal((6, 64))).astype(np.float32)
    wanted = brute.order(brute.similarities(queries, rows))[:, :5]
    assert np.array_equal(nearest(queries, rows, 5, max_memory=2**20)[1], wanted)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature: got"):
        knn_scores(np.eye(2), [0, 1], np.eye(2), [0, 1], k=2, temperature=temperature)


def test_a_row_of_length_1_depends_on_no_other_row_and_the_scale_of_none():
    """Rows are scaled many at a time, and those of extreme values in another way."""
    draw = np.random.default_rng(0)
    for width in (1, 3, 37, 640):
        rows = draw.standard_normal((300, width))
        together = unit_rows("rows", rows)
        assert all(np.array_equal(unit_rows("rows", row[None])[0], unit) for row, unit in zip(rows, together))
        for scale in (2.0**-600, 2.0**600):
            assert np.abs(unit_rows("rows", rows * scale) - together).max() <= 2**-23


@pytest.mark.parametrize("k", [1, 5, 40, 200])
def test_neighbours_are_those_of_brute_force_among_many_equal_rows(k):
    """Many columns: groups of them are looked at first. Equal rows stand at the ends of groups, and in the short last one."""
    draw = np.random.default_rng(k)
    rows = draw.standard_normal((4 * 256 * 3 + 7, 4)).astype(np.float32)
    rows[[255, 256, 511, 1024, 3078]] = rows[0]
    rows[100:400] = rows[99]
    queries = np.concatenate([rows[[0, 99, 3078]], draw.standard_normal((20, 4))])
    similarity = brute.similarities(queries, rows)
    values, places = nearest(queries, rows, k)
    assert np.array_equal(places, brute.order(similarity)[:, :k])
    assert np.array_equal(values, np.take_along_axis(similarity, places, 1))
    small = nearest(queries, rows, k, max_memory=2**20)
    assert np.array_equal(places, small[1]) and np.array_equal(values, small[0])
