"""Queries: the paper's arithmetic, and what can't be asked."""

import numpy as np
import pytest
import tiny

from kakao_models.search import compose_query
from kakao_models.search.query import check_weights


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def vectors(embedder):
    """Unit embeddings of "a dog", "a cat", "a tree" and of two pictures, by themselves."""
    texts = unit(embedder.texts(["a dog", "a cat", "a tree"]).astype(np.float64))
    images = unit(embedder.images([tiny.picture(1), tiny.picture(2)]).astype(np.float64))
    return (*texts, *images)


@pytest.mark.parametrize(
    "asked, weights",
    [
        (dict(text="a dog"), (1, 0, 0, 0, 0)),
        (dict(image=tiny.picture(1)), (0, 0, 0, 1, 0)),
        (dict(text="a dog", image=tiny.picture(1)), (2, 0, 0, 1, 0)),
        (dict(text="a dog", image=tiny.picture(1), minus=["a cat"]), (2, -2, 0, 1, 0)),
        (dict(image=tiny.picture(1), minus=[tiny.picture(2)], plus=["a tree"]), (0, 0, 2, 1, -1)),
        (dict(text=["a dog", "a tree"], weights={"text": 3, "image": 0.5}, image=[tiny.picture(2)]), (3, 0, 3, 0, 0.5)),
        (dict(plus="a dog", minus="a cat"), (2, -2, 0, 0, 0)),
        (dict(plus={"a dog": 1.5}, minus={"a cat": 0.25}), (3, -0.5, 0, 0, 0)),
    ],
)
def test_weighted_sum_of_unit_vectors(embedder, vectors, asked, weights):
    wanted = unit(sum(weight * vector for weight, vector in zip(weights, vectors)))
    got = compose_query(embedder, **asked)
    assert got.dtype == np.float32 and got.shape == (embedder.dim,)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert abs(np.linalg.norm(got) - 1) < 1e-6


@pytest.mark.parametrize(
    "asked, said",
    [
        ({}, "nothing to search for"),
        ({"text": "  "}, "is empty"),
        ({"text": "a dog", "minus": [""]}, "is empty"),
        ({"text": "a dog", "minus": ["a dog"]}, "cancel out"),
        ({"text": "a dog", "weights": {"sound": 1}}, "sound"),
        ({"text": "a dog", "weights": {"text": -1}}, "above 0"),
        ({"text": "a dog", "weights": {"text": float("nan")}}, "above 0"),
        ({"text": "a dog", "minus": {"a cat": 0}}, "a factor is 0, expected a number above 0"),
        ({"image": "/no/such.jpg"}, "no such file"),
        ({"image": b"no picture"}, "not an image"),
    ],
)
def test_what_can_not_be_asked(embedder, asked, said):
    with pytest.raises(ValueError, match=said):
        compose_query(embedder, **asked)


def test_ten_thousand_words_are_cut_as_every_text_is(embedder):
    words = ["a", "dog", "and"] * 3400
    np.testing.assert_array_equal(
        compose_query(embedder, " ".join(words)), compose_query(embedder, " ".join(words[:64]))
    )


def test_defaults_of_the_paper():
    assert check_weights({}) == {"text": 2.0, "image": 1.0}
