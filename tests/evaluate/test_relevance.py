import numpy as np
import pytest

pytest.importorskip("sklearn", reason="calibrations need scikit-learn: pip install 'kakao-models[evaluate]'")

from kakao_models.evaluate.relevance import (  # noqa: E402
    KNOTS,
    Pairs,
    captioned_pairs,
    fit_relevance,
    labelled_pairs,
    measure_relevance,
    nonsense,
    thresholds,
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


def test_thresholds_hold_on_other_pairs():
    relevance = fit_relevance(*drawn(0)[:2])
    levels = thresholds(relevance, *drawn(1)[:2])
    cosines, fits, _ = drawn(2)
    predicted = relevance(cosines)
    for coverage in (80, 90, 95):
        assert (predicted[fits] >= levels[f"coverage_{coverage}"]).mean() == pytest.approx(coverage / 100, abs=0.02)
    assert fits[predicted >= levels["precision_50"]].mean() > 0.5
    assert fits[predicted >= levels["precision_70"]].mean() > 0.7


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
