"""Distributions of every column, and how many addresses, images and texts are different; exact, or of a sample."""

import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

import ibis
import ibis.expr.types as ir
import numpy as np

from kakao_models.samples.coyo import Finding, check_columns, check_ranges, published

UNIQUE = ("url", "image_phash", "imagehash", "text")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 1000  # of columns that are no whole numbers, or of too many
_WHOLE = 100_000  # up to this many integers are counted one by one


@dataclass(frozen=True)
class Distribution:
    """The distribution of one column. `values` are the values themselves for whole numbers with a range of at most 100,000,
    otherwise the lower edges of 1000 equal bins; `counts` says how often each occurs."""

    nulls: int  # NaN and infinity count as null
    min: float | None
    max: float | None
    mean: float | None
    values: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def quantile(self, share: float) -> float | None:
        """The value that `share` of all rows do not exceed: exact for values themselves, else within 1/1000 of the range."""
        if not self.counts:
            return None
        total = np.cumsum(self.counts)
        return float(self.values[int(np.searchsorted(total, share * total[-1]))])


@dataclass(frozen=True)
class Stats:
    rows: int
    sampled: float | None  # the share of the table that was looked at; None: all of it
    columns: dict[str, Distribution]
    unique: dict[str, int]
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict:
        summary = asdict(self) | {"exact": self.sampled is None}
        for name, column in self.columns.items():
            summary["columns"][name]["quantiles"] = {f"{share:g}": column.quantile(share) for share in QUANTILES}
        return summary

    def __str__(self) -> str:
        what = "all rows, exact" if self.sampled is None else f"a sample of {self.sampled:.3%} of the rows"
        lines = [f"{self.rows:,} rows ({what})", ""]
        heads = ["nulls", "min", "mean", "max", *(f"{share:.0%}" for share in QUANTILES)]
        width = max((len(name) for name in self.columns), default=0)
        lines.append(" " * width + "".join(f"{head:>11}" for head in heads))
        for name, column in self.columns.items():
            numbers = [column.min, column.mean, column.max, *(column.quantile(share) for share in QUANTILES)]
            cells = [f"{column.nulls:,}", *("-" if x is None else f"{x:.5g}" for x in numbers)]
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
        lines.append("")
        for name, count in self.unique.items():
            lines.append(f"distinct {name}: {count:,} ({count / max(self.rows, 1):.2%})")
        if self.sampled is not None and self.unique:
            lines.append("In a sample the distinct share is higher than in the whole table: duplicates lie far apart.")
        if self.findings:
            lines += ["", f"Differs from what is published of {published(self.columns | self.unique).name}:"]
            lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines)


def summarize(
    table: ir.Table,
    *,
    sample: float | None = None,
    seed: int = 0,
    unique: bool = True,
    advance: Callable[[str], None] = lambda step: None,
) -> Stats:
    """Statistics of a table.

    Args:
        sample: look at this share of the rows (each row by chance); None takes all. The backend's own sampling: with
            one `seed` DuckDB gives the same rows again, if it uses one thread.
        unique: count different addresses, images and texts, which costs more than all the rest.
        advance: is told each step before it starts.
    """
    if sample is not None and not 0 < sample < 1:
        raise ValueError(f"sample: got {sample}, expected a share between 0 and 1")
    types = {name: str(kind) for name, kind in table.schema().items()}
    if sample is not None:
        table = table.sample(sample, method="row", seed=seed)
        backend = table.get_backend()
        if backend.name == "duckdb":  # a sample that is drawn anew for each question would not be one sample
            table = backend.create_table(f"sample_{uuid.uuid4().hex}", table, temp=True)
    numeric = [name for name, kind in table.schema().items() if kind.is_numeric() and name != "id"]
    advance("ranges")
    queries = {"rows": ibis._.count()}
    for name in table.columns:
        column = _value(table, name)
        queries[f"nulls:{name}"] = column.isnull().cast("int64").sum().fill_null(0)
        if name in numeric or name == "id" and column.type().is_numeric():
            queries |= {f"min:{name}": column.min(), f"max:{name}": column.max()}
            queries[f"mean:{name}"] = column.cast("float64").mean()
    results = table.agg(**queries).to_pyarrow().to_pylist()[0]
    columns = {}
    for name in table.columns:
        low, high, mean = (results.get(f"{kind}:{name}") for kind in ("min", "max", "mean"))
        nulls = int(results[f"nulls:{name}"])
        if name in numeric and low is not None:
            advance(name)
            values, counts = _counts(table, name, low, high)
            columns[name] = Distribution(nulls, float(low), float(high), mean, values, counts)
        else:
            columns[name] = Distribution(nulls, low, high, mean if name != "id" else None)
    different = {}
    for name in [name for name in UNIQUE if unique and name in table.columns]:
        advance(f"different {name}")
        different[name] = int(table.select(name).filter(ibis._[name].notnull()).distinct().count().execute())
    summary = {name: {"nulls": c.nulls, "min": c.min, "max": c.max} for name, c in columns.items()}
    findings = check_columns(types) + check_ranges(results["rows"], summary)
    return Stats(int(results["rows"]), sample, columns, different, tuple(findings))


def _value(table: ir.Table, name: str) -> ir.Value:
    column = table[name]
    if not column.type().is_floating():
        return column
    return ibis.ifelse(column.isnan() | column.isinf(), ibis.null("float64"), column)


def _counts(table: ir.Table, name: str, low: float, high: float) -> tuple[tuple, tuple]:
    """Values and how often they occur, in order."""
    column = _value(table, name)
    if high == low or (column.type().is_integer() and high - low <= _WHOLE):
        key, edges = column, None
    else:
        step = (float(high) - float(low)) / _BINS
        # as floats: the difference of two whole numbers may have more than 64 bits
        key = ibis.least(((column.cast("float64") - float(low)) / step).floor().cast("int64"), _BINS - 1)
        edges = float(low) + step * np.arange(_BINS)
    rows = table.filter(column.notnull()).group_by(key=key).agg(rows=ibis._.count()).to_pyarrow().to_pylist()
    rows = sorted((row["key"], row["rows"]) for row in rows)
    values = [float(key) if edges is None else float(edges[key]) for key, _ in rows]
    return tuple(values), tuple(int(count) for _, count in rows)


def draw(stats: Stats):
    """A matplotlib figure with the histogram of each column of numbers; sizes and lengths up to their 99th percentile."""
    from matplotlib.figure import Figure

    shown = {name: column for name, column in stats.columns.items() if column.counts}
    across = 4
    down = max(1, -(-len(shown) // across))
    figure = Figure(figsize=(4 * across, 2.6 * down), layout="constrained")
    for place, (name, column) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(down, across, place)
        whole = all(value == int(value) for value in column.values)
        end = column.quantile(0.99) if whole else column.max
        within = [(value, count) for value, count in zip(column.values, column.counts) if value <= end]
        values, counts = zip(*within)
        axes.hist(values, bins=min(60, max(1, len(values))), weights=counts, color="#3b6ea5")
        title = name[:60].replace("$", r"\$")  # otherwise a formula
        axes.set_title(f"{title} (up to the 99th percentile)" if end < column.max else title, fontsize=9)
        axes.tick_params(labelsize=7)
    how = "all rows" if stats.sampled is None else f"a sample of {stats.sampled:.2%}"
    figure.suptitle(f"{stats.rows:,} rows, {how}")
    return figure
