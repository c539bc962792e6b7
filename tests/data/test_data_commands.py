"""`kakao-models data`, as a user calls it."""

import functools
import json

import image_tables as tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from tables_brute import random_table, write_table


@pytest.fixture
def command(command):
    return functools.partial(command, "data")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(random_table(0, 200), tmp_path_factory.mktemp("table") / "t.parquet")


def test_data_sets_on_the_hub(command, hub, table, tmp_path, monkeypatch):
    """hf://owner/name is asked for once, and read at that commit."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    hub.commit("datasets/someone/pairs", {"data/train-00000-of-00001.parquet": table.read_bytes()})
    code, out, err = command("filter", "hf://someone/pairs", "-f", "size", "-o", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 200 and hub.count(r"GET /api/datasets/someone/pairs\?expand=sha") == 1
    code, out, err = command("preview", "hf://someone/pairs", "--json")
    assert code == 0, err
    assert hub.count("/resolve/main/") == 0


@pytest.mark.parametrize("words", [["preview"], ["filter", "-f", "size"], ["stats"]])
@pytest.mark.parametrize(
    "name, failing, message",
    [
        (
            "hf://someone/absent",
            {},
            "the Hub has no such repository, or it is private (401: Invalid username or password.)",
        ),
        ("someone/absent", {}, "someone/absent: there is no such folder here, and the Hub has no such repository"),
        ("hf://someone/pairs", dict(status=503), "someone/pairs: the Hub answered 503, try again later"),
        ("absent/", {}, "absent/: no such file or folder"),
        ("./absent/table", {}, "./absent/table: no such file or folder"),
    ],
)
def test_data_that_is_not_there_has_one_cause(words, name, failing, message, command, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.commit("datasets/someone/pairs", {"train.parquet": b""})
    if failing:
        hub.fail(".", **failing)
    verb, *options = words
    code, out, err = command(verb, name, *options)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1
    assert hub.count(".") <= 2


def test_filter(command, table, tmp_path):
    (tmp_path / "r.yaml").write_text("- size: {min: 201}\n")
    code, out, err = command(
        "filter", table, "-o", tmp_path / "out", "-r", tmp_path / "r.yaml", "-f", "dedup:columns=text", "--json"
    )
    account = json.loads(out)
    assert code == 0 and account["rows"] == 200 and account["frequencies"] == "exact"
    assert [step["filter"].split("(")[0] for step in account["steps"]] == ["size", "dedup"]
    assert pq.read_table(tmp_path / "out").num_rows == account["kept"] < 100
    code, out, err = command("filter", table, "-f", "size", "--approximate", 32, "--spill", tmp_path / "spill")
    assert code == 0 and "dropped" in out and "approximate" in out
    assert not list((tmp_path / "spill").glob("*counted*"))
    code, out, err = command("filter", table, "-f", "siz")
    assert code == 2 and "unknown filter" in err
    assert command("filter", table)[0] == command("filter", "-f", "size")[0] == 2
    code, out, err = command("filter", "--list")
    assert code == 0 and "rare-tokens" in out
    kinds = json.loads(command("filter", "--list", "--json")[1])
    assert {kind["filter"]: kind["parameters"] for kind in kinds}["size"] == {"min": 200, "strict": False}


def test_scores_are_joined_by_id(command, table, tmp_path):
    import pyarrow as pa

    scores = {"id": [0, 3, 6, 999], "align_score": [0.5, 0.1, 0.3, 0.9]}
    folder = tmp_path / "scores"
    folder.mkdir()
    pq.write_table(pa.table(scores), folder / "00000.parquet")
    for name in ("manifest.json", "plan.json", "00000_stats.json"):  # as embed and download leave them
        (folder / name).write_text("{}")
    join = ("--join", folder, "-f", "align-score:min=0.3", "-o", tmp_path / "out")
    assert command("filter", table, *join)[0] == 0
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    assert [(row["id"], row["align_score"]) for row in rows] == [(0, 0.5), (6, 0.3)]
    assert list(rows[0])[:-1] == pq.read_schema(table).names


def test_stats_and_preview(command, table, tmp_path):
    code, out, err = command("stats", table, "--picture", tmp_path / "s.png", "-o", tmp_path / "s.json")
    assert code == 0 and "distinct text" in out and (tmp_path / "s.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "s.json").read_text())["exact"] is True
    code, out, err = command("preview", table, "-n", 3, "--json")
    assert code == 0 and len(json.loads(out)["rows"]) == 3
    code, out, err = command("preview", tmp_path / "none.parquet")
    assert code == 2 and "no such file" in err


def test_label_stats(command, tmp_path):
    import pyarrow as pa

    rows = {"id": [1, 2], "labels": [[3, 4], [4, 5]], "label_probs": [[0.9, 0.3], [0.2, 0.1]]}
    pq.write_table(pa.table(rows), tmp_path / "l.parquet")
    convert = ("--thresholds", "0,0.25", "--threshold", 0.25, "-o", tmp_path / "out")
    code, out, err = command("label-stats", tmp_path / "l.parquet", *convert)
    assert code == 0 and "2 images" in out and "50.00%" in out
    assert pq.read_table(tmp_path / "out").to_pylist() == [{"id": 1, "labels": [3, 4]}]
    assert command("label-stats", tmp_path / "l.parquet", "-o", tmp_path / "x")[0] == 2


def test_shard_and_verify(command, tmp_path):
    tiny.picture_folder(tmp_path / "in", 3)
    assert command("shard", tmp_path / "in", "-o", tmp_path / "out", "--seed", 1)[0] == 0
    assert command("verify", tmp_path / "out", "--decode")[0] == 0
    (tmp_path / "out/00000.tar").write_bytes(b"")
    code, out, err = command("verify", tmp_path / "out", "--json")
    assert code == 1 and len(json.loads(out)) == 1
    (tmp_path / "in/broken.jpg").write_bytes(b"x")
    code, out, err = command("shard", tmp_path / "in", "-o", tmp_path / "again", "--format", "tfrecord")
    assert code == 1 and "failed: broken.jpg" in err and (tmp_path / "again/00000.tfrecord").exists()


def test_only_addresses_are_downloaded(command, tmp_path):
    """A folder or a column of images is an error, never "0 of 4 pictures" and exit code 0."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(tables.content(0))
    place = tables.write_parquet(tmp_path / "t.parquet", {"pic": tables.encoded(), "caption": tables.CAPTIONS})
    for source, *chosen in (["images"], ["t.parquet", "--image-column", "pic"]):
        code, _, err = command("download", tmp_path / source, "-o", tmp_path / "out", *chosen)
        assert code == 2 and "holds images, not URLs" in err and "--image-column" in err
    assert place.exists() and not (tmp_path / "out").exists()


def test_preview_of_types_that_ibis_has_not(command, tmp_path):
    columns = {"image": pa.array(tables.encoded(), pa.binary_view()), "text": pa.array(["x"] * 5, pa.string_view())}
    code, out, err = command("preview", tables.write_parquet(tmp_path / "t.parquet", columns), "--columns", "text")
    assert (code, err) == (0, "") and "not a column of COYO-700M" in out


def test_preview_of_a_chosen_column(command, tmp_path):
    """A row without a picture is counted; a column that no row has is an error, also without a page."""
    tables.files(tmp_path)
    place = tmp_path / "t.jsonl"
    place.write_text('{"pic": "pictures/0.png", "n": 1}\n{"pic": null, "n": 2}\n{"pic": 7, "n": 3}\n')
    code, _, err = command("preview", place, "--html", tmp_path / "page.html", "--image-column", "pic")
    assert code == 0 and "1 images, 2 could not be read" in err
    code, _, err = command("preview", place, "--image-column", "nope")
    assert code == 2 and "no column 'nope'; its columns are pic, n" in err


def test_stats_says_what_is_wrong_with_a_csv(command, tmp_path):
    """The message is that of the other commands, or DuckDB's without its options."""
    place = tmp_path / "t.csv"
    place.write_text('id,text\n1,"a "b" c"\n')
    code, _, err = command("stats", place)
    assert code == 2 and "t.csv: line 2 is badly quoted" in err and "null_padding" not in err
    tables.write_csv(place, {"id": [1, 2], "text": ["x", "ü"]}, encoding="latin-1")
    code, _, err = command("stats", place)
    assert code == 2 and "t.csv" in err and "not utf-8" in err.lower() and "ignore_errors" not in err
    for name, separator in (("a.csv", ","), ("b.csv", ";")):
        tables.write_csv(tmp_path / name, {"id": [1], "text": ["x"]}, separator)
    code, _, err = command("stats", tmp_path / "[ab].csv")
    assert code == 2 and "b.csv: its separator is ';', but" in err


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_that_are_names_are_kept(suffix, command, tmp_path):
    columns = {"id": ["img_1", "2"], "url": ["http://x/1.jpg", "http://x/2.jpg"], "width": [300, 400]}
    place = getattr(tables, f"write_{suffix}")(tmp_path / f"t.{suffix}", columns)
    assert command("filter", place, "-f", "range:column=width,min=1", "-o", tmp_path / "out")[0] == 0
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == ["2", "img_1"]
    scores = tables.write_parquet(tmp_path / "s.parquet", {"id": [2], "align_score": [0.5]})
    assert command("filter", place, "--join", scores, "-f", "align-score", "-o", tmp_path / "joined")[0] == 0
    assert pq.read_table(tmp_path / "joined")["id"].to_pylist() == ["2"]
    assert command("stats", place)[0] == 0


def test_stats_of_whole_numbers_far_apart(command, tmp_path):
    place = tables.write_parquet(tmp_path / "t.parquet", {"hash": [-(2**63), 2**63 - 1, 5]})
    code, out, _ = command("stats", place, "--json")
    assert code == 0 and json.loads(out)["columns"]["hash"]["counts"] == [1, 1, 1]


def test_label_stats_needs_a_name_of_each_class(command, tmp_path):
    place = tables.write_parquet(tmp_path / "t.parquet", {"labels": [[5, 3]], "label_probs": [[0.5, 0.3]]})
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    code, _, err = command("label-stats", place, "--labels-file", tmp_path / "names.txt")
    assert code == 2 and "got 2 names of classes, but the table has the class" in err


def test_preview_of_a_folder_of_images(command, tmp_path, monkeypatch):
    (path,) = tiny.picture_folder(tmp_path / "p" / "cat", 1)
    path.with_suffix(".txt").write_text("a tabby")
    monkeypatch.chdir(tmp_path)
    code, out, err = command("preview", "p", "--columns", "label, caption", "--html", "page.html")
    assert code == 0 and "a tabby" in out and "1 images, 0 could not be read" in err


def test_differing_csv_files_name_no_option_of_another_program(command, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.csv").write_text("url,text\nhttp://x,a\n")
    (tmp_path / "t/b.csv").write_text("text,n\na,1\n")
    code, _, err = command("stats", tmp_path / "t")
    assert code == 2 and '"url" is missing' in err and "union_by_name" not in err


def test_preview_as_json_has_no_numbers_that_json_has_not(command, tmp_path):
    nan, inf = float("nan"), float("inf")
    place = tables.write_parquet(tmp_path / "t.parquet", {"label_probs": [[nan, 1.0]], "watermark_score": [inf]})
    code, out, _ = command("preview", place, "--json")
    assert code == 0 and json.loads(out)["rows"] == [{"label_probs": [None, 1.0], "watermark_score": None}]


def test_a_table_without_a_first_line(command, tmp_path):
    (tmp_path / "t.csv").write_text("")
    for verb in ("stats", "preview"):
        code, _, err = command(verb, tmp_path / "t.csv")
        assert code == 2 and "its first line is empty" in err


def test_ids_of_embeddings_of_another_kind(command, tmp_path):
    place = tables.write_parquet(tmp_path / "t.parquet", {"id": [1, 2], "url": ["x", "y"]})
    np.save(tmp_path / "eval.npy", np.array([[1.0, 0.0]], np.float32))
    for names, wanted in ((["1", "b"], 0), (["a", "b"], 2)):
        columns = {"id": names, "embedding": [[1.0, 0.0], [0.0, 1.0]]}
        tables.write_parquet(tmp_path / f"{names[0]}.parquet", columns)
        flag = f"eval-embeddings:file={tmp_path}/eval.npy,embeddings={tmp_path}/{names[0]}.parquet"
        code, _, err = command("filter", place, "-f", flag)
        assert code == wanted and ("its ids are names" in err) == bool(wanted)
