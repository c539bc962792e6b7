import numpy as np
import pytest

pytest.importorskip("sklearn", reason="calibrations need scikit-learn: pip install 'kakao-models[evaluate]'")

from kakao_models.evaluate.relevance import (  # noqa: E402
    KNOTS,
    Pairs,
    captioned_pairs,
    fit_relevance,
    guarantees,
    held,
    labelled_pairs,
    measure_relevance,
    nonsense,
)


def drawn(seed: int, count: int = 60_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines, whether they fit, and the probability of that: 1 / (1 + exp(4 - 20 cos))."""
    draw = np.random.default_rng(seed)
    cosines = draw.normal(0.05, 0.1, count).clip(-1, 1)
    probabilities = 1 / (1 + np.exp(4 - 20 * cosines))
    return cosines, draw.random(count) < probabilities, probabilities


def test_a_known_probability_is_found_and_holds_on_other_pairs():
    relevance = fit_relevance(*drawn(0)[:2])
    assert 2 < len(relevance.cosines) <= KNOTS
    cosines, fits, probabilities = drawn(1)
    assert np.abs(relevance(cosines) - probabilities).mean() < 0.01
    scores = measure_relevance(relevance, cosines.reshape(60, -1), fits.reshape(60, -1), temperature=0.05)
    assert scores["ece"] < 0.01 and scores["right_at_50"] == pytest.approx(scores["predicted_at_50"], abs=0.05)
    assert 0.5 < scores["none_auroc_softmax"] < scores["none_auroc"] < 1


def test_cosines_that_are_all_equal_give_their_share():
    fits = np.arange(1000) % 4 == 0
    assert fit_relevance(np.full(1000, 0.3), fits)(np.array([0.0, 0.3])).tolist() == pytest.approx(
        [0.25, 0.25], abs=0.05
    )


@pytest.mark.parametrize("fitting", [0, 10, 1000])
def test_too_few_pairs_to_fit(fitting):
    with pytest.raises(ValueError, match=f"{fitting:,} of 1,000 pairs .* give more photographs"):
        fit_relevance(np.linspace(0, 1, 1000), np.arange(1000) < fitting)


def population(draw: np.random.Generator, words: int, photographs: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and what fits (W, N). Words and photographs each have an influence, and the cosines of rare words are lower."""
    share = np.exp(draw.uniform(-3.5, -0.7, (words, 1)))
    fits = draw.random((words, photographs)) < share
    of_word = 0.04 * np.log(share) + 0.03 * draw.standard_normal((words, 1))
    of_photograph = 0.03 * draw.standard_normal((1, photographs))
    noise = 0.05 * draw.standard_normal(fits.shape)
    return (0.2 + 0.25 * fits + of_word + of_photograph + noise).clip(-1, 1), fits


def test_guarantees_hold_for_words_and_photographs_that_were_drawn_alike():
    draw = np.random.default_rng(0)
    everyone = population(draw, 300, 150)
    covered, precise, pooled = [], [], []
    for _ in range(60):
        cosines, fits = population(draw, 50, 60)
        found = guarantees(cosines, fits)
        assert "0.99" not in found["coverage"]  # 50 words can't promise as much
        unseen = population(draw, 50, 60)
        kept = held({"coverage": {level: found["coverage"][level] for level in ("0.7", "0.9")}}, *unseen)
        covered.append(list(kept["coverage"].values()))
        some = {level: least for level, least in found["precision"].items() if level in ("0.3", "0.5", "0.7")}
        precise.append(held({"precision": some}, *everyone)["precision"])
        pooled.append(held({"coverage": {"0.9": np.quantile(cosines[fits], 0.1)}}, *unseen)["coverage"]["0.9"])
    for level, share in zip((0.7, 0.9), np.mean(covered, 0)):
        assert level - 0.01 < share < level + 0.03
    assert np.mean(pooled) < 0.87  # frequent words would hide the others
    for level in ("0.3", "0.5", "0.7"):
        reached = [kept[level] for kept in precise if level in kept]
        assert len(reached) > 20 and np.mean(np.array(reached) < float(level)) <= 0.05


def test_what_no_cosine_reaches_is_not_guaranteed():
    draw = np.random.default_rng(0)
    cosines, fits = draw.uniform(0, 0.3, (60, 80)), draw.random((60, 80)) < 0.2
    assert "0.1" in guarantees(cosines, fits)["precision"] and "0.3" not in guarantees(cosines, fits)["precision"]
    assert guarantees(cosines, np.zeros_like(fits)) == {"coverage": {}, "precision": {}}
    assert guarantees(cosines[:20], fits[:20])["precision"] == {}  # too few words


def test_the_last_word_counts_as_the_lowest():
    cosines = np.array([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7], [0.4, 0.8]])
    fits = np.array([[True, False]] * 3 + [[True, True]])
    found = guarantees(cosines, fits)["coverage"]  # weights of 1/5 from 0.3 down, and 1/10 of 0.8 and 0.4
    assert found == {"0.5": 0.2, "0.6": 0.2, "0.7": 0.1, "0.8": 0.1}
    assert held({"coverage": {"0.5": 0.25}}, cosines, fits) == {"coverage": {"0.5": 0.5}}
    assert held({"precision": {"0.5": 0.75, "0.9": 0.9}}, cosines, fits) == {"precision": {"0.5": 1.0}}


def test_words_are_the_nouns_of_captions_and_fit_where_one_has_them():
    captions = [
        ["A dog runs in the snow."],
        ["two dogs and a cat", "Snow."],
        ["the cat sleeps on a bed"],
        ["a bed in the back"],
    ] * 6
    pairs = captioned_pairs(captions)
    assert pairs.words == ["bed", "cat", "dog", "snow"]
    assert dict(zip(pairs.words, pairs.fits))["dog"].tolist() == [True, True, False, False] * 6
    listed = captioned_pairs([["개 한 마리"], ["고양이"]] * 6, ["개", "고양이", "소"])
    assert listed.words == ["개", "고양이"] and listed.fits[0].tolist() == [True, False] * 6
    with pytest.raises(ValueError, match="give more photographs"):
        captioned_pairs([["a dog"], ["a cat"]])


def test_halves_share_no_word_and_no_photograph():
    pairs = Pairs([str(n) for n in range(9)], np.zeros((9, 30), bool))
    first, second = pairs.halves(3)
    for one, other, count in zip(first, second, (9, 30)):
        assert sorted([*one, *other]) == list(range(count))
    assert all(map(np.array_equal, first, pairs.halves(3)[0]))
    assert not np.array_equal(first[1], pairs.halves(4)[0][1])


def test_class_names_fit_their_class():
    assert labelled_pairs(np.array([1, 0, 1]), ["cat", "dog"]).fits.tolist() == [
        [False, True, False],
        [True, False, True],
    ]


def test_nonsense_is_the_same_each_time():
    assert nonsense() == nonsense() and len(set(nonsense())) == 100
