"""Downloading from a server of this machine that does all that goes wrong on the web."""

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import hostile_server, png

from kakao_models.cli import main
from kakao_models.data.deadlinks import dead_links, draw_success
from kakao_models.data.download import Download, download
from kakao_models.data.journal import Journal
from kakao_models.samples.manifest import verify_manifest
from kakao_models.samples.sources import open_source

HERE = Download(per_shard=100, threads=8, retries=0, attempts=3, timeout=9.0, allow_private_addresses=True)


@pytest.fixture
def server():
    with hostile_server() as server:
        yield server


def write(path, urls, **columns):
    table = {"id": [n * 5 for n in range(len(urls))], "url": urls, "text": [f"text {n}" for n in range(len(urls))]}
    pq.write_table(pa.table(table | columns), path)
    return path


def table_of(folder):
    return [row for path in sorted(folder.glob("[0-9]*.parquet")) for row in pq.read_table(path).to_pylist()]


def samples(folder):
    source = open_source(folder / "*.tar")
    return [source.read(shard, row) for shard, count in enumerate(source.counts) for row in range(count)]


CASES = {
    "good/0": None,
    "html": None,
    "moved": None,
    "good/7": None,
    "lying": "not an image",
    "short": "the connection closed after 200",
    "broken": "decoded",
    "gone": "answered 410",
    "none": "answered 404",
    "bomb": "max_pixels",
    "huge": "max_bytes",
    "endless": "max_bytes",
    "loop": "redirects",
    "file": "expected an http or https URL",
    "noise": "download failed",
    "hangup": "download failed",
}


def test_everything_that_goes_wrong(server, tmp_path):
    urls = [f"{server.url}/{name}" for name in CASES]
    urls += ["http://nowhere.invalid/x.png", "ftp://x/y", "http://[bad", "", None]
    source = write(tmp_path / "t.parquet", urls)
    outcome = download(source, tmp_path / "out", replace(HERE, max_bytes=2**20, timeout=60.0))
    assert (outcome.rows, outcome.successes, outcome.tried) == (21, 4, 21)
    rows = table_of(tmp_path / "out")
    assert [row["row"] for row in rows] == list(range(21)) and [row["id"] for row in rows][:3] == [0, 5, 10]
    for row, (name, reason) in zip(rows, CASES.items()):
        assert row["status"] == ("success" if reason is None else "failed"), (name, row["error"])
        assert reason is None or reason in row["error"], (name, row["error"])
    assert all(row["status"] == "failed" for row in rows[16:])
    found = samples(tmp_path / "out")
    assert [bytes(sample.image) for sample in found] == [png(0), png(1), png(3), png(7)]
    assert [sample.captions for sample in found] == [("text 0",), ("text 1",), ("text 2",), ("text 3",)]
    assert rows[0]["sha256"] == hashlib.sha256(png(0)).hexdigest() and (rows[0]["width"], rows[0]["height"]) == (60, 48)
    stats = json.loads((tmp_path / "out/00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (21, 4, 17)
    assert verify_manifest(tmp_path / "out", decode=True) == []
    assert dead_links(tmp_path / "out", tmp_path / "dead.csv") == 17
    dead = list(csv.DictReader(open(tmp_path / "dead.csv")))
    assert [row["url"] for row in dead] == [url or "" for url in urls[4:]]
    assert {row["final"] for row in dead if "good" not in row["url"]} == {"True", "False"}
    draw_success(tmp_path / "out").savefig(tmp_path / "s.png")
    requests = dict(server.requests)
    second = download(source, tmp_path / "out", replace(HERE, max_bytes=2**20, timeout=60.0))
    again = {path for path in requests if server.requests[path] > requests[path]}
    assert second.successes == 4 and "/good/0" not in again and "/none" not in again and "/bomb" not in again
    assert {"/short", "/noise"} <= again


def test_a_server_that_dribbles_is_given_up(server, tmp_path):
    source = write(tmp_path / "t.parquet", [f"{server.url}/slow"])
    outcome = download(source, tmp_path / "out", replace(HERE, timeout=2.0))
    assert outcome.successes == 0 and outcome.errors == {"no complete response within 2 s": 1}


def test_private_addresses_are_refused(server, tmp_path):
    urls = [
        f"{server.url}/good/1",
        "http://localhost/x",
        "http://10.0.0.1/",
        "http://169.254.169.254/meta",
        "http://[::1]/",
    ]
    outcome = download(
        write(tmp_path / "t.parquet", urls), tmp_path / "out", replace(HERE, allow_private_addresses=False)
    )
    assert outcome.successes == 0 and not server.requests
    assert outcome.errors == {"not a public address": 5} and all(row["final"] for row in table_of(tmp_path / "out"))


def test_failures_are_tried_again_in_later_runs(server, tmp_path):
    source = write(
        tmp_path / "t.parquet", [f"{server.url}/{name}" for name in ("good/1", "flaky/2", "flaky/3", "flaky/9")]
    )
    for successes, attempts in ((1, [1, 1, 1, 1]), (2, [1, 2, 2, 2]), (3, [1, 2, 3, 3]), (3, [1, 2, 3, 3])):
        assert download(source, tmp_path / "out", HERE).successes == successes
        assert [row["attempts"] for row in table_of(tmp_path / "out")] == attempts
        assert len(samples(tmp_path / "out")) == successes and verify_manifest(tmp_path / "out") == []
    assert server.requests["/good/1"] == 1 and server.requests["/flaky/9"] == 3
    within = download(
        write(tmp_path / "u.parquet", [f"{server.url}/flaky/02"]), tmp_path / "one", replace(HERE, retries=1)
    )
    assert within.successes == 1 and server.requests["/flaky/02"] == 2


def test_hashes_sizes_and_labels(server, tmp_path):
    urls = [f"{server.url}/good/{n}" for n in range(4)]
    good = [hashlib.sha256(png(0)).hexdigest(), "0" * 64, None, None]
    md5 = [None, None, hashlib.md5(png(2)).hexdigest(), "f" * 32]
    source = write(tmp_path / "t.parquet", urls, sha256=good, md5=md5, labels=[[1, 2], [3], [4], [5]])
    download(source, tmp_path / "out", replace(HERE, image_size=24))
    assert [row["status"] for row in table_of(tmp_path / "out")] == ["success", "failed", "success", "failed"]
    assert [sample.labels for sample in samples(tmp_path / "out")] == [(1, 2), (4,)]
    assert [(row["width"], row["height"]) for row in table_of(tmp_path / "out")][0] == (30, 24)
    outcome = download(source, tmp_path / "small", replace(HERE, min_size=49))
    assert outcome.successes == 0 and "smaller than 49 pixels" in outcome.errors
    assert download(source, tmp_path / "long", replace(HERE, max_aspect=1.2)).successes == 0
    with pytest.raises(ValueError, match="was started with other settings .*rows was 4, is 2"):
        download(write(tmp_path / "u.parquet", urls[:2]), tmp_path / "out", HERE)


def test_a_damaged_tar_is_downloaded_again(server, tmp_path):
    source = write(tmp_path / "t.parquet", [f"{server.url}/good/{n}" for n in range(6)])
    download(source, tmp_path / "out", replace(HERE, per_shard=3))
    path = tmp_path / "out/00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    outcome = download(source, tmp_path / "out", replace(HERE, per_shard=3))
    assert outcome.successes == 6 and outcome.tried == 3 and verify_manifest(tmp_path / "out", decode=True) == []
    assert [server.requests[f"/good/{n}"] for n in range(6)] == [1, 1, 1, 2, 2, 2]


def test_killed_downloads_lose_and_repeat_nothing(tmp_path):
    count = 60
    with hostile_server(delay=0.02) as server:
        source = write(tmp_path / "t.parquet", [f"{server.url}/good/{n}" for n in range(count)])
        code = (
            "import sys; from kakao_models.data.download import Download, download\n"
            "o = Download(per_shard=20, threads=2, retries=0, timeout=9.0, allow_private_addresses=True)\n"
            "download(sys.argv[1], sys.argv[2], o)"
        )
        kills = 0
        for wanted in (4, 15, 27, 41):
            process = subprocess.Popen([sys.executable, "-c", code, str(source), str(tmp_path / "out")])
            while sum(server.requests.values()) < wanted and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        download(source, tmp_path / "out", replace(HERE, per_shard=20))
        whole = download(source, tmp_path / "whole", replace(HERE, per_shard=20))
        requests = sum(server.requests.values())
    assert kills == 4 and whole.successes == count
    assert requests <= 2 * count + kills * 4  # only what was under way at a kill was asked for again
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not list((tmp_path / "out").glob("*.journal"))


def test_attempts_of_all_runs_bound_those_of_one(server, tmp_path):
    source = write(tmp_path / "t.parquet", [f"{server.url}/hangup/0"])
    download(source, tmp_path / "out", replace(HERE, retries=1, attempts=1))
    assert server.requests["/hangup/0"] == 1


def test_a_run_that_goes_on_asks_for_what_was_not_tried(server, tmp_path):
    """What failed before the kill is left to the next run: it was tried in this one."""
    source = write(tmp_path / "t.parquet", [f"{server.url}/good/0", f"{server.url}/good/1"])
    download(source, tmp_path / "out", HERE)
    for path in (tmp_path / "out").glob("00000*"):
        path.unlink()
    journal = Journal(tmp_path / "out/00000.journal")
    journal.add({"row": 0, "status": "failed", "final": False, "attempts": 1, "error": "timed out"})
    journal.close()
    assert download(source, tmp_path / "out", HERE).tried == 1 and server.requests["/good/0"] == 1
    assert download(source, tmp_path / "out", HERE).successes == 2 and server.requests["/good/0"] == 2


def test_a_journal_survives_a_cut_at_any_byte(tmp_path):
    journal = Journal(tmp_path / "j")
    for row in range(4):
        journal.add({"row": row, "status": "x"}, bytes([row]) * 20)
    journal.add({"row": 1, "status": "y"}, b"new")
    journal.close()
    whole, seen = (tmp_path / "j").read_bytes(), set()
    for length in range(len(whole) + 1):
        (tmp_path / "j").write_bytes(whole[:length])
        journal = Journal(tmp_path / "j")
        assert journal.rows() == list(range(len(journal.rows())))
        journal.add({"row": 9}, b"after")
        journal.close()
        journal = Journal(tmp_path / "j")
        assert journal.get(9) == ({"row": 9}, b"after")
        seen.add((len(journal.rows()), 1 in journal.rows() and journal.get(1)[1] == b"new"))
        journal.close()
    assert seen == {(1, False), (2, False), (3, False), (4, False), (5, False), (5, True)}


def test_the_command_and_several_processes(server, tmp_path, capsys):
    urls = [f"{server.url}/good/{n}" for n in range(5)] + [f"{server.url}/none"]
    source = write(tmp_path / "t.parquet", urls)
    options = ["--per-shard", "2", "--workers", "2", "--allow-private-addresses", "--retries", "0"]
    reports = ["--dead", str(tmp_path / "dead.csv"), "--picture", str(tmp_path / "s.png"), "--json"]
    with pytest.raises(SystemExit) as stop:
        main(["data", "download", str(source), "-o", str(tmp_path / "out"), *options, *reports])
    out, err = capsys.readouterr()
    assert not stop.value.code and json.loads(out)["successes"] == 5
    assert len((tmp_path / "dead.csv").read_text().splitlines()) == 2 and (tmp_path / "s.png").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]


def test_ranks_share_the_shards(server, tmp_path):
    source = write(tmp_path / "t.parquet", [f"{server.url}/good/{n}" for n in range(6)])
    first = download(source, tmp_path / "out", replace(HERE, per_shard=2), rank=1, world_size=2)
    assert (first.tried, first.unfinished) == (2, 2) and not (tmp_path / "out/manifest.json").exists()
    assert download(source, tmp_path / "out", replace(HERE, per_shard=2), rank=0, world_size=2).unfinished == 0
    assert all(count == 1 for count in server.requests.values()) and verify_manifest(tmp_path / "out") == []
