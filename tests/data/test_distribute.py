"""All ranks of a job by one command: here in processes; Spark's tasks are in test_spark.py."""

import functools
import importlib.util
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kakao_models.cli import main
from kakao_models.data import distribute
from kakao_models.data.distribute import all_ranks
from kakao_models.data.download import Download, download
from kakao_models.data.embed import embed_table
from kakao_models.samples.rows import Part

PARTS = [Part(number, 0, number * 10, number * 10 + 5 + number) for number in range(3)]


def finish(output, rank, world_size):
    for part in PARTS[rank::world_size]:
        (output / f"{part.number:05d}.parquet").touch()
    return f"{rank} of {world_size}"


def inline(attempt, world_size):
    return map(attempt, range(world_size))


def test_processes_write_what_one_does(tmp_path, capsys):
    urls = [f"http://127.0.0.1:9/{number}" for number in range(7)]  # not asked: a private address
    pq.write_table(pa.table({"url": urls}), tmp_path / "t.parquet")
    download(tmp_path / "t.parquet", tmp_path / "one", Download(per_shard=2))
    options = ["--per-shard", "2", "--distributor", "multiprocessing", "--world-size", "2", "--json"]
    with pytest.raises(SystemExit) as stop:
        main(["data", "download", str(tmp_path / "t.parquet"), "-o", str(tmp_path / "two"), *options])
    assert not stop.value.code and '"tried": 7' in capsys.readouterr().out
    for path in (tmp_path / "one").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert (tmp_path / "two/manifest.json").exists() and (tmp_path / "two/.rank1.lock").exists()


def test_all_ranks_are_run_and_accounted_for(tmp_path, monkeypatch):
    monkeypatch.setattr(distribute, "_on_this_machine", inline)
    done, where = [], {"output": tmp_path, "parts": PARTS}
    run = functools.partial(finish, tmp_path)
    assert all_ranks(run, 2, "multiprocessing", advance=done.append, **where) == ["0 of 2", "1 of 2"]
    assert done == [5 + 7, 6]
    (tmp_path / "00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="00001.parquet and 0 others are missing"):
        all_ranks(lambda rank, world_size: None, 2, "multiprocessing", advance=done.append, **where)

    def wrong(rank, world_size):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no text")

    with pytest.raises(ValueError, match="no text"):
        all_ranks(wrong, 2, "multiprocessing", advance=done.append, **where)


def test_ray_takes_a_gpu_where_there_is_one(tmp_path, monkeypatch):
    """A stand-in that keeps Ray's contract: references are waited for, then got."""
    asked = []

    def remote(**options):
        asked.append(options)
        return lambda task: types.SimpleNamespace(remote=lambda rank: functools.partial(task, rank))

    class RayError(Exception):
        pass

    def get(references):
        try:
            return [reference() for reference in references]
        except OSError as error:
            raise RayError(f"ray::task() (pid=1)\n  File x\nOSError: {error}") from error

    cancelled, cluster = [], {"CPU": 4.0}
    ray = types.SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=lambda: cluster,
        remote=remote,
        wait=lambda references: (references[:1], references[1:]),
        get=get,
        cancel=cancelled.append,
        exceptions=types.SimpleNamespace(RayError=RayError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ray" or None)
    run, where = functools.partial(finish, tmp_path), {"output": tmp_path, "parts": PARTS, "advance": lambda rows: None}
    assert all_ranks(run, 3, "ray", gpu=True, **where) == ["0 of 3", "1 of 3", "2 of 3"]
    cluster["GPU"] = 2.0
    all_ranks(run, 3, "ray", gpu=True, **where)
    all_ranks(run, 3, "ray", **where)
    assert [options.get("num_gpus") for options in asked] == [None, 1, None]
    assert all(options["retry_exceptions"] and options["max_retries"] == 3 for options in asked) and not cancelled

    def full(rank, world_size):
        raise OSError("a full disk")

    with pytest.raises(ChildProcessError, match="lets it: OSError: a full disk$"):
        all_ranks(full, 3, "ray", **where)
    assert len(cancelled) == 2


def test_what_cannot_be_distributed(tmp_path, monkeypatch):
    pq.write_table(pa.table({"url": ["http://127.0.0.1/x"], "text": ["x"]}), tmp_path / "t.parquet")
    run = functools.partial(download, tmp_path / "t.parquet", tmp_path / "out")
    with pytest.raises(ValueError, match="got 'slurm', expected one of multiprocessing, pyspark, ray"):
        run(world_size=2, distributor="slurm")
    with pytest.raises(ValueError, match="set the world size"):
        run(distributor="ray")
    with pytest.raises(ValueError, match="runs all ranks; leave it out"):
        run(rank=1, world_size=2, distributor="ray")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs ray: pip install ray"):
        run(world_size=2, distributor="ray")
    with pytest.raises(ValueError, match="expected a function that returns one"):
        embed_table(object(), tmp_path / "t.parquet", tmp_path / "e", world_size=2, distributor="multiprocessing")
    assert not list(Path(tmp_path / "out").glob("*.parquet"))
