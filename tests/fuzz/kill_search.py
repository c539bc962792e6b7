"""Kills a writer of an index, and some of its readers, while eight processes search: every answer is of a committed state.

    python tests/fuzz/kill_search.py [KILLS] [SEED]

The writer adds, replaces and deletes rows in an order that the seed fixes, and is killed (SIGKILL) after a random time or at a
step of Milvus Lite that matters, as in kill_index.py; the next one goes on where it was. One row, the clock, is replaced in each
addition and tells a reader how many operations were committed, and so which rows, with which columns, it must have found.
A line on stderr after each database says how far it is; the last line has the counts.
"""

import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from fuzz import kills
from fuzz.kill_index import DIM, WHEN, _die_at, _Stub

from kakao_models.search import SearchIndex

READERS, OPERATIONS = 8, 120
MOMENTS = [when for when in WHEN if when != "index"]  # these databases have no file of an index
CLOCK = "clock"
State = dict[str, int]  # id → number of the operation that wrote it
ANSWERS = RawArray("Q", READERS)  # that were checked, by each reader and those that took its place
killed_readers = 0


def vector(key: str, number: int) -> np.ndarray:
    found = np.random.default_rng([number, *key.encode()]).standard_normal(DIM)
    return (found / np.linalg.norm(found)).astype(np.float32)


def operations(seed: int) -> list[tuple[list[str], list[str]]]:
    """(deleted, added) ids of each operation: first the one, then the other."""
    draw, alive, made = random.Random(seed), [], []
    for number in range(OPERATIONS):
        deleted = draw.sample(alive, 3) if len(alive) > 20 and draw.random() < 0.3 else []
        alive = [key for key in alive if key not in deleted]
        replaced = draw.sample(alive, min(len(alive), draw.randrange(4)))
        new = [f"{number}-{place}" for place in range(draw.randrange(1, 5))]
        alive += new
        made.append((deleted, [*replaced, *new, CLOCK]))
    return made


def states(planned: list[tuple[list[str], list[str]]]) -> list[State]:
    """Rows after so many operations."""
    found: list[State] = [{}]
    for number, (deleted, added) in enumerate(planned):
        rows = {key: value for key, value in found[-1].items() if key not in deleted}
        found.append(rows | dict.fromkeys(added, number))
    return found


def write(path: Path, planned: list[tuple[list[str], list[str]]]) -> None:
    """Does what is missing of the operations."""
    with SearchIndex.open(path, _Stub(), create=True) as index:
        done = next((hit.width for hits, _ in index.vectors() for hit in hits if hit.id == CLOCK), -1) + 1
        for number in range(done, len(planned)):
            deleted, added = planned[number]
            if deleted:
                index.delete(deleted)
            vectors = np.stack([vector(key, number) for key in added])
            index.add(added, vectors, [{"width": number}] * len(added))
            if number % 20 == 19:
                index.flush()


def check(index: SearchIndex, planned: list, expected: list[State], draw: random.Random) -> int:
    """How many operations an answer has seen.

    Raises:
        AssertionError: it is of no committed state.
    """
    key = draw.choice([CLOCK, "0-0"])
    query = vector(key, draw.randrange(OPERATIONS))
    hits = index.search(query, 16_384)
    found = {hit.id: hit.width for hit in hits}
    assert len(found) == len(hits), "a row twice"
    done = found.get(CLOCK, -1) + 1
    allowed = [expected[done]]
    if done < len(planned):  # the deletion of the next one may be through
        gone = planned[done][0]
        allowed.append({key: value for key, value in expected[done].items() if key not in gone})
    assert found in allowed, (done, len(found), len(expected[done]), set(found.items()) ^ set(expected[done].items()))
    scores = [float((vector(hit.id, hit.width).astype(np.float64) * query).sum()) for hit in hits]
    assert scores == sorted(scores, reverse=True), "another order"
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-6)
    return done


def read(path: Path, planned: list, expected: list[State], place: int, seed: int, end: Path) -> None:
    """Searches until a file `end` is there; answers never go back in time. Answers are counted at `place` of ANSWERS."""
    draw, last, index = random.Random(seed), 0, None
    while not end.exists():
        time.sleep(draw.uniform(0, 0.1))
        try:
            if index is None or draw.random() < 0.05:
                index = SearchIndex.open(path)
            done = check(index, planned, expected, draw)
        except FileNotFoundError:  # the collection is not made yet
            assert last == 0
            continue
        assert done >= last, (done, last, "an answer of an earlier time")
        last = done
        ANSWERS[place] += 1


def start(work, *args) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(*args)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child: int, wait: bool = False) -> int | None:
    """The exit status of a child that has ended; a negative number is a signal's."""
    process, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if process else None


def trial(folder: Path, wanted_kills: int, seed: int) -> int:
    """Kills writers until `wanted_kills` were killed. Returns how many databases were finished.

    Raises:
        AssertionError: a reader found what was never committed, or the last state is another.
    """
    draw, killed, finished, began = random.Random(seed), 0, 0, time.monotonic()
    while killed < wanted_kills:
        killed += _one(folder / f"{finished}.db", wanted_kills - killed, draw, f"seed {seed}")
        finished += 1
        seconds = time.monotonic() - began
        print(f"{killed} of {wanted_kills} kills, {finished} databases, {seconds:.0f} s", file=sys.stderr, flush=True)
    return finished


def counts() -> str:
    return (
        f"databases; {sum(ANSWERS)} answers of {READERS} readers, of which {killed_readers} were killed, and each was that of a "
        "committed state"
    )


def _one(path: Path, wanted_kills: int, draw: random.Random, name: str) -> int:
    """Writes a database to the end, with at most so many kills of the writer, and says how many there were."""
    global killed_readers
    planned, end, killed, done = operations(draw.randrange(2**30)), path.with_suffix(".end"), 0, False
    expected = states(planned)
    reader = partial(start, read, path, planned, expected)
    readers = [reader(place, draw.randrange(2**30), end) for place in range(READERS)]
    try:
        while not done:
            when = draw.choice(MOMENTS) if killed < wanted_kills else "never"
            writer = start(_run, path, planned, when, draw.randrange(1, 40))
            if when == "time":
                time.sleep(draw.uniform(0.3, 4))
                os.kill(writer, signal.SIGKILL)
            status = ended(writer, wait=True)
            assert status in (0, -signal.SIGKILL), f"{name}: the writer ended with {status}"
            killed, done = killed + (status != 0), status == 0
            for place, child in enumerate(readers):
                assert ended(child) is None, f"{name}: a reader ended"
                if draw.random() < 0.1:  # it may be writing what it derived
                    os.kill(child, signal.SIGKILL)
                    ended(child, wait=True)
                    readers[place] = reader(place, draw.randrange(2**30), end)
                    killed_readers += 1
    finally:
        end.touch()
        statuses = [ended(child, wait=True) for child in readers]
    assert not any(statuses), f"{name}: readers ended with {statuses}"
    assert ended(start(_check_last, path, planned, expected), wait=True) == 0, f"{name}: the last state is another"
    shutil.rmtree(path)
    return killed


def _check_last(path: Path, planned: list, expected: list[State]) -> None:
    with SearchIndex.open(path) as index:
        assert check(index, planned, expected, random.Random(0)) == len(planned)


def _run(path: Path, planned: list, when: str, place: int) -> None:
    if when not in ("time", "never"):
        _die_at(when, place)
    write(path, planned)


if __name__ == "__main__":
    kills.main(trial, 1000, counts)
