"""Shards from every form of local data, read back as training does, and what verify_manifest finds."""

import io
import json
import shutil

import numpy as np
import pytest
import tiny

from kakao_models.data.shard import Options, stored, write_sample_shards
from kakao_models.data.writers import example, record
from kakao_models.samples.manifest import read_manifest, verify_manifest
from kakao_models.samples.sources import open_source


def jpeg(seed: int, size=(60, 48)) -> bytes:
    file = io.BytesIO()
    tiny.picture(seed, *size).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures of several formats and captions; one is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(12):
        kind = ("jpg", "png", "webp", "bmp")[number % 4]
        tiny.picture(number).save(folder / f"{number:02}.{kind}")
        captions = [f"caption {number} é"] + (["second"] if number % 3 == 0 else [])
        (folder / f"{number:02}.txt").write_text("\n".join(captions), encoding="utf-8")
    (folder / "04.jpg").write_bytes(jpeg(4)[:-150])
    return folder


def read_all(folder):
    source = open_source(folder)
    return [source.read(shard, row) for shard, count in enumerate(source.counts) for row in range(count)]


@pytest.mark.parametrize("form", ["webdataset", "tfrecord", "parquet"])
def test_training_reads_what_was_there(photos, tmp_path, form):
    output = tmp_path / "shards"
    manifest = write_sample_shards(open_source(photos), output, options=Options(form), per_shard=5, name="photos")
    assert manifest["rows"] == 11 and [shard["rows"] for shard in manifest["shards"]] == [4, 5, 2]
    assert [failure["name"] for failure in manifest["failures"]] == ["04.jpg"]
    assert "decoded" in manifest["failures"][0]["reason"]
    assert read_manifest(output) == manifest and verify_manifest(output, decode=True) == []
    kept = [number for number in range(12) if number != 4]
    for number, sample in zip(kept, read_all(output), strict=True):
        assert sample.captions == (f"caption {number} é", "second")[: 2 if number % 3 == 0 else 1]
        kind = ("jpg", "png", "webp", "bmp")[number % 4]
        if kind == "jpg" or (form != "tfrecord" and kind != "bmp"):
            assert bytes(sample.image) == (photos / f"{number:02}.{kind}").read_bytes()
        else:
            assert bytes(sample.image).startswith(b"\xff\xd8\xff")


def test_the_same_seed_writes_the_same_bytes(photos, tmp_path):
    folders = {}
    for name, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1), ("d", None, 1)):
        write_sample_shards(
            open_source(photos), tmp_path / name, seed=seed, workers=workers, per_shard=5, name="photos"
        )
        folders[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert folders["a"] == folders["b"] and len(folders["a"]) == 4
    assert folders["a"]["00000.tar"] != folders["c"]["00000.tar"] != folders["d"]["00000.tar"]
    captions = [sorted(sample.captions for sample in read_all(tmp_path / name)) for name in "ac"]
    assert captions[0] == captions[1] and len(captions[0]) == 11  # another order of the same samples
    wanted = [number for number in np.random.default_rng(1).permutation(12) if number != 4]
    assert [sample.captions[0] for sample in read_all(tmp_path / "a")] == [f"caption {number} é" for number in wanted]


def test_labels_and_sizes(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(3):
            tiny.picture(number, 200, 100).save(tmp_path / "in" / label / f"{number}.png")
    for form in ("webdataset", "tfrecord", "parquet"):
        options = Options(form, image_size=50)
        manifest = write_sample_shards(open_source(tmp_path / "in"), tmp_path / form, options=options)
        assert manifest["classes"] == ["cat", "dog"]
        samples = read_all(tmp_path / form)
        assert [sample.labels for sample in samples] == [(0,)] * 3 + [(1,)] * 3
        from kakao_models.pixels.images import load_image

        assert {load_image(bytes(sample.image)).size for sample in samples} == {(100, 50)}
    write_sample_shards(
        open_source(tmp_path / "webdataset"), tmp_path / "again", per_shard=4
    )  # classes are numbers by now
    assert [sample.labels for sample in read_all(tmp_path / "again")] == [(0,)] * 3 + [(1,)] * 3
    data = (tmp_path / "in/cat/0.png").read_bytes()
    assert stored(data, Options(image_size=100)) == (data, "png", (200, 100))  # as small as asked: kept as it is


def test_json_of_coco_and_of_karpathy(photos, tmp_path):
    images = [{"id": 7, "file_name": "00.jpg"}, {"id": 3, "file_name": "01.png"}, {"id": 9, "file_name": "none.jpg"}]
    notes = [{"image_id": 3, "caption": "x"}, {"image_id": 7, "caption": "y"}, {"image_id": 3, "caption": "z"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))
    manifest = write_sample_shards(open_source(tmp_path / "coco.json", images=photos), tmp_path / "coco")
    assert [sample.captions for sample in read_all(tmp_path / "coco")] == [("y",), ("x", "z")]
    assert len(manifest["failures"]) == 1
    entries = [
        {"filename": f"{n:02}.jpg", "split": split, "sentences": [{"raw": f"s{n}"}, {"raw": "t"}], "imgid": n}
        for n, split in ((0, "train"), (8, "restval"), (4, "test"))
    ]
    (tmp_path / "flickr.json").write_text(json.dumps({"images": entries, "dataset": "flickr"}))
    source = open_source(tmp_path / "flickr.json", images=photos, split="train,restval")
    write_sample_shards(source, tmp_path / "flickr", options=Options("tfrecord"))
    assert [sample.captions for sample in read_all(tmp_path / "flickr")] == [("s0", "t"), ("s8", "t")]
    with pytest.raises(ValueError, match="no images of split 'dev'; its splits: restval, test, train"):
        open_source(tmp_path / "flickr.json", split="dev")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a list of objects, or an object"):
        open_source(tmp_path / "bad.json")


def test_tensorflow_reads_the_records(tmp_path):
    tf = pytest.importorskip("tensorflow")
    data = example({"jpg": [b"\x00picture"], "txt": ["é".encode(), b"two"], "label": [3, 300, -1], "none": []})
    (tmp_path / "x.tfrecord").write_bytes(record(data) + record(b"second"))
    first, second = tf.data.TFRecordDataset(str(tmp_path / "x.tfrecord")).as_numpy_iterator()
    assert second == b"second"
    feature = tf.train.Example.FromString(first).features.feature
    assert list(feature["jpg"].bytes_list.value) == [b"\x00picture"]
    assert list(feature["txt"].bytes_list.value) == ["é".encode(), b"two"]
    assert list(feature["label"].int64_list.value) == [3, 300, -1] and set(feature) == {"jpg", "txt", "label"}


def test_verify_finds_what_differs(photos, tmp_path):
    write_sample_shards(open_source(photos), tmp_path / "good", per_shard=4)

    def damaged(change) -> list[str]:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        change(tmp_path / "bad")
        return verify_manifest(tmp_path / "bad")

    def flip(folder):
        data = bytearray((folder / "00001.tar").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "00001.tar").write_bytes(data)

    def lie(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"][0]["rows"] += 1
        (folder / "manifest.json").write_text(json.dumps(manifest))

    assert damaged(lambda folder: None) == []
    assert damaged(flip) == ["00001.tar: its SHA-256 differs from the manifest's"]
    assert damaged(lie) == ["00000.tar: has 4 rows, the manifest says 5"]
    assert damaged(lambda folder: (folder / "00002.tar").unlink()) == ["00002.tar: is missing"]
    assert damaged(lambda folder: (folder / "9.tar").touch()) == ["9.tar: is not in the manifest"]
    assert "bytes, the manifest says" in damaged(lambda folder: (folder / "00000.tar").write_bytes(b"x"))[0]
    with pytest.raises(ValueError, match="has no manifest.json"):
        verify_manifest(photos)


def test_nothing_appears_where_nothing_was_read(tmp_path, photos):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no sample could be read"):
        write_sample_shards(open_source(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(FileExistsError):
        write_sample_shards(open_source(photos), tmp_path / "full")
