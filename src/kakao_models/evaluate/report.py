"""Several results as one table: Markdown, a web page with bars, or the model-index of a model card."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import cycle
from typing import Any, NamedTuple

import yaml

from .published import TOLERANCE, Published, Verdict, figures_for, verdicts
from .results import Result

# The metrics that a table shows unless all are asked for, in this order.
HEADLINES = {
    "zero-shot": ("top1", "top5", "mean_per_class"),
    "classify": ("top1", "top5", "real_top1", "mean_average_precision"),
    "retrieval": (
        *(f"{direction}_r{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
        *("image_to_text_median_rank", "text_to_image_median_rank"),
    ),
    "pairs": ("text_score", "image_score", "group_score"),
    "knn": ("top1", "mean_per_class"),
    "linear-probe": ("accuracy", "ci95_low", "ci95_high"),
    "similarity": (
        *("sts", "sis", "sits"),
        *("image_to_text_r1", "text_to_image_r1", "text_to_text_r1", "image_to_image_r1"),
    ),
    "calibration": ("ece", "accuracy", "mean_confidence"),
    "relevance": ("ece", "right_at_50", "right_at_70", "none_auroc", "none_auroc_softmax", "nonsense_refused"),
}
_HUB_TASKS = {  # of the Hub's list of tasks
    "zero-shot": "zero-shot-image-classification",
    "calibration": "zero-shot-image-classification",
    "robustness": "zero-shot-image-classification",
    "retrieval": "image-text-retrieval",
    "similarity": "image-text-retrieval",
    "pairs": "image-text-retrieval",
}
_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2")
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:72em;color:#1f2933}"
    "table{border-collapse:collapse}td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #e4e8ec}"
    "small{font-weight:normal;color:#7b8794}svg{display:block}"
)
_VERDICTS = (
    f"Reproduced: the same protocol, and at most {TOLERANCE} percentage points from the published figure of this checkpoint. "
    "Other protocol: the figure was measured in another way, so it does not say whether a model is right."
)
_UNITS = "Shares and correlations in percent; ranks count from 1; skew and NDKL in natural units, 0 is none."


def markdown_report(
    results: Sequence[Result], *, published: bool = True, everything: bool = False, checkpoint: str | None = None
) -> str:
    """A table per task and data set: a row per metric, a column per model, published figures in italics.

    Figures of a released checkpoint are followed by "reproduced", "not reproduced" or "other protocol"; the reasons stand below.

    Args:
        published: add the figures of `PUBLISHED` for the same task, data set and metric; source, protocol and date stand
            below, and which of them a correct port reproduces.
        everything: all metrics, instead of `HEADLINES`.
        checkpoint: the released checkpoint that all results are of, such as "kakaobrain/align-base"; by default the one that a
            result's model is called.
    """
    blocks, sources, reasons = [], {}, []
    for table in _tables(results, published, everything, checkpoint):
        heads = [f"*{_cell(name)}*" if figure else _cell(name) for name, figure in table.columns.items()]
        lines = [f"### {table.title}", "", f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        lines += [f"| {_cell(_spoken(metric))} | {' | '.join(row)} |" for metric, row in table.rows.items()]
        blocks.append("\n".join(lines))
        reasons += table.reasons
        sources |= {name: figure for name, figure in table.columns.items() if figure}
    text = "\n\n".join(blocks) + f"\n\n{_units(results)}\n"
    if reasons:
        text += f"\n{_VERDICTS}\n\n" + "".join(f"- {_cell(reason)}\n" for reason in reasons)
    if sources:
        text += "\n" + "".join(f"- *{_cell(name)}*: {_provenance(figure)}\n" for name, figure in sources.items())
    return text


def _provenance(figure: Published) -> str:
    reproducible = ". A correct port of the released checkpoint reproduces these" if figure.reproducible else ""
    return figure.provenance + reproducible


def html_report(
    results: Sequence[Result], *, published: bool = True, everything: bool = False, checkpoint: str | None = None
) -> str:
    """The same as one web page without scripts, with a bar per figure."""
    parts = []
    reasons = []
    for table in _tables(results, published, everything, checkpoint):
        reasons += table.reasons
        heads = ""
        for (name, figure), colour in zip(table.columns.items(), cycle(_COLOURS)):
            source = f"<br><small>{escape(_provenance(figure))}</small>" if figure else ""
            heads += f"<th style='color:{colour}'>{escape(name)}{source}</th>"
        lines = []
        for metric, row in table.rows.items():
            bars = "".join(
                f"<td>{escape(value)}{_bar(value, colour, metric)}</td>" for value, colour in zip(row, cycle(_COLOURS))
            )
            lines.append(f"<tr><th scope='row'>{escape(_spoken(metric))}</th>{bars}</tr>")
        body = "\n".join(lines)
        parts.append(f"<h2>{escape(table.title)}</h2>\n<table><tr><td></td>{heads}</tr>\n{body}</table>")
    items = "".join(f"<li>{escape(reason)}</li>\n" for reason in reasons)
    listed = f"\n<p>{_VERDICTS}</p>\n<ul>\n{items}</ul>" if reasons else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Evaluation</title>\n"
        f"<style>{_STYLE}</style></head><body>\n<h1>Evaluation</h1>\n"
        f"<p>{_units(results)}</p>\n" + "\n".join(parts) + listed + "\n</body></html>\n"
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
        metrics = [(metric, round(_scaled(metric, result.metrics[metric]), 2)) for metric in _shown(result, False)]
        kind = "".join(c if c.isalnum() or c in "-_./" else "-" for c in result.dataset)
        entries.append(_entry(result.task, _title_of(result), kind, result.dataset, metrics))
    index = {"model-index": [{"name": name or models.pop(), "results": entries}]}
    return yaml.safe_dump(index, sort_keys=False, allow_unicode=True, width=110)


def model_index_of_published(figures: Iterable[Published]) -> list[dict]:
    """The entries of a `model-index` for figures that others published: one for each task, data set and source."""
    groups: dict[tuple, list[Published]] = {}
    for figure in figures:
        groups.setdefault((figure.task, figure.dataset, figure.source, figure.note), []).append(figure)
    entries = []
    for (task, dataset, source, note), group in groups.items():
        metrics = [(figure.metric, figure.value) for figure in group]
        entry = _entry(task, f"{task}, {note}" if note else task, dataset, dataset, metrics)
        entries.append(entry | {"source": {"name": group[0].provenance, "url": source.split(",")[0]}})
    return entries


def _entry(task: str, title: str, dataset: str, dataset_name: str, metrics: list[tuple[str, float]]) -> dict[str, Any]:
    return {
        "task": {"type": _HUB_TASKS.get(task, "image-classification"), "name": title},
        "dataset": {"type": dataset, "name": dataset_name},
        "metrics": [{"type": key, "name": _spoken(key), "value": value} for key, value in metrics],
    }


class _Table(NamedTuple):
    """One task on one data set."""

    title: str
    columns: dict[str, Published | None]  # name of a column → a figure of it, if others published it
    rows: dict[str, list[str]]  # metric → the text for each column
    reasons: list[str]  # of the verdicts in it


def _tables(results: Iterable[Result], published: bool, everything: bool, checkpoint: str | None) -> Iterator[_Table]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((_title_of(result), result.dataset), []).append(result)
    if not groups:
        raise ValueError("report: got no results")
    for (title, dataset), group in groups.items():
        metrics = list(dict.fromkeys(metric for result in group for metric in _shown(result, everything)))
        figures = [f for f in (figures_for(group[0].task, dataset) if published else ()) if f.metric in metrics]
        columns: dict[str, Published | None] = {}
        cells: dict[tuple[str, str], str] = {}
        reasons: list[str] = []
        digits = {metric: 3 if _is_skew(metric) else 1 for metric in metrics}
        for figure in figures:  # ours have as many decimals as the published figures that they stand beside
            digits[figure.metric] = max(digits[figure.metric], len(str(figure.value).partition(".")[2]))
        for result in group:
            taken = sum(other == result.model or other.startswith(f"{result.model} (") for other in columns)
            name = f"{result.model} ({taken + 1})" if taken else result.model
            columns[name] = None
            judged: dict[str, Verdict] = verdicts(result, checkpoint) if published else {}
            for metric in metrics:
                if metric in result.metrics:
                    value = f"{_scaled(metric, result.metrics[metric]):.{digits[metric]}f}{_interval(result, metric)}"
                    cells[metric, name] = f"{value} {judged[metric].verdict}" if metric in judged else value
            reasons += [
                f"{name}, {dataset}, {_spoken(m)}: {v.verdict}, {v.reason}" for m, v in judged.items() if m in metrics
            ]
        for figure in figures:
            name = f"{figure.model}{', ' + figure.note if figure.note else ''}"
            columns.setdefault(name, figure)
            cells[figure.metric, name] = str(figure.value)  # as many digits as were published
        rows = {metric: [cells.get((metric, name), "") for name in columns] for metric in metrics}
        yield _Table(f"{title}: {dataset}", columns, rows, reasons)


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


def _interval(result: Result, metric: str) -> str:
    """(low to high) in percent, where the result has an interval of this metric."""
    try:
        low, high = result.details["intervals"][metric]
        return f" ({100 * low:.1f} to {100 * high:.1f})"
    except (KeyError, TypeError, ValueError):
        return ""


def _units(results: Iterable[Result]) -> str:
    intervals = any("intervals" in result.details for result in results)
    return _UNITS + " In parentheses: 95 % intervals." * intervals


def _is_rank(metric: str) -> bool:
    return metric.endswith("_rank") or metric == "bce" or _is_skew(metric)


def _is_skew(metric: str) -> bool:
    return metric.startswith(("max_skew", "ndkl"))


def _scaled(metric: str, value: float) -> float:
    """Shares in percent; ranks and entropies as they are."""
    return value if _is_rank(metric) else 100 * value


def _spoken(metric: str) -> str:
    words = metric.replace("_", " ")
    for k in (1, 5, 10):
        words = words.removesuffix(f" r{k}") + f", R@{k}" if words.endswith(f" r{k}") else words
    for old, new in {"top1": "top-1", "top5": "top-5", "ece": "ECE", "mce": "MCE", "ci95": "95 %"}.items():
        words = " ".join(new if word == old else word for word in words.split(" "))
    return words


def _bar(value: str, colour: str, metric: str) -> str:
    if not value or _is_rank(metric):
        return ""
    width = max(0.0, min(100.0, float(value.split()[0]))) * 1.6
    track = "<rect width='160' height='8' fill='#eef1f4'/>"
    return f"<svg width='160' height='8'>{track}<rect width='{width:.1f}' height='8' fill='{colour}'/></svg>"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
