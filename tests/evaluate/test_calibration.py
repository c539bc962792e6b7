import numpy as np
import pytest

from kakao_models.evaluate import calibration_scores
from kakao_models.evaluate.pictures import draw_confusion, draw_reliability


def test_scores_are_those_of_a_loop_over_bins():
    draw = np.random.default_rng(0)
    for _ in range(1000):
        count, bins = draw.integers(1, 60), int(draw.integers(1, 12))
        confidences = draw.integers(0, 13, count) / 12  # many on the edges of bins
        correct = draw.random(count) < confidences
        found = calibration_scores(confidences, correct, bins=bins)
        ece, gaps = 0.0, []
        for b in range(bins):
            inside = (confidences > b / bins) & (confidences <= (b + 1) / bins)
            inside |= (confidences == 0) & (b == 0)
            assert found.counts[b] == inside.sum()
            if inside.any():
                gaps.append(abs(correct[inside].mean() - confidences[inside].mean()))
                ece += gaps[-1] * inside.mean()
        assert found.ece == pytest.approx(ece) and found.mce == pytest.approx(max(gaps))


def test_known_answers():
    sure = calibration_scores(np.ones(4), np.array([True, True, True, False]))
    assert sure.ece == sure.mce == 0.25 and sure.counts.tolist() == [0] * 14 + [4]
    assert calibration_scores(np.array([0.75] * 4), np.array([True, True, True, False])).ece == 0


@pytest.mark.parametrize(
    "confidences, correct, message",
    [
        ([0.5, np.nan], [True, False], "row 1 is nan"),
        ([1.2], [True], "row 0 is 1.2"),
        ([0.5], [True, False], "the same number of each"),
        ([], [], "at least one"),
        ([0.5], [1], "expected bool"),
    ],
)
def test_bad_input(confidences, correct, message):
    with pytest.raises(ValueError, match=message):
        calibration_scores(np.array(confidences), np.array(correct))


def test_reliability_is_drawn_as_high_as_bins_are_right():
    picture = draw_reliability(calibration_scores(np.full(10, 0.5), np.arange(10) < 2, bins=3))
    pixels = np.asarray(picture)
    middle = pixels[60:700, picture.width // 2 + 20]  # of the plot, within the one bin there is
    blue = np.flatnonzero((middle == (37, 99, 235)).all(1))
    assert abs(len(blue) / 640 - 0.2) < 0.02 and blue.max() > 620


def test_confusion_is_dark_where_images_are():
    matrix = np.array([[8, 2], [0, 10]])
    pixels = np.asarray(draw_confusion(matrix, ["cat", "dog"]).convert("L")).astype(int)
    plot = pixels[60:700, -700:-60]
    means = [[plot[r : r + 320, c : c + 320].mean() for c in (0, 320)] for r in (0, 320)]
    assert means[1][1] < means[0][0] < means[0][1] < means[1][0]
    with pytest.raises(ValueError, match="got shape \\(2, 3\\)"):
        draw_confusion(np.ones((2, 3)))


def test_a_confusion_of_a_thousand_classes_shows_every_one():
    for column in (20, 501, 979):
        matrix = np.zeros((1000, 1000), np.int64)
        matrix[500, column] = 1
        pixels = np.asarray(draw_confusion(matrix).convert("L"))[70:-70, 70:-70]
        assert (pixels < 128).any(), column
