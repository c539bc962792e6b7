"""Kills `embed_table` at random points, again and again; what is there in the end is what one run writes.

    python tests/fuzz/kill_embed.py [KILLS] [SEED]

Each run is a fork of this process that embeds a table with a stub of a model and is killed (SIGKILL) after a random time;
a part of the runs are killed at a system call that matters: before and after a rename, within a write.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import kills

from kakao_models.data.embed import Settings, embed_table
from kakao_models.samples import manifest

ROWS, SHARD = 400, 20


class Stub:
    """Embeds texts by their bytes."""

    dim = 8

    def texts(self, texts, progress=None):
        rows = [np.frombuffer(text.encode()[:8].ljust(8), np.uint8) for text in texts]
        time.sleep(0.001)
        return np.array(rows, np.float32).reshape(len(texts), 8)


def write_source(path: Path) -> Path:
    texts = [None if number % 37 == 0 else f"{number} text" for number in range(ROWS)]
    pq.write_table(pa.table({"id": np.arange(ROWS) * 7, "text": texts}), path)
    return path


def run(source: Path, output: Path, rank: int = 0, world: int = 1) -> dict | None:
    return embed_table(Stub(), source, output, Settings("texts", SHARD), model="stub", rank=rank, world_size=world)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def kill_once(source: Path, output: Path, draw: random.Random, world: int) -> bool:
    """Runs in a child that is killed; whether it was killed before it had finished."""
    rank, when = draw.randrange(world), draw.choice(("time", "time", "before", "after", "write"))
    seconds, place = draw.uniform(0, 0.06), draw.randrange(1, 5)
    child = os.fork()
    if child == 0:
        try:
            if when != "time":
                _die_at(when, place)
            run(source, output, rank, world)
        finally:
            os._exit(0)
    if when == "time":
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_at(when: str, place: int) -> None:
    if when != "write":
        kills.die_at_rename(when, place)
        return
    write_table, last = pq.write_table, kills.at(place)

    def writing(table, path):
        if last():
            Path(path).write_bytes(b"PAR1 half a file")
            kills.die()
        write_table(table, path)

    pq.write_table = writing


def trial(folder: Path, wanted_kills: int, seed: int) -> int:
    """Kills runs until `wanted_kills` were killed, finishing a folder whenever it got that far; returns how many folders.

    Raises:
        AssertionError: a finished folder differs from that of an uninterrupted run.
    """
    draw, killed, finished = random.Random(seed), 0, 0
    source = write_source(folder / "source.parquet")
    run(source, folder / "whole")
    wanted = contents(folder / "whole")
    ids = pq.read_table([str(p) for p in sorted((folder / "whole").glob("*.parquet"))])["id"].to_pylist()
    assert ids == [number * 7 for number in range(ROWS) if number % 37]
    while killed < wanted_kills:
        output, world = folder / f"killed{finished}", draw.choice((1, 1, 2, 3))
        for _ in range(draw.randrange(2, 12)):
            killed += kill_once(source, output, draw, world)
        for rank in range(world):
            run(source, output, rank, world)
        assert contents(output) == wanted, f"seed {seed}: {output} differs"
        assert not list(output.glob(".*.tmp")), f"seed {seed}: {output} has remains"
        assert manifest.verify_manifest(output) == []
        finished += 1
    return finished


if __name__ == "__main__":
    kills.main(trial, 200, "folders, each as one run writes it")
