import asyncio
import threading

import pytest

from kakao_models.serve.batching import Batcher, Busy


class Runs:
    """A `run` that notes its batches and can be held up."""

    def __init__(self):
        self.batches, self.go, self.busy = [], threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, kind, values):
        self.busy.set()
        assert self.go.wait(10)
        self.batches.append((kind, values))
        return [ValueError(value) if value == "bad" else f"{kind} {value}" for value in values]


@pytest.fixture
def runs():
    return Runs()


def started(runs, **options):
    return Batcher(runs, **({"max_wait": 0.02} | options))


async def held(runs, batcher):
    """A first item that the thread is busy with until `runs.go` is set."""
    runs.go.clear()
    first = asyncio.ensure_future(batcher.submit("text", ["first"]))
    assert await asyncio.to_thread(runs.busy.wait, 10)
    return first


def test_requests_share_batches_and_get_their_own_results(runs):
    async def main():
        batcher = started(runs, batch_size=4)
        first = await held(runs, batcher)
        others = [asyncio.ensure_future(batcher.submit("text", [f"{i}a", f"{i}b"])) for i in range(3)]
        await asyncio.sleep(0)
        runs.go.set()
        answers = await asyncio.gather(first, *others)
        await asyncio.to_thread(batcher.close)
        return answers

    answers = asyncio.run(main())
    assert answers == [["text first"], *([f"text {i}a", f"text {i}b"] for i in range(3))]
    assert [len(values) for _, values in runs.batches] == [1, 4, 2]


def test_kinds_do_not_mix_and_the_oldest_goes_first(runs):
    async def main():
        batcher = started(runs, batch_size=8)
        first = await held(runs, batcher)
        waiting = [asyncio.ensure_future(batcher.submit(kind, [kind])) for kind in ("image", "text", "image")]
        await asyncio.sleep(0)
        runs.go.set()
        await asyncio.gather(first, *waiting)
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())
    assert [kind for kind, _ in runs.batches] == ["text", "image", "text"]


def test_one_failure_fails_its_own_item_and_a_failed_run_all_of_its_items(runs):
    async def main():
        batcher = started(runs)
        mixed = await batcher.submit("text", ["good", "bad"])
        runs.go = None  # the next run fails with an AttributeError
        broken = await batcher.submit("text", ["a", "b"])
        runs.go = threading.Event()
        runs.go.set()
        after = await batcher.submit("text", ["c"])
        await asyncio.to_thread(batcher.close)
        return mixed, broken, after

    mixed, broken, after = asyncio.run(main())
    assert mixed[0] == "text good" and isinstance(mixed[1], ValueError)
    assert all(isinstance(result, AttributeError) for result in broken)
    assert after == ["text c"]


def test_a_full_queue_refuses_and_says_when(runs):
    async def main():
        batcher = started(runs, max_items=3, max_bytes=100)
        first = await held(runs, batcher)
        second = asyncio.ensure_future(batcher.submit("text", ["a", "b"], 90))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=r"2 inputs are waiting \(at most 3\)") as items:
            await batcher.submit("text", ["c", "d"])
        with pytest.raises(Busy):
            await batcher.submit("text", ["c"], 20)  # too many bytes
        runs.go.set()
        await asyncio.gather(first, second)
        await asyncio.to_thread(batcher.close)
        return items.value

    assert 1 <= asyncio.run(main()).seconds <= 60


def test_what_nobody_waits_for_is_not_run(runs):
    async def main():
        batcher = started(runs)
        first = await held(runs, batcher)
        left = asyncio.ensure_future(batcher.submit("text", ["left"]))
        stays = asyncio.ensure_future(batcher.submit("text", ["stays"]))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        runs.go.set()
        await asyncio.gather(first, stays)
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())
    assert [values for _, values in runs.batches] == [["first"], ["stays"]]


def test_closing_answers_all_that_waits_and_refuses_the_rest(runs):
    async def main():
        batcher = started(runs, batch_size=2)
        first = await held(runs, batcher)
        waiting = [asyncio.ensure_future(batcher.submit("text", [str(i)])) for i in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy, match="shutting down"):
            await batcher.submit("text", ["late"])
        runs.go.set()
        await closing
        return await asyncio.gather(first, *waiting)

    assert asyncio.run(main()) == [["text first"], *([f"text {i}"] for i in range(5))]


def test_who_is_alone_does_not_wait(runs):
    async def main():
        batcher = started(runs, max_wait=1000)
        for text in "ab":
            # Of one request, but of two kinds, which do not run together.
            await asyncio.wait_for(asyncio.gather(*(batcher.submit(kind, [text]) for kind in ("text", "image"))), 10)
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())
    assert sorted(runs.batches) == [("image", ["a"]), ("image", ["b"]), ("text", ["a"]), ("text", ["b"])]


def test_who_has_met_others_waits_for_them_and_no_longer_than_max_wait(runs):
    async def main():
        batcher = started(runs, batch_size=2, max_wait=1000)
        first = await held(runs, batcher)
        second = asyncio.ensure_future(batcher.submit("text", ["second"]))
        await asyncio.sleep(0)
        runs.go.set()
        await first
        await asyncio.sleep(0.05)
        assert not second.done() and batcher.waiting == 1
        await asyncio.wait_for(asyncio.gather(second, batcher.submit("text", ["third"])), 10)
        batcher.max_wait = 0.05
        await asyncio.wait_for(batcher.submit("text", ["last"]), 10)
        await asyncio.to_thread(batcher.close)

    asyncio.run(main())
    assert [values for _, values in runs.batches] == [["first"], ["second", "third"], ["last"]]
