"""The ranks of a job as processes of this machine, or as tasks of a Spark or Ray cluster.

A rank is what `--rank` of `--world-size` does by hand: it takes each world-size-th shard, detects what is done, and
writes into the job's folder, which all machines must see. So a repeated rank resumes where it failed.
"""

import functools
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kakao_models.data.workers import each
from kakao_models.lazy import is_installed
from kakao_models.samples.rows import Part

_NEEDS = {
    "multiprocessing": "",
    "pyspark": "pip install 'kakao-models[data,spark]', and Java 17 or newer",
    "ray": "pip install ray",
}
DISTRIBUTORS = tuple(_NEEDS)


def check_rank(rank: int, world_size: int, distributor: str | None) -> None:
    """Raises:
    ValueError: there is no such rank; or a distributor, which runs all of them, stands beside one.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: got {rank}, expected 0 to {world_size - 1} (world size {world_size})")
    if distributor and rank:
        raise ValueError(f"rank: got {rank}, but the distributor {distributor} runs all ranks; leave it out")


def all_ranks(
    run: Callable[..., Any],
    world_size: int,
    distributor: str,
    *,
    output: Path,
    parts: Sequence[Part],
    advance: Callable[[int], None],
    gpu: bool = False,
) -> list:
    """The results of `run(rank=rank, world_size=world_size)` for all ranks, in any order.

    Args:
        run: is pickled; paths in it must be absolute, and lead to the same on all machines.
        distributor: "multiprocessing": as many processes of this machine; "pyspark": tasks of the active Spark session, or
            of the one that Spark's configuration describes; "ray": tasks of the cluster that `ray.init()` finds. A
            cluster repeats a task that fails (`spark.task.maxFailures`; three times in Ray), but for a ValueError.
        output, parts: `run` writes output/00000.parquet, ... for each part; that is checked at the end.
        advance: called with the number of rows that are done, rank by rank; by Spark at the end.
        gpu: a task needs a GPU of its own, if the Ray cluster has any.

    Raises:
        ImportError: the distributor's package isn't installed.
        ValueError: no such distributor; less than two ranks; or `run` refused its input.
        ChildProcessError: a task failed as often as the cluster lets it.
        FileNotFoundError: the tasks wrote where this machine sees nothing.
    """
    if distributor not in _NEEDS:
        raise ValueError(f"distributor: got {distributor!r}, expected one of {', '.join(DISTRIBUTORS)}")
    if world_size < 2:
        raise ValueError(
            f"distributor {distributor}: set the world size, the number of tasks that share the work, to at least 2"
        )
    if not is_installed(distributor):
        raise ImportError(f"the distributor {distributor} needs {distributor}: {_NEEDS[distributor]}")
    attempt = functools.partial(_attempt, run, world_size)
    start = {"multiprocessing": _on_this_machine, "pyspark": _on_spark, "ray": functools.partial(_on_ray, gpu=gpu)}
    results = []
    for rank, result in start[distributor](attempt, world_size):
        if isinstance(result, ValueError):
            raise result
        results.append(result)
        advance(sum(part.stop - part.start for part in parts[rank::world_size]))
    if lost := [path for part in parts if not (path := output / f"{part.number:05d}.parquet").exists()]:
        raise FileNotFoundError(
            f"{lost[0]} and {len(lost) - 1} others are missing. Do all machines share the folder {output}?"
        )
    return results


def _attempt(run: Callable[..., Any], world_size: int, rank: int) -> tuple[int, Any]:
    """Returns a ValueError instead of raising it: it is about the input, which a retry does not change."""
    try:
        return rank, run(rank=rank, world_size=world_size)
    except ValueError as error:
        return rank, ValueError(str(error))


def _on_this_machine(attempt: Callable, world_size: int) -> Iterator[tuple[int, Any]]:
    yield from each(operator.call, attempt, range(world_size), world_size)


def _on_spark(attempt: Callable, world_size: int) -> Iterator[tuple[int, Any]]:
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # otherwise the python3 that PATH finds
    builder = SparkSession.builder.appName("kakao-models data").config("spark.ui.showConsoleProgress", "true")
    context = (SparkSession.getActiveSession() or builder.getOrCreate()).sparkContext
    if context.getConf().get("spark.speculation", "false") == "true":
        raise ValueError("spark.speculation may run a rank twice at the same time: set it to false")
    try:
        yield from context.parallelize(range(world_size), world_size).map(attempt).collect()
    except (PySparkException, Py4JJavaError) as error:
        raise ChildProcessError(_task_error(str(error))) from error


def _on_ray(attempt: Callable, world_size: int, gpu: bool) -> Iterator[tuple[int, Any]]:
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    needs = {"num_gpus": 1} if gpu and ray.cluster_resources().get("GPU") else {}

    @ray.remote(max_retries=3, retry_exceptions=True, **needs)
    def task(rank: int):
        return attempt(rank)

    waiting = [task.remote(rank) for rank in range(world_size)]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayError as error:
        raise ChildProcessError(_task_error(str(error))) from error
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _task_error(message: str) -> str:
    """The error of a task: the last line of the Python traceback that the cluster reports."""
    lines = re.split(r"\n\s+at |JVM stacktrace", message)[0].splitlines()
    reported = [line.strip() for line in lines if line.strip() and "SQLSTATE" not in line]
    return f"a task failed as often as the cluster lets it: {reported[-1] if reported else message}"
