"""Preprocessing in words: every step that is done is named, in order, and no other."""

import pytest

from kakao_models.align.preprocessing import AlignPreprocessing
from kakao_models.vit.preprocessing import ViTPreprocessing


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        (
            AlignPreprocessing(preprocessing="tf"),
            "resize to 346 x 346 (bilinear, tf.image.resize without antialiasing), crop the central 289 x 289, "
            "times 1/127.5 minus 1",
        ),
        (
            AlignPreprocessing.of({"size": 289, "image_mean": 0, "image_std": 1}),  # transformers' defaults
            "resize to 289 x 289 (bicubic, PIL, antialiased), times 1/255, mean 0, std 1, divide by std 1",
        ),
        (
            ViTPreprocessing(size={"shortest_edge": 256}, do_center_crop=True, crop_size=224, do_normalize=False),
            "resize to a shorter side of 256 (bilinear, PIL, antialiased), crop the central 224 x 224, times 1/255",
        ),
        (ViTPreprocessing(do_resize=False, do_rescale=False, do_normalize=False), "no resizing"),
    ],
)
def test_every_step_is_named(preprocessing, words):
    assert preprocessing.in_words() == words
    assert words.startswith(preprocessing.resizing())
