"""Figures that others published, in percent, with source, protocol and date. None is ours."""

from dataclasses import dataclass

_ALIGN = "Jia et al. 2021, arXiv:2102.05918"
_COYO_ALIGN = "https://github.com/kakaobrain/coyo-align, README"
_COYO = "https://github.com/kakaobrain/coyo-dataset, README"
_COYO_VIT = "https://github.com/kakaobrain/coyo-vit, README"
_MTEB = "https://github.com/embeddings-benchmark/results, kakaobrain/align-base at revision e96a37f"
# When a source was published, and how it measured
_DATES = {_ALIGN: "2021", _COYO: "August 2022", _COYO_ALIGN: "November 2022", _COYO_VIT: "2022", _MTEB: "2024"}
_PROTOCOLS = {
    _ALIGN: "the paper's own prompts and splits",
    _COYO: "the authors' own evaluation, three months before that of coyo-align's README",
    _COYO_ALIGN: "the authors' own evaluation on TPUs, of their TensorFlow checkpoint; retrieval on Karpathy's test splits",
    _COYO_VIT: "the authors' own evaluation on TPUs, in bfloat16; ReaL in float32",
    _MTEB: "independent, with mteb 1.14.15 and transformers' AlignModel and preprocessing; one prompt per class, no ensemble",
}


@dataclass(frozen=True)
class Published:
    """One figure. `task`, `dataset` and `metric` are as in a `Result`."""

    model: str
    task: str
    dataset: str
    metric: str
    value: float  # percent
    source: str
    note: str = ""
    reproducible: bool = False  # whether the released checkpoint gives this figure in a right port

    @property
    def provenance(self) -> str:
        """Source, protocol and date in one line."""
        return f"{self.source} ({_DATES[self.source]}): {_PROTOCOLS[self.source]}"


def _several(
    model: str, task: str, dataset: str, source: str, note: str = "", reproducible: bool = False, **values: float
) -> list[Published]:
    return [
        Published(model, task, dataset, metric, value, source, note, reproducible) for metric, value in values.items()
    ]


def _measured(task: str, dataset: str, **values: float) -> list[Published]:
    note = "one prompt" if task == "zero-shot" else "zero-shot"
    return _several(ALIGN_BASE, task, dataset, _MTEB, note, True, **values)


def _both(model: str, dataset: str, source: str, to_text: tuple, to_image: tuple) -> list[Published]:
    names = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    return _several(model, "retrieval", dataset, source, "zero-shot", **dict(zip(names, (*to_text, *to_image))))


_L2, _B7 = "ALIGN L2 + BERT-large (Google)", "ALIGN B7 + BERT-base (Google)"
COYO_ALIGN, _COYO_B3 = "COYO-ALIGN B7 + BERT-base (Kakao Brain)", "COYO-ALIGN B3 + BERT-mini, CC3M (Kakao Brain)"
_GOOGLE_B3 = "ALIGN B3 + BERT-mini, CC3M (Google)"
ALIGN_BASE = "kakaobrain/align-base (embeddings-benchmark)"
_JFT = "ViT-L/16, JFT-300M (Google)"
COYO_VIT = "ViT-L/16, COYO-Labeled-300M (Kakao Brain)"

_ZERO_SHOT = {  # top-1
    "imagenet": 62.70, "cifar10": 75.59, "cifar100": 51.46, "food101": 80.98, "pets": 84.30, "cars": 72.95,
    "sun397": 70.48, "stl10": 93.73, "dtd": 57.71, "eurosat": 36.87, "fgvc-aircraft": 11.34,
}  # fmt: skip

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
    *[figure for name, value in _ZERO_SHOT.items() for figure in _measured("zero-shot", name, top1=value)],
    *_measured(
        *("retrieval", "coco"),
        image_to_text_r1=59.3,
        image_to_text_r10=89.0,
        text_to_image_r1=42.1,
        text_to_image_r10=76.4,
    ),
    *_measured("retrieval", "flickr30k", image_to_text_r1=87.3, text_to_image_r1=73.56),
    *_measured("retrieval", "sugarcrepe", accuracy=81.2),
    *_measured("retrieval", "winoground", text_score=35.2, image_score=10.5, group_score=8.25),
    *_several(_JFT, "classify", "imagenet", _COYO_VIT, "384 pixels", top1=87.12, real_top1=89.99),
    *_several(COYO_VIT, "classify", "imagenet", _COYO_VIT, "384 pixels", True, top1=86.72, real_top1=89.84),
    *_several(_JFT, "classify", "imagenet", _COYO_VIT, "512 pixels", top1=87.76, real_top1=90.54),
    *_several(COYO_VIT, "classify", "imagenet", _COYO_VIT, "512 pixels", True, top1=87.24, real_top1=90.03),
)
