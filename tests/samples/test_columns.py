"""Which column holds what."""

import math
from pathlib import Path

import numpy as np
import pytest

from kakao_models.samples.columns import Columns, as_sample, captions_of, class_names, image_of, labels_of
from kakao_models.samples.paths import is_hub, matches, one_suffix, suffix_of


@pytest.mark.parametrize(
    "names, image, caption, label",
    [
        (["image_path", "caption", "label"], "image_path", "caption", "label"),
        (["URL", "TEXT", "NSFW"], "URL", "TEXT", None),
        (["url", "Image", "text", "caption"], "Image", "caption", None),
        (["Jpg", "txt", "cls"], "Jpg", "txt", "cls"),
        (["image", "Image", "class_name"], "image", None, "class_name"),
        (["tif", "json", "sentences", "label", "label_name"], "tif", "sentences", "label"),
    ],
)
def test_the_usual_names(names, image, caption, label):
    fields = Columns().find(names)
    assert (fields.image, fields.caption, fields.label) == (image, caption, label)


def test_chosen_and_needed_columns():
    assert Columns(image="Foto").find(["foto", "image"]).image == "foto"
    assert Columns(prefer=("url",)).find(["image", "URL"]).image == "URL"
    with pytest.raises(
        ValueError, match=r"t: no column 'x'; its columns are image, a: name the column with --label-column"
    ):
        Columns(label="x").find(["image", "a"], source="t")
    with pytest.raises(
        ValueError, match=r"t: no column of captions; its columns are image: .* \(in a recipe, columns.caption\)"
    ):
        Columns().find(["image"], ["caption"], "t")
    with pytest.raises(ValueError, match="columns 'IMAGE' and 'Image' differ only in case"):
        Columns().find(["IMAGE", "Image"])


def test_values_of_all_kinds():
    assert captions_of(["a", b"\xef\xbb\xbfb ", None, "", {"raw": "c", "tokens": ["c"]}]) == ("a", "b", "c")
    assert captions_of('["a", "b"]') == ("a", "b") and captions_of("[a]") == ("[a]",) and captions_of(math.nan) == ()
    with pytest.raises(ValueError, match="not UTF-8"):
        captions_of(b"caf\xe9")
    assert labels_of([1, 2.0, True, "x", np.int64(3), None, -1]) == (1, 2, 1, "x", 3) and labels_of("[3, 4]") == (3, 4)
    for wrong in (0.5, 2**63, math.inf, {"a": 1}):
        with pytest.raises(ValueError, match="label"):
            labels_of(wrong)
    assert class_names(["b", "a", "b"]) == ["a", "b"] and class_names(["10", "2"]) == ["2", "10"]


def test_images_are_relative_to_the_table():
    assert image_of({"file_name": "a/b.png"}, Path("t")) == Path("t/a/b.png")
    assert image_of({"url": "http://x/y"}, Path("t")) == "http://x/y" and image_of({"image": None}) is None
    assert image_of({"img": {"bytes": None, "path": "c.png"}}, Path("t")) == Path("t/c.png")
    assert image_of({"image": {"bytes": b"x", "path": "c.png"}}) == b"x"
    with pytest.raises(ValueError, match="the image has type int"):
        as_sample({"image": 3}, "row 0")


def test_kinds_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert suffix_of("A.CSV") == suffix_of("a.csv.gz") == ".csv" and suffix_of("a.tar.gz") == ".tar.gz"
    for packed in ("a.tar.gz", "a.tgz", "a.zip"):
        with pytest.raises(ValueError, match=r"got files of \..*Unpack them first"):
            one_suffix([packed], "source", [".tar"])
    assert suffix_of("train.tfrecord-00001-of-00128") == ".tfrecord"
    assert is_hub("owner/name") and not is_hub("a/b.parquet") and not is_hub("a/*") and not is_hub("gone/")
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).touch()
    assert matches("{0..1}.tar") == matches("*.tar") == ["0.tar", "1.tar"]
    with pytest.raises(FileNotFoundError, match="no such file: 2.tar"):
        matches("{0..2}.tar")
