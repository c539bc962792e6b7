"""Compositionality: which of several captions, differing in few words, describes an image, and the reverse.

Two images and two captions, as in Winoground (Thrush et al. 2022, arXiv:2204.03162) and MMVP (Tong et al. 2024,
arXiv:2401.06209); one image and several captions, as in SugarCrepe (Hsieh et al. 2023, arXiv:2306.14610) and ARO (Yuksekgonul
et al. 2023, arXiv:2210.01936); or one caption and several images.

Axes: N sets  I images of a set  C captions of a set  D width
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kakao_models.samples.columns import Columns
from kakao_models.samples.sources import open_source

from .datasets import Images, name_of
from .tiles import check_rows, pair_similarities, unit_rows

# Columns of images and of captions in published data sets. The right answer is the one of the same place, or the first.
LAYOUTS = (
    (("image_0", "image_1"), ("caption_0", "caption_1")),  # Winoground
    (("image_1", "image_2"), ("caption_1", "caption_2")),
    *(((image,), ("caption", "negative_caption")) for image in ("image", "images", "filename")),  # SugarCrepe
    (("image",), ("true_caption", "false_caption")),  # ARO: attributes and relations
    (("images",), ("correct_caption", *(f"hard_text_{n}" for n in range(1, 5)))),  # ARO: order of words
    (("correct_image", *(f"false_image_{n}" for n in range(1, 10))), ("text",)),  # ImageCoDe
)


@dataclass(frozen=True)
class Pairs:
    """Sets of images and captions: the caption `captions[i][n]` belongs to the image `images[i][n]`. Of a set with one image or
    one caption, the first of the others belongs to it, and the rest is wrong."""

    name: str
    images: list[Images]  # I, of N images each
    captions: list[list[str]]  # C, of N captions each
    groups: list[str] | None = None  # (N,) what kind of set each one is

    def __len__(self) -> int:
        return len(self.captions[0])


@dataclass(frozen=True)
class PairScores:
    """Shares of sets in 0..1, None where the sets have only one caption (text) or image (image).

    `text_score`: every image is more similar to its own caption than to the others. `image_score`: every caption is more
    similar to its own image than to the others. `group_score`: both. Equal similarities are wrong.
    """

    text_score: float | None
    image_score: float | None
    group_score: float | None
    sets: int
    text_right: np.ndarray  # (N,) bool
    image_right: np.ndarray  # (N,) bool

    def metrics(self) -> dict[str, float]:
        names = ("text_score", "image_score", "group_score")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def read_pairs(
    source: str | os.PathLike,
    *,
    split: str | None = None,
    image_columns: Sequence[str] | None = None,
    caption_columns: Sequence[str] | None = None,
    group_column: str | None = None,
    images: str | os.PathLike | None = None,
) -> Pairs:
    """Sets of images and captions from a table, or from a data set of the Hub.

    Args:
        source: anything that `open_source` takes.
        image_columns, caption_columns: columns in which images and captions of a set lie, in the same order; by default
            those of Winoground, SugarCrepe, ARO and ImageCoDe are recognised. With one column of each, two rows one after the
            other are a set, as in MMVP.
        group_column: column that says what kind a set is.
        images: the folder of the images that a .json names.

    Raises:
        ValueError: no such columns, a number of images and captions that do not go together, an empty caption.
    """
    if (image_columns is None) != (caption_columns is None):
        raise ValueError("pairs: name the columns of both images and captions, or of neither")
    options: dict[str, Any] = {"split": split, "default_split": "test", "merge": False, "images": images}
    if image_columns is None or caption_columns is None:
        image_columns, caption_columns = _layout(source, options)
    counts = len(image_columns), len(caption_columns)
    if min(counts) > 1 and counts[0] != counts[1] or not all(counts):
        raise ValueError(
            f"{source}: got {counts[0]} columns of images and {counts[1]} of captions, expected the same number of each, or a single one of either"
        )
    keep = (group_column,) if group_column else ()
    pictures, texts, groups = [], [], None
    for column in image_columns:
        pictures.append(Images(open_source(source, Columns(image=column), **options)))
    for column in caption_columns:
        texts.append([])
        groups = []
        opened = open_source(source, Columns(caption=column), ("caption",), keep=keep, **options)
        for row, sample in enumerate(opened.scan()):
            if len(sample.captions) != 1:
                raise ValueError(
                    f"{source}: row {row} has {len(sample.captions)} captions in the column {column!r}, expected one"
                )
            if group_column and group_column not in sample.record:
                raise ValueError(
                    f"{source}: row {row} has no column {group_column!r}; choose another one with --group-column"
                )
            texts[-1].append(sample.captions[0])
            groups.append(str(sample.record[group_column]) if group_column else "")
    if counts == (1, 1):
        if len(texts[0]) % 2:
            raise ValueError(
                f"{source}: got {len(texts[0])} rows, expected an even number: with one column of images and one of captions, "
                "each pair of consecutive rows is a set"
            )
        pictures = [pictures[0].take(range(first, len(texts[0]), 2)) for first in (0, 1)]
        texts, groups = [texts[0][0::2], texts[0][1::2]], (groups or [])[0::2]
    return Pairs(name_of(source), pictures, texts, groups if group_column else None)


def _layout(source: str | os.PathLike, options: dict[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """The first of `LAYOUTS` whose columns are all there."""
    problem = None
    for images, captions in LAYOUTS:
        try:
            for image in images:
                open_source(source, Columns(image=image), **options)
            for caption in captions:
                open_source(source, Columns(caption=caption), ("caption",), **options)
        except ValueError as error:
            problem = problem or error
            continue
        return images, captions
    known = "; ".join(f"{', '.join(images)} with {', '.join(captions)}" for images, captions in LAYOUTS[:3])
    raise ValueError(
        f"{problem}. Name the columns with --image-columns and --caption-columns. Recognised names include {known}"
    )


def pair_scores(image_embeds: np.ndarray, text_embeds: np.ndarray) -> PairScores:
    """Text, image and group score of sets of images and captions.

    Args:
        image_embeds: (N, I, D).
        text_embeds: (N, C, D); the caption of image i is at the same place. I and C are equal, or one of them is 1: then the
            first of the others is right.

    Raises:
        ValueError: wrong shapes, a row that is not finite or all zeros.
    """
    image_embeds, text_embeds = np.asarray(image_embeds), np.asarray(text_embeds)
    shapes = image_embeds.shape, text_embeds.shape
    if image_embeds.ndim != 3 or text_embeds.ndim != 3 or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(
            f"got images {shapes[0]} and texts {shapes[1]}, expected (sets, images, D) and (sets, texts, D)"
        )
    (sets, images, width), texts = shapes[0], shapes[1][1]
    if min(images, texts) != 1 and images != texts or images == texts == 1:
        raise ValueError(
            f"got {images} images and {texts} captions per set, expected the same number of each, or a single one of either"
        )
    rows = unit_rows("image_embeds", check_rows("image_embeds", image_embeds.reshape(-1, width)))
    columns = unit_rows("text_embeds", check_rows("text_embeds", text_embeds.reshape(-1, width)))
    first, i, j = np.indices((sets, images, texts)).reshape(3, -1)
    similarity = pair_similarities(rows, columns, first * images + i, first * texts + j).reshape(sets, images, texts)
    text_right = _first_is_best(similarity)
    image_right = _first_is_best(similarity.transpose(0, 2, 1))
    return PairScores(
        text_score=float(text_right.mean()) if texts > 1 else None,
        image_score=float(image_right.mean()) if images > 1 else None,
        group_score=float((text_right & image_right).mean()) if min(images, texts) > 1 else None,
        sets=sets,
        text_right=text_right,
        image_right=image_right,
    )


def _first_is_best(similarity: np.ndarray) -> np.ndarray:
    """Whether each query of a set (N, Q, A) is nearer to its own answer, the one at its place, than to every other (N,)."""
    sets, queries, answers = similarity.shape
    own = np.eye(queries, answers, dtype=bool)
    if queries > answers:  # several wrong queries to one answer: nothing to choose
        return np.ones(sets, bool)
    right = similarity[:, own][:, :, None]  # (N, Q, 1)
    return ((similarity < right) | own).all((1, 2))
