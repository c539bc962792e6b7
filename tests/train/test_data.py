"""Training data: every source gives the same samples, none is lost or seen twice, broken ones are counted."""

import io
import json
import struct
import tarfile

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image

from kakao_models import AlignImageProcessor
from kakao_models.conversion.sstable import mask
from kakao_models.files.wire import bytes_field
from kakao_models.samples.sources import open_source
from kakao_models.samples.tfrecord import parse_example
from kakao_models.train.augment import Distorted, InceptionCrop, RandomCrop, affine_of
from kakao_models.train.data import (
    Failures,
    GlobalBatches,
    Loader,
    Order,
    StreamData,
    TrainData,
)
from kakao_models.train.transform import DataError, SampleTransform


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    tiny.picture(seed).save(out, "JPEG")
    return out.getvalue()


def captions(number: int) -> list[str]:
    return [f"photo {number} of a cat", f"picture {number}"]


def write_tar(path, numbers, broken=()):
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            image = b"no picture" if n in broken else jpeg(n)
            parts = {"jpg": image, "txt": captions(n)[0].encode(), "json": json.dumps({"key": n}).encode()}
            for kind, data in parts.items():
                member = tarfile.TarInfo(f"{n:05}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def example(**features) -> bytes:
    """A serialised tf.train.Example of lists of bytes and of (packed) integers."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], int):
            value = bytes_field(3, bytes_field(1, bytes(values)))
        else:
            value = bytes_field(1, b"".join(bytes_field(1, v) for v in values))
        entries += bytes_field(1, bytes_field(1, name) + bytes_field(2, value))
    return bytes_field(1, entries)


def write_tfrecord(path, records):
    def crc(data):
        return struct.pack("<I", mask(google_crc32c.value(data)))

    lengths = [struct.pack("<Q", len(record)) for record in records]
    path.write_bytes(b"".join(n + crc(n) + r + crc(r) for n, r in zip(lengths, records)))
    return path


def make(kind: str, folder, count: int = 7):
    """A source of this kind, in two shards or files where it has such."""
    numbers = [range(0, 4), range(4, count)]
    if kind == "tar":
        for shard, part in enumerate(numbers):
            write_tar(folder / f"{shard:05}.tar", part)
        return str(folder / "{00000..00001}.tar")
    if kind == "tfrecord":
        for shard, part in enumerate(numbers):
            records = [example(jpg=[jpeg(n)], txt=[captions(n)[0].encode()]) for n in part]
            write_tfrecord(folder / f"train.tfrecord-{shard:05}-of-00002", records)
        return str(folder / "train.tfrecord-*")
    if kind == "parquet":
        rows = {"image": [{"bytes": jpeg(n), "path": None} for n in range(count)]}
        rows["captions"] = [captions(n) for n in range(count)]
        pq.write_table(pa.table(rows), folder / "train.parquet", row_group_size=4)
        return folder / "train.parquet"
    if kind == "datasets":
        import datasets

        rows = {"image": [{"bytes": jpeg(n), "path": None} for n in range(count)]}
        rows["captions"] = [captions(n) for n in range(count)]
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    if kind == "folder":
        for n in range(count):
            (folder / f"{n}.txt").write_text("\n".join(captions(n)))
        return folder
    lines = [f'{n}.jpg,"{caption}"' for n in range(count) for caption in captions(n)]
    (folder / "pairs.csv").write_text("\n".join(["file_name,caption", *lines]))
    return folder / "pairs.csv"


def test_a_line_of_a_text_file_is_a_caption(tmp_path):
    """And no byte order mark; a line separator may stand within."""
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "0.txt").write_bytes("\ufeffa cat\r\n\r\na\u2028dog\n".encode())
    assert open_source(str(tmp_path)).read(0, 0).captions == ("a cat", "a\u2028dog")
    (tmp_path / "0.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="0.txt is not UTF-8 text"):
        open_source(str(tmp_path)).read(0, 0)


@pytest.mark.parametrize("kind", ["tar", "tfrecord", "parquet", "datasets", "folder", "csv"])
def test_every_source_gives_the_same_samples(kind, tmp_path):
    source = open_source(make(kind, tmp_path))
    samples = [source.read(shard, row) for shard, count in enumerate(source.counts) for row in range(count)]
    assert len(samples) == 7
    for n, sample in enumerate(samples):
        data = sample.image if isinstance(sample.image, bytes) else sample.image.read_bytes()
        assert data == jpeg(n)
        assert sample.captions == tuple(captions(n)[: 1 if kind in ("tar", "tfrecord") else 2])
    assert len({sample.key for sample in samples}) == 7


def test_several_sources_follow_one_another(tmp_path):
    for kind in ("tar", "parquet"):
        (tmp_path / kind).mkdir()
    source = open_source([make(kind, tmp_path / kind) for kind in ("tar", "parquet")])
    assert list(source.counts) == [4, 3, 4, 3]
    assert source.read(1, 2).captions == ("photo 6 of a cat",)
    assert source.read(3, 2).captions == tuple(captions(6))


def test_img2datasets_counts_are_believed_and_their_lies_found(tmp_path):
    write_tar(tmp_path / "0.tar", range(3))
    (tmp_path / "0_stats.json").write_text(json.dumps({"successes": 5}))
    source = open_source(tmp_path)
    assert list(source.counts) == [5]
    with pytest.raises(ValueError, match="has 3 samples, but its _stats.json says more"):
        source.read(0, 4)


@pytest.mark.parametrize(
    "stats", ['{"successes": 1000000000000}', '{"successes": -1}', '{"successes": "x"}', "{}", "[]", "{"]
)
def test_counts_that_can_not_be_are_counted_instead(stats, tmp_path):
    write_tar(tmp_path / "0.tar", range(3))
    (tmp_path / "0_stats.json").write_text(stats)
    assert list(open_source(tmp_path).counts) == [3]


def test_what_tars_of_strangers_hold(tmp_path):
    """JSON that is no object, class numbers that no file holds, a file that claims to be larger than its tar."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in {
            "list.jpg": jpeg(0), "list.json": b"[1]", "deep.jpg": jpeg(1), "deep.json": b"[" * 100_000,
            "class.jpg": jpeg(2), "class.cls": b"9" * 30, "sparse.jpg": jpeg(3), "last.jpg": jpeg(4),
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "sparse.jpg":
                member.type = tarfile.GNUTYPE_SPARSE
            tar.addfile(member, io.BytesIO(data))
    source = open_source(tmp_path / "0.tar")
    assert list(source.counts) == [4]  # without the sparse one
    assert source.read(0, 0).captions == () and source.read(0, 3).image == jpeg(4)
    with pytest.raises(ValueError, match="nested too deeply"):
        source.read(0, 1)
    with pytest.raises(ValueError, match="label 1e\+30 is not a class number"):
        source.read(0, 2)
    (tmp_path / "x.csv").write_text("image,caption\na.png," + "x" * 200_000)
    with pytest.raises(ValueError, match="x.csv: line 2 is badly quoted"):
        open_source(tmp_path / "x.csv")


def test_a_damaged_record_is_found_by_its_crc(tmp_path):
    path = write_tfrecord(tmp_path / "a.tfrecord", [example(jpg=[b"x" * 50]), example(jpg=[b"y" * 50])])
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    source = open_source(path)
    assert source.read(0, 1).image == b"y" * 50
    with pytest.raises(ValueError, match="the record at byte 12 is damaged"):
        source.read(0, 0)
    path.write_bytes(data[:-3])
    with pytest.raises(ValueError, match="Is it truncated"):
        open_source(path)


def test_features_of_all_kinds_are_read():
    packed = bytes_field(1, struct.pack("<2f", 0.5, -2))
    floats = bytes_field(1, bytes_field(1, bytes_field(1, "f") + bytes_field(2, bytes_field(2, packed))))
    assert parse_example(floats) == {"f": [0.5, -2.0]}
    assert parse_example(example(label=[3, 7], jpg=[b"abc"])) == {"label": [3, 7], "jpg": [b"abc"]}


@pytest.mark.parametrize(
    "name, message",
    [
        ("none.tar", "no such file"),
        ("empty", "has no samples. Images end in"),
        ("a.zip", "got files of .zip, expected files of one kind"),
    ],
)
def test_what_is_no_source_is_said(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / name)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_an_epoch_has_every_sample_once_and_in_another_order_than_the_next(window):
    counts = [5, 1, 0, 7, 3, 10]
    order = Order(counts, seed=3, window=window)
    epochs = [[order.locate(epoch, position) for position in range(26)] for epoch in (0, 1)]
    everything = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert all(sorted(epoch) == everything for epoch in epochs) and epochs[0] != epochs[1]
    assert [Order(counts, seed=3, window=window).locate(1, position) for position in range(26)] == epochs[1]
    assert [Order(counts, seed=4, window=window).locate(0, position) for position in range(26)] != epochs[0]
    # at any time, no more than `window` shards are being read
    shards = [shard for shard, _ in epochs[0]]
    spans = [(shards.index(s), 25 - shards[::-1].index(s)) for s in set(shards)]
    assert max(sum(first <= p <= last for first, last in spans) for p in range(26)) <= window


def test_an_epoch_reads_every_row_group_of_parquet_once(tmp_path):
    rows = {"image": [b"x"] * 80, "caption": [f"photo {n}" for n in range(80)]}
    pq.write_table(pa.table(rows), tmp_path / "many.parquet", row_group_size=4)
    read: list[int] = []
    for source in (open_source(tmp_path / "many.parquet"), open_source([tmp_path / "many.parquet"] * 2)):
        read.clear()
        parts = getattr(source, "sources", [source])
        data = TrainData(source, prepare(), window=12)
        for part in parts:
            part._read_group = lambda group, *names, run=part._read_group: read.append(group) or run(group, *names)
        for position in range(len(data)):
            source.read(*data.order.locate(0, position))
        assert sorted(read) == sorted([*range(20)] * len(parts))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_batches_without_overlap_or_loss(world):
    ranks = [GlobalBatches(100, 32, rank, world, ghost=8) for rank in range(world)]
    for batches in ranks:
        batches.set_epoch(5)
    for number, shares in enumerate(zip(*ranks)):
        places = [place for share in shares for place in share]
        assert sorted(places) == [(5, 32 * number + row) for row in range(32)]
    # and by whole ghost batches: of 32 rows, 4 of them, ghost batch j being the rows j, j + 4, ...
    groups = [{p % 4 for _, p in share[j :: len(share) // 8]} for share in next(zip(*ranks)) for j in range(4 // world)]
    assert groups == [{0}, {1}, {2}, {3}]


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="5 samples are fewer than a batch of 8"):
        GlobalBatches(5, 8)
    with pytest.raises(ValueError, match="a batch of 9 cannot be shared evenly by 2"):
        GlobalBatches(20, 9, 0, 2)


def prepare(**changes) -> SampleTransform:
    return SampleTransform(
        RandomCrop(40, 32), AlignImageProcessor(size=40, crop_size=32), tokenizer=tiny.tokenizer(), **changes
    )


def batches_of(data: TrainData, workers: int = 0, epoch: int = 0, size: int = 4) -> list[dict]:
    loader = Loader(data, GlobalBatches(len(data), size), workers, pin_memory=False)
    loader.set_epoch(epoch)
    return list(loader)


def test_batches_are_the_same_with_any_number_of_workers(tmp_path):
    data = TrainData(open_source(make("tar", tmp_path, count=9)), prepare(), seed=1)
    state = torch.get_rng_state()
    alone, helped = batches_of(data), batches_of(data, workers=2)
    assert torch.equal(state, torch.get_rng_state())
    assert len(alone) == len(helped) == 2
    for a, b in zip(alone, helped):
        assert a["keys"] == b["keys"] and all(torch.equal(a[k], b[k]) for k in ("pixel_values", "input_ids"))
    assert (
        alone[0]["pixel_values"].shape == (4, 3, 32, 32) and alone[0]["pixel_values"].abs().max() <= 1 + 1e-6
    )  # weights w and 1 - w, rounded


def test_every_epoch_draws_another_caption_and_another_crop(tmp_path):
    data = TrainData(open_source(make("parquet", tmp_path)), prepare(), seed=1)
    seen, crops = {}, {}
    for epoch in range(8):
        for position in range(7):
            item = data[epoch, position]
            seen.setdefault(item["key"], set()).add(item["target"])
            crops.setdefault(item["key"], set()).add(item["pixel_values"].numpy().tobytes())
    assert sorted(map(len, seen.values())) == [2] * 7  # both captions within eight epochs
    assert min(map(len, crops.values())) >= 7


def test_broken_samples_are_replaced_and_counted(tmp_path):
    write_tar(tmp_path / "0.tar", range(16), broken=(3, 11))
    data = TrainData(open_source(tmp_path), prepare())
    batches = batches_of(data)
    keys = [key for batch in batches for key in batch["keys"]]
    assert len(keys) == 16 and not {"0.tar:00003", "0.tar:00011"} & set(keys)
    failures = [failure for batch in batches for failure in batch["failures"]]
    assert {key for key, _ in failures} == {"0.tar:00003", "0.tar:00011"}
    assert "not an image" in failures[0][1]


def test_half_of_a_character_makes_a_broken_sample(tmp_path):
    """JSON can hold the half of a character; the tokenizer of a whole batch would fail on it."""
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    rows = [{"image": "0.jpg", "caption": caption} for caption in ("half \ud83d", "a cat")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = TrainData(open_source(tmp_path / "t.jsonl", merge=False), prepare())
    batch = data.prepare.collate([data[0, position] for position in range(2)])
    assert len(batch["input_ids"]) == 2 and [reason for _, reason in batch["failures"]][0].endswith(
        "surrogates not allowed"
    )


def test_a_source_without_captions_is_an_error_that_says_so(tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    with pytest.raises(DataError, match="cannot be used:\n.*no caption"):
        TrainData(open_source(tmp_path), prepare())[0, 0]


def test_failures_warn_at_one_percent_and_stop_at_half():
    logged, warned = [], []
    failures = Failures(logged.append, warned.append)
    failures.count(1000, [])
    failures.count(100, [("a", "broken")])
    assert logged == ["a: broken"] and not warned
    failures.count(100, [("b", "broken")] * 12)
    assert len(warned) == 1 and warned[0] == "13 of 1213 samples are broken (1.1%); the last: b: broken"
    with pytest.raises(DataError, match="50.*c: torn"):
        failures.count(1, [("c", "torn")] * 1200)


def labelled(tmp_path, **changes) -> TrainData:
    for number, name in enumerate(["cat", "dog"] * 3):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.jpg").write_bytes(jpeg(number))
    options = dict(classes=2, names=("cat", "dog")) | changes
    return TrainData(open_source(tmp_path), SampleTransform(InceptionCrop(32), AlignImageProcessor(), **options))


def test_labels_are_names_of_folders(tmp_path):
    (batch,) = batches_of(labelled(tmp_path), size=6)
    assert sorted(batch["labels"].tolist()) == [0, 0, 0, 1, 1, 1]
    (rows,) = batches_of(labelled(tmp_path, multi_label=True), size=6)
    assert torch.equal(rows["labels"], torch.eye(2)[batch["labels"]])


def test_a_label_out_of_range_stops_the_run(tmp_path):
    rows = [{"image": jpeg(0), "label": 7}]
    data = TrainData(open_source(rows), SampleTransform(InceptionCrop(32), AlignImageProcessor(), classes=5))
    with pytest.raises(DataError, match="label 7 is out of range, the model has classes 0..4"):
        data[0, 0]
    with pytest.raises(DataError, match="label 'dog' is not the name of a class; the classes are cat"):
        labelled(tmp_path, names=("cat",))[0, 0], labelled(tmp_path, names=("cat",))[0, 1]


def test_streams_are_split_without_overlap_or_loss():
    import datasets

    def stream():
        rows = [{"image": {"bytes": jpeg(n), "path": None}, "caption": f"photo {n}", "id": str(n)} for n in range(12)]
        rows[5]["image"]["bytes"] = b"broken"
        return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4)

    seen, failures = [], []
    for rank in range(2):
        data = StreamData(stream(), prepare(), 1, rank, 2)
        of_rank = []
        for batch in data:
            (number,) = (key.split("(")[1] for key in batch["keys"])
            if number in of_rank:  # the next epoch has begun
                break
            of_rank.append(number)
            failures += batch["failures"]
        seen += of_rank
    assert sorted(seen) == sorted(f"{n})" for n in range(12) if n != 5)
    assert {key.split("(")[1] for key, _ in failures} == {"5)"}


def test_crops_are_parts_of_what_the_original_resizes():
    picture = tiny.picture(0, 90, 61)
    from kakao_models.pixels.resize import resize_bilinear

    whole = resize_bilinear(np.asarray(picture), 40, 40)
    for seed in range(5):
        crop = RandomCrop(40, 32)(picture, np.random.default_rng(seed))
        places = [(t, l, f) for t in range(9) for l in range(9) for f in (1, -1)]  # noqa: E741
        fits = [p for p in places if np.abs(whole[p[0] : p[0] + 32, p[1] : p[1] + 32][:, :: p[2]] - crop).max() < 1e-3]
        assert len(fits) == 1
    part = InceptionCrop(16, area=(1.0, 1.0), ratio=(90 / 61, 90 / 61), flip=False)(picture, np.random.default_rng(0))
    assert picture.size == (90, 61)
    np.testing.assert_allclose(part, resize_bilinear(np.asarray(picture), 16, 16), rtol=0, atol=1e-3)


def test_antialiased_crops_are_pils():
    picture = tiny.picture(0, 200, 100)
    whole = np.asarray(picture.resize((40, 40), Image.Resampling.BILINEAR)).astype(np.float32)
    crop = RandomCrop(40, 40, flip=False, antialias=True)(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, whole)


def test_inception_crops_have_the_area_and_shape_asked_for():
    random, crop = np.random.default_rng(0), InceptionCrop(8, area=(0.2, 0.5))
    parts = np.array([crop._part(300, 200, random) for _ in range(500)])
    width, height = (parts[:, 2:] - parts[:, :2]).T
    share, ratio = width * height / 60000, width / height
    assert 0.19 < share.min() < 0.22 and 0.48 < share.max() < 0.51
    assert 0.73 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.36
    assert parts.min() >= 0 and parts[:, 2].max() <= 300 and parts[:, 3].max() <= 200
    assert InceptionCrop(8)._part(1000, 1, np.random.default_rng(0)) == (0, 0, 1000, 1)


def test_the_affine_of_a_processor_is_what_it_does():
    processor = AlignImageProcessor()
    scale, offset = affine_of(processor)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    wanted = processor(images=pixels, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose((pixels * scale + offset).transpose(2, 0, 1), wanted, atol=1e-6)


def test_distortions_of_nothing_are_the_crop_and_each_does_its_part():
    picture, crop = tiny.picture(1), RandomCrop(36, 32)

    def pixels(**options) -> np.ndarray:
        return Distorted(crop, **options)(picture, np.random.default_rng(5))

    plain = pixels()
    random = np.random.default_rng(5)
    random.random(3), random.integers(22, 44, endpoint=True), random.uniform(-1, 1, 3), random.uniform(0, 2)
    np.testing.assert_allclose(plain, crop(picture, random), atol=1e-4)
    assert Distorted(crop).decode_size == crop.decode_size
    grey = pixels(grey=1.0)
    assert np.abs(grey - plain.mean(2, keepdims=True)).max() < 1e-3
    assert 0 < np.abs(pixels(brightness=0.1) - plain).max() <= 12.75 + 1e-3
    spread = pixels(contrast=0.5).std() / plain.std()
    assert 0.5 <= spread <= 1.5 and spread != pytest.approx(1.0, abs=1e-3)
    assert np.abs(np.diff(pixels(sharpen=1.0), axis=1)).mean() > np.abs(np.diff(plain, axis=1)).mean()
    small = pixels(thumbnail=1.0, thumbnail_sizes=(4, 4))
    assert np.abs(np.diff(small, axis=1)).mean() < 0.5 * np.abs(np.diff(plain, axis=1)).mean()
    for options in ({"grey": 2.0}, {"thumbnail_sizes": (9, 3)}):
        with pytest.raises(ValueError, match="distort: "):
            Distorted(crop, **options)
