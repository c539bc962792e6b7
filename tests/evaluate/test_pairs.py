import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from kakao_models import Embedder
from kakao_models.evaluate import pair_scores, read_pairs

UNIT = np.eye(4)
CAPTIONS = ["a small cat", "the dog and a tree", "big red house", "sea", "a bird on the car", "the cat in the house"]


def test_scores_of_two_images_and_two_captions():
    images = np.stack([UNIT[[0, 1]]] * 4)
    texts = np.array([
        [[2, 1, 0, 0], [1, 2, 0, 0]],  # all right
        [[2, 1, 0, 0], [3, 1, 0, 0]],  # caption 1 is nearer to image 0
        [[1, 0, 0, 0], [1, 1, 0, 0]],  # image 1 is nearer to caption 1, caption 1 to both
        [[1, 1, 0, 0], [1, 1, 0, 0]],  # all alike: wrong
    ], float)  # fmt: skip
    found = pair_scores(images, texts)
    assert found.text_right.tolist() == [True, False, True, False]
    assert found.image_right.tolist() == [True, False, False, False]
    assert found.metrics() == {"text_score": 0.5, "image_score": 0.25, "group_score": 0.25} and found.sets == 4


def test_scores_are_those_of_the_definition():
    draw = np.random.default_rng(0)
    for images, texts in ((2, 2), (3, 3), (1, 2), (1, 5), (2, 1), (4, 1)):
        x, y = draw.standard_normal((60, images, 3)), draw.standard_normal((60, texts, 3))
        x, y = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (x, y))
        s = x @ y.transpose(0, 2, 1)
        wanted = {}
        if texts > 1:
            text = [all(row[i, i] > row[i, j] for i in range(images) for j in range(texts) if i != j) for row in s]
            wanted["text_score"] = np.mean(text)
        if images > 1:
            image = [all(row[j, j] > row[i, j] for j in range(texts) for i in range(images) if i != j) for row in s]
            wanted["image_score"] = np.mean(image)
        if min(images, texts) > 1:
            wanted["group_score"] = np.mean(np.logical_and(text, image))
        assert pair_scores(x, y).metrics() == wanted


@pytest.mark.parametrize(
    "images, texts, message",
    [
        ((3, 2, 4), (3, 3, 4), "got 2 images and 3 captions per set"),
        ((3, 1, 4), (3, 1, 4), "got 1 images and 1 captions per set"),
        ((3, 2, 4), (2, 2, 4), "expected \\(sets, images, D\\)"),
        ((3, 4), (3, 4), "expected \\(sets, images, D\\)"),
    ],
)
def test_wrong_shapes(images, texts, message):
    with pytest.raises(ValueError, match=message):
        pair_scores(np.ones(images), np.ones(texts))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [path.read_bytes() for path in tiny.picture_folder(folder, 4)], folder


def table(path, **columns) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def tables(folder, pictures) -> dict[str, tuple[str, dict]]:
    """Each published layout: where it is, and arguments of `read_pairs`."""
    images, place = pictures
    files = sorted(path.name for path in place.iterdir())
    crepe = zip(files[:2], CAPTIONS, CAPTIONS[2:])
    (folder / "crepe.json").write_text(json.dumps({
        str(n): {"filename": name, "caption": a, "negative_caption": b} for n, (name, a, b) in enumerate(crepe)
    }))  # fmt: skip
    with open(folder / "mmvp.csv", "w", newline="") as file:
        rows = [[str(place / name), "left" if i < 2 else "right", CAPTIONS[i]] for i, name in enumerate(files)]
        csv.writer(file).writerows([["image", "Type", "Statement"], *rows])
    mmvp = dict(image_columns=["image"], caption_columns=["Statement"], group_column="Type")
    structs = [{"bytes": image, "path": None} for image in images]
    order = {f"hard_text_{n}": [CAPTIONS[n], CAPTIONS[n + 1]] for n in range(1, 5)}
    return {
        "winoground": (
            table(folder / "w.parquet", image_0=structs[:2], caption_0=CAPTIONS[:2], image_1=structs[2:],
                  caption_1=CAPTIONS[2:4]), {},
        ),
        "sugarcrepe": (str(folder / "crepe.json"), {"images": place}),
        "aro": (table(folder / "a.parquet", image=images[:2], true_caption=CAPTIONS[:2], false_caption=CAPTIONS[2:4]), {}),
        "aro-order": (
            table(folder / "o.parquet", images=[[one] for one in structs[:2]], correct_caption=CAPTIONS[:2], **order), {},
        ),
        "mmvp": (str(folder / "mmvp.csv"), mmvp),
        "other": (
            table(folder / "x.parquet", left=images[:2], right=images[2:], a=CAPTIONS[:2]),
            dict(image_columns=["left", "right"], caption_columns=["a"]),
        ),
    }  # fmt: skip


def test_every_published_layout_is_read(tmp_path, pictures):
    images = pictures[0]
    shapes = {
        "winoground": (2, 2),
        "sugarcrepe": (1, 2),
        "aro": (1, 2),
        "aro-order": (1, 5),
        "mmvp": (2, 2),
        "other": (2, 1),
    }
    for name, (source, options) in tables(tmp_path, pictures).items():
        found = read_pairs(source, **options)
        assert (len(found.images), len(found.captions)) == shapes[name] and len(found) == 2, name
        for column, expected in zip(found.images, ([0, 2], [1, 3]) if name == "mmvp" else ([0, 1], [2, 3])):
            read = [one.read_bytes() if hasattr(one, "read_bytes") else one for one in column]
            assert [images.index(one) for one in read] == expected, name
        assert found.captions[0] == (CAPTIONS[:3:2] if name == "mmvp" else CAPTIONS[:2])
        assert found.groups == (["left", "right"] if name == "mmvp" else None)


def test_columns_that_do_not_go_together(tmp_path, pictures):
    images = pictures[0]
    odd = table(tmp_path / "odd.parquet", image=images[:3], caption=CAPTIONS[:3], other=["x", "", "y"])
    for options, message in (
        ({}, "no column .*image_0.*--image-columns and --caption-columns"),
        ({"image_columns": ["image"]}, "name the columns of both"),
        ({"image_columns": ["image"], "caption_columns": ["caption"]}, "got 3 rows, expected an even number"),
        (
            {"image_columns": ["image"], "caption_columns": ["other", "caption"]},
            "row 1 has 0 captions in the column 'other'",
        ),
        (
            {"image_columns": ["image"] * 2, "caption_columns": ["caption"] * 3},
            "got 2 columns of images and 3 of captions",
        ),
        (
            {"image_columns": ["image"] * 2, "caption_columns": ["caption"] * 2, "group_column": "tag"},
            "no column 'tag'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read_pairs(odd, **options)


def test_the_command_measures_what_the_embeddings_say(command, align, tmp_path, pictures):
    source, _ = tables(tmp_path, pictures)["winoground"]
    code, out, err = command("evaluate", "pairs", "-d", source, "-m", align, "--no-cache", "--json")
    assert code == 0, err
    found, embedder = json.loads(out), Embedder(align)
    images = embedder.images(pictures[0]).reshape(2, 2, -1).transpose(1, 0, 2)
    texts = embedder.texts(CAPTIONS[:4]).reshape(2, 2, -1).transpose(1, 0, 2)
    assert found["metrics"] == pair_scores(images, texts).metrics() and found["task"] == "pairs"
    assert found["counts"] == {"sets": 2, "images": 2, "captions": 2}
    source, options = tables(tmp_path, pictures)["mmvp"]
    named = ("--image-columns", "image", "--caption-columns", "Statement", "--group-column", "Type")
    code, out, err = command("evaluate", "pairs", "-d", source, "-m", align, "--no-cache", "--json", *named)
    groups = json.loads(out)["details"]["groups"]
    assert code == 0 and list(groups) == ["left", "right"] and groups["left"]["sets"] == 1
    mean = np.mean([group["text_score"] for group in groups.values()])
    assert mean == json.loads(out)["metrics"]["text_score"]
