"""Differences between groups of images: who is found, who is recognised, and who gets harmful labels.

docs/audit.md says what these figures can show and what they can't.

Axes: N images  Q queries  G groups  C classes  D width
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kakao_models.files.atomic import write_text
from kakao_models.samples.columns import Columns
from kakao_models.samples.sources import open_source

from .datasets import Images, Labelled, name_of, read_labelled
from .knn import nearest
from .report import markdown_report
from .results import Result
from .tiles import MAX_MEMORY

LEAST = 30  # images of a group; with fewer, its figures are reported with a warning


@dataclass(frozen=True)
class Skew:
    """Representation of groups among the images that a query finds (Geyik et al. 2019, arXiv:1905.01989, section 3)."""

    skew: np.ndarray  # (Q, G) ln(share among the first k / expected share); -inf where a group is not among them
    ndkl: np.ndarray  # (Q,) 0 where every prefix of the ranking has the expected shares
    k: int

    @property
    def max_skew(self) -> np.ndarray:
        """(Q,) the skew of the group that is most over-represented among the first k."""
        return self.skew.max(1)

    def metrics(self) -> dict[str, float]:
        """Mean over queries, and the worst query."""
        metrics = {}
        for name, values in ((f"max_skew_at_{self.k}", self.max_skew), ("ndkl", self.ndkl)):
            metrics |= {f"{name}_mean": float(values.mean()), f"{name}_worst": float(values.max())}
        return metrics


@dataclass(frozen=True)
class Gap:
    """A share of images, in 0..1, of each group, and the difference between the groups with the largest and the smallest.

    The interval holds the middle 95 % of the differences between these two groups over bootstrap samples of their images.
    """

    shares: dict[str, float]
    counts: dict[str, int]  # images of each group
    overall: float
    gap: float
    low: float
    high: float
    largest: str
    smallest: str

    def metrics(self, name: str) -> dict[str, float]:
        return {name: self.overall, f"{name}_gap": self.gap, f"{name}_gap_low": self.low, f"{name}_gap_high": self.high}


def skew_scores(
    query_embeds: np.ndarray,
    image_embeds: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    k: int = 100,
    expected: str = "data",
    max_memory: int = MAX_MEMORY,
) -> Skew:
    """MaxSkew@k and NDKL of rankings of images by queries that name no group, such as "a photo of a doctor".

    Args:
        query_embeds: (Q, D). image_embeds: (N, D). groups: (N,).
        k: how many first images count for the skew; at most N.
        expected: the share that a group should have: "data", as in all images, or "uniform", as large as every other's.

    Raises:
        ValueError: fewer than two groups, wrong shapes, an unknown `expected`.
    """
    names, number = _groups(groups, len(image_embeds))
    if expected not in ("data", "uniform"):
        raise ValueError(f"expected: got {expected!r}, expected data or uniform")
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    share = np.bincount(number) / len(number) if expected == "data" else np.full(len(names), 1 / len(names))
    _, ranked = nearest(query_embeds, image_embeds, len(number), max_memory=max_memory)
    k = min(k, len(number))
    place = np.arange(1, len(number) + 1)
    discount = 1 / np.log2(place + 1)
    skews, divergences = [], []
    for row in ranked:
        shares = np.cumsum(np.eye(len(names))[number[row]], axis=0) / place[:, None]  # (N, G), of each prefix
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(shares / share)
            divergence = np.where(shares > 0, shares * ratio, 0).sum(1)
        skews.append(ratio[k - 1])
        divergences.append(float((discount * divergence).sum() / discount.sum()))
    return Skew(np.array(skews), np.maximum(divergences, 0), k)


def gap_scores(hits: np.ndarray, groups: Sequence[str] | np.ndarray, *, samples: int = 1000, seed: int = 0) -> Gap:
    """Shares of images of each group, the gap between the two extreme groups and its bootstrap interval.

    Args:
        hits: (N,) bool: whether an image counts, such as whether its label was recognised.
        samples: bootstrap samples, each of as many images as a group has, drawn from it with replacement.

    Raises:
        ValueError: fewer than two groups, or another number of them than of hits.
    """
    hits = np.asarray(hits)
    names, number = _groups(groups, len(hits))
    if hits.ndim != 1 or hits.dtype != np.bool_:
        raise ValueError(f"hits: got {hits.dtype} of shape {hits.shape}, expected bool (images,)")
    if samples < 1:
        raise ValueError(f"samples: got {samples}, expected at least 1")
    counts = np.bincount(number)
    shares = np.bincount(number, hits) / counts
    largest, smallest = int(shares.argmax()), int(shares.argmin())
    draw = np.random.default_rng(seed)
    # the mean of n draws with replacement from zeros and ones is a binomial share
    sides = [draw.binomial(counts[g], shares[g], samples) / counts[g] for g in (largest, smallest)]
    low, high = np.percentile(sides[0] - sides[1], (2.5, 97.5))
    return Gap(
        shares={name: float(value) for name, value in zip(names, shares)},
        counts={name: int(count) for name, count in zip(names, counts)},
        overall=float(hits.mean()),
        gap=float(shares[largest] - shares[smallest]),
        low=float(low),
        high=float(high),
        largest=names[largest],
        smallest=names[smallest],
    )


def _groups(groups: Sequence[str] | np.ndarray, count: int) -> tuple[list[str], np.ndarray]:
    """The names of the groups, sorted, and the number of each image's."""
    if len(groups) != count:
        raise ValueError(f"groups: got {len(groups)} for {count} images")
    names, number = np.unique(np.asarray(groups, str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups: got {len(names)} ({', '.join(names)}), expected at least two to compare")
    return [str(name) for name in names], number


@dataclass(frozen=True)
class Grouped:
    """Images with the group that each one belongs to, and their labels where the data have some."""

    labelled: Labelled  # labels are -1 where an image has none
    groups: list[str]  # (N,)
    left_out: int  # images without a group


def read_grouped(source: str, attribute_column: str, **options: str | None) -> Grouped:
    """A data set with an attribute of each image, such as the apparent age group of a person.

    Args:
        source: a table, or another source with columns.
        attribute_column: the column with the groups; images where it is empty are left out.
        options: `split`, `image_column` and `label_column`, as of `read_labelled`.

    Raises:
        ValueError: no such column, or no image with a group; and for the reasons of `read_labelled`, if a label column is named.
    """
    columns = Columns(image=options.get("image_column"), label=options.get("label_column"))
    dataset = open_source(
        *(source, columns, ("image",)),
        split=options.get("split"),
        default_split="test",
        merge=False,
        keep=(attribute_column,),
    )
    groups, has_label, names = [], False, dict[str, None]()
    for sample in dataset.scan():
        names |= dict.fromkeys(sample.record)
        value = sample.record.get(attribute_column)  # a row of JSON may lack it
        groups.append("" if value is None else str(value).strip())
        has_label = has_label or bool(sample.labels)
    if attribute_column not in names:
        raise ValueError(f"{source}: has no column {attribute_column!r}; its columns include {', '.join(names)}")
    kept = [row for row, group in enumerate(groups) if group]
    if not kept:
        raise ValueError(f"{source}: the column {attribute_column!r} is empty in every row")
    if has_label:
        labelled = read_labelled(source, **options)
    else:
        labelled = Labelled(name_of(source), Images(dataset), np.full(len(groups), -1), [], None)
    return Grouped(labelled.take(kept), [groups[row] for row in kept], len(groups) - len(kept))


CAUTION = (
    "These figures hold for these images and groups only. A small gap here does not prove that the model treats groups alike; see "
    "docs/audit.md."
)


def audit_table(result: Result) -> str:
    """The result of an audit as Markdown: its metrics, and a row for each group."""
    groups = result.details["groups"]
    names = [name for name in next(iter(groups.values())) if name != "images"]
    head = ["group", "images", *(name.replace("_", " ") for name in names)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for group, figures in groups.items():
        shares = [f"{100 * figures[name]:.1f}" for name in names]
        lines.append(f"| {' | '.join([group.replace('|', chr(92) + '|'), str(figures['images']), *shares])} |")
    metrics = markdown_report([result], published=False, everything=True)
    return f"{metrics.strip()}\n\n" + "\n".join(lines) + f"\n\n{CAUTION}\n"


_START, _END = "<!-- audit -->", "<!-- / -->"


def fill_card(path: Path, table: str) -> None:
    """Puts the table of an audit into a model card: in place of an earlier one, or else at the end of the section whose heading
    names bias; without such a section, one is added.

    Raises:
        ValueError: the end of the earlier table is not marked.
    """
    text = path.read_text(encoding="utf-8")
    block = f"{_START}\n{table.strip()}\n{_END}"
    if _START in text:
        before, _, rest = text.partition(_START)
        _, end, after = rest.partition(_END)
        if not end:  # all after it would be lost
            raise ValueError(
                f"{path}: {_START} has no {_END} after it. Add it where the table ends, or remove {_START}"
            )
        write_text(path, before + block + after)
        return
    heading = re.search(r"^(#+) .*\bbias\b.*$", text, re.M | re.I)
    if not heading:
        write_text(path, f"{text.rstrip()}\n\n## Bias\n\n{block}\n")
        return
    following = re.compile(rf"^#{{1,{len(heading[1])}}} ", re.M).search(text, heading.end())
    end = following.start() if following else len(text)
    parts = text[:end].rstrip(), block, text[end:].lstrip()
    write_text(path, "\n\n".join(part for part in parts if part).rstrip() + "\n")
