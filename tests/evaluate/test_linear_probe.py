import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler

from kakao_models.evaluate import linear_probe_scores, vtab_scores
from kakao_models.evaluate.linear_probe import _interval, wilson


def blobs(draw, count: int, classes: int = 4, width: int = 6, noise: float = 1.0):
    labels = draw.integers(0, classes, count)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    return (centres[labels] + noise * draw.standard_normal((count, width))).astype(np.float32), labels


def test_accuracy_is_that_of_scikit_learn_at_the_chosen_strength():
    draw = np.random.default_rng(0)
    train, test = blobs(draw, 200), blobs(draw, 150)
    found = linear_probe_scores(*train, *test, seeds=(0, 1), strengths=(0.01, 1.0))
    scaler = StandardScaler().fit(train[0])
    for accuracy, strength, tried in zip(found.per_seed, found.strengths, found.validation):
        assert strength == min(c for c in tried if tried[c] == max(tried.values()))
        model = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(train[0]), train[1])
        assert accuracy == pytest.approx(model.score(scaler.transform(test[0]), test[1]), abs=1 / 150)
    assert found.accuracy == np.mean(found.per_seed) and found.std == np.std(found.per_seed, ddof=1)
    low, high = found.interval
    assert low < found.accuracy < high and high - low >= np.diff(wilson(found.accuracy, 150))


def test_a_split_of_your_own_decides_the_strength():
    """Positive training rows are of class 1, positive validation rows of the majority: weights only hurt there."""
    x = np.concatenate([np.full(40, -1.0), np.full(60, 1.0)])[:, None]
    y = np.concatenate([np.zeros(40, int), np.ones(20, int), np.zeros(40, int)])
    split = np.arange(60), np.arange(60, 100)
    found = linear_probe_scores(x, y, x, y, split=split, strengths=(1e-4, 1.0), seeds=(0,), scale="none")
    assert found.validation == [{1e-4: 1.0, 1.0: 0.0}] and found.strengths == [1e-4] and found.train == 100


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
@pytest.mark.parametrize("scale", ["standard", "l2", "none"])
def test_separable_classes_are_separated(solver, scale):
    draw = np.random.default_rng(2)
    found = linear_probe_scores(
        *blobs(draw, 200, noise=0.01),
        *blobs(draw, 80, noise=0.01),
        solver=solver,
        scale=scale,
        seeds=(0,),
        strengths=(10.0, 1000.0),
    )
    assert found.accuracy == 1 and found.interval[1] == pytest.approx(1)


def test_one_class_missing_labels_and_rows_that_are_constant():
    x = np.ones((5, 3))
    found = linear_probe_scores(x, np.array([2, 2, -1, 2, 2]), x, np.array([2, 2, 0, -1, -1]))
    assert found.accuracy == pytest.approx(2 / 3) and found.train == 4 and found.test == 3 and found.std == 0
    alone = linear_probe_scores(x[:1], np.array([0]), x, np.zeros(5, int))
    assert alone.accuracy == 1


def test_the_same_seeds_give_the_same_result():
    draw = np.random.default_rng(3)
    train, test = blobs(draw, 120, noise=3), blobs(draw, 60, noise=3)
    runs = [linear_probe_scores(*train, *test, solver="sgd") for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0].per_seed) == 3


def test_vtab_takes_the_first_800_to_train_and_the_last_200_to_choose():
    draw = np.random.default_rng(4)
    train, test = blobs(draw, 1000, noise=1.5), blobs(draw, 100, noise=1.5)
    found = vtab_scores(*train, *test, strengths=(0.01, 1.0))
    split = np.arange(800), np.arange(800, 1000)
    alone = linear_probe_scores(*train, *test, strengths=(0.01, 1.0), split=split, seeds=(0,))
    assert found.per_seed == [alone.accuracy] * 3 and found.train == 1000 and found.validation[0] == alone.validation[0]
    more = vtab_scores(*blobs(draw, 1500), *test, seeds=(0, 1))
    assert more.train == 1000 and len(more.per_seed) == 2
    with pytest.raises(ValueError, match="got 999 labelled training rows, expected at least 1000"):
        vtab_scores(train[0][:999], train[1][:999], *test)


def test_wilson_interval():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Newcombe 1998's example of the formula
    assert wilson(0.0, 10)[0] == 0 and wilson(1.0, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(solver="adam"), "solver: got 'adam'"),
        (dict(scale="minmax"), "scale: got 'minmax'"),
        (dict(strengths=()), "at least one of each"),
        (dict(validation=1.5), "validation: got 1.5"),
    ],
)
def test_bad_options(change, message):
    x, y = blobs(np.random.default_rng(0), 20)
    with pytest.raises(ValueError, match=message):
        linear_probe_scores(x, y, x, y, **change)


def test_bad_rows():
    x, y = blobs(np.random.default_rng(0), 20)
    broken = x.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match="test_embeds: row 7 is not finite"):
        linear_probe_scores(x, y, broken, y)
    with pytest.raises(ValueError, match="test_embeds: rows have dimension 5"):
        linear_probe_scores(x, y, x[:, :5], y)


def test_the_interval_adds_both_widths_in_quadrature():
    low, high = wilson(0.5, 100)
    over_seeds = 4.302652729696142 * 0.1 / np.sqrt(3)  # Student's t for two degrees of freedom
    wanted = 0.5 - np.hypot(0.5 - low, over_seeds), 0.5 + np.hypot(high - 0.5, over_seeds)
    assert _interval(0.5, 0.1, 3, 100) == pytest.approx(wanted)


def test_a_strength_means_the_same_to_both_solvers(monkeypatch):
    """C · sum of losses + |w|²/2 is, divided by C · rows, SGD's mean loss + alpha · |w|²/2."""
    seen = []

    class Recorder(SGDClassifier):
        def fit(self, x, y):
            seen.append((self.alpha, len(y)))
            return super().fit(x, y)

    monkeypatch.setattr("kakao_models.evaluate.linear_probe.SGDClassifier", Recorder)
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((50, 3)), np.arange(50) % 2
    linear_probe_scores(x, y, x, y, solver="sgd", strengths=(0.1,), seeds=(0,))
    assert [alpha for alpha, _ in seen] == pytest.approx([1 / (0.1 * rows) for _, rows in seen])
    assert [rows for _, rows in seen] == [40, 50]
