"""Statistics, labels and previews, against plain Python and hand-made tables."""

import io
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from tables_brute import random_table, write_table

from kakao_models.data.labels import label_stats, to_multilabel
from kakao_models.data.preview import contact_sheet, first_rows, print_table
from kakao_models.data.stats import draw, summarize
from kakao_models.samples.coyo import COYO_700M, check_columns
from kakao_models.samples.sources import open_source
from kakao_models.samples.tables import connect, files_of, is_hub, open_table


@pytest.fixture(scope="module")
def duckdb():
    return connect(threads=1)


def test_statistics_are_those_of_pandas(duckdb, tmp_path):
    frame = random_table(0, 1000)
    stats = summarize(open_table(duckdb, write_table(frame, tmp_path / "t.parquet")))
    assert stats.rows == 1000 and stats.sampled is None
    for name in ("width", "word_count", "watermark_score", "clip_similarity_vitl14"):
        column = pd.to_numeric(frame[name]).dropna()
        found = stats.columns[name]
        assert (found.nulls, found.min, found.max) == (1000 - len(column), column.min(), column.max())
        assert found.mean == pytest.approx(column.mean(), rel=1e-12) and sum(found.counts) == len(column)
        step = 0 if name in ("width", "word_count") else (column.max() - column.min()) / 1000
        for share in (0.01, 0.5, 0.99):
            wanted = column.quantile(share, interpolation="inverted_cdf")
            assert wanted - step - 1e-9 <= found.quantile(share) <= wanted + 1e-9
    for name in ("url", "image_phash", "text"):
        assert stats.unique[name] == frame[name].nunique()
    assert "1,000 rows (all rows, exact)" in str(stats)
    json.dumps(stats.as_dict())
    figure = draw(stats)
    assert len(figure.axes) == 11
    figure.savefig(io.BytesIO(), format="png")


def test_a_sample_says_that_it_is_one(duckdb, tmp_path):
    frame = random_table(1, 2000)
    stats = summarize(open_table(duckdb, write_table(frame, tmp_path / "t.parquet")), sample=0.25, seed=3)
    assert 350 < stats.rows < 650 and stats.sampled == 0.25 and "a sample of 25" in str(stats)
    assert sum(stats.columns["width"].counts) + stats.columns["width"].nulls == stats.rows  # one sample for all
    with pytest.raises(ValueError, match="share between 0 and 1"):
        summarize(open_table(duckdb, tmp_path / "t.parquet"), sample=25)


def test_what_differs_from_the_published_table_is_said(duckdb, tmp_path):
    frame = random_table(0, 50).drop(columns="num_faces").assign(extra=1, width=199, word_count=324)
    frame["aesthetic_score_laion_v2"] = "high"
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, tmp_path / "t.parquet")
    said = str(summarize(open_table(duckdb, tmp_path / "t.parquet")))
    for finding in (
        "num_faces: missing (COYO-700M has it)",
        "extra: not a column of COYO-700M",
        "width: reaches down to 199, published is 200",
        "word_count: reaches up to 324, published is 323",
        "aesthetic_score_laion_v2: 50 of 50 rows have none",
    ):
        assert finding in said
    assert check_columns(COYO_700M.types) == []
    assert [str(x) for x in check_columns(COYO_700M.types | {"width": "string"})] == [
        "width: is string, COYO-700M has int64"
    ]
    assert not check_columns(COYO_700M.types | {"width": "int32", "watermark_score": "float32"})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    draw_ = np.random.default_rng(0)
    rows = []
    for number in range(300):
        count = int(draw_.integers(0, 8))
        chances = sorted(np.round(draw_.random(count), 1).tolist(), reverse=True)
        rows.append(
            {
                "id": number,
                "url": f"http://x/{number}",
                "imagehash": f"{number:016x}",
                "labels": draw_.choice(30, count, replace=False).tolist(),
                "label_probs": chances,
            }
        )
    rows[5] |= {"labels": None, "label_probs": None}
    rows[6] |= {"labels": [1, 2, 3], "label_probs": [0.9, float("nan"), None]}
    rows[7] |= {"labels": [1, 2, 3], "label_probs": [0.9]}
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path, rows


def above(row, threshold):
    pairs = zip(row["labels"] or [], row["label_probs"] or [])
    return [label for label, chance in pairs if chance is not None and chance >= threshold]


def test_label_statistics(duckdb, labelled):
    path, rows = labelled
    stats = label_stats(open_table(duckdb, path), (0.5, 0.0, 0.3), top=4)
    assert [found.threshold for found in stats.thresholds] == [0.0, 0.3, 0.5]
    for found in stats.thresholds:
        lists = [above(row, found.threshold) for row in rows]
        some = [labels for labels in lists if labels]
        everything = pd.Series([label for labels in lists for label in labels]).value_counts()
        assert found.images == len(some) / 300
        assert found.labels_per_image == pytest.approx(sum(map(len, some)) / len(some))
        assert found.unique_labels == len(everything)
        wanted = sorted(everything.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
        assert list(found.top_classes) == wanted
    counts = pd.Series([len(above(row, 0.5)) for row in rows]).value_counts().sort_index()
    assert list(stats.histogram) == list(counts.items())
    assert "300 images" in stats.named([f"class {number}" for number in range(30)])
    with pytest.raises(ValueError, match="expected a probability"):
        label_stats(open_table(duckdb, path), (50,))


def test_labels_above_a_threshold_as_training_reads_them(duckdb, labelled, tmp_path):
    path, rows = labelled
    picture = io.BytesIO()
    tiny.picture(0).save(picture, "PNG")
    found = to_multilabel(open_table(duckdb, path), 0.4).to_pyarrow().sort_by("id")
    wanted = {row["id"]: above(row, 0.4) for row in rows if above(row, 0.4)}
    assert dict(zip(found["id"].to_pylist(), found["labels"].to_pylist())) == wanted
    assert "label_probs" not in found.column_names
    pq.write_table(found.append_column("image", pa.array([picture.getvalue()] * len(found))), tmp_path / "s.parquet")
    source = open_source(tmp_path / "s.parquet")
    assert [source.read(0, row).labels for row in range(len(found))] == [tuple(labels) for labels in wanted.values()]
    everything = to_multilabel(open_table(duckdb, path), 0.4, keep_empty=True, most=1).to_pyarrow().sort_by("id")
    assert everything["labels"].to_pylist() == [above(row, 0.4)[:1] for row in rows]


def test_preview(tmp_path, capsys):
    frame = random_table(0, 20)
    frame["url"] = [f"{number}.png" for number in range(20)]
    frame.loc[0, "text"] = "<script>alert(1)</script> [bold]\x1b[31m"
    frame.loc[2, "url"] = "http://127.0.0.1:9/x.png"
    for number in range(20):
        if number != 1:
            tiny.picture(number, 400, 100).save(tmp_path / f"{number}.png")
    write_table(frame, tmp_path / "t.parquet")
    rows, types = first_rows(tmp_path / "t.parquet", 6)
    in_file = pq.read_table(tmp_path / "t.parquet")["url"].to_pylist()
    assert [row["url"] for row in rows] == in_file[:6] and types["width"] == "int64"
    pq.write_table(pa.table({"id": range(60_000)}), tmp_path / "large.parquet", row_group_size=3000)
    assert [row["id"] for row in first_rows(tmp_path / "large.parquet", 8000)[0]] == list(range(8000))
    rows = frame.head(6).to_dict("records")
    page, lost = contact_sheet(rows, "A <title>", folder=tmp_path)
    assert lost == 2 and page.count("<img ") == 4 and "not a public address" in page and "no such file" in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "A &lt;title&gt;" in page and "\x1b" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    print_table(rows)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "watermark" not in out and "[bold]" in out and "aesthetic_" in out
    with pytest.raises(ValueError, match="columns: no column nothing"):
        print_table(rows, ["nothing"])


def test_sources(tmp_path, monkeypatch, duckdb):
    assert is_hub("kakaobrain/coyo-700m") and is_hub("hf://kakaobrain/coyo-700m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    write_table(random_table(0, 5), tmp_path / "a/b.parquet")
    write_table(random_table(1, 6), tmp_path / "a/c.parquet")
    assert not is_hub("a/b.parquet") and not is_hub("a/none.csv") and not is_hub("./a/b")
    assert files_of("a") == files_of("a/*.parquet") == ["a/b.parquet", "a/c.parquet"]
    assert open_table(duckdb, "a").count().execute() == 11
    (tmp_path / "a/d.csv").write_text("url\nx\n")
    with pytest.raises(ValueError, match=r"files of \.csv, \.parquet"):
        files_of("a")
    with pytest.raises(ValueError, match="no such file"):
        files_of("nowhere.parquet")


def test_a_data_set_of_the_hub_is_read_where_it_is(tmp_path, monkeypatch, duckdb):
    import fsspec.implementations.dirfs
    import fsspec.implementations.local
    import huggingface_hub

    class System(fsspec.implementations.dirfs.DirFileSystem):
        protocol = "hf"

        def __init__(self):
            super().__init__(str(tmp_path), fsspec.implementations.local.LocalFileSystem())

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("hf://")

    folder = tmp_path / "datasets/kakaobrain/coyo-700m/data"
    folder.mkdir(parents=True)
    frame = random_table(0, 30)
    write_table(frame, folder / "part-0.parquet")
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", System)
    monkeypatch.setattr("kakao_models.samples.tables.pin_data_set", lambda name: None)
    assert open_table(duckdb, "kakaobrain/coyo-700m").count().execute() == 30


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_preview_of_a_data_set_of_the_hub_streams(form, tmp_path, monkeypatch):
    """What `datasets` does with a folder, under the name of a data set; a file after those rows is not even opened."""
    datasets = pytest.importorskip("datasets")
    read, asked = datasets.load_dataset, []

    def resolved(name, **options):
        asked.append((name, options))
        return read(str(tmp_path / "hub" / name), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", resolved)
    monkeypatch.setattr("kakao_models.samples.sources.pin_data_set", lambda name: "c" * 40)
    folder = tmp_path / "hub/kakaobrain/coyo-labeled/data"
    folder.mkdir(parents=True)
    lists = {"labels": [1, 2], "label_probs": [0.5, 0.25]}
    rows = [{"id": n * 7, "url": f"http://x/{n}", "width": n, "height": n} | lists for n in range(20)]
    rows[1] |= {"url": None, "labels": None}
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00002.parquet")
    else:
        (folder / "train-00000-of-00002.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / f"train-00001-of-00002.{form}").write_bytes(b"nothing that can be read")
    found, types = first_rows("hf://kakaobrain/coyo-labeled", 5)
    assert found == rows[:5] and asked == [
        ("kakaobrain/coyo-labeled", {"split": "train", "streaming": True, "revision": "c" * 40})
    ]
    numbers = dict.fromkeys(("id", "width", "height"), "int64")
    assert types == numbers | {"url": "string", "labels": "array<int64>", "label_probs": "array<float64>"}
    assert [str(finding) for finding in check_columns(types)] == ["imagehash: missing (COYO-Labeled-300M has it)"]
    with pytest.raises(ValueError, match="nothing.*train"):
        first_rows("kakaobrain/coyo-labeled", 5, split="nothing")


def test_pictures_within_a_data_set_of_the_hub_stay_bytes(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: read(str(tmp_path / name), **options))
    monkeypatch.setattr("kakao_models.samples.sources.pin_data_set", lambda name: None)
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in tiny.picture_folder(tmp_path / "p", 3)]
    pictures[1] = {"bytes": b"no picture", "path": "x.png"}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "owner").mkdir()
    saved = datasets.Dataset.from_dict({"image": pictures, "text": ["a", "b", "c"]}, features=features)
    saved.to_parquet(str(tmp_path / "owner/set/train.parquet"))
    found, types = first_rows("owner/set", 3)
    assert [row["image"]["bytes"] for row in found] == [picture["bytes"] for picture in pictures]
    page, lost = contact_sheet(found, "owner/set")
    assert lost == 1 and page.count("<img ") == 2 and list(types) == ["image", "text"]


def test_pictures_that_are_files_of_a_data_set_of_the_hub(tmp_path):
    """Folders of pictures and archives there: `datasets` gives their places, and no bytes."""
    import zipfile

    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    there = fsspec.get_filesystem_class("hf")
    fsspec.register_implementation("hf", MemoryFileSystem, clobber=True)
    try:
        file = tiny.picture_folder(tmp_path, 1)[0]
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(file, "b.png")
        for name, path in (("x.png", file), ("a.zip", tmp_path / "a.zip")):
            with fsspec.open(f"hf://datasets/owner/set/{name}", "wb") as target:
                target.write(path.read_bytes())
        paths = [
            "hf://datasets/owner/set/x.png",
            "zip://b.png::hf://datasets/owner/set/a.zip",
            "hf://datasets/none.png",
        ]
        paths.append(f"file://{file}")  # of this machine, which a row must not name
        page, lost = contact_sheet([{"image": {"bytes": None, "path": path}} for path in paths], "owner/set")
    finally:
        fsspec.register_implementation("hf", there, clobber=True)
        MemoryFileSystem.store.clear()
    assert lost == 2 and page.count("<img ") == 2 and "none.png" in page
