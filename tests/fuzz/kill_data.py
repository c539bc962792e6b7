"""Kills downloads, shards and filters at random points; what is there in the end is what one run writes.

    python tests/fuzz/kill_data.py [download|shard|filter|all] [KILLS] [SEED]

Each run is a fork of this process, killed (SIGKILL) after a random time, or before or after a file takes its name. The
parent does no work itself but serve pictures: a fork of a process with running threads could stand still.
"""

import functools
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ibis.backends.duckdb  # noqa: F401  a third of what a short run takes, otherwise in each fork
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny
from fuzz import kills
from hostile import hostile_server
from tables_brute import random_table, write_table

from kakao_models.data.curate import curate
from kakao_models.data.download import Download, download
from kakao_models.data.recipes import parse_flags
from kakao_models.data.shard import Options, write_sample_shards
from kakao_models.samples.manifest import verify_manifest
from kakao_models.samples.sources import open_source
from kakao_models.samples.tables import connect, open_table

URLS = 60


def child(run: Callable[[], object]) -> int:
    """A fork that runs; its number. It ends with 0 if the run did."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent must not go on in two processes
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return number


def whole(run: Callable[[], object]) -> None:
    _, status = os.waitpid(child(run), 0)
    assert status == 0, "a run that was not killed failed"


def killed(run: Callable[[], object], draw: random.Random, longest: float) -> bool:
    """Whether a run was killed before it was through."""
    when, place, seconds = (
        draw.choice(("time", "time", "before", "after")),
        draw.randrange(1, 8),
        draw.uniform(0, longest),
    )

    def dying() -> None:
        if when != "time":
            kills.die_at_rename(when, place)
        run()

    number = child(dying)
    if when == "time":
        timer = threading.Timer(seconds, os.kill, (number, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(number, 0)
    if when == "time":
        timer.cancel()
        timer.join()
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


class Downloads:
    longest = 1.2

    def __init__(self, folder: Path, server):
        self.folder, self.server = folder, server
        urls = [f"{server.url}/good/{n}" if n % 7 else f"{server.url}/none" for n in range(URLS)]
        self.source = folder / "urls.parquet"
        pq.write_table(pa.table({"url": urls, "text": [f"text {n}" for n in range(URLS)]}), self.source)
        whole(lambda: self.run(folder / "whole"))
        self.wanted = contents(folder / "whole")

    def run(self, output: Path) -> None:
        options = Download(per_shard=15, threads=3, retries=0, timeout=20.0, allow_private_addresses=True)
        download(self.source, output, options)

    def check(self, output: Path, kills: int) -> None:
        assert contents(output) == self.wanted and verify_manifest(output, decode=True) == []
        assert not list(output.glob("*.journal")) and not list(output.glob(".*.tmp"))
        asked = sum(self.server.requests.values())
        assert asked <= URLS + 2 * 3 * kills, f"{asked} requests of {URLS} addresses"  # what was under way is lost

    def begin(self) -> None:
        self.server.requests.clear()

    def complete(self, output: Path) -> None:
        whole(lambda: self.run(output))


class Once(Downloads):
    """A folder that appears complete or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def first(self) -> None:
        """What one run writes, and how long it takes: a kill much later than that would find it done."""
        start = time.monotonic()
        whole(lambda: self.run(self.folder / "whole"))
        self.longest = 1.2 * (time.monotonic() - start)
        self.wanted = self.read(self.folder / "whole")

    def begin(self) -> None:
        pass

    def complete(self, output: Path) -> None:
        if not output.exists():
            whole(lambda: self.run(output))

    def check(self, output: Path, kills: int) -> None:
        assert self.read(output) == self.wanted
        for path in output.parent.glob(f".{output.name}.*"):
            assert path.is_file() or not any(path.iterdir()), f"remains: {path}"  # a lock, an empty folder
            shutil.rmtree(path, ignore_errors=True)


class Shards(Once):
    def __init__(self, folder: Path, form: str = "webdataset"):
        super().__init__(folder)
        self.form = form
        for path in tiny.picture_folder(folder / "pictures", 40):
            path.with_suffix(".txt").write_text(path.stem)
        self.first()

    def run(self, output: Path) -> None:
        write_sample_shards(
            open_source(self.folder / "pictures"), output, options=Options(self.form), per_shard=7, seed=3
        )

    read = staticmethod(contents)


class Filters(Once):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.source = write_table(random_table(5, 900), folder / "t.parquet")
        self.first()

    def run(self, output: Path) -> None:
        connection = connect(threads=1)
        filters = parse_flags(("size:min=100", "text-frequency:max=80", "images-per-text:max=30", "dedup"))
        curate(connection, open_table(connection, self.source), filters, output)

    @staticmethod
    def read(output: Path) -> str:
        return repr(pq.read_table(output, use_threads=False).sort_by("id").to_pylist())


def trial(work: Downloads, wanted_kills: int, seed: int) -> int:
    """Kills runs until `wanted_kills` were killed; after some, lets one run to its end and compares. How many it compared.

    Raises:
        AssertionError: what is there in the end differs, or something half-written was seen under a final name.
    """
    draw, done, finished = random.Random(seed), 0, 0
    while done < wanted_kills:
        output, mine = work.folder / f"killed{finished}", 0
        work.begin()
        for _ in range(draw.randrange(1, 6)):
            mine += killed(functools.partial(work.run, output), draw, work.longest)
            if isinstance(work, Once) and output.exists():
                break
        work.complete(output)
        work.check(output, mine)
        shutil.rmtree(output)
        done, finished = done + mine, finished + 1
    return finished


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else "all"
    for what in ("download", "shard", "filter") if name == "all" else (name,):
        with hostile_server(delay=0.01) as server:
            of = {"download": lambda folder: Downloads(folder, server), "shard": Shards, "filter": Filters}[what]
            kills.main(
                lambda folder, *counts, of=of: trial(of(folder), *counts),
                200,
                f"folders of {what}, each as one run writes it",
            )


if __name__ == "__main__":
    main()
