"""Evaluations of a model while it is trained, through the `Embedder`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from kakao_models.evaluate.class_names import class_names_of, labels_by_keys, model_labels
from kakao_models.evaluate.classify import classification_scores
from kakao_models.evaluate.datasets import read_captioned, read_labelled
from kakao_models.evaluate.knn import knn_scores
from kakao_models.evaluate.retrieval import retrieval_scores
from kakao_models.evaluate.templates import read_templates
from kakao_models.evaluate.zero_shot import class_embeddings, zero_shot_scores
from kakao_models.inference.embedder import Embedder
from kakao_models.train.base_trainer import Evaluation


def retrieval(data: str, batch_size: int = 32, **options: Any) -> Evaluation:
    """Recall of captions by images and of images by captions; `options` go to `evaluate.read_captioned`."""
    captioned = read_captioned(data, **options)

    def run(model: nn.Module, processor) -> dict[str, float]:
        embedder = Embedder(model, processor=processor, batch_size=batch_size)
        images, texts = embedder.images(captioned.images, progress=False), embedder.texts(captioned.captions)
        metrics = retrieval_scores(images, texts, captioned.image_ids, captioned.caption_images).metrics()
        return {name: value for name, value in metrics.items() if "rank" not in name}

    return run


def zero_shot(
    data: str, templates: str = "small", classes: str | None = None, batch_size: int = 32, **options: Any
) -> Evaluation:
    """Zero-shot accuracy; `templates` go to `evaluate.read_templates`, `classes` to `evaluate.read_class_names`, `options` to
    `evaluate.read_labelled`."""
    labelled, sentences = read_labelled(data, **options).labelled(), read_templates(templates)
    names = class_names_of(labelled.keys, classes, data)

    def run(model: nn.Module, processor) -> dict[str, float]:
        embedder = Embedder(model, processor=processor, batch_size=batch_size)
        images, rows = embedder.images(labelled.images, progress=False), class_embeddings(embedder, names, sentences)
        return zero_shot_scores(images, rows, labelled.labels).metrics()

    return run


def knn(data: str, train: str, k: int = 1, batch_size: int = 32, **options: Any) -> Evaluation:
    """Accuracy of the labels of the nearest training images; classes of the test data must be among those of `train`."""
    test, known = read_labelled(data, **options).labelled(), read_labelled(train, **options).labelled()
    labels = labels_by_keys(test, known)

    def run(model: nn.Module, processor) -> dict[str, float]:
        embedder = Embedder(model, processor=processor, batch_size=batch_size)
        rows, queries = (embedder.images(part.images, progress=False) for part in (known, test))
        return knn_scores(rows, known.labels, queries, labels, k=k).metrics()

    return run


def accuracy(data: str, batch_size: int = 32, **options: Any) -> Evaluation:
    """Accuracy of a classifier. Its classes are matched with those of the data as `evaluate classify` does: by their names,
    or by their order where the names say nothing."""
    labelled = read_labelled(data, **options).labelled()

    def run(model: nn.Module, processor) -> dict[str, float]:
        embedder = Embedder(model, processor=processor, batch_size=batch_size)
        labels, _ = model_labels(embedder.config, labelled)
        logits = embedder.class_logits(labelled.images, on_error="raise", progress=False)
        return classification_scores(logits, labels).metrics()

    return run


EVALUATIONS = {"retrieval": retrieval, "zero_shot": zero_shot, "knn": knn, "accuracy": accuracy}


def build_evaluations(settings: Mapping[str, str | Mapping]) -> dict[str, Evaluation]:
    """Evaluations by name. A setting is data for the evaluation of that name, or its arguments; with `kind` the name is
    free: `{"coco": {"kind": "retrieval", "data": "coco.parquet"}}`.

    Raises:
        ValueError: an unknown evaluation or argument, or data that cannot be read.
    """
    evaluations = {}
    for name, setting in settings.items():
        options = {"data": setting} if isinstance(setting, str) else setting
        if not isinstance(options, Mapping):
            raise ValueError(f"evaluate.{name}: expected data, or arguments with data among them, got {setting!r}")
        options = dict(options)
        kind = options.pop("kind", name)
        if kind not in EVALUATIONS:
            raise ValueError(f"evaluate: got {kind!r}, expected one of {', '.join(EVALUATIONS)}")
        try:
            evaluations[name] = EVALUATIONS[kind](**options)
        except TypeError as error:
            raise ValueError(f"evaluate.{name}: {error}") from error
    return evaluations
