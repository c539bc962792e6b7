"""Tables, recipes, folders and disks that are not as one would like."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hostile import hostile_server
from tables_brute import random_table, write_table

from kakao_models.cli import main
from kakao_models.data import embed, neighbours
from kakao_models.data.curate import curate
from kakao_models.data.deadlinks import draw_success, failure_kind
from kakao_models.data.download import Download, download
from kakao_models.data.embed import Settings, embed_table
from kakao_models.data.journal import Journal
from kakao_models.data.neighbours import read_hashes
from kakao_models.data.recipes import make_filter, parse_flag, parse_flags, read_recipe
from kakao_models.data.shard import Options, write_sample_shards
from kakao_models.data.stats import draw, summarize
from kakao_models.data.writers import ParquetWriter, StoredSample
from kakao_models.samples.manifest import clear, read_manifest, verify_manifest
from kakao_models.samples.rows import Part, Rows
from kakao_models.samples.sources import open_source
from kakao_models.samples.tables import connect, is_parquet, new_folder, open_table

ROOT = Path(__file__).parents[2]
QUICK = Download(retries=0, timeout=5.0, attempts=1)


@pytest.fixture(scope="module")
def duckdb():
    return connect(threads=1)


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def run(code: str, *arguments) -> subprocess.Popen:
    """Python in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_columns_of_a_table_may_have_any_name(duckdb, tmp_path):
    names = ("digest", "place", "key", "rows", "other", "token", "DIGEST_", "difference")
    columns = {name: list(range(100, 106)) for name in names}
    texts, images = ["a b c", "a b c", "a b d", "a b d", "e", None], ["0", "0", "1", "2", "3", "4"]
    path = write(tmp_path / "t[1]*.parquet", id=range(6), text=texts, image_phash=images, **columns)
    flags = ("dedup", "text-frequency:max=5", "images-per-text:max=5", "texts-per-image:max=5", "rare-tokens:top=50")
    curate(duckdb, open_table(duckdb, path), parse_flags(flags), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    assert rows == [row for row in pq.read_table(path).to_pylist() if row["id"] != 1]
    assert is_parquet(str(path)) and Rows(path, needs=("caption",)).counts == [6]


def test_equal_digests_of_different_texts_change_nothing(duckdb, tmp_path, monkeypatch):
    """As if all rows had one of three digests."""
    from kakao_models.data import counting, filters

    def few(table, *values, bits=64):
        known = values[0].notnull()
        for value in values[1:]:
            known = known & value.notnull()
        return known.ifelse(values[0].cast("string").length() % 3, None)

    table = open_table(duckdb, write_table(random_table(7, 500), tmp_path / "t.parquet"))
    flags = ("text-frequency:max=12", "images-per-text:max=5", "texts-per-image:max=6", "dedup", "dedup:columns=text")
    found = {}
    for name in ("one", "few"):
        if name == "few":
            monkeypatch.setattr(counting, "digest", few)
            monkeypatch.setattr(filters, "digest", few)
        for number, flag in enumerate(flags):
            account = curate(duckdb, table, [parse_flag(flag)], tmp_path / f"{name}{number}")
            rows = pq.read_table(tmp_path / f"{name}{number}").sort_by("id").to_pylist()
            found[name, number] = account.steps, repr(rows)
    assert all(found["one", number] == found["few", number] for number in range(len(flags)))
    assert all(found["one", number][0][0].dropped for number in range(len(flags)))


def test_pictures_of_an_evaluation_set_that_could_not_be_read(duckdb, tmp_path):
    table = open_table(duckdb, write(tmp_path / "t.parquet", id=[1, 2], url=["a", "b"]))
    embedded = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0, 0.0, 1.0]), 2)
    write(tmp_path / "e.parquet", id=[1, 2], embedding=embedded)
    np.save(tmp_path / "eval.npy", np.array([[np.nan, np.nan], [np.nan, 1.0], [1.0, 0.01]]))
    item = parse_flag(f"eval-embeddings:file={tmp_path / 'eval.npy'},embeddings={tmp_path / 'e.parquet'}")
    curate(duckdb, table, [item], tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == [2]
    for array, message in ((np.full((2, 2), np.nan), "the file has no embeddings"), (np.zeros(3), "of shape")):
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(ValueError, match=message):
            make = parse_flag(f"eval-embeddings:file={tmp_path / 'bad.npy'},embeddings={tmp_path / 'e.parquet'}")
            curate(duckdb, table, [make], tmp_path / "no")
        (tmp_path / "bad.npy").unlink()
        neighbours._near_ids.cache_clear()


def test_statistics_of_odd_numbers(duckdb, tmp_path):
    path = write(
        tmp_path / "t.parquet",
        watermark_score=[float("inf"), float("-inf"), float("nan"), None, 0.25, 0.5] * 50,
        big=[number * 10**12 for number in range(300)],
        **{r"$\frac$": [0.5, 1.5] * 150},
    )
    stats = summarize(open_table(duckdb, path))
    found = stats.columns["watermark_score"]
    assert (found.nulls, found.min, found.max, found.mean, sum(found.counts)) == (200, 0.25, 0.5, 0.375, 100)
    assert len(stats.columns["big"].counts) == 300 and stats.columns["big"].max == 299 * 10**12
    wide = open_table(duckdb, write(tmp_path / "w.parquet", big=[number * 7 for number in range(50_000)]))
    assert len(summarize(wide).columns["big"].counts) == 1000
    draw(stats).savefig(tmp_path / "s.png")
    assert summarize(open_table(duckdb, path).limit(0)).rows == 0


def test_reasons_that_servers_made_up(tmp_path):
    rows = {"url": ["http://$\\x$.com/", None], "status": ["failed"] * 2, "error": [r"$\frac$ \x1b[31m", "x" * 500]}
    pq.write_table(pa.table(rows), tmp_path / "00000.parquet")
    draw_success(tmp_path).savefig(tmp_path / "s.png")
    assert len(failure_kind("y" * 500)) == 80


@pytest.mark.parametrize(
    "text, message",
    [
        ("- size: {min: 99999999999999999999}", "expected a number"),
        ("- rare-tokens: {top: 1.5}", "expected a whole number from 0"),
        ("- rare-tokens: {top: -1}", "expected a whole number from 0"),
        ("[" * 3000, "not valid YAML"),
        ("- !!python/object/apply:os.system ['echo']", "not valid YAML"),
        ("- &x [*x]", "is not a filter"),
        ("- 5: {}", "unknown filter"),
        ("- size: 3", "expected size: {parameter: value}, got 3"),
        ("- {size: {}, dedup: {}}", "is not a filter"),
        ("[]", "expected a list of filters"),
    ],
)
def test_hostile_recipes(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "r.yaml")


def test_what_the_engine_says_is_one_message(tmp_path, capsys):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(SystemExit) as stop:
        main(["data", "filter", str(tmp_path / "t.parquet"), "-f", "size"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "t.parquet" in err and "Traceback" not in err and "LINE 1" not in err


def test_rows_of_odd_tables(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="two columns 'text'"):
        Rows(tmp_path / "twice.parquet", needs=("caption",))
    texts = pa.array([b"good", b"\xff bad", None], pa.binary()).view(pa.string())
    write(tmp_path / "t.parquet", text=texts, id=[1.5, None, 2.0])
    found = Rows(tmp_path / "t.parquet", needs=("caption",)).read(Part(0, 0, 0, 3))
    assert [(sample.captions, sample.id) for sample in found] == [
        (("good",), "1.5"),
        (("\ufffd bad",), None),
        ((), "2.0"),
    ]
    pq.write_table(pa.table({"id": range(50), "text": ["x"] * 50}), tmp_path / "g.parquet", row_group_size=7)
    rows = Rows(tmp_path / "g.parquet", needs=("caption",))
    assert [row.id for part in rows.parts(9) for row in rows.read(part)] == list(range(50))


def test_addresses_and_ids_of_odd_kinds(tmp_path):
    path = write(tmp_path / "t.parquet", id=[0.5, 1.5], url=[1, 2], labels=["cat", "dog"])
    outcome = download(path, tmp_path / "out", QUICK)
    rows = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert outcome.successes == 0 and [(row["id"], row["url"]) for row in rows] == [("0.5", "1"), ("1.5", "2")]
    write(tmp_path / "u.parquet", url=["http://127.0.0.1:1/"], labels=[0.5])
    assert list(download(tmp_path / "u.parquet", tmp_path / "two", QUICK).errors) == ["label 0.5 is not a class number"]
    with pytest.raises(ValueError, match="no column of images; its columns are id"):
        download(write(tmp_path / "n.parquet", id=[1]), tmp_path / "no", QUICK)
    with pytest.raises(ValueError, match="per_shard: got 0"):
        Download(per_shard=0)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    path = write(tmp_path / "00000.parquet", url=["x"], text=["y"])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="so this command did not make it"):
        download(path, tmp_path, QUICK)
    assert path.read_bytes() == before and [name.name for name in tmp_path.glob("[!.]*")] == ["00000.parquet"]


class Stub:
    dim = 2

    def texts(self, texts, progress=None):
        return np.ones((len(texts), 2), np.float32)


def test_a_file_that_embed_did_not_write(tmp_path):
    path = write(tmp_path / "t.parquet", id=range(4), text=list("abcd"))
    embed_table(Stub(), path, tmp_path / "out", Settings("texts", 2))
    write(tmp_path / "out/00001.parquet", x=[1])
    with pytest.raises(ValueError, match="data embed did not write this file"):
        embed_table(Stub(), path, tmp_path / "out", Settings("texts", 2))
    (tmp_path / "out/plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json: not valid JSON"):
        embed_table(Stub(), path, tmp_path / "out", Settings("texts", 2))


def test_a_shard_is_embedded_in_pieces(tmp_path, monkeypatch):
    texts = [None if n % 4 == 1 else f"{n}" for n in range(11)]
    path = write(tmp_path / "t.parquet", id=range(11), text=texts)
    whole = embed_table(Stub(), path, tmp_path / "whole", Settings("texts", 7))
    monkeypatch.setattr(embed, "_AT_ONCE", 3)
    pieces = embed_table(Stub(), path, tmp_path / "pieces", Settings("texts", 7))
    assert [failure["name"] for failure in pieces["failures"]] == ["1", "5", "9"] and pieces["failures"] == whole[
        "failures"
    ]
    read = [pq.read_table(sorted((tmp_path / name).glob("*.parquet"))) for name in ("whole", "pieces")]
    assert read[0].equals(read[1]) and read[1]["id"].to_pylist() == [n for n in range(11) if n % 4 != 1]


def test_a_journal_ends_before_a_record_whose_bytes_changed(tmp_path):
    """As after a power cut: the length of the file is right, what it holds is not."""
    journal = Journal(tmp_path / "j")
    for row in range(3):
        journal.add({"row": row}, b"picture " * 9)
    journal.close()
    data = bytearray((tmp_path / "j").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "j").write_bytes(data)
    journal = Journal(tmp_path / "j")
    assert journal.rows() == [0] and (tmp_path / "j").stat().st_size == len(data) // 3
    journal.close()


def test_a_journal_that_a_kill_left_beside_a_finished_shard(tmp_path):
    path = write(tmp_path / "t.parquet", id=[1], url=["ftp://x/y"])
    download(path, tmp_path / "out", QUICK)
    (tmp_path / "out/00000.journal").write_bytes(b"")
    assert download(path, tmp_path / "out", QUICK).tried == 0 and not list(tmp_path.glob("out/*.journal"))


def test_parquet_shards_of_several_row_groups(tmp_path):
    writer = ParquetWriter(tmp_path / "x.parquet")
    for number in range(2100):
        writer.write(StoredSample(f"{number:04}", b"x", "jpg", ("a",), ()))
    writer.close()
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.read()["key"].to_pylist() == [f"{number:04}" for number in range(2100)]
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [1000, 1000, 100]


def test_hashes_of_text_tables(tmp_path):
    rows = [("text", "phash"), ('"two\nlines"', "0000000000000012"), ("b", "00000000000000FE"), ("c", "")]
    for suffix, separator in ((".csv", ","), (".tsv", "\t"), (".TSV", "\t")):
        path = tmp_path / f"h{suffix}"
        path.write_text("\n".join(map(separator.join, rows)))
        assert read_hashes(path) == ["0000000000000012", "00000000000000fe"], suffix
    (tmp_path / "digits.csv").write_text("phash\n0000000000000034\n0000000000000012\n")
    assert read_hashes(tmp_path / "digits.csv") == ["0000000000000012", "0000000000000034"]


def test_what_killed_runs_leave_is_cleared(tmp_path):
    names = (".00000.tar.7.tmp", ".00002_stats.json.7.tmp", ".00001.tar.7.tmp", ".manifest.json.7.tmp", "00004.tmp")
    for name in names:
        (tmp_path / name).touch()
    clear(tmp_path, range(0, 5, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_two_runs_on_one_output(duckdb, tmp_path):
    table = open_table(duckdb, write(tmp_path / "t.parquet", id=[1], text=["a"]))
    with new_folder(tmp_path / "out", duckdb):
        with pytest.raises(FileExistsError, match="another process"):
            curate(duckdb, table, [make_filter("text-frequency")], tmp_path / "out")
    curate(duckdb, table, [make_filter("text-frequency")], tmp_path / "out")
    journal = Journal(tmp_path / "j")
    with pytest.raises(FileExistsError, match="another process already works on this shard"):
        Journal(tmp_path / "j")
    journal.close()
    Journal(tmp_path / "j").close()


def test_manifests_that_are_none(tmp_path):
    sound = {"kind": "shards", "shards": [{"file": "x.tar", "rows": 1, "bytes": 1, "sha256": "0"}]}
    for change in ({"kind": 1}, {"shards": [{}]}, {"shards": 5}, {"shards": [sound["shards"][0] | {"rows": "1"}]}):
        (tmp_path / "manifest.json").write_text(json.dumps(sound | change))
        with pytest.raises(ValueError, match="not a manifest"):
            read_manifest(tmp_path)
    for text in ("[]", "{", "\xff"):
        (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="JSON"):
            read_manifest(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/manifest.json").write_text(
        json.dumps(sound | {"shards": [sound["shards"][0] | {"file": "../x.tar"}]})
    )
    assert verify_manifest(tmp_path / "in") == ["../x.tar: is missing"]


def test_captions_and_labels_that_cannot_be_written(tmp_path):
    tiny.picture_folder(tmp_path / "p", 3)
    images = [{"id": n, "file_name": f"{n:03}.png"} for n in range(3)]
    notes = [
        {"image_id": 0, "caption": "good"},
        {"image_id": 1, "caption": "half \ud800"},
        {"image_id": 2, "caption": {}},
    ]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": notes}))
    for form in ("webdataset", "tfrecord", "parquet"):
        source = open_source(tmp_path / "c.json", images=tmp_path / "p")
        manifest = write_sample_shards(source, tmp_path / form, options=Options(form))
        assert manifest["rows"] == 2 and "surrogates" in manifest["failures"][0]["reason"]


WORKERS = """
import os, signal, sys, time
from kakao_models.data.workers import processes

def start(): pass

def work(path):
    open(path + ".part", "w").write(str(os.getpid()))
    os.rename(path + ".part", path)  # so that nobody reads an empty file
    time.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    with processes(2, start) as pool:
        futures = [pool.submit(work, sys.argv[1] + str(n)) for n in range(9)]
        while not all(os.path.exists(sys.argv[1] + str(n)) for n in range(2)): time.sleep(0.01)
        print("ready", flush=True)
        if sys.argv[2] == "fail": raise OSError("disk full")
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("how", ["kill", "fail", "interrupt"])
def test_workers_end_with_the_run(tmp_path, how):
    (tmp_path / "w.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, tmp_path / "w.py", tmp_path / "pid", how]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "ready\n"
    numbers = [int((tmp_path / f"pid{n}").read_text()) for n in range(2)]
    if how != "fail":
        process.send_signal({"kill": 9, "interrupt": 2}[how])
    process.wait(30)
    end = time.monotonic() + 30
    while any(map(alive, numbers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, numbers)) and not (tmp_path / "pid2").exists()


def alive(number: int) -> bool:
    status = Path(f"/proc/{number}/stat")
    if status.parent.parent.joinpath("self").exists():
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


COMMAND = """
import signal, sys
from kakao_models.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
main(["data", *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
@pytest.mark.parametrize("verb", ["filter", "download"])
def test_ctrl_c_ends_a_command_at_once(duckdb, tmp_path, verb):
    """While DuckDB runs a query, and while servers let one wait for longer than anybody would."""
    if verb == "filter":
        query = (
            "COPY (SELECT range AS id, md5(range::VARCHAR) || ' ' || md5(id::VARCHAR || 'x') AS text FROM range({}))"
        )
        duckdb.raw_sql(f"{query.format(1_000_000)} TO '{tmp_path / 't.parquet'}'")
        options, sign = ("-f", "rare-tokens", "--threads", "1"), ".out.unfinished"
    else:
        options, sign = ("--allow-private-addresses", "--timeout", "100"), "out/00000.journal"
    with hostile_server() as server:
        if verb == "download":
            write(tmp_path / "t.parquet", url=[f"{server.url}/slow"] * 5)
        process = run(COMMAND, verb, tmp_path / "t.parquet", "-o", tmp_path / "out", *options)
        while not (tmp_path / sign).exists() and process.poll() is None:
            time.sleep(0.02)
        while verb == "download" and sum(server.requests.values()) < 5 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not out and "Traceback" not in err
    assert (tmp_path / "out").exists() == (verb == "download")  # which goes on where it was


FULL = """
import functools, http.server, resource, sys, threading
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from kakao_models.data.curate import curate
from kakao_models.data.download import Download, download
from kakao_models.samples.sources import open_source
from kakao_models.data.recipes import parse_flags
from kakao_models.data.shard import write_sample_shards
from kakao_models.samples.tables import connect, open_table
folder = Path(sys.argv[1])

class Pictures(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments): pass

def refused(run):
    try:
        run()
    except Exception as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
    else:
        print("nothing was wrong")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pictures, directory=folder / "pictures"))
threading.Thread(target=server.serve_forever, daemon=True).start()
where = f"http://127.0.0.1:{server.server_port}"
pq.write_table(pa.table({"url": [f"{where}/{n:03}.png" for n in range(8)]}), folder / "u.parquet")
connection = connect(threads=1)
table = open_table(connection, folder / "t.parquet")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
refused(lambda: curate(connection, table, parse_flags(["size:min=0"]), folder / "filtered"))
refused(lambda: write_sample_shards(open_source(folder / "pictures"), folder / "shards"))
refused(lambda: download(folder / "u.parquet", folder / "got", Download(threads=2, allow_private_addresses=True)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes")
def test_a_full_disk(tmp_path):
    tiny.picture_folder(tmp_path / "pictures", 8)
    write_table(random_table(0, 3000), tmp_path / "t.parquet")
    process = run(FULL, tmp_path)
    said = process.communicate(timeout=300)[0].splitlines()
    assert len(said) == 3 and all("File too large" in line or "file too large" in line.lower() for line in said), said
    left = sorted(path.name for path in tmp_path.glob("[!.]*"))
    assert left == ["got", "pictures", "t.parquet", "u.parquet"]
    assert not list((tmp_path / "got").glob("00000.*[tp]a*")) and not list((tmp_path / "got").glob(".*.tmp"))
    Journal(tmp_path / "got/00000.journal").close()  # its torn end is cut off


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
@pytest.mark.parametrize("what, kills", [("shard", 5), ("filter", 3)])
def test_a_few_kills(what, kills):
    command = [sys.executable, ROOT / "tests/fuzz/kill_data.py", what, str(kills), "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"{kills} kills" in done.stdout, done.stderr
