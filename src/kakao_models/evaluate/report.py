"""Several results as one table: Markdown, a web page with bars, or the model-index of a model card."""

from collections.abc import Iterable, Sequence
from html import escape

import yaml

from .published import PUBLISHED, Published
from .results import Result

# The metrics that a table shows unless all are asked for, in this order.
HEADLINES = {
    "zero-shot": ("top1", "top5", "mean_per_class"),
    "classify": ("top1", "top5", "real_top1", "mean_average_precision"),
    "retrieval": tuple(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))
    + ("image_to_text_median_rank", "text_to_image_median_rank"),
    "knn": ("top1", "mean_per_class"),
    "linear-probe": ("accuracy", "ci95_low", "ci95_high"),
    "similarity": (
        "sts",
        "sis",
        "sits",
        "image_to_text_r1",
        "text_to_image_r1",
        "text_to_text_r1",
        "image_to_image_r1",
    ),
    "calibration": ("ece", "accuracy", "mean_confidence"),
}
_HUB_TASKS = {  # of the Hub's list of tasks
    "zero-shot": "zero-shot-image-classification",
    "calibration": "zero-shot-image-classification",
    "robustness": "zero-shot-image-classification",
    "retrieval": "image-text-retrieval",
    "similarity": "image-text-retrieval",
}
_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2")


def markdown_report(results: Sequence[Result], *, published: bool = True, everything: bool = False) -> str:
    """A table per task and data set: a row per metric, a column per model, published figures in italics.

    Args:
        published: add the figures of `PUBLISHED` for the same task, data set and metric; source, protocol and date stand
            below, and which of them a right port reproduces.
        everything: all metrics, instead of `HEADLINES`.
    """
    blocks, sources = [], {}
    for title, rows, columns, cells in _tables(results, published, everything):
        heads = [f"*{name}*" if isinstance(key, Published) else name for key, name in columns]
        lines = [f"### {title}", "", f"| | {' | '.join(map(_cell, heads))} |", "|---" * (len(heads) + 1) + "|"]
        for metric in rows:
            values = [cells.get((metric, name), "") for _, name in columns]
            lines.append(f"| {_cell(_spoken(metric))} | {' | '.join(values)} |")
        blocks.append("\n".join(lines))
        for key, name in columns:
            if isinstance(key, Published):
                sources[name] = key
    text = "\n\n".join(blocks) + "\n\nShares and correlations in percent; ranks count from 1.\n"
    if sources:
        text += "\n" + "\n".join(f"- *{_cell(name)}*: {_provenance(figure)}" for name, figure in sources.items()) + "\n"
    return text


def _provenance(figure: Published) -> str:
    return figure.provenance + (
        ". A right port of the released checkpoint reproduces these" if figure.reproducible else ""
    )


def html_report(results: Sequence[Result], *, published: bool = True, everything: bool = False) -> str:
    """The same as one web page without scripts, with a bar per figure."""
    parts = []
    for title, rows, columns, cells in _tables(results, published, everything):
        heads = "".join(
            f"<th style='color:{_COLOURS[i % len(_COLOURS)]}'>{escape(name)}"
            + (f"<br><small>{escape(_provenance(key))}</small>" if isinstance(key, Published) else "")
            + "</th>"
            for i, (key, name) in enumerate(columns)
        )
        lines = []
        for metric in rows:
            values = [cells.get((metric, name), "") for _, name in columns]
            bars = "".join(f"<td>{escape(value)}{_bar(value, i, metric)}</td>" for i, value in enumerate(values))
            lines.append(f"<tr><th scope='row'>{escape(_spoken(metric))}</th>{bars}</tr>")
        body = "\n".join(lines)
        parts.append(f"<h2>{escape(title)}</h2>\n<table><tr><td></td>{heads}</tr>\n{body}</table>")
    style = (
        "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:72em;color:#1f2933}"
        "table{border-collapse:collapse}td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #e4e8ec}"
        "small{font-weight:normal;color:#7b8794}svg{display:block}"
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Evaluation</title>\n"
        f"<style>{style}</style></head><body>\n<h1>Evaluation</h1>\n"
        "<p>Shares and correlations in percent; ranks count from 1.</p>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def model_index(results: Sequence[Result], name: str | None = None) -> str:
    """The `model-index` of a model card's front matter, YAML, of one model's results.

    Raises:
        ValueError: results of several models, or none.
    """
    models = {result.model for result in results}
    if len(models) != 1:
        raise ValueError(
            f"model-index: got results of {len(models)} models ({', '.join(sorted(models))}), expected one"
        )
    entries = []
    for result in results:
        metrics = [
            {"type": metric, "name": _spoken(metric), "value": _number(metric, result.metrics[metric])}
            for metric in _shown(result, False)
        ]
        kind = "".join(c if c.isalnum() or c in "-_./" else "-" for c in result.dataset)
        entries.append({
            "task": {"type": _HUB_TASKS.get(result.task, "image-classification"), "name": _title_of(result)},
            "dataset": {"type": kind, "name": result.dataset},
            "metrics": metrics,
        })  # fmt: skip
    index = {"model-index": [{"name": name or models.pop(), "results": entries}]}
    return yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=110)


def model_index_of_published(figures: Iterable[Published]) -> list[dict]:
    """The entries of a `model-index` for figures that others published: one for each task, data set and source."""
    groups: dict[tuple, list[Published]] = {}
    for figure in figures:
        groups.setdefault((figure.task, figure.dataset, figure.source, figure.note), []).append(figure)
    return [
        {
            "task": {"type": _HUB_TASKS.get(task, "image-classification"), "name": f"{task}, {note}" if note else task},
            "dataset": {"type": dataset, "name": dataset},
            "metrics": [
                {"type": figure.metric, "name": _spoken(figure.metric), "value": figure.value} for figure in group
            ],
            "source": {"name": group[0].provenance, "url": source.split(",")[0]},
        }
        for (task, dataset, source, note), group in groups.items()
    ]


def _tables(results: Iterable[Result], published: bool, everything: bool):
    """(title, metrics, columns (what they come from, name), cells (metric, name) → text) per task and data set."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((_title_of(result), result.dataset), []).append(result)
    if not groups:
        raise ValueError("report: got no results")
    for (task, dataset), group in groups.items():
        rows = list(dict.fromkeys(metric for result in group for metric in _shown(result, everything)))
        columns, cells = [], {}
        figures = (
            [f for f in PUBLISHED if f.task == group[0].task and f.dataset == dataset.lower()] if published else []
        )
        digits = {}  # metric → decimals, those of the published figures that ours stand beside
        for figure in figures:
            digits[figure.metric] = max(digits.get(figure.metric, 1), len(str(figure.value).partition(".")[2]))
        for result in group:
            name = result.model
            taken = sum(other == name or other.startswith(f"{name} (") for _, other in columns)
            name = f"{name} ({taken + 1})" if taken else name
            columns.append((result, name))
            cells |= {
                (metric, name): _text(metric, result.metrics[metric], digits.get(metric, 1))
                for metric in rows
                if metric in result.metrics
            }
        for figure in figures:
            name = f"{figure.model}{', ' + figure.note if figure.note else ''}"
            if figure.metric in rows:
                if name not in [other for _, other in columns]:
                    columns.append((figure, name))
                cells[figure.metric, name] = str(figure.value)  # as many digits as were published
        yield f"{task}: {dataset}", rows, columns, cells


def _title_of(result: Result) -> str:
    if result.task == "knn":
        return f"kNN, k = {result.settings.get('k', 1)}"
    if result.task == "linear-probe":
        return "linear probe, VTAB-1k" if result.settings.get("vtab") else "linear probe"
    return result.task


def _shown(result: Result, everything: bool) -> list[str]:
    expected = HEADLINES.get(result.task)
    if everything or expected is None:
        return list(result.metrics)
    return [metric for metric in expected if metric in result.metrics] or list(result.metrics)


def _is_rank(metric: str) -> bool:
    return metric.endswith("_rank") or metric == "bce"


def _number(metric: str, value: float) -> float:
    return round(value if _is_rank(metric) else 100 * value, 2)


def _text(metric: str, value: float, digits: int = 1) -> str:
    return f"{value if _is_rank(metric) else 100 * value:.{digits}f}"


def _spoken(metric: str) -> str:
    words = metric.replace("_", " ")
    for k in (1, 5, 10):
        words = words.removesuffix(f" r{k}") + f", R@{k}" if words.endswith(f" r{k}") else words
    for old, new in {"top1": "top-1", "top5": "top-5", "ece": "ECE", "mce": "MCE", "ci95": "95 %"}.items():
        words = " ".join(new if word == old else word for word in words.split(" "))
    return words


def _bar(value: str, place: int, metric: str) -> str:
    if not value or _is_rank(metric):
        return ""
    width = max(0.0, min(100.0, float(value))) * 1.6
    colour = _COLOURS[place % len(_COLOURS)]
    return f"<svg width='160' height='8'><rect width='160' height='8' fill='#eef1f4'/><rect width='{width:.1f}' height='8' fill='{colour}'/></svg>"  # noqa: E501


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
