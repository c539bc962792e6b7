import brute
import numpy as np
import pytest

from kakao_models.evaluate import first_ranks, fold_scores, retrieval_scores
from kakao_models.evaluate.intervals import bootstrap, wilson
from kakao_models.evaluate.retrieval import recall_intervals
from kakao_models.evaluate.tiles import margin, tiles

SMALL = 2**20


def test_scores_of_the_original_program(metrics_align):
    facts, embeddings = metrics_align
    for case in facts["retrieval"]:
        images = embeddings("retrieval/images", case["images"], case["width"])
        ids = 1000 + 7 * np.arange(case["images"] - 1, -1, -1)
        count = case["images"] * case["captions"]
        owner = np.arange(count) // case["captions"]
        noise = np.float32(case["noise"]) * embeddings("retrieval/texts", count, case["width"])
        metrics = retrieval_scores(images, images[owner] + noise, ids, ids[owner]).metrics()
        for way, original in (("image_to_text", "I2T"), ("text_to_image", "T2I")):
            assert {f"R@{k}": f"{100 * metrics[f'{way}_r{k}']:.3f}" for k in (1, 5, 10)} == case["scores"][original]


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_brute_force_with_ties_and_copies(seed):
    draw = np.random.default_rng(seed)
    for _ in range(250):
        count, width = draw.integers(1, 14), draw.integers(1, 6)
        images = brute.rows(draw, count, width)
        owner = np.concatenate([np.arange(count), draw.integers(0, count, draw.integers(0, 30))])
        draw.shuffle(owner)
        texts = brute.rows(draw, len(owner), width, copies=images)
        names = [f"photo {i}" for i in draw.permutation(count)]
        found = retrieval_scores(images, texts, names, [names[i] for i in owner])
        similarity = brute.similarities(images, texts)
        to_text = [1 + min(np.flatnonzero(owner[row] == i)) for i, row in enumerate(brute.order(similarity))]
        to_image = [1 + list(row).index(owner[j]) for j, row in enumerate(brute.order(similarity.T))]
        assert found.image_to_text.ranks.tolist() == to_text
        assert found.text_to_image.ranks.tolist() == to_image
        assert found.image_to_text.recall[5] == np.mean(np.array(to_text) <= 5)
        assert found.text_to_image.mean_rank == np.mean(to_image)
        assert found.text_to_image.median_rank == np.median(to_image)


def test_several_images_of_one_id_and_left_out_targets():
    draw = np.random.default_rng(1)
    for _ in range(250):
        items = brute.rows(draw, draw.integers(2, 15), draw.integers(1, 5))
        pairs = {(i, int(draw.integers(0, len(items)))) for i in range(len(items)) for _ in range(3)}
        pairs = {(i, j) for i, j in pairs if i != j} | {(i, (i + 1) % len(items)) for i in range(len(items))}
        rows, columns = np.array(sorted(pairs)).T
        found = first_ranks(items, items, rows, columns, without=np.arange(len(items)))
        for i, row in enumerate(brute.order(brute.similarities(items, items))):
            others = [j for j in row if j != i]
            assert found[i] == 1 + min(others.index(j) for a, j in pairs if a == i)


def test_known_answers():
    """Image i points along axis i; of its two captions one points there too, the other at the next image."""
    images = np.eye(6)
    texts = np.concatenate([np.eye(6), np.roll(np.eye(6), 1, axis=1)])
    found = retrieval_scores(images, texts, range(6), [*range(6), *range(6)])
    # image i: captions i and 6 + (i - 1) % 6 are equally near; the first has the smaller number
    assert found.image_to_text.ranks.tolist() == [1] * 6
    # a caption of the second half is at its own image's place only among the far ones, all equal, in order
    near = [(i + 1) % 6 for i in range(6)]
    assert found.text_to_image.ranks.tolist() == [1] * 6 + [1 + i + (near[i] > i) for i in range(6)]
    assert found.metrics()["text_to_image_r1"] == 0.5


def test_neither_memory_nor_the_order_of_images_changes_anything():
    draw = np.random.default_rng(5)
    images = draw.standard_normal((700, 24)).astype(np.float32)
    owner = np.repeat(np.arange(700), 3)
    texts = images[owner] + 2 * draw.standard_normal((2100, 24)).astype(np.float32)
    texts[::50] = texts[0]  # copies
    whole = retrieval_scores(images, texts, np.arange(700), owner)
    parts = retrieval_scores(images, texts, np.arange(700), owner, max_memory=SMALL)
    assert len(list(tiles(images, texts, SMALL))) > 4
    for way in ("image_to_text", "text_to_image"):
        assert np.array_equal(getattr(whole, way).ranks, getattr(parts, way).ranks)
    order = draw.permutation(700)  # no image is a copy, so no tie depends on their order
    moved = retrieval_scores(images[order], texts, order, owner)
    assert np.array_equal(moved.image_to_text.ranks, whole.image_to_text.ranks[order])
    assert np.array_equal(moved.text_to_image.ranks, whole.text_to_image.ranks)
    doubled = retrieval_scores(images * 3e20, texts.astype(np.float64) * 1e-30, np.arange(700), owner)
    assert abs(doubled.text_to_image.mean_rank - whole.text_to_image.mean_rank) < 1


def test_products_stay_within_the_margin():
    draw = np.random.default_rng(0)
    for width in (1, 3, 64, 640):
        rows = np.abs(draw.standard_normal((200, width)))  # no cancelling: the largest errors
        tile = next(tiles(rows, rows))
        gap = np.abs(tile.product.astype(np.float64) - brute.similarities(rows, rows))
        assert gap.max() <= margin(width)


def test_embeddings_that_are_all_alike():
    rows = np.ones((40, 8))
    found = retrieval_scores(rows, rows, np.arange(40), np.arange(40))
    assert found.image_to_text.ranks.tolist() == list(range(1, 41))  # all tie: the first of them comes first


def test_folds_are_consecutive_and_their_captions_alone():
    draw = np.random.default_rng(2)
    images = draw.standard_normal((25, 6))
    owner = draw.permutation(np.repeat(np.arange(25), 2))
    texts = images[owner] + draw.standard_normal((50, 6))
    mean, parts = fold_scores(images, texts, np.arange(25), owner, size=10)
    assert len(parts) == 2 and parts[0].image_to_text.targets == 20
    for number, part in enumerate(parts):
        kept = np.arange(10 * number, 10 * number + 10)
        few = np.flatnonzero(np.isin(owner, kept))
        alone = retrieval_scores(images[kept], texts[few], kept, owner[few])
        assert alone.metrics() == part.metrics()
    assert mean["image_to_text_r1"] == np.mean([part.image_to_text.recall[1] for part in parts])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i, t, a, b: (i, t[:, :3], a, b), "text_embeds: rows have dimension 3"),
        (lambda i, t, a, b: (i * [[np.nan], [1], [1]], t, a, b), "row 0 is not finite"),
        (lambda i, t, a, b: (i * [[1], [1], [0]], t, a, b), "row 2 is all zeros"),
        (lambda i, t, a, b: (i, t, a, [0, 0, 1]), "image 2 .* has no caption"),
        (lambda i, t, a, b: (i[:2], t, a[:2], b), "text 2 belongs to image 2, which is not among"),
        (lambda i, t, a, b: (i, t, a[:2], b), "image_ids: got 2 for 3 rows"),
        (lambda i, t, a, b: (i[:0], t, a, b), "expected \\(rows, dimension\\)"),
    ],
)
def test_bad_input(change, message):
    images = np.random.default_rng(0).standard_normal((3, 4))
    with pytest.raises(ValueError, match=message):
        retrieval_scores(*change(images, images.copy(), [0, 1, 2], [0, 1, 2]))


def test_bad_k_and_size():
    rows = np.eye(3)
    with pytest.raises(ValueError, match="at: got \\[0\\]"):
        retrieval_scores(rows, rows, range(3), range(3), at=(0,))
    for size in (0, -1):
        with pytest.raises(ValueError, match="expected at least 1"):
            fold_scores(rows, rows, range(3), range(3), size=size)


def test_intervals_of_shares_of_images_with_their_captions(monkeypatch):
    hits = np.arange(400) % 4 == 0
    [(low, high)] = bootstrap([hits], np.arange(400))
    assert (low, high) == pytest.approx(wilson(0.25, 400), abs=0.01)  # rows alone: as the formula says
    [(low, high)] = bootstrap([np.repeat(hits, 5)], np.repeat(np.arange(400), 5))
    assert (low, high) == pytest.approx(wilson(0.25, 400), abs=0.01)  # five captions of an image say no more than one
    monkeypatch.setattr("kakao_models.evaluate.intervals._AT_ONCE", 400 * 300)
    assert bootstrap([hits], np.arange(400)) == [pytest.approx((low, high), abs=0.01)]
    images, texts = np.eye(4), np.roll(np.eye(4), 1, axis=0)[:3]
    texts[0] = images[0]
    scores = retrieval_scores(images[:3], texts, list("abc"), list("abc"))
    intervals = recall_intervals(scores, list("abc"), list("abc"))
    assert set(intervals) == {name for name in scores.metrics() if "rank" not in name}
    assert all(low <= scores.metrics()[name] <= high for name, (low, high) in intervals.items())
