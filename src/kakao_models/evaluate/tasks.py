"""The tasks: a model and data in, a `Result` out. Scores come from the modules named like them."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kakao_models.files.lines import json_of
from kakao_models.inference.probe import probe
from kakao_models.inference.relevance import Relevance

from .audit import LEAST, Gap, Grouped, gap_scores, skew_scores
from .cache import CachedEmbedder
from .calibration import Calibration, calibration_scores
from .class_names import distinct_names, labels_by_keys, model_labels
from .classify import Classification, classification_scores, multilabel_scores, real_scores
from .datasets import Captioned, Images, Labelled
from .intervals import wilson
from .knn import knn_scores, nearest
from .pairs import Pairs, pair_scores
from .relevance import HALVINGS, Pairs as WordPairs, fit_relevance, guarantees, held, measure_relevance, nonsense
from .results import Result
from .retrieval import fold_scores, folds, recall_intervals, retrieval_scores
from .similarity import POSITIVE, Ratings, rated_retrieval, rated_similarities, similarity_scores
from .tiles import MAX_MEMORY
from .zero_shot import ZeroShot, class_embeddings, zero_shot_scores

logger = logging.getLogger(__name__)

_PER_CLASS = 1000  # of more classes, the single ones are left out of results.json


@dataclass(frozen=True)
class TaskRun:
    """The model and the memory that every task uses."""

    embedder: CachedEmbedder
    max_memory: int = MAX_MEMORY

    def result(self, task: str, dataset: str, metrics: dict, **fields: Any) -> Result:
        """A result that names the model as the embedder does, but a folder by the last part of its path."""
        model = str(self.embedder.embedder.name)
        fingerprints = {"model": self.embedder.fingerprint, "data": self.embedder.data_fingerprint}
        name = Path(model).name if Path(model).is_dir() else model
        return Result(task, name, dataset, metrics, fingerprints=fingerprints, **fields)


def zero_shot(
    run: TaskRun,
    data: Labelled,
    names: Sequence[str],
    templates: Sequence[str],
    lists: Mapping[str, str | None] = MappingProxyType({}),
) -> tuple[Result, ZeroShot]:
    """Classes by their names; `names` are those of `data.keys`, in their order.

    Args:
        lists: what the lists are called, as "class_names" and "templates", for the settings of the result; beside that
            these have the lists' SHA-256.

    Raises:
        ValueError: another number of names than classes, and for the reasons of `class_embeddings` and
            `zero_shot_scores`.
    """
    if len(names) != len(data.keys):
        raise ValueError(f"{data.name}: got {len(names)} class names for {len(data.keys)} classes")
    data = data.labelled()
    classes = class_embeddings(run.embedder, names, templates)
    images = run.embedder.images(data.images, name=data.name)
    scores = zero_shot_scores(
        images, classes, data.labels, temperature=run.embedder.temperature, max_memory=run.max_memory
    )
    settings = _list_settings("templates", templates, lists) | _list_settings(
        "class_names", names, lists, len(names) <= _PER_CLASS
    )
    counts = {"images": scores.images, "classes": len(names)}
    metrics, details = scores.metrics(), _details(scores, names)
    shares = {name: value for name, value in metrics.items() if name.startswith("top")}
    details["intervals"] = {name: wilson(value, scores.images) for name, value in shares.items()}
    return run.result("zero-shot", data.name, metrics, counts=counts, settings=settings, details=details), scores


def _list_settings(kind: str, texts: Sequence[str], lists: Mapping[str, str | None], whole: bool = True) -> dict:
    """A list of texts in the settings of a result: the texts, their name, and the SHA-256 of the lines."""
    digest = hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    name = lists.get(kind)
    called = {f"{kind}_from": Path(name).name if Path(name).is_file() else name} if name else {}
    return ({kind: list(texts)} if whole else {}) | called | {f"{kind}_sha256": digest}


def calibration(
    run: TaskRun,
    data: Labelled,
    names: Sequence[str],
    templates: Sequence[str],
    lists: Mapping[str, str | None] = MappingProxyType({}),
    *,
    bins: int = 15,
) -> tuple[Result, Calibration]:
    """Gap between the probabilities of zero-shot classification and how often it is right."""
    zero, scores = zero_shot(run, data, names, templates, lists)
    calibrated = _calibration_of(scores, bins)
    details = {"bins": [
        {"images": int(count)} | ({"accuracy": float(a), "confidence": float(c)} if count else {})
        for count, a, c in zip(calibrated.counts, calibrated.bin_accuracy, calibrated.bin_confidence)
    ]}  # fmt: skip
    settings = zero.settings | {"bins": bins, "temperature": run.embedder.temperature}
    metrics, counts = calibrated.metrics(), zero.counts
    return run.result("calibration", data.name, metrics, counts=counts, settings=settings, details=details), calibrated


def relevance(run: TaskRun, name: str, images: Images, pairs: WordPairs) -> tuple[Result, Relevance]:
    """A calibration of the cosine, fitted to all words and photographs; and the error of such a one on others.

    That is the mean over random halves of the words and of the photographs: one is fitted to, the other measured. Words are
    embedded alone, as texts to search for are. The guarantees of the calibration are of all words and photographs; `details` has them,
    and what such ones held on the halves that they were not made of.

    Raises:
        ValueError: too few words fit photographs.
    """
    rows = run.embedder.images(images, normalize=True, name=name)
    cosines = run.embedder.texts(pairs.words, normalize=True) @ rows.T
    fitted = fit_relevance(cosines.ravel(), pairs.fits.ravel())
    measured, kept = [], []
    for seed in range(HALVINGS):
        (known, unseen) = [(cosines[np.ix_(*half)], pairs.fits[np.ix_(*half)]) for half in pairs.halves(seed)]
        of_half = fit_relevance(*(values.ravel() for values in known))
        measured.append(measure_relevance(of_half, *unseen, run.embedder.temperature))
        kept.append(held(guarantees(*known), *unseen))
    metrics = _means(measured)
    best = (run.embedder.texts(nonsense(), normalize=True) @ rows.T).max(1)
    metrics["nonsense_refused"] = float((fitted(best) < 0.5).mean())
    counts = {
        "images": len(rows),
        "words": len(pairs.words),
        "pairs": cosines.size,
        "pairs_that_fit": int(pairs.fits.sum()),
    }
    limits = guarantees(cosines, pairs.fits)
    details = {"guarantees": limits, "held": {kind: _rounded_means([some[kind] for some in kept]) for kind in limits}}
    settings = {"halvings": HALVINGS}
    result = run.result("relevance", name, metrics, counts=counts, settings=settings, details=details)
    rounded = _rounded_means([metrics])
    of = {
        "data": name,
        "fingerprint": result.fingerprints["data"],
        **counts,
        "measured": rounded,
        "held": details["held"],
    }
    return result, replace(fitted, probe=probe(run.embedder.embedder), fitted=of, guarantees=limits)


def _rounded_means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in _means(several).items()}


def _means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric, over those that have it."""
    names = dict.fromkeys(name for metrics in several for name in metrics)
    return {name: float(np.mean([metrics[name] for metrics in several if name in metrics])) for name in names}


def _calibration_of(scores: ZeroShot, bins: int = 15) -> Calibration:
    assert scores.confidences is not None, "zero_shot passes the temperature"
    known = scores.labels >= 0
    return calibration_scores(scores.confidences[known], (scores.predictions == scores.labels)[known], bins=bins)


def robustness(
    run: TaskRun,
    sets: Sequence[tuple[Labelled, Sequence[str]]],
    templates: Sequence[str],
    lists: Mapping[str, str | None] = MappingProxyType({}),
) -> Result:
    """Zero-shot accuracy and calibration on several sets: the first as usual, the others shifted.

    `drop` is the accuracy on the first minus the mean over the others.
    """
    if len(sets) < 2:
        raise ValueError(
            f"robustness: got {len(sets)} data sets, expected the original one and at least one that is shifted"
        )
    if len({data.name for data, _ in sets}) < len(sets):
        raise ValueError("robustness: two data sets have the same name: " + ", ".join(data.name for data, _ in sets))
    metrics, counts, top1, settings = {}, {}, [], _list_settings("templates", templates, lists)
    for data, names in sets:
        _, scores = zero_shot(run, data, names, templates)
        of_names = _list_settings("class_names", names, lists, whole=False)
        settings |= {f"{data.name}_{key}": value for key, value in of_names.items()}
        metrics |= {f"{data.name}_top1": scores.top[1], f"{data.name}_ece": _calibration_of(scores).ece}
        counts[data.name] = scores.images
        top1.append(scores.top[1])
    metrics |= {"shifted_mean_top1": float(np.mean(top1[1:])), "drop": top1[0] - float(np.mean(top1[1:]))}
    return run.result("robustness", sets[0][0].name, metrics, counts=counts, settings=settings)


def classify(
    run: TaskRun, data: Labelled, *, columns: Sequence[int] | None = None, real: Path | None = None
) -> tuple[Result, Classification]:
    """Accuracy of a model's own classes.

    Args:
        columns: see `classification_scores`.
        real: real.json of ImageNet-ReaL; images are found by the number in their names, as ILSVRC2012_val_00000001.JPEG.
    """
    data = data if real else data.labelled()
    run.embedder.embedder.check_classifier()
    labels, names = (
        (data.labels, data.keys) if columns is not None else model_labels(run.embedder.embedder.config, data)
    )
    logits = run.embedder.class_logits(data.images, name=data.name)
    scores = classification_scores(logits, labels, columns=columns)
    metrics, counts = scores.metrics(), {"images": scores.images, "classes": scores.classes}
    if real:
        metrics |= real_scores(logits, _real_labels(real, data))
        counts["real_images"] = int(metrics.pop("real_images"))
    details = _details(scores, names)
    return run.result("classify", data.name, metrics, counts=counts, details=details), scores


def multi_label(run: TaskRun, name: str, images: Images, labels: list[list[int]]) -> Result:
    """A head with a sigmoid per class, such as the 21,841 of coyo-vit's pretraining."""
    scores = multilabel_scores(run.embedder.class_logits(images, name=name), labels)
    counts = {"images": scores.images, "classes_seen": len(scores.per_class)}
    return run.result("classify", name, scores.metrics(), counts=counts, settings={"multi_label": True})


def retrieval(run: TaskRun, data: Captioned, *, fold_size: int | None = None) -> Result:
    """Captions of images and images of captions; with `fold_size` the mean over folds of so many images. Images after the
    last whole fold are left out, and not counted."""
    available = len(data)
    if fold_size is not None:
        count = len(folds(data.image_ids, fold_size))
        data = data.take(range(count * fold_size))
        if len(data) < available:
            logger.warning(
                f"{data.name}: {len(data)} of {available} images are measured, in {count} folds of {fold_size}; "
                f"the last {available - len(data)} are left out"
            )
    texts = run.embedder.texts(data.captions)
    images = run.embedder.images(data.images, name=data.name)
    pairs = (images, texts, data.image_ids, data.caption_images)
    counts = {"images": len(images), "captions": len(texts)}
    if fold_size is None:
        scores = retrieval_scores(*pairs, max_memory=run.max_memory)
        details = {"intervals": recall_intervals(scores, data.image_ids, data.caption_images)}
        return run.result("retrieval", data.name, scores.metrics(), counts=counts, details=details)
    metrics, parts = fold_scores(*pairs, size=fold_size, max_memory=run.max_memory)
    details = {"folds": [part.metrics() for part in parts]}
    counts |= {"folds": len(parts), "images_left_out": available - len(images)}
    name, settings = f"{data.name}, folds of {fold_size}", {"fold_size": fold_size}
    return run.result("retrieval", name, metrics, counts=counts, settings=settings, details=details)


def pairs(run: TaskRun, data: Pairs) -> Result:
    """Text, image and group score of choosing the caption of an image among several, and the reverse."""
    texts = [run.embedder.texts(column) for column in data.captions]
    images = [run.embedder.images(column, name=data.name) for column in data.images]
    scores = pair_scores(np.stack(images, 1), np.stack(texts, 1))
    counts = {"sets": scores.sets, "images": len(images), "captions": len(texts)}
    details = {}
    if data.groups is not None:
        kinds = np.array(data.groups)
        for kind in dict.fromkeys(data.groups):
            chosen = kinds == kind
            part = {"text_score": scores.text_right, "image_score": scores.image_right,
                    "group_score": scores.text_right & scores.image_right}  # fmt: skip
            shares = {name: float(right[chosen].mean()) for name, right in part.items() if name in scores.metrics()}
            details[kind] = shares | {"sets": int(chosen.sum())}
    return run.result(
        "pairs", data.name, scores.metrics(), counts=counts, details={"groups": details} if details else {}
    )


def audit(
    run: TaskRun,
    data: Grouped,
    templates: Sequence[str],
    names: Sequence[str] = (),
    *,
    queries: Sequence[str] = (),
    harmful: Sequence[str] = (),
    k: int = 100,
    expected: str = "data",
    samples: int = 1000,
    lists: Mapping[str, str | None] = MappingProxyType({}),
) -> Result:
    """Differences between groups: in recall of labels, in harmful labels, and in what queries find.

    Args:
        names: names of the labels, in the order of their numbers; without labels in the data, the labels that harmful ones
            compete with.
        queries: texts that name no group, for MaxSkew@k and NDKL. k, expected: see `skew_scores`.
        harmful: labels that must not be given. They compete with `names` in zero-shot classification.
        samples: see `gap_scores`.

    Raises:
        ValueError: nothing to measure: no labels, queries or harmful labels; harmful labels without names; fewer than two
            groups.
    """
    labelled, groups = data.labelled, np.array(data.groups)
    known = labelled.labels >= 0
    if not (known.any() or len(queries) or len(harmful)):
        raise ValueError(
            f"{labelled.name}: nothing to compare: expected a label column, --queries, or --harmful with --classes"
        )
    if len(harmful) and not len(names):
        raise ValueError("harmful labels compete with other labels: give those with --classes, or a label column")
    if both := sorted(set(harmful) & set(names)):
        raise ValueError(f"harmful labels: {both[0]!r} is among the other labels too, expected each in one list")
    images = run.embedder.images(labelled.images, name=labelled.name)
    metrics: dict[str, float] = {}
    gaps: dict[str, Gap] = {}
    details: dict[str, Any] = {}
    settings: dict[str, Any] = {"samples": samples}
    if len(names) and (known.any() or len(harmful)):
        settings |= _list_settings("templates", templates, lists) | _list_settings("class_names", names, lists, False)
        classes = class_embeddings(run.embedder, names, templates)
    if known.any():
        _, ranked = nearest(images[known], classes, 5, max_memory=run.max_memory)
        right = ranked == labelled.labels[known, None]
        gaps["recall"] = gap_scores(right[:, 0], groups[known], samples=samples)
        if len(names) > 5:
            gaps["recall_at_5"] = gap_scores(right.any(1), groups[known], samples=samples)
    if len(harmful):
        settings |= _list_settings("harmful", harmful, lists, False)
        bad = class_embeddings(run.embedder, harmful, templates)
        _, ranked = nearest(images, np.concatenate([classes, bad]), 1, max_memory=run.max_memory)
        label = ranked[:, 0] - len(names)
        gaps["harmful_rate"] = gap_scores(label >= 0, groups, samples=samples)
        details["harmful_labels"] = {
            harmful[number]: {
                group: int(((label == number) & (groups == group)).sum()) for group in sorted(set(data.groups))
            }
            for number in np.unique(label[label >= 0])
        }
    for name, gap in gaps.items():
        metrics |= gap.metrics(name)
    if len(queries):
        settings |= {"k": min(k, len(images)), "expected": expected} | _list_settings("queries", queries, lists, False)
        skew = skew_scores(
            run.embedder.texts(list(queries)), images, groups, k=k, expected=expected, max_memory=run.max_memory
        )
        metrics |= skew.metrics()
        details["queries"] = [
            {"query": query, "max_skew": float(top), "ndkl": float(ndkl), "skew": {
                group: float(value) if np.isfinite(value) else None for group, value in zip(sorted(set(data.groups)), row)}}
            for query, row, top, ndkl in zip(queries, skew.skew, skew.max_skew, skew.ndkl)
        ]  # fmt: skip
    counts = {name: int((groups == name).sum()) for name in sorted(set(data.groups))}
    if small := [f"{name} ({count})" for name, count in counts.items() if count < LEAST]:
        logger.warning(
            f"{labelled.name}: these groups have fewer than {LEAST} images, so their figures are uncertain: {', '.join(small)}"
        )
    details["groups"] = {
        name: {"images": count} | {metric: gap.shares[name] for metric, gap in gaps.items() if name in gap.shares}
        for name, count in counts.items()
    }
    details["extremes"] = {metric: [gap.largest, gap.smallest] for metric, gap in gaps.items()}
    counted = {"images": len(images), "groups": len(counts), "without_group": data.left_out}
    return run.result("audit", labelled.name, metrics, counts=counted, settings=settings, details=details)


def knn(run: TaskRun, train: Labelled, test: Labelled, *, k: int = 1) -> Result:
    """Labels of the nearest training images."""
    sides = _embedded(run, train, test)
    scores = knn_scores(*sides, k=k, max_memory=run.max_memory)
    settings = {"k": k, "weighted": scores.weighted}
    counts = {"train": len(sides[1]), "test": scores.queries}
    return run.result("knn", test.name, scores.metrics(), counts=counts, settings=settings)


def linear_probe(run: TaskRun, train: Labelled, test: Labelled, *, vtab: bool = False, **options: Any) -> Result:
    """A logistic regression on frozen features; `options` are arguments of `linear_probe_scores`."""
    try:
        from .linear_probe import linear_probe_scores, vtab_scores
    except ModuleNotFoundError as error:
        raise ImportError(f"linear-probe needs {error.name}: pip install 'kakao-models[evaluate]'") from error
    scores = (vtab_scores if vtab else linear_probe_scores)(*_embedded(run, train, test), **options)
    settings = {"vtab": vtab} | {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    details = {
        "per_seed": scores.per_seed,
        "strengths": scores.strengths,
        "validation": [{str(key): value for key, value in tried.items()} for tried in scores.validation],
    }
    counts = {"train": scores.train, "test": scores.test}
    return run.result("linear-probe", test.name, scores.metrics(), counts=counts, settings=settings, details=details)


def similarity(
    run: TaskRun, data: Captioned, rated: Mapping[str, Ratings], *, samples: int = 1000, positive: float = POSITIVE
) -> Result:
    """Crisscrossed Captions: correlations with people's ratings, and retrieval with pairs that people call alike.

    Right answers are COCO's own pairs (an image and its captions; captions of one image), and pairs rated at least
    `positive`. Ratings that are not given leave out what needs them.
    """
    texts = run.embedder.texts(data.captions)
    images = run.embedder.images(data.images, name=data.name)
    image_place = {name: place for place, name in enumerate(data.image_ids)}
    text_place = {f"COCO_val2014:sentid:{mark}": place for place, mark in enumerate(data.caption_ids)}
    sides = {"sts": (texts, texts, text_place, text_place), "sis": (images, images, image_place, image_place),
             "sits": (texts, images, text_place, image_place)}  # fmt: skip
    metrics, counts, alike = {}, {"images": len(images), "captions": len(texts)}, {}
    for kind, ratings in rated.items():
        likeness = rated_similarities(ratings, *sides[kind])
        metrics |= similarity_scores(ratings.scores, likeness, ratings.left, samples=samples).metrics(kind)
        counts[f"{kind}_pairs"] = len(likeness)
        left, right = sides[kind][2:]
        close = np.flatnonzero(ratings.scores >= positive)
        alike[kind] = {(left[ratings.left[i]], right[ratings.right[i]]) for i in close}
    owner = [image_place[i] for i in data.caption_images]
    own = set(enumerate(owner)) | alike.get("sits", set())  # (text, image)
    of_image: dict[int, list[int]] = {}
    for text, image in enumerate(owner):
        of_image.setdefault(image, []).append(text)
    siblings = {(a, b) for group in of_image.values() for a in group for b in group if a != b}
    tasks = {
        "image_to_text": (images, texts, {(image, text) for text, image in own}, False),
        "text_to_image": (texts, images, own, False),
        "text_to_text": (texts, texts, siblings | _both_ways(alike.get("sts", set())), True),
        "image_to_image": (images, images, _both_ways(alike.get("sis", set())), True),
    }
    for name, (queries, targets, pairs, within) in tasks.items():
        if pairs:
            ranking = rated_retrieval(queries, targets, pairs, within=within, max_memory=run.max_memory)
            metrics |= {f"{name}_r{k}": share for k, share in ranking.recall.items()}
            counts[f"{name}_queries"] = ranking.queries
    settings = {"samples": samples, "positive": positive}
    return run.result("similarity", data.name, metrics, counts=counts, settings=settings)


def _both_ways(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return pairs | {(b, a) for a, b in pairs}


def _embedded(run: TaskRun, train: Labelled, test: Labelled) -> tuple:
    """Training and test embeddings and labels; the labels of both by the keys of both."""
    train, test = train.labelled(), test.labelled()
    test_labels = labels_by_keys(test, train)
    rows = [run.embedder.images(part.images, name=part.name) for part in (train, test)]
    return rows[0], train.labels, rows[1], test_labels


def _details(scores: Classification, names: Sequence[str]) -> dict:
    if len(names) > _PER_CLASS:
        return {}
    names = distinct_names(names)
    confused = [[names[a], names[b], count] for a, b, count in scores.most_confused()]
    return {"per_class": {names[c]: share for c, share in scores.per_class.items()}, "most_confused": confused}


def _real_labels(path: Path, data: Labelled) -> list[list[int]]:
    labels = json_of(path)
    if not isinstance(labels, list) or not all(isinstance(some, list) for some in labels):
        raise ValueError(
            f"{path}: expected a list with a list of classes for each image, as in real.json of ImageNet-ReaL"
        )
    if data.names is None:
        raise ValueError(f"{data.name}: ImageNet-ReaL needs the names of the image files, which these data do not have")
    matched = []
    for name in data.names:
        number = re.search(r"val_0*(\d+)", name)
        if not number or not 1 <= int(number[1]) <= len(labels):
            raise ValueError(f"{name}: expected a name such as ILSVRC2012_val_00000001.JPEG, 1 to {len(labels)}")
        matched.append(labels[int(number[1]) - 1])
    return matched
