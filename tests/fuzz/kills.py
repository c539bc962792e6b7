"""What the programs that kill runs share: where a run dies, and what is said in the end."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(place: int) -> Callable[[], bool]:
    """A function that is true when it is called for the `place`-th time."""
    calls = [0]

    def counted() -> bool:
        calls[0] += 1
        return calls[0] == place

    return counted


def die_at_rename(when: str, place: int) -> None:
    """This process dies "before" or "after" a file takes its name for the `place`-th time."""
    last = at(place)

    def wrapped(function):
        def call(source, target, *rest, **options):
            dies = last()
            if dies and when == "before":
                die()
            function(source, target, *rest, **options)
            if dies and when == "after":
                die()

        return call

    os.replace, os.rename = wrapped(os.replace), wrapped(os.rename)


def main(trial: Callable[[Path, int, int], int], kills: int, said: str | Callable[[], str]) -> None:
    """Runs `trial(folder, kills, seed)` with the KILLS and SEED of the command line.

    Args:
        said: of how many what was seen, such as "folders, each as one run writes it", or what gives this in the end.
    """
    kills, seed = (int(value) for value in (sys.argv[1:] + [str(kills), "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        finished = trial(Path(folder), kills, seed)
        seen = said if isinstance(said, str) else said()
        print(f"{kills} kills over {finished} {seen}; {time.monotonic() - start:.0f} s")
