"""COYO-Labeled-300M: what a threshold on `label_probs` leaves, and the lists of classes that ViT is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from kakao_models.samples.tables import require

THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


@dataclass(frozen=True)
class Threshold:
    threshold: float
    labels_per_image: float  # mean over the images that keep any
    unique_labels: int
    images: float  # share of the images that keep any
    top_classes: tuple[tuple[int, int], ...]  # (class, images), most frequent first


@dataclass(frozen=True)
class LabelStats:
    rows: int
    thresholds: tuple[Threshold, ...]
    histogram: tuple[tuple[int, int], ...]  # (labels, images) at the highest threshold

    def named(self, names: Sequence[str] | None) -> str:
        """A table, with the names of classes where they are given.

        Raises:
            ValueError: a class has no name.
        """
        lines = [f"{self.rows:,} images", "", "threshold  labels per image  different labels  images left  top classes"]
        for row in self.thresholds:
            top = ", ".join(f"{_name(names, label)} {count:,}" for label, count in row.top_classes[:3])
            counts = f"{row.labels_per_image:16.2f}  {row.unique_labels:16,}  {row.images:11.2%}"
            lines.append(f"{row.threshold:9.2f}  {counts}  {top}")
        return "\n".join(lines)


def _name(names: Sequence[str] | None, label: int) -> str:
    if names is None:
        return str(label)
    if label is None or not 0 <= label < len(names):
        raise ValueError(f"got {len(names)} names of classes, but the table has the class {label}")
    return names[label]


def label_stats(table: ir.Table, thresholds: Sequence[float] = THRESHOLDS, top: int = 20) -> LabelStats:
    """Counts the labels whose probability is at least each threshold, like the table in COYO-Labeled's README.

    Raises:
        ValueError: a threshold outside of 0..1, or a table without `labels` and `label_probs`.
    """
    thresholds = sorted(set(map(_checked, thresholds)))
    require(table, ("labels", "label_probs"), "label-stats")
    sums = {"rows": ibis._.count()}
    for number, threshold in enumerate(thresholds):
        left = sparse(table, threshold).length().fill_null(0)
        sums[f"labels{number}"] = left.sum().fill_null(0)
        sums[f"images{number}"] = (left > 0).cast("int64").sum().fill_null(0)
    totals = table.agg(**sums).to_pyarrow().to_pylist()[0]
    results = []
    for number, threshold in enumerate(thresholds):
        images, labels = totals[f"images{number}"], totals[f"labels{number}"]
        each = table.select(label=sparse(table, threshold).unnest())
        counts = each.group_by("label").agg(images=ibis._.count())
        first = counts.order_by([ibis.desc("images"), "label"]).limit(top).to_pyarrow().to_pylist()
        results.append(
            Threshold(
                threshold=threshold,
                labels_per_image=labels / images if images else 0.0,
                unique_labels=int(counts.count().execute()),
                images=images / totals["rows"] if totals["rows"] else 0.0,
                top_classes=tuple((row["label"], row["images"]) for row in first),
            )
        )
    number = sparse(table, thresholds[-1]).length().fill_null(0)
    rows = table.group_by(labels=number).agg(images=ibis._.count()).to_pyarrow().to_pylist()
    histogram = tuple(sorted((row["labels"], row["images"]) for row in rows))
    return LabelStats(int(totals["rows"]), tuple(results), histogram)


def sparse(table: ir.Table, threshold: float) -> ir.ArrayValue:
    """The labels of each row whose probability is at least `threshold`, in their order; null stays null."""
    labels, chances = table.labels, table.label_probs
    places = ibis.range(0, ibis.least(labels.length(), chances.length()))
    kept = places.filter(lambda place: (chances[place] >= threshold) & ~chances[place].isnan())
    return kept.map(lambda place: labels[place])


def to_multilabel(table: ir.Table, threshold: float, *, most: int | None = None, keep_empty: bool = False) -> ir.Table:
    """The table with `labels` as training reads them: the classes above a threshold, a list per row, without `label_probs`.

    Args:
        most: largest number of labels of a row to keep, the first ones; the published lists begin with the most likely. 1 makes
            data for a classifier of one class per image.
        keep_empty: keep rows without labels, of which training learns that they are of no class.
    """
    require(table, ("labels", "label_probs"), "labels")
    labels = sparse(table, _checked(threshold))
    labels = labels[:most] if most else labels
    labels = ibis.coalesce(labels, ibis.literal([], type="array<int64>"))
    labelled = table.mutate(labels=labels).drop("label_probs")
    return labelled if keep_empty else labelled.filter(labelled.labels.length() > 0)


def _checked(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: got {threshold}, expected a probability from 0 to 1")
    return float(threshold)
