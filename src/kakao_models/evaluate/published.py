"""Figures that others published, in percent, with source, protocol and date. None is ours.

Those of embeddings-benchmark for kakaobrain/align-base stand in mieb_align_base.json, as mteb wrote them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .results import Result

TOLERANCE = 0.2  # percentage points within which a figure counts as reproduced
MIEB = json.loads(Path(__file__).with_name("mieb_align_base.json").read_text(encoding="utf-8"))

_ALIGN = "Jia et al. 2021, arXiv:2102.05918"
_COYO_ALIGN = "https://github.com/kakaobrain/coyo-align, README"
_COYO = "https://github.com/kakaobrain/coyo-dataset, README"
_COYO_VIT = "https://github.com/kakaobrain/coyo-vit, README"
_MTEB = f"{MIEB['source']}, {MIEB['model']} at revision {MIEB['revision'][:7]}"
# When a source was published, and how it measured
_DATES = {_ALIGN: "2021", _COYO: "August 2022", _COYO_ALIGN: "November 2022", _COYO_VIT: "2022", _MTEB: "2024"}
_PROTOCOLS = {
    _ALIGN: "the paper's own prompts and splits",
    _COYO: "the authors' own evaluation, three months before that of coyo-align's README",
    _COYO_ALIGN: "the authors' own evaluation on TPUs, of their TensorFlow checkpoint; retrieval on Karpathy's test splits",
    _COYO_VIT: "the authors' own evaluation on TPUs, in bfloat16; ReaL in float32",
    _MTEB: f"independent, with mteb {MIEB['mteb_version']} and transformers' AlignModel and preprocessing; one prompt per class, "
    "no ensemble",
}


@dataclass(frozen=True)
class Published:
    """One figure. `task`, `dataset` and `metric` are as in a `Result`.

    expects: what a result's `counts` and `settings` must say to be of the same protocol. likely: what they should say; another
        value is no other protocol if the figure agrees.
    """

    model: str
    task: str
    dataset: str
    metric: str
    value: float  # percent
    source: str
    note: str = ""
    reproducible: bool = False  # whether the released checkpoint gives this figure in a right port
    expects: Mapping[str, Any] = field(default_factory=dict)
    likely: Mapping[str, Any] = field(default_factory=dict)

    @property
    def provenance(self) -> str:
        """Source, protocol and date in one line."""
        return f"{self.source} ({_DATES[self.source]}): {_PROTOCOLS[self.source]}"


def _several(
    model: str,
    task: str,
    dataset: str,
    source: str,
    note: str = "",
    reproducible: bool = False,
    expects: Mapping[str, Any] | None = None,
    likely: Mapping[str, Any] | None = None,
    **values: float,
) -> list[Published]:
    return [
        Published(model, task, dataset, metric, value, source, note, reproducible, expects or {}, likely or {})
        for metric, value in values.items()
    ]


def _measured(name: str, task: str, dataset: str, metrics: Mapping[str, str], **expects: Any) -> list[Published]:
    """Figures of a task of mteb. `metrics`: a metric of ours → mteb's."""
    entry = MIEB["tasks"][name]
    if "template" in entry:
        expects = {"templates": [entry["template"]], "images": entry["images"]}
    values = {ours: round(100 * entry["metrics"][theirs], 2) for ours, theirs in metrics.items()}
    note = "one prompt" if task == "zero-shot" else "zero-shot"
    return _several(ALIGN_BASE, task, dataset, _MTEB, note, True, expects, **values)


def _recalls(name: str, dataset: str, direction: str, images: int) -> list[Published]:
    metrics = {f"{direction}_r{k}": f"cv_recall_at_{k}" for k in (1, 5, 10)}
    return _measured(name, "retrieval", dataset, metrics, images=images)


def _both(model: str, dataset: str, source: str, to_text: tuple, to_image: tuple) -> list[Published]:
    names = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    return _several(model, "retrieval", dataset, source, "zero-shot", **dict(zip(names, (*to_text, *to_image))))


_L2, _B7 = "ALIGN L2 + BERT-large (Google)", "ALIGN B7 + BERT-base (Google)"
COYO_ALIGN, _COYO_B3 = "COYO-ALIGN B7 + BERT-base (Kakao Brain)", "COYO-ALIGN B3 + BERT-mini, CC3M (Kakao Brain)"
_GOOGLE_B3 = "ALIGN B3 + BERT-mini, CC3M (Google)"
ALIGN_BASE = "kakaobrain/align-base (embeddings-benchmark)"
_JFT = "ViT-L/16, JFT-300M (Google)"
COYO_VIT = "ViT-L/16, COYO-Labeled-300M (Kakao Brain)"

_ZERO_SHOT = {  # task of mteb → name of the data here
    "Imagenet1k": "imagenet", "CIFAR10": "cifar10", "CIFAR100": "cifar100", "Food101": "food101", "OxfordPets": "pets",
    "StanfordCars": "cars", "SUN397": "sun397", "STL10": "stl10", "DTD": "dtd", "EuroSAT": "eurosat",
    "FGVCAircraft": "fgvc-aircraft",
}  # fmt: skip
_PAIRS = {
    "SugarCrepe": "sugarcrepe", "AROVisualAttribution": "aro-attribution", "AROVisualRelation": "aro-relation",
    "AROCocoOrder": "aro-coco-order", "AROFlickrOrder": "aro-flickr-order",
}  # fmt: skip
_VAL = {"images": 50_000}  # of ImageNet

PUBLISHED = (
    *_several(_L2, "zero-shot", "imagenet", _ALIGN, top1=76.4),
    *_several(_L2, "zero-shot", "imagenet-r", _ALIGN, top1=92.2),
    *_several(_L2, "zero-shot", "imagenet-a", _ALIGN, top1=75.8),
    *_several(_L2, "zero-shot", "imagenet-v2", _ALIGN, top1=70.1),
    *_both(_L2, "flickr30k", _ALIGN, (88.6, 98.7, 99.7), (75.7, 93.8, 96.8)),
    *_both(_L2, "coco", _ALIGN, (58.6, 83.0, 89.7), (45.6, 69.8, 78.6)),
    *_several(
        *(_L2, "similarity", "cxc", _ALIGN, "fine-tuned on COCO"),
        image_to_text_r1=78.1,
        text_to_image_r1=61.8,
        sts=72.9,
        sis=77.2,
        sits=67.6,
    ),  # fmt: skip
    *_several(_L2, "linear-probe", "imagenet", _ALIGN, "frozen features", accuracy=85.5),
    *_several(_B7, "knn", "imagenet", _COYO_ALIGN, top1=69.3),
    *_several(_B7, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=55.4, text_to_image_r1=41.7),
    *_several(COYO_ALIGN, "knn", "imagenet", _COYO_ALIGN, top1=68.6),
    *_several(COYO_ALIGN, "retrieval", "flickr30k", _COYO_ALIGN, image_to_text_r1=88.1, text_to_image_r1=73.2),
    *_several(COYO_ALIGN, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=61.2, text_to_image_r1=43.1),
    *_several(COYO_ALIGN, "knn", "imagenet", _COYO, "older README", top1=68.618),
    *_several(COYO_ALIGN, "retrieval", "coco", _COYO, "older README", image_to_text_r1=59.0, text_to_image_r1=42.419),
    *_several(_GOOGLE_B3, "knn", "imagenet", _COYO_ALIGN, top1=48.9),
    *_several(_GOOGLE_B3, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=22.1, text_to_image_r1=17.3),
    *_several(_COYO_B3, "knn", "imagenet", _COYO_ALIGN, top1=46.2),
    *_several(_COYO_B3, "retrieval", "flickr30k", _COYO_ALIGN, image_to_text_r1=42.8, text_to_image_r1=35.0),
    *_several(_COYO_B3, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=21.2, text_to_image_r1=17.0),
    *[
        f
        for task, name in _ZERO_SHOT.items()
        for f in _measured(f"{task}ZeroShot", "zero-shot", name, {"top1": "accuracy"})
    ],
    *_recalls("MSCOCOI2TRetrieval", "coco", "image_to_text", 5000),
    *_recalls("MSCOCOT2IRetrieval", "coco", "text_to_image", 5000),
    *_recalls("Flickr30kI2TRetrieval", "flickr30k", "image_to_text", 1000),
    *_recalls("Flickr30kT2IRetrieval", "flickr30k", "text_to_image", 1000),
    *_measured(
        *("Winoground", "pairs", "winoground"),
        {"text_score": "text_acc", "image_score": "image_acc", "group_score": "accuracy"},
        sets=400,
    ),
    *[f for task, name in _PAIRS.items() for f in _measured(task, "pairs", name, {"text_score": "text_acc"})],
    *_several(_JFT, "classify", "imagenet", _COYO_VIT, "384 pixels", top1=87.12, real_top1=89.99),
    *_several(COYO_VIT, "classify", "imagenet", _COYO_VIT, "384 pixels", True, _VAL, top1=86.72, real_top1=89.84),
    *_several(_JFT, "classify", "imagenet", _COYO_VIT, "512 pixels", top1=87.76, real_top1=90.54),
    *_several(COYO_VIT, "classify", "imagenet", _COYO_VIT, "512 pixels", True, _VAL, top1=87.24, real_top1=90.03),
)

# A released checkpoint, by the last part of its name → the models of `PUBLISHED` that it is, with the note of their figures
RELEASED = {
    "align-base": ((ALIGN_BASE, None), (COYO_ALIGN, None)),
    "vit-large-patch16-384": ((COYO_VIT, "384 pixels"),),
    "vit-large-patch16-512": ((COYO_VIT, "512 pixels"),),
}


def figures_for(task: str, dataset: str) -> list[Published]:
    """All figures of a task on a data set."""
    if task == "mieb":
        return [
            Published(
                *(ALIGN_BASE, task, "mieb", name, round(100 * next(iter(entry["metrics"].values())), 2), _MTEB),
                note=f"mteb {MIEB['mteb_version']}",
                reproducible=True,
                likely={f"{name} revision": entry["dataset_revision"]},
            )
            for name, entry in MIEB["tasks"].items()
        ]
    return [figure for figure in PUBLISHED if (figure.task, figure.dataset) == (task, dataset.lower())]


@dataclass(frozen=True)
class Verdict:
    """Whether a figure of a released checkpoint was reproduced: "reproduced", "not reproduced" or "other protocol", and why."""

    verdict: str
    reason: str


def verdicts(result: Result, checkpoint: str | None = None) -> dict[str, Verdict]:
    """Metric → verdict, of those metrics of a result for which there is a figure of the same released checkpoint.

    A figure counts as reproduced if the protocol is the same and the difference is at most `TOLERANCE` percentage points.

    Args:
        checkpoint: the released checkpoint that the result is of; by default the one that its model is called.
    """
    of = RELEASED.get((checkpoint or result.model).rstrip("/").rpartition("/")[2].lower(), ())
    found = {}
    for figure in figures_for(result.task, result.dataset):
        if figure.metric not in result.metrics or not any(
            figure.model == model and note in (None, figure.note) for model, note in of
        ):
            continue
        if figure.metric not in found or figure.reproducible:
            found[figure.metric] = _verdict(figure, result)
    return found


def _verdict(figure: Published, result: Result) -> Verdict:
    difference = 100 * result.metrics[figure.metric] - figure.value
    said = f"{difference:+.2f} to {figure.value}"
    if not figure.reproducible:
        return Verdict("other protocol", f"{said}: {figure.provenance}")
    own = {**result.settings, **result.counts}
    others = [_differs(key, value, own.get(key)) for key, value in figure.expects.items() if own.get(key) != value]
    if not others and abs(difference) <= TOLERANCE + 1e-9:
        return Verdict("reproduced", f"{said}, tolerance {TOLERANCE}")
    others += [_differs(key, value, own.get(key)) for key, value in figure.likely.items() if own.get(key) != value]
    if others:
        return Verdict("other protocol", f"{said}: {'; '.join(others)}")
    return Verdict("not reproduced", f"{said}, tolerance {TOLERANCE}")


def _differs(key: str, expected: Any, own: Any) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return repr(value[0]) if len(value) == 1 else f"{len(value)} of them"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return f"{key.replace('_', ' ')}: got {shown(own)}, expected {shown(expected)}"
