"""Reports on the failures of a download: a list of dead links, and a chart of success rates."""

import csv
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from kakao_models.files.atomic import replacing


def dead_links(folder: Path, output: Path) -> int:
    """Writes a CSV of all rows that failed: id, url, error, attempts, final (another attempt is of no use).

    Returns:
        how many there are.
    """
    count = 0
    with replacing(output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "url", "error", "attempts", "final"])
        for path in sorted(folder.glob("[0-9]*.parquet")):
            for row in pq.read_table(path).to_pylist():
                if row["status"] != "success":
                    writer.writerow([row[name] for name in ("id", "url", "error", "attempts", "final")])
                    count += 1
    return count


def draw_success(folder: Path, hosts: int = 12):
    """A matplotlib figure: success rate of each shard, kinds of failures, hosts with most of them.

    Raises:
        ValueError: no shard is finished.
    """
    from matplotlib.figure import Figure

    rates, errors, failed = [], Counter(), Counter()
    for path in sorted(folder.glob("[0-9]*.parquet")):
        table = pq.read_table(path, columns=["url", "status", "error"])
        statuses = table["status"].to_pylist()
        rates.append(statuses.count("success") / max(1, len(statuses)))
        for url, error in zip(table["url"].to_pylist(), table["error"].to_pylist()):
            if error:
                errors[failure_kind(error)] += 1
                failed[_host(url)] += 1
    if not rates:
        raise ValueError(f"{folder}: this folder has no finished shard")
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(range(len(rates)), rates, marker="." if len(rates) < 200 else None, color="#3b6ea5")
    left.set(title=f"success rate by shard (mean {sum(rates) / len(rates):.1%})", ylim=(0, 1.02), xlabel="shard")
    for axes, counts, title in ((middle, errors, "failures"), (right, failed, "hosts with most failures")):
        most = counts.most_common(hosts)[::-1]
        axes.barh([name[:40].replace("$", r"\$") for name, _ in most], [count for _, count in most], color="#3b6ea5")
        axes.set_title(title)
        axes.tick_params(labelsize=7)
    return figure


def _host(url: str | None) -> str:
    try:
        return urlsplit(url or "").hostname or "(none)"
    except ValueError:
        return "(broken)"


def failure_kind(error: str) -> str:
    """The kind of a failure, without the host, numbers and quotations of the single one."""
    for text, kind in (
        ("no address found", "no address found for the host"),
        ("not a public address", "not a public address"),
        ("file too large", "larger than max_bytes"),
        ("response too large", "larger than max_bytes"),
        ("image too large", "more than max_pixels"),
        ("connection closed", "the answer was cut short"),
        ("redirects", "too many redirects"),
        ("not an image", "not an image"),
        ("cannot be decoded", "broken picture"),
        ("broken ", "broken picture"),
        ("only http and https", "not an http(s) address"),
        ("does not match)", "content differs from the table's"),
    ):
        if text in error:
            return kind
    return "".join(letter for letter in error[:80] if letter.isprintable())
