"""A progress bar that stays away from short runs and from files."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds before a bar appears by itself


class Progress:
    """A bar on stderr.

    Args:
        total: steps, None where it is not known.
        show: True shows it at once, False never; None after two seconds and only on a terminal.
    """

    def __init__(self, description: str, total: int | None, show: bool | None):
        self._description, self._total = description, total
        self._appears = {True: 0.0, False: float("inf")}.get(show, PATIENCE if sys.stderr.isatty() else float("inf"))
        self._start = time.monotonic()
        self._done = 0
        self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def advance(self, steps: int) -> None:
        self._done += steps
        if self._bar is None and time.monotonic() - self._start >= self._appears:
            self._show()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as Bar,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task(self._description, total=self._total)
        self._bar.start()

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """A function that is told (step, done, total): one bar after the other."""
    current = {}

    def advance(step: str, done: int, total: int) -> None:
        if step not in current:
            close()
            current[step] = Progress(step, total, None)
        current[step].advance(1 if done else 0)

    def close() -> None:
        for bar in current.values():
            bar.__exit__()
        current.clear()

    try:
        yield advance
    finally:
        close()


def quiet() -> None:
    """Hides what transformers prints while it loads, which helps no user of a command. Most runs do without transformers, so
    it is not imported for that."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    if "transformers" in sys.modules:
        from huggingface_hub.utils import enable_progress_bars
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        enable_progress_bars()  # of downloads
