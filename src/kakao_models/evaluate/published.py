"""Figures that others published, in percent, with their sources. None is ours."""

from dataclasses import dataclass

_ALIGN = "Jia et al. 2021, arXiv:2102.05918"
_COYO_ALIGN = "https://github.com/kakaobrain/coyo-align, README"
_COYO_VIT = "https://github.com/kakaobrain/coyo-vit, README"


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


def _several(model: str, task: str, dataset: str, source: str, note: str = "", **values: float) -> list[Published]:
    return [Published(model, task, dataset, metric, value, source, note) for metric, value in values.items()]


def _both(model: str, dataset: str, source: str, to_text: tuple, to_image: tuple) -> list[Published]:
    names = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    return _several(model, "retrieval", dataset, source, "zero-shot", **dict(zip(names, (*to_text, *to_image))))


_L2, _B7 = "ALIGN L2 + BERT-large (Google)", "ALIGN B7 + BERT-base (Google)"
_COYO_B7, _COYO_B3 = "COYO-ALIGN B7 + BERT-base (Kakao Brain)", "COYO-ALIGN B3 + BERT-mini, CC3M (Kakao Brain)"
_GOOGLE_B3 = "ALIGN B3 + BERT-mini, CC3M (Google)"
_JFT = "ViT-L/16, JFT-300M (Google)"
_COYO_L = "ViT-L/16, COYO-Labeled-300M (Kakao Brain)"

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
    *_several(_COYO_B7, "knn", "imagenet", _COYO_ALIGN, top1=68.6),
    *_several(_COYO_B7, "retrieval", "flickr30k", _COYO_ALIGN, image_to_text_r1=88.1, text_to_image_r1=73.2),
    *_several(_COYO_B7, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=61.2, text_to_image_r1=43.1),
    *_several(_GOOGLE_B3, "knn", "imagenet", _COYO_ALIGN, top1=48.9),
    *_several(_GOOGLE_B3, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=22.1, text_to_image_r1=17.3),
    *_several(_COYO_B3, "knn", "imagenet", _COYO_ALIGN, top1=46.2),
    *_several(_COYO_B3, "retrieval", "flickr30k", _COYO_ALIGN, image_to_text_r1=42.8, text_to_image_r1=35.0),
    *_several(_COYO_B3, "retrieval", "coco", _COYO_ALIGN, image_to_text_r1=21.2, text_to_image_r1=17.0),
    *_several(_JFT, "classify", "imagenet", _COYO_VIT, "384 pixels", top1=87.12, real_top1=89.99),
    *_several(_COYO_L, "classify", "imagenet", _COYO_VIT, "384 pixels", top1=86.72, real_top1=89.84),
    *_several(_JFT, "classify", "imagenet", _COYO_VIT, "512 pixels", top1=87.76, real_top1=90.54),
    *_several(_COYO_L, "classify", "imagenet", _COYO_VIT, "512 pixels", top1=87.24, real_top1=90.03),
)
