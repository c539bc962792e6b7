import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny

from kakao_models.evaluate import read_captioned, read_class_index, read_class_names, read_labelled, read_many_labels
from kakao_models.evaluate.class_names import class_places
from kakao_models.pixels.images import load_image


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed).save(file, "PNG")
    return file.getvalue()


def table(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_folders_of_classes(classes_folder, tmp_path, monkeypatch):
    found = read_labelled(classes_folder)
    assert found.keys == ["bird", "cat", "dog"] and found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [path.name for path in found.images] == found.names and found.names[5] == "cat_1.png"
    part = found.take([5, 0])
    assert part.names == ["cat_1.png", "bird_0.png"] and part.images[0].name == "cat_1.png"
    for key in ("0", "2", "10"):
        tiny.picture_folder(tmp_path / key, 1)
    assert read_labelled(tmp_path).keys == ["0", "2", "10"]
    (tmp_path / "11").mkdir()
    with pytest.raises(ValueError, match="the class '11' has no images"):
        read_labelled(tmp_path)
    with pytest.raises(ValueError, match="has no samples"):
        read_labelled(tmp_path / "11")
    with pytest.raises(OSError, match="no such file or folder"):
        read_labelled(tmp_path / "gone")

    def unreachable(*_, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr("kakao_models.samples.sources._datasets", unreachable)
    for source in ("gone/", "gone/data", "gone.parquet"):  # none is here, and the second may be a data set's name
        with pytest.raises(OSError, match="no such f"):
            read_labelled(source)


def test_parquet_of_bytes_structs_integers_and_strings(tmp_path):
    images = [encoded(seed) for seed in range(5)]
    path = table(
        tmp_path / "a.parquet", image=images, label=[1, 0, None, -1, 1], label_name=["cat", "dog", "", "", "cat"]
    )
    found = read_labelled(path)
    assert found.labels.tolist() == [1, 0, -1, -1, 1] and found.keys == ["dog", "cat"]
    assert list(found.images) == images and list(found.labelled().images) == [images[0], images[1], images[4]]
    structs = [{"bytes": image, "path": f"x/{n}.png"} for n, image in enumerate(images)]
    path = table(tmp_path / "b.parquet", img=structs, concept=["sea", "", None, "dog", "sea"])
    found = read_labelled(path, label_column="concept")
    assert found.labels.tolist() == [1, -1, -1, 0, 1] and found.keys == ["dog", "sea"]
    assert list(found.images) == images and found.names[3] == "3.png"
    (tmp_path / "parts").mkdir()
    for part in ("0", "1"):
        table(tmp_path / "parts" / f"{part}.parquet", image=images[:3], label=[0, int(part), 1])
    both = read_labelled(tmp_path / "parts")
    assert both.labels.tolist() == [0, 0, 1, 0, 1, 1] and list(both.images) == images[:3] * 2
    assert list(both.images.take([4, 0, 5])) == [images[1], images[0], images[2]]
    table(tmp_path / "parts" / "2.parquet", image=images[:1], other=[0])
    with pytest.raises(ValueError, match="2.parquet: no column of labels; its columns are image, other"):
        read_labelled(tmp_path / "parts")
    table(tmp_path / "c.parquet", image=images[:1], label=[0])
    with pytest.raises(
        ValueError, match="no column 'labl'; its columns are image, label: name the column with --label-column"
    ):
        read_labelled(tmp_path / "c.parquet", label_column="labl")
    bad = table(tmp_path / "d.parquet", image=[None, images[0]], label=[0, 1])
    with pytest.raises(ValueError, match="row 0 has no image"):
        list(read_labelled(bad).images)
    with pytest.raises(ValueError, match="label 0.5 is not a class number"):
        read_labelled(table(tmp_path / "e.parquet", image=images[:1], label=[0.5]))
    (tmp_path / "f.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="f.parquet can't be read as Parquet"):
        read_labelled(tmp_path / "f.parquet")


def test_the_hubs_description_of_labels_in_parquet(tmp_path):
    described = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}
    rows = pyarrow.table({"image": [encoded(0)], "label": [1]})
    pyarrow.parquet.write_table(
        rows.replace_schema_metadata({"huggingface": json.dumps(described)}), tmp_path / "a.parquet"
    )
    assert read_labelled(tmp_path / "a.parquet").keys == ["ant", "bee", "cat"]


def test_what_datasets_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["sea", "sky"])})
    rows = datasets.Dataset.from_dict({"image": [encoded(0), encoded(1)], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"test": rows, "train": rows}).save_to_disk(tmp_path / "saved")
    found = read_labelled(tmp_path / "saved", split="test")
    assert found.keys == ["sea", "sky"] and found.labels.tolist() == [1, 0]
    assert np.array_equal(np.asarray(load_image(found.images[1])), np.asarray(tiny.picture(1)))
    with pytest.raises(ValueError, match="no split 'val', expected one of test, train"):
        read_labelled(tmp_path / "saved", split="val")


def test_captions_of_tables(tmp_path):
    images = [encoded(seed) for seed in range(3)]
    path = table(
        tmp_path / "a.parquet", image=images, image_id=["x", "y", "z"], captions=[["a", "b"], ["c"], ["d", "e"]]
    )
    found = read_captioned(path)
    assert found.captions == list("abcde") and found.caption_images == ["x", "x", "y", "z", "z"] and len(found) == 3
    assert read_captioned(path, per_image=1).captions == ["a", "c", "d"]
    part = found.take([2])
    assert part.captions == ["d", "e"] and list(part.images) == [images[2]]
    with pytest.raises(ValueError, match="image 'y' has 1 captions, expected 2"):
        read_captioned(path, per_image=2)
    rows = table(
        tmp_path / "b.parquet", image=[images[0], images[0], images[1]], image_id=[5, 5, 6], caption=list("abc")
    )
    found = read_captioned(rows)
    assert found.image_ids == [5, 6] and list(found.images) == images[:2] and found.caption_images == [5, 5, 6]
    with pytest.raises(ValueError, match="image 0 has no captions"):
        read_captioned(table(tmp_path / "c.parquet", image=images[:1], captions=[[""][:0]]))


def test_karpathys_files(tmp_path):
    folder = tmp_path / "val2014"
    tiny.picture_folder(folder, 3)
    entries = [
        {
            "filename": f"00{n}.png",
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": f"c{n}", "sentid": 70 + n}],
        }
        for n, split in enumerate(("test", "train", "test"))
    ]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for images in (tmp_path, folder):
        found = read_captioned(file, images=images)
        assert [path.name for path in found.images] == ["000.png", "002.png"] and all(
            path.is_file() for path in found.images
        )
    assert (
        found.captions == ["c0", "c2"] and found.caption_ids == [70, 72] and found.image_ids == ["000.png", "002.png"]
    )
    with pytest.raises(ValueError, match="no images of split 'val'; its splits: test, train"):
        read_captioned(file, split="val", images=tmp_path)
    with pytest.raises(ValueError, match="name the folder of its images"):
        read_captioned(file)
    for content in ({"images": [{"file_name": "1.jpg"}], "annotations": []}, [], {"images": 5}):  # COCO's own, and none
        file.write_text(json.dumps(content))
        with pytest.raises(
            ValueError, match="dataset_coco.json: (expected a list of objects|neither COCO's captions nor Karpathy's)"
        ):
            read_captioned(file, images=tmp_path)


def test_class_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("tench\ngoldfish\nkite bird\n")
    assert read_class_names(file, ["a", "b", "c"]) == ["tench", "goldfish", "kite bird"]
    assert read_class_names(file, ["0", "2"]) == ["tench", "kite bird"]  # of a part, by number
    with pytest.raises(ValueError, match="got 3 class names for 2 classes of the data \\('a', 'b'\\)"):
        read_class_names(file, ["a", "b"])
    file.write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark\n"
    )
    assert read_class_names(file, ["n01443537"]) == ["goldfish"]
    assert read_class_index(file) == {"n01440764": 0, "n01443537": 1, "n01484850": 2}
    with pytest.raises(ValueError, match="has no name for 1 of 2 classes: 'n9'"):
        read_class_names(file, ["n01443537", "n9"])
    index = tmp_path / "imagenet_class_index.json"
    index.write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "great_white_shark"]}')
    assert read_class_names(index, ["n01443537", "n01440764"]) == ["great white shark", "tench"]
    assert read_class_index(index) == {"n01440764": 0, "n01443537": 1}
    assert read_class_names(index, ["0", "1"]) == ["tench", "great white shark"]  # as ImageNet-V2's folders are called
    assert read_class_names(index, ["1"]) == ["great white shark"]
    assert read_class_names(index, ["tench, Tinca tinca", "shark"]) == [
        "tench",
        "great white shark",
    ]  # a table's own names
    assert read_class_names(file, ["0", "2"]) == ["tench", "great white shark"]
    assert class_places(index, ["1", "0"]) == class_places(index, ["n01443537", "n01440764"]) == [1, 0]
    index.write_text('["one", "two"]')
    assert read_class_names(index, ["x", "y"]) == ["one", "two"]
    with pytest.raises(ValueError, match="expected .* as in imagenet_class_index.json"):
        read_class_index(index)
    index.write_text('"one"')
    with pytest.raises(ValueError, match="expected a list of class names"):
        read_class_names(index, ["x"])
    with pytest.raises(ValueError, match="no such file"):
        read_class_names(tmp_path / "gone.txt", ["a"])


def test_a_number_that_counts_no_classes(tmp_path):
    with pytest.raises(ValueError, match="the labels reach 1000000000000, expected class numbers below"):
        read_labelled(table(tmp_path / "a.parquet", image=[encoded(0), encoded(1)], label=[0, 10**12]))


def test_lists_of_labels(tmp_path):
    path = table(tmp_path / "a.parquet", image=[encoded(0), encoded(1)], labels=[[3, 1], []])
    name, images, labels = read_many_labels(path)
    assert labels == [[3, 1], []] and len(images) == 2 and name.endswith("/a")
    with pytest.raises(ValueError, match="no image has several labels; expected a column of lists"):
        read_many_labels(table(tmp_path / "b.parquet", image=[encoded(0)], labels=[3]))
    (tmp_path / "manifest.json").write_text('{"kind": "shards", "classes": ["cat", "dog"]}')
    unlisted = table(tmp_path / "c.parquet", image=[encoded(0)], labels=[["dog", "emu"]])
    assert read_many_labels(unlisted)[2] == [[1, -1]]  # no class; scores refuse it by its number


@pytest.mark.parametrize("form", ["list", "lines"])
def test_json_of_objects_lies_beside_its_images(form, tmp_path):
    """As for every other reader, paths start in the folder of the file."""
    (tmp_path / "0.png").write_bytes(encoded(0))
    record = json.dumps({"image": "0.png", "caption": "a cat"})
    other = json.dumps({"image": "1.png", "caption": "a dog"})
    place = tmp_path / "t.json"
    place.write_text(f"[{record}, {other}]" if form == "list" else f"{record}\n{other}\n")
    captioned = read_captioned(place)
    assert captioned.captions == ["a cat", "a dog"] and captioned.images[0] == tmp_path / "0.png"
