"""Waiting requests gathered into batches: many clients, one thread that runs the model."""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class Busy(Exception):
    """The queue is full, or the service is shutting down; `seconds` says when to try again."""

    def __init__(self, message: str, seconds: int, draining: bool = False):
        super().__init__(message)
        self.seconds, self.draining = seconds, draining


@dataclass(eq=False)
class _Job:
    """The items of one request."""

    future: asyncio.Future
    loop: asyncio.AbstractEventLoop
    results: list[Any]
    left: int
    given_up: bool = False

    def done(self, place: int, result: Any) -> None:
        self.results[place] = result
        self.left -= 1
        if self.left == 0:
            self.loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.future.done():
            self.future.set_result(self.results)


@dataclass(frozen=True, eq=False)
class _Item:
    job: _Job
    place: int
    value: Any
    size: int  # bytes
    since: float


class Batcher:
    """Gives items of many requests to `run`, up to `batch_size` of one kind at a time, in the order they came.

    A batch starts when it is full, or when its oldest item has waited `max_wait` seconds; at once where no other request
    of its kind has been there since the last one began, as none is to be expected. Items that nobody waits for any more
    are dropped. `run` is only ever called in one thread.

    Args:
        run: (kind, values) → a result for each value, or an exception in its place.
        max_items, max_bytes: what may wait; more is refused.
        watch: told (kind, items of a batch, seconds the oldest waited, seconds it ran) after each batch.
    """

    def __init__(
        self,
        run: Callable[[str, list], Sequence[Any]],
        *,
        batch_size: int = 32,
        max_wait: float = 0.005,
        max_items: int = 1024,
        max_bytes: int = 256 * 2**20,
        watch: Callable[[str, int, float, float], None] = lambda *figures: None,
    ):
        self._run, self._watch = run, watch
        self.batch_size, self.max_wait, self.max_items, self.max_bytes = batch_size, max_wait, max_items, max_bytes
        self._waiting: dict[str, deque[_Item]] = {}
        self._items = self._bytes = 0
        self._requests: Counter[str] = Counter()  # by kind, those that wait or run
        self._company: set[str] = set()  # kinds of which requests have met since the last batch began
        self._pace = 0.01  # seconds an item takes, lately
        self._closed = False
        self._began: float | None = None  # the batch that runs
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="kakao-models-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._items

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> float:
        """Seconds for which the present batch has run, 0 without one."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    async def submit(self, kind: str, values: list, size: int = 0) -> list[Any]:
        """Results of `values`, in their order; an exception stands where one failed. `size` is what they hold, in bytes.

        Cancelling it takes the items out of the queue that have not been run.

        Raises:
            Busy: too much is waiting, or the service is closed.
        """
        if not values:
            return []
        loop = asyncio.get_running_loop()
        job = _Job(loop.create_future(), loop, [None] * len(values), len(values))
        now, share = time.monotonic(), size // len(values)
        with self._changed:
            if self._closed:
                raise Busy("the service is shutting down", 1, draining=True)
            if self._items and (self._items + len(values) > self.max_items or self._bytes + size > self.max_bytes):
                raise Busy(f"{self._items} inputs are waiting (at most {self.max_items})", self._seconds(len(values)))
            self._requests[kind] += 1
            if self._requests[kind] > 1:
                self._company.add(kind)
            queue = self._waiting.setdefault(kind, deque())
            queue.extend(_Item(job, place, value, share, now) for place, value in enumerate(values))
            self._items += len(values)
            self._bytes += share * len(values)
            self._changed.notify()
        try:
            return await job.future
        finally:
            job.given_up = True
            with self._changed:
                self._requests[kind] -= 1

    def close(self, timeout: float | None = None) -> bool:
        """Refuses what comes from now on; returns when all that was waiting is done, or False after `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self.alive

    def _seconds(self, more: int) -> int:
        return max(1, min(60, round(self._pace * (self._items + more))))

    def _work(self) -> None:
        while batch := self._next():
            kind, items = batch
            items = [item for item in items if not item.job.given_up]
            if not items:
                continue
            start = self._began = time.monotonic()
            results = self._results(kind, [item.value for item in items])
            self._began = None
            seconds = time.monotonic() - start
            self._pace = 0.8 * self._pace + 0.2 * seconds / len(items)
            for item, result in zip(items, results):
                item.job.done(item.place, result)
            self._watch(kind, len(items), start - min(item.since for item in items), seconds)

    def _results(self, kind: str, values: list) -> Sequence[Any]:
        try:
            results = self._run(kind, values)
            if len(results) != len(values):
                raise RuntimeError(f"{len(values)} {kind} gave {len(results)} results")
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear of it, and the thread go on
            return [error] * len(values)
        return results

    def _next(self) -> tuple[str, list[_Item]] | None:
        """The next batch, of the kind whose first item is oldest among those that may start; None when closed and empty."""
        with self._changed:
            while True:
                now = time.monotonic()
                starts = {kind: self._start(kind, queue) for kind, queue in self._waiting.items() if queue}
                if ready := [kind for kind, start in starts.items() if start <= now]:
                    kind = min(ready, key=lambda kind: self._waiting[kind][0].since)
                    queue = self._waiting[kind]
                    if self._requests[kind] < 2:
                        self._company.discard(kind)
                    items = [queue.popleft() for _ in range(min(self.batch_size, len(queue)))]
                    self._items -= len(items)
                    self._bytes -= sum(item.size for item in items)
                    return kind, items
                if not starts and self._closed:
                    return None
                self._changed.wait(min(starts.values()) - now if starts else None)

    def _start(self, kind: str, queue: deque[_Item]) -> float:
        """The time at which a batch of the waiting inputs may start."""
        waits = kind in self._company and len(queue) < self.batch_size and not self._closed
        return queue[0].since + (self.max_wait if waits else 0)
