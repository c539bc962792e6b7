"""One table, one answer: every command reads the same images, captions and classes from every form of a table."""

import json
import pickle
import tarfile
from pathlib import Path

import image_tables as tables
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hostile import hostile_server, png

from kakao_models.data.download import Download, download
from kakao_models.data.preview import contact_sheet, first_rows
from kakao_models.data.shard import write_sample_shards
from kakao_models.evaluate import read_captioned, read_labelled, read_many_labels
from kakao_models.pixels.images import load_image
from kakao_models.samples.columns import Columns, SampleError
from kakao_models.samples.rows import Rows
from kakao_models.samples.sources import open_source
from kakao_models.search.items import Items


def pixels(image) -> bytes:
    return load_image(bytes(image) if isinstance(image, (bytes, bytearray)) else image).tobytes()


def everything(source) -> list:
    return [source.read(shard, row) for shard, count in enumerate(source.counts) for row in range(count)]


def close(one: bytes, other: bytes) -> bool:
    """TFRecords keep JPEG alone, GIF 256 colours."""
    return len(one) == len(other) and sum(abs(a - b) for a, b in zip(one, other)) < 40 * len(one)


@pytest.mark.parametrize("labels", [tables.NUMBERS, tables.NAMES], ids=["numbers", "names"])
@pytest.mark.parametrize("kind", tables.TABLES)
def test_every_reader_finds_the_same(kind, labels, tmp_path):
    place = tables.TABLES[kind](tmp_path, labels)
    named = labels is tables.NAMES
    expected = [pixels(tables.content(number)) for number in range(tables.COUNT)]

    def check(images, captions=None, numbers=None):
        assert len(images) == tables.COUNT and all(map(close, map(pixels, images), expected))
        assert captions is None or captions == tables.CAPTIONS
        assert numbers is None or list(numbers) == tables.NUMBERS

    # train, data shard
    source = open_source(str(place), needs=("image", "caption", "label"))
    assert source.classes == (tables.CLASSES if named else None)
    samples = everything(source)
    texts = [sample.captions for sample in samples]
    found = [sample.labels for sample in samples]
    numbers = [tables.CLASSES.index(label) if isinstance(label, str) else label for (label,) in found]
    check([sample.image for sample in samples], [text for (text,) in texts], numbers)
    manifest = write_sample_shards(source, tmp_path / "out")
    assert manifest["rows"] == tables.COUNT and manifest["classes"] == (tables.CLASSES if named else [])
    again = open_source(tmp_path / "out")
    assert again.classes == source.classes and [sample.captions for sample in everything(again)] == texts
    assert [sample.labels for sample in everything(again)] == [(number,) for number in tables.NUMBERS]
    # data embed
    rows = Rows(place, needs=("image", "caption"))
    read = [sample for part in rows.parts(3) for sample in rows.read(part)]
    check([sample.image for sample in read], [sample.captions[0] for sample in read])
    assert len({sample.id for sample in read}) == tables.COUNT and Rows(place).fingerprint() == rows.fingerprint()
    assert {type(sample.id) for sample in read} == {int if rows.numbered else str}
    # index build
    items = Items([place], size=2)
    read = [item for number in range(len(items.parts)) for item in items.read(number)]
    items.close()
    assert not any(item.error for item in read)
    check([item.content for item in read], [item.metadata["caption"] for item in read])
    # evaluate
    labelled = read_labelled(place)
    check(list(labelled.images), None, labelled.labels)
    assert labelled.keys == (tables.CLASSES if named else ["0", "1", "2"])
    captioned = read_captioned(place)
    check(list(captioned.images), captioned.captions)
    # data preview
    shown, _ = first_rows(place, 10)
    page, lost = contact_sheet(shown, "x", folder=place if place.is_dir() else place.parent)
    assert (lost, page.count("<img ")) == (0, tables.COUNT)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("names", [("URL", "TEXT"), ("url", "caption"), ("Image_URL", "Title")])
def test_addresses_under_any_name(names, suffix, tmp_path):
    """LAION's columns are URL and TEXT; the download is one kind of source, not several."""
    write = {".parquet": tables.write_parquet, ".csv": tables.write_csv, ".jsonl": tables.write_jsonl}[suffix]
    with hostile_server() as server:
        columns = {names[0]: [f"{server.url}/good/{n}" for n in range(3)], names[1]: tables.CAPTIONS[:3]}
        columns |= {"label": tables.NAMES[:3]}
        place = write(tmp_path / f"t{suffix}", columns)
        outcome = download(place, tmp_path / "out", Download(retries=0, allow_private_addresses=True))
    assert outcome.successes == 3
    source = open_source(tmp_path / "out", needs=("image", "caption", "label"))
    assert [(sample.image, *sample.captions, *sample.labels) for sample in everything(source)] == [
        (png(n), tables.CAPTIONS[n], tables.NAMES[n]) for n in range(3)
    ]
    assert source.classes == tables.CLASSES


COMMANDS = {
    "shard": ("data", "shard", "{place}", "-o", "{tmp}/out"),
    "embed": ("data", "embed", "{place}", "-o", "{tmp}/out", "-m", "{align}"),
    "download": ("data", "download", "{place}", "-o", "{tmp}/out"),
    "index": ("index", "build", "{place}", "--index", "{tmp}/i.db", "-m", "{align}"),
    "zero-shot": ("evaluate", "zero-shot", "-d", "{place}", "-m", "{align}", "--no-cache"),
    "retrieval": ("evaluate", "retrieval", "-d", "{place}", "-m", "{align}", "--no-cache"),
    "train": (
        "train",
        "align",
        "-c",
        "align_b3_mini_cc3m",
        "start={align}",
        "data={place}",
        "output={tmp}/out",
        "model={{}}",
        "augment={{}}",
    ),
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_column_that_is_not_there(verb, align, command, tmp_path):
    """Exit code 2, the columns that are there, the option that names one; never a traceback, never "0 of 0"."""
    places = {
        "foto": tables.write_parquet(tmp_path / "a.parquet", {"foto": tables.encoded(), "words": tables.CAPTIONS}),
        "Image": tables.write_parquet(tmp_path / "b.parquet", {"Image": ["x"], "IMAGE": ["x"], "text": ["y"]}),
        "first line": tables.write_csv(tmp_path / "c.csv", {"0.png": ["1.png"], "a cat": ["a dog"]}),
        "line 3 is not UTF-8": tables.write_csv(
            tmp_path / "d.csv", {"image": ["a", "b"], "text": ["x", "ü"], "label": [0, 1]}, ",", "latin-1"
        ),
        "line 2 is badly quoted": tmp_path / "e.csv",
        "line 2 has 4 values": tmp_path / "f.csv",
        "its first line is empty": tmp_path / "g.csv",
        "its lines end in a carriage return": tmp_path / "h.csv",
    }
    places["line 2 is badly quoted"].write_text('image,caption,label\na.png,"a "b" c",0\n')
    places["its first line is empty"].write_text("\nimage,caption,label\na.png,a cat,0\n")
    places["its lines end in a carriage return"].write_bytes(b"image,caption,label\ra.png,a cat,0\r")
    places["line 2 has 4 values"].write_text("image,caption,label\na.png,a cat, a dog,0\n")
    for expected, place in places.items():
        arguments = [part.format(place=place, tmp=tmp_path, align=align) for part in COMMANDS[verb]]
        code, out, err = command(*arguments)
        said = " ".join(err.split())
        assert code == 2 and "Traceback" not in err and expected in said and place.name in said, (expected, err)
        if expected in ("foto", "Image"):
            assert "--image-column" in said
        if expected == "foto":
            assert "its columns are foto, words" in said
    if verb != "train":
        options = [part.format(place=places["foto"], tmp=tmp_path, align=align) for part in COMMANDS[verb]]
        code, _, err = command(*options, "--image-column", "bild")
        assert code == 2 and "no column 'bild'; its columns are foto, words" in " ".join(err.split())


def test_a_column_by_its_name(align, command, tmp_path):
    columns = {"foto": tables.encoded(), "words": tables.CAPTIONS, "kind": tables.NAMES, "text": ["no"] * tables.COUNT}
    place = tables.write_parquet(tmp_path / "t.parquet", columns)
    names = ("--image-column", "foto", "--caption-column", "words")
    assert command("data", "shard", place, "-o", tmp_path / "s", *names, "--label-column", "Kind")[0] == 0
    source = open_source(tmp_path / "s")
    assert [sample.captions[0] for sample in everything(source)] == tables.CAPTIONS and source.classes == tables.CLASSES
    options = ("-o", tmp_path / "e", "-m", align, "--what", "score", "--json")
    code, out, _ = command("data", "embed", place, *options, *names)
    assert code == 0 and json.loads(out)["rows"] == tables.COUNT
    code, _, err = command("data", "embed", place, *options, "--image-column", "foto")  # another caption
    assert code == 2 and "was started with other settings" in err
    index = tmp_path / "i.db"
    assert command("index", "build", place, "--index", index, "-m", align, *names)[0] == 0
    code, out, _ = command("search", "a red dog", "--index", index, "--json", "--html", tmp_path / "p.html", "-k", 9)
    assert code == 0 and sorted(hit["caption"] for hit in json.loads(out)) == sorted(tables.CAPTIONS)
    assert (tmp_path / "p.html").read_text().count("<img ") == tables.COUNT
    found = read_labelled(place, image_column="foto", label_column="kind")
    assert found.keys == tables.CLASSES and found.labels.tolist() == tables.NUMBERS
    assert command("data", "preview", place, "--html", tmp_path / "v.html", "--image-column", "foto")[0] == 0
    assert (tmp_path / "v.html").read_text().count("<img ") == tables.COUNT


def test_no_addresses_to_download(tmp_path):
    place = tables.write_parquet(tmp_path / "t.parquet", {"image_path": tables.files(tmp_path)})
    with pytest.raises(ValueError, match="column 'image_path' holds pictures/0.png, not URLs .* --image-column"):
        download(place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_names_of_numbers(tmp_path):
    """A column of names beside the numbers, or the Hub's description in Parquet."""
    columns = {"image": tables.encoded(), "label": tables.NUMBERS}
    beside = tables.write_parquet(tmp_path / "a.parquet", columns | {"label_name": tables.NAMES})
    described = {"info": {"features": {"label": {"names": tables.CLASSES, "_type": "ClassLabel"}}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(described)})
    pq.write_table(table, tmp_path / "b.parquet")
    for place in (beside, tmp_path / "b.parquet"):
        assert open_source(place).classes == read_labelled(place).keys == tables.CLASSES
        manifest = write_sample_shards(open_source(place), tmp_path / f"{place.stem}-shards")
        assert manifest["classes"] == tables.CLASSES


def test_classes_of_several_sources_are_named(tmp_path):
    for name, classes in (("a", ["cat", "dog"]), ("b", ["bird", "dog"])):
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            tiny.picture(len(label)).save(tmp_path / name / label / "0.png")
        write_sample_shards(open_source(tmp_path / name), tmp_path / f"{name}-shards")
    source = open_source([tmp_path / "a-shards", tmp_path / "b-shards"])
    assert source.classes == ["bird", "cat", "dog"]
    assert [sample.labels for sample in everything(source)] == [("cat",), ("dog",), ("bird",), ("dog",)]
    for number in ("10", "2"):  # by number, in training as in an evaluation
        (tmp_path / "n" / number).mkdir(parents=True)
        tiny.picture(1).save(tmp_path / "n" / number / "0.png")
    assert open_source(tmp_path / "n").classes == read_labelled(tmp_path / "n").keys == ["2", "10"]


def test_rows_of_one_image_are_one_sample_in_training_only(tmp_path):
    names = [name for name in tables.files(tmp_path) for _ in range(2)]
    columns = {"image": names, "caption": [f"caption {n}" for n in range(10)], "label": tables.NUMBERS * 2}
    for place in (tables.write_csv(tmp_path / "t.csv", columns), tables.write_jsonl(tmp_path / "t.jsonl", columns)):
        samples = list(open_source(place))
        assert [sample.captions for sample in samples] == [
            (f"caption {n}", f"caption {n + 1}") for n in range(0, 10, 2)
        ]
        assert Rows(place).counts == [10] and len(read_captioned(place)) == 5 and len(read_labelled(place).labels) == 10


def test_null_images_fail_alone(tmp_path):
    place = tables.write_parquet(
        tmp_path / "t.parquet", {"id": [7, 8], "image": [None, tables.content(1)], "text": ["a", "b"]}
    )
    samples = list(open_source(place))
    assert [sample.image is None for sample in samples] == [True, False]
    manifest = write_sample_shards(open_source(place), tmp_path / "out")
    assert manifest["rows"] == 1 and manifest["failures"][0]["reason"] == "no image"
    items = Items([place])
    assert [item.error for item in items.read(0)] == ["no image", None]
    items.close()
    with pytest.raises(ValueError, match="row 0 has no image"):
        list(read_captioned(place).images)


def test_labels_of_any_type(tmp_path):
    import decimal

    for labels, expected in (
        (pa.array([True, False]), [(1,), (0,)]),
        (pa.array([2.0, None]), [(2,), ()]),
        (pa.array([decimal.Decimal("3"), decimal.Decimal("0")]), [(3,), (0,)]),
        (pa.array([[1, 2], []]), [(1, 2), ()]),
        (pa.array([-1, 4]), [(), (4,)]),
        (pa.array(["", " cat "]), [(), ("cat",)]),
    ):
        place = tmp_path / "t.parquet"
        pq.write_table(pa.table({"image": tables.encoded()[:2], "labels": labels}), place)
        assert [sample.labels for sample in list(open_source(place))] == expected
    names = [["cat", "dog"], ["dog"]]
    pq.write_table(pa.table({"image": tables.encoded()[:2], "label": [0, 1], "labels": names}), place)
    assert read_many_labels(place)[2] == [[0, 1], [1]] and read_labelled(place).labels.tolist() == [0, 1]


def test_tars_that_can_not_be_read_one_way_only(tmp_path):
    twice = tables.write_tar(tmp_path / "a.tar", [("0.png", tables.content(0)), ("0.png", tables.content(1))])
    with pytest.raises(ValueError, match=r"a.tar: has two files 0.png"):
        open_source(twice)
    no_captions = tables.write_tar(tmp_path / "b.tar", [("0.png", tables.content(0)), ("0.width", b"3")])
    with pytest.raises(ValueError, match="no column of captions; its columns are png, width: .*--caption-column"):
        open_source(no_captions, needs=("image", "caption"))
    depth = tables.write_tar(tmp_path / "c.tar", [("0.depth.png", tables.content(1)), ("0.jpg", tables.content(0))])
    assert list(open_source(depth, Columns(image="depth.png")))[0].image == tables.content(1)


@pytest.mark.parametrize("what", ["cut in a header", "cut in a file", "cut between files", "a damaged header"])
def test_a_damaged_tar_is_refused_whole(tmp_path, what):
    """tarfile itself stops at such places without a word."""
    path = Path(tables.write_tar(tmp_path / "a.tar", [(f"{n}.png", tables.content(n)) for n in range(4)]))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    if what == "a damaged header":
        data[third + 150] ^= 1  # within its checksum
    else:
        del data[third + {"cut in a header": 100, "cut in a file": 520, "cut between files": 0}[what] :]
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"a.tar: damaged after \d samples, in or after [12] .*Download the file again"
    ):
        open_source(path)


def test_what_a_folder_is(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no samples. Images end in"):
        open_source(tmp_path / "empty")
    names = tables.files(tmp_path)
    with pytest.raises(ValueError, match="no folders of classes"):
        open_source(tmp_path / "pictures", needs=("label",))
    with pytest.raises(ValueError, match="is a folder of images, which has no column 'x'"):
        open_source(tmp_path / "pictures", Columns(caption="x"))
    tables.write_jsonl(tmp_path / "pictures/metadata.jsonl", {"file_name": ["1.png"], "text": ["a dog"]})
    (sample,) = list(open_source(tmp_path / "pictures"))
    assert sample.captions == ("a dog",) and sample.image == tmp_path / names[1]
    tables.write_parquet(tmp_path / "a.parquet", {"image": tables.encoded()})
    tables.write_tar(tmp_path / "b.tar", [("0.png", tables.content(0))])
    with pytest.raises(ValueError, match=r"got files of \.parquet, \.tar, expected files of one kind"):
        open_source(tmp_path)


def test_a_text_table_is_read_where_it_lies(tmp_path):
    """Rows in any order, by a process that got the source from another; line breaks within quotes; ids."""
    import pickle

    captions = ["two\nlines", "a\u2028b", "plain"]
    columns = {
        "id": ["07", "8", "9"],
        "image": tables.files(tmp_path)[:3],
        "caption": captions,
        "width": ["1", "x", ""],
    }
    place = tables.write_csv(tmp_path / "t.csv.gz", columns)
    source = pickle.loads(pickle.dumps(open_source(place, keep=None)))
    samples = [source.read(0, row) for row in (2, 0, 1)]
    assert [sample.captions for sample in samples] == [("plain",), ("two\nlines",), ("a\u2028b",)]
    assert [(sample.id, sample.record["width"]) for sample in samples] == [(9, None), (7, 1), (8, None)]
    assert Path(samples[0].image) == tmp_path / columns["image"][2]


def test_names_and_numbers_are_not_one_kind_of_label(tmp_path):
    """A class number beside names would stand for any of them."""
    tables.write_parquet(tmp_path / "a.parquet", {"image": [b"x"], "label": ["cat"]})
    tables.write_parquet(tmp_path / "b.parquet", {"image": [b"y"], "label": [0]})
    with pytest.raises(
        ValueError, match="labels are names, such as 'cat', and numbers, such as 0, expected .* --label-column"
    ):
        _ = open_source(tmp_path).classes


def test_rows_of_one_image_keep_all_their_labels(tmp_path):
    rows = {"image": ["a.png", "a.png", "b.png", "b.png"], "label": ["cat", "dog", "cat", "cat"]}
    source = open_source(tables.write_csv(tmp_path / "t.csv", rows))
    assert [sample.labels for sample in everything(source)] == [("cat", "dog"), ("cat",)]


@pytest.mark.parametrize("form", ["files", "tfrecord"])
def test_reports_beside_shards_are_no_tables(form, tmp_path):
    """img2dataset writes a report beside every shard, whatever the shard's format."""
    tables.write_parquet(tmp_path / "00000.parquet", {"url": ["http://x"] * 4, "status": ["success"] * 3 + ["failed"]})
    if form == "files":
        (tmp_path / "00000").mkdir()
        for number in range(3):
            (tmp_path / f"00000/{number}.png").write_bytes(tables.content(number))
        assert sum(open_source(tmp_path).counts) == 4  # a folder beside a table is not yet a shard
        (tmp_path / "00000_stats.json").write_text('{"successes": 3}')
    else:
        records = b"".join(tables.record(tables.example({"jpg": [tables.content(number)]})) for number in range(3))
        (tmp_path / "00000.tfrecord").write_bytes(records)
    assert [pixels(sample.image) for sample in everything(open_source(tmp_path))] == [
        pixels(tables.content(number)) for number in range(3)
    ]


@pytest.mark.parametrize("need", ["caption", "label"])
def test_tables_beside_images_are_named(need, tmp_path):
    tables.write_csv(tmp_path / "t.csv", {"image": [], "caption": [], "label": []})
    (tmp_path / "0.png").write_bytes(tables.content(0))
    with pytest.raises(ValueError, match="To read a table in it, name the table: .*t.csv"):
        open_source(tmp_path, needs=("image", need))


def test_a_sample_that_cannot_be_read_is_named(tmp_path):
    place = tables.write_jsonl(tmp_path / "t.jsonl", {"image": ["a.png", 7], "caption": ["x", "y"]})
    with pytest.raises(SampleError, match="^t.jsonl 1: the image has type int") as caught:
        open_source(place).read(0, 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert [sample.error for sample in Rows(place).read(Rows(place).parts(2)[0])] == [None, caught.value.reason]


def test_a_row_may_lack_a_chosen_column(tmp_path):
    """A record without a caption is an image without one."""
    tables.files(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"pic": "pictures/0.png"}\n{"pic": "pictures/1.png", "words": "a cat"}\n')
    items = Items([tmp_path / "t.jsonl"], fields=Columns(image="pic", caption="words"))
    read = items.read(0)
    items.close()
    assert [(item.error, item.metadata.get("caption")) for item in read] == [(None, ""), (None, "a cat")]


@pytest.mark.parametrize("option", [{"split": "test"}, {"images": "elsewhere"}])
def test_a_split_and_a_folder_of_images_are_refused_where_they_mean_nothing(option, tmp_path):
    tiny.picture_folder(tmp_path / "folder", 1)
    (tmp_path / "table.csv").write_text(f"image,caption\n{next((tmp_path / 'folder').iterdir())},a cat\n")
    for source in (tmp_path / "folder", tmp_path / "table.csv"):
        assert sum(open_source(str(source), Columns(), ("image",)).counts) == 1
        with pytest.raises(ValueError, match="need a .json file or a data set of the Hub"):
            open_source(str(source), Columns(), ("image",), **option)


def test_samples_of_several_folders_have_names_of_their_own(tmp_path):
    """Files of one name in two folders: no id or image stands for both."""
    for folder in ("a", "b"):
        tiny.picture_folder(tmp_path / "pictures" / folder, 1)
        (tmp_path / "pictures" / folder / "000.txt").write_text(f"of {folder}")
        (tmp_path / "tars" / folder).mkdir(parents=True)
        tables.write_tar(tmp_path / "tars" / folder / "0.tar", [("k.png", tables.content(0)), ("k.txt", b"a cat")])
    wanted = {"pictures/*": "000.png", "tars": "0.tar:k", "tars/*": "0.tar:k", "tars/*/*.tar": "0.tar:k"}
    for pattern, name in wanted.items():
        rows = Rows(tmp_path / pattern)
        assert [sample.id for part in rows.parts(9) for sample in rows.read(part)] == [f"a/{name}", f"b/{name}"]
    captioned = read_captioned(tmp_path / "pictures/*")
    assert captioned.captions == ["of a", "of b"] and len(captioned) == 2
    items = Items([tmp_path / "tars/*/*.tar"])
    paths = [item.metadata["path"] for number in range(len(items.parts)) for item in items.read(number)]
    items.close()
    assert paths == [f"{tmp_path}/tars/{folder}/0.tar::k" for folder in "ab"]


def test_the_rows_of_tars_are_known_by_any_path(tmp_path, monkeypatch):
    tables.write_tar(tmp_path / "0.tar", [("k.png", tables.content(0))])
    monkeypatch.chdir(tmp_path)
    assert Rows("0.tar").fingerprint() == Rows(tmp_path / "0.tar").fingerprint()


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("9007199254740993.0", 9007199254740993),
        (str(2**63), str(2**63)),
        ("-1.0", -1),
        ("1.5", "1.5"),
        ("img_1", "img_1"),
    ],
)
def test_ids_of_a_text_table(text, wanted, tmp_path):
    (tmp_path / "t.csv").write_text(f"id,url\n{text},http://x/1.jpg\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": text, "url": "http://x/1.jpg"}))
    for suffix in ("csv", "jsonl"):
        rows = Rows(tmp_path / f"t.{suffix}")
        (sample,) = rows.read(rows.parts(9)[0])
        assert sample.id == wanted and rows.numbered == isinstance(wanted, int)


def test_ids_that_are_whole_floats(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": 3.0, "url": "http://x/1.jpg"}\n{"id": null, "url": "http://x/2.jpg"}\n')
    source = open_source(tmp_path / "t.jsonl", merge=False)
    assert [source.identify(source.read(0, row), 0, row) for row in range(2)] == [(0, "3"), (0, None)]
