"""Processes that share work and end with it: on an error, on Ctrl-C, and when the process that started them is killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def processes(count: int, start: Callable, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` processes; each runs `start(*arguments)` first.

    An executor of the standard library finishes all that was submitted when an exception leaves its block, and its
    processes outlive a SIGKILL of this one, still writing to files that the next run writes too. These do neither.

    Raises:
        ChildProcessError: one of them was killed.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(start, arguments))
    try:
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                "a worker process was killed. Was there too little memory? Use fewer workers."
            ) from error
        raise
    else:
        pool.shutdown()


def each(work: Callable[[Any, Any], T], shared: Any, tasks: Sequence, count: int) -> Iterator[T]:
    """`work(shared, task)` of each task, in the order in which they finish: here, or in at most `count` processes.

    Args:
        work: a function of a module, as processes find it by its name.
        shared: what all tasks need; it is sent to each process once.
    """
    if count == 1 or len(tasks) < 2:
        yield from (work(shared, task) for task in tasks)
        return
    with processes(min(count, len(tasks)), _share, shared) as pool:
        for future in as_completed([pool.submit(_work, work, task) for task in tasks]):
            yield future.result()


_shared: Any  # of this process


def _share(shared: Any) -> None:
    global _shared
    _shared = shared


def _work(work: Callable, task: Any) -> Any:
    return work(_shared, task)


def _begin(start: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this one
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    start(*arguments)


def _leave_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
