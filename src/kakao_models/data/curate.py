"""Running filters one after another, out of core, with an account of each."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import ibis
import ibis.expr.types as ir

from kakao_models.data.counting import DIGEST_BITS, Context
from kakao_models.data.filters import Filter
from kakao_models.samples.tables import new_folder, read_files, write_parquet


@dataclass(frozen=True)
class Step:
    filter: str
    kept: int
    dropped: int


@dataclass(frozen=True)
class Account:
    """The rows that filters kept and dropped."""

    rows: int
    kept: int
    steps: tuple[Step, ...]
    digest_bits: int | None  # None: frequencies are exact
    seconds: float

    def as_dict(self) -> dict:
        return asdict(self) | {"frequencies": "exact" if self.digest_bits is None else "approximate"}

    def __str__(self) -> str:
        width = max([len(step.filter) for step in self.steps] + [6])
        lines = [f"{'filter':<{width}}  {'kept':>13}  {'dropped':>13}"]
        lines += [f"{step.filter:<{width}}  {step.kept:>13,}  {step.dropped:>13,}" for step in self.steps]
        share = f" ({self.kept / self.rows:.2%})" if self.rows else ""
        lines.append(f"{self.kept:,} of {self.rows:,} rows kept{share} in {self.seconds:.1f} s")
        if self.digest_bits is not None:
            lines.append(
                f"Frequencies are approximate: texts with the same {self.digest_bits}-bit digest were counted together. "
                "Counts may be too high, so some rows may have been dropped wrongly. No row was kept wrongly."
            )
        return "\n".join(lines)


def curate(
    connection: ibis.BaseBackend,
    table: ir.Table,
    filters: Sequence[Filter],
    output: Path | None,
    *,
    digest_bits: int | None = None,
    copy: bool = False,
    spill: Path | None = None,
    advance: Callable[[str], None] = lambda step: None,
) -> Account:
    """Applies filters in their order and writes the rows that are left as Parquet files into a new folder.

    A filter of frequencies counts in the rows that the filters before it kept, but for rare-tokens, which counts in
    `table`. Filters of single rows that follow one another take one pass. The result of a pass (frequent texts, duplicates) is
    kept in a folder beside `output` until the end; the rows themselves are written once, at the end.

    Args:
        output: the folder; it appears when everything is done. None writes nothing, and only returns the report.
        digest_bits: count digests of this many bits (16 to 64) rather than texts, in one pass: counts are then too high
            where texts share a digest, which drops rows wrongly and keeps none wrongly.
        copy: read the table once, into Parquet; worth it where reading is slow, as from text files or the Hub.
        spill: where `connection` moves what doesn't fit in memory; None: beside `output`.
        advance: is told each step before it starts.

    Raises:
        FileExistsError: `output` already exists, or another process works on it.
        ValueError: the table lacks a column that a filter needs.
        RuntimeError: the table changed while it was read.
    """
    if digest_bits is not None and digest_bits not in DIGEST_BITS:
        raise ValueError(f"digest bits: got {digest_bits}, expected a whole number from 16 to 64")
    if not filters:
        raise ValueError("got no filters, expected at least one")
    start, steps = time.monotonic(), []
    for item in filters:  # a missing column is an error before anything is computed
        item.kind.apply(table, *([Context(table, digest_bits)] if item.kind.is_global else []), **item.parameters)
    with new_folder(output, connection, spill) as folder:
        numbers = itertools.count()

        def hold(result: ir.Table) -> ir.Table:
            place = folder / "held" / str(next(numbers))
            write_parquet(result, place)
            return read_files(connection, sorted(place.glob("*.parquet")))

        if copy:
            advance("reading")
            table = hold(table)
        context = Context(table, digest_bits, hold)
        first = rows = None
        for batch in _batches(filters):
            advance(", ".join(item.kind.name for item in batch))
            if batch[0].kind.is_global:
                before = int(table.count().execute()) if rows is None else rows
                table, dropped = batch[0].kind.apply(table, context, **batch[0].parameters)
                counts = [before, int(table.count().execute() if dropped is None else before - dropped.execute())]
            else:
                counts, table = _row_filters(table, batch)
            first = counts[0] if first is None else first
            rows = counts[-1]
            steps += [Step(str(item), after, before - after) for item, before, after in zip(batch, counts, counts[1:])]
        if output:
            advance("writing")
            written = write_parquet(table, folder / "done")
            if written != rows:
                raise RuntimeError(f"wrote {written} rows, but counted {rows} before. Did the table change meanwhile?")
    return Account(first, rows, tuple(steps), digest_bits, time.monotonic() - start)


def _batches(filters: Sequence[Filter]) -> Iterator[list[Filter]]:
    """Filters of single rows that follow one another are one batch."""
    for is_global, group in groupby(filters, lambda item: item.kind.is_global):
        batch = list(group)
        yield from [[item] for item in batch] if is_global else [batch]


def _row_filters(table: ir.Table, filters: Sequence[Filter]) -> tuple[list[int], ir.Table]:
    """Rows before the filters and after each, counted in one pass; and the rows that pass all."""
    passed, sums = None, {"rows": ibis._.count()}
    for number, item in enumerate(filters):
        condition = item.kind.apply(table, **item.parameters).fill_null(False)
        passed = condition if passed is None else passed & condition
        sums[f"after{number}"] = passed.cast("int64").sum().fill_null(0)
    counted = table.agg(**sums).to_pyarrow().to_pylist()[0]
    return [int(counted[name]) for name in sums], table.filter(passed)
