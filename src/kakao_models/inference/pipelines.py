"""Pipelines with transformers' arguments and results, over an `Embedder`."""

import difflib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from kakao_models.inference.arguments import TRANSFORMERS_ARGUMENTS
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.labels import LabelEmbeddings, LabelProblems, distinct_labels, only_label
from kakao_models.inference.relevance import Limit, read_least
from kakao_models.inference.scores import SCORE_FUNCTIONS, ranked, score_function, softmax
from kakao_models.inference.stream import ImageBatch, is_single
from kakao_models.warn import warn

HYPOTHESIS_TEMPLATE = "This is a photo of {}."  # transformers' default


class ImagePipeline(ABC):
    """Base of the pipelines. The input decides the form of the output:

    one image gives one result; a list, a tuple or a folder (the images under it, sorted by path) a list of results; a
    generator, or any other iterable, a generator of results, which reads a few batches ahead.

    Args:
        embedder: what runs the model.
        defaults: arguments of `run` that hold unless a call says otherwise.
    """

    task: str

    def __init__(self, embedder: Embedder, **defaults: Any):
        known = list(inspect.signature(self.run).parameters)[1:]
        unknown = sorted(defaults.keys() - set(known))
        if unknown:
            raise TypeError(_no_argument(self.task, unknown[0], known))
        self.embedder = embedder
        self._defaults = defaults

    def __repr__(self) -> str:
        defaults = "".join(f", {name}={value!r}" for name, value in self._defaults.items())
        return f"{type(self).__name__}({self.embedder!r}{defaults})"

    @property
    def device(self) -> Any:
        """See `Embedder.device`."""
        return self.embedder.device

    @property
    def dtype(self) -> Any:
        """See `Embedder.dtype`."""
        return self.embedder.dtype

    def __call__(self, inputs: Any = None, *, images: Any = None, **arguments: Any) -> Any:
        """Results for `inputs` (also named `images`), with the other arguments of `run`; `None` leaves an argument unchanged."""
        inputs = images if inputs is None else inputs
        if inputs is None:
            raise TypeError(f"pipeline {self.task!r}: got no images, expected at least one")
        known = list(inspect.signature(self.run).parameters)[1:]
        for name in arguments:
            if name not in known:
                raise TypeError(_no_argument(self.task, name, known))
        changed = {name: value for name, value in arguments.items() if value is not None}
        results = self.run(inputs, **(self._defaults | changed))
        if is_single(inputs):
            return next(results)
        return list(results) if isinstance(inputs, (list, tuple, str, os.PathLike)) else results

    @abstractmethod
    def run(self, images: Any, **arguments: Any) -> Iterator[Any]:
        """A result per image, in order. Arguments are checked at once, images are read as results are taken."""

    def _results(
        self,
        images,
        output: str,
        finish: Callable[[np.ndarray], list],
        *,
        timeout: float | None,
        batch_size: int | None,
        num_workers: int | None,
        on_error: str,
        progress: bool | None,
        processor_options: dict | None = None,
    ) -> Iterator[Any]:
        batches = self.embedder.iter_images(
            images,
            output=output,
            batch_size=batch_size,
            num_workers=num_workers,
            on_error=on_error,
            progress=progress,
            image_options={} if timeout is None else {"timeout": timeout},
            processor_options=processor_options,
        )
        return _in_order(batches, finish)


class ZeroShotImageClassification(ImagePipeline):
    """Classifies images among labels of your own (zero-shot).

    Labels are embedded once and kept, so the model's weights must not change while the pipeline is in use.
    """

    task = "zero-shot-image-classification"

    def __init__(self, embedder: Embedder, **defaults: Any):
        if not embedder.engine.reads_texts:
            raise ValueError(
                f"{embedder.name} has no text tower, so it cannot compare images with labels. Use an AlignModel; the task for this "
                f"model is {_task_of(embedder)}"
            )
        super().__init__(embedder, **defaults)
        self._label_embeddings = LabelEmbeddings(embedder)
        self._label_problems = LabelProblems(self.embedder)

    def __call__(
        self, image: Any = None, candidate_labels: Iterable[str] | None = None, *, images: Any = None, **arguments: Any
    ) -> list[dict] | list[list[dict]] | Iterator[list[dict]]:
        """Results for `image` (also named `images`), with the other arguments of `run`; `None` leaves an argument unchanged."""
        return super().__call__(image, images=images, candidate_labels=candidate_labels, **arguments)

    def run(
        self,
        images: Any,
        candidate_labels: Iterable[str] = (),
        hypothesis_template: str | Iterable[str] = HYPOTHESIS_TEMPLATE,
        top_k: int | None = None,
        min_relevance: float | str | None = None,
        timeout: float | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_error: str = "raise",
        progress: bool | None = False,
    ) -> Iterator[list[dict] | None]:
        """Yields `[{"score": 0.97, "label": "cat"}, ...]` for each image, the best label first.

        Args:
            images: whatever `Embedder.images` takes.
            candidate_labels: strings; the scores are a softmax over them. Duplicates count once; labels that
                the model can't read or tell apart are named in a warning.
            hypothesis_template: the sentence made of a label; of several, the embeddings are averaged.
            top_k: only that many labels.
            min_relevance: add to each entry its "relevance", the probability in 0..1 that the label fits the image, by the
                label without a template, whatever the other labels are; leave out labels below this. Where no label fits, the
                result is one entry with the label "none of these". "coverage=0.9" and "precision=0.5" leave out labels by
                the least cosine with that guarantee. The model needs a calibration: see `Embedder.relevance`.
            timeout: seconds for fetching one URL.
            batch_size, num_workers, progress: as of `Embedder`.
            on_error: "raise" stops at an image that can't be read; "report" gives `None` for it, and a warning at the
                end names all, or an error where none could be read; "ignore" only gives `None`.
        """
        labels = distinct_labels(candidate_labels)
        _check_top_k(top_k)
        limit = None
        if min_relevance is not None:
            read_least("min_relevance", min_relevance)  # before the calibration is looked for
            limit = Limit.of(self.embedder.relevance, "min_relevance", min_relevance, self.embedder.name)
        label_embeds = self._label_embeddings(labels, hypothesis_template, batch_size)
        alone = self._label_embeddings(labels, "{}", batch_size) if limit else label_embeds
        for problem in self._label_problems(labels) + ([] if limit else only_label(labels)):
            warn(problem)

        def finish(image_embeds: np.ndarray) -> list[list[dict]]:
            logits = self.embedder.logits(image_embeds, label_embeds)
            best = [ranked(scores, labels, None if limit else top_k) for scores in softmax(logits)]
            if limit is None:
                return best
            cosines = self.embedder.similarity(image_embeds, alone)
            return [limit.entries(entries, labels, row)[:top_k] for entries, row in zip(best, cosines)]

        options: dict[str, Any] = dict(
            timeout=timeout, batch_size=batch_size, num_workers=num_workers, on_error=on_error, progress=progress
        )
        return self._results(images, "features", finish, **options)


class ImageClassification(ImagePipeline):
    """Scores images by the classes of the model's own classifier."""

    task = "image-classification"

    def __init__(self, embedder: Embedder, **defaults: Any):
        embedder.check_classifier()
        super().__init__(embedder, **defaults)

    def run(
        self,
        images: Any,
        top_k: int = 5,
        function_to_apply: str | None = None,
        timeout: float | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_error: str = "raise",
        progress: bool | None = False,
    ) -> Iterator[list[dict] | None]:
        """Yields `[{"label": "tabby", "score": 0.97}, ...]` for each image, the best class first.

        Args:
            top_k: how many classes.
            function_to_apply: from logits to scores: "softmax", "sigmoid" or "none"; by default what the
                configuration's `problem_type` asks for, and without one softmax, or sigmoid of a single class.
            images, timeout, batch_size, num_workers, on_error, progress: as of the zero-shot pipeline.
        """
        _check_top_k(top_k)
        config = self.embedder.engine.fields
        function = SCORE_FUNCTIONS.get((function_to_apply or score_function(config)).lower())
        if function is None:
            raise ValueError(
                f"function_to_apply: got {function_to_apply!r}, expected one of {', '.join(SCORE_FUNCTIONS)}"
            )
        labels = [config.id2label[index] for index in range(config.num_labels)]

        def finish(logits: np.ndarray) -> list[list[dict]]:
            return [ranked(scores, labels, top_k) for scores in function(logits)]

        options: dict[str, Any] = dict(
            timeout=timeout, batch_size=batch_size, num_workers=num_workers, on_error=on_error, progress=progress
        )
        return self._results(images, "logits", finish, **options)


class ImageFeatureExtraction(ImagePipeline):
    """Hidden states or features of images."""

    task = "image-feature-extraction"

    def run(
        self,
        images: Any,
        pool: bool = False,
        return_tensors: bool = False,
        image_processor_kwargs: dict | None = None,
        timeout: float | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_error: str = "raise",
        progress: bool | None = False,
    ) -> Iterator[Any]:
        """Yields the last hidden state (1, ...) of each image, as nested lists of floats.

        Args:
            pool: instead the features (1, D), as `Embedder.images` gives them.
            return_tensors: PyTorch tensors instead of lists.
            image_processor_kwargs: further arguments of the image processor.
            images, timeout, batch_size, num_workers, on_error, progress: as of the zero-shot pipeline.
        """

        def finish(values: np.ndarray) -> list:
            if not return_tensors:
                return [row.tolist() for row in values[:, None]]
            import torch

            return list(torch.from_numpy(values[:, None]))

        options: dict[str, Any] = dict(
            timeout=timeout, batch_size=batch_size, num_workers=num_workers, on_error=on_error, progress=progress
        )
        return self._results(
            images, "features" if pool else "hidden", finish, processor_options=image_processor_kwargs, **options
        )


_TASKS = {cls.task: cls for cls in (ZeroShotImageClassification, ImageClassification, ImageFeatureExtraction)}


def pipeline(task: str | None = None, model: Any = None, **kwargs: Any) -> ImagePipeline:
    """A pipeline that is called like transformers' of the same name.

    Args:
        task: "zero-shot-image-classification", "image-classification" or "image-feature-extraction"; by default the first
            of these that the model can do.
        model: an `Embedder`, or the first argument of one: a Hub id, a folder, a bundled checkpoint, a loaded model.
        kwargs: arguments of `Embedder` (`device`, `dtype`, `batch_size`, `image_processor`, `tokenizer`, `revision`,
            ...), those of transformers' `pipeline` that `Embedder` takes, and defaults for arguments of a call
            (`candidate_labels`, `top_k`, ...).

    Raises:
        ValueError: an unknown task, no model, or an argument of transformers' that can't be taken; the message says what
            to do instead.
        TypeError: an argument that nothing here has.
    """
    if task is not None and task not in _TASKS:
        raise ValueError(f"task: got {task!r}, expected one of {', '.join(_TASKS)}. A checkpoint is passed as model=")
    if model is None:
        raise ValueError(
            "model: pass a checkpoint, such as 'kakaobrain/align-base', or 'align-small' inside this package"
        )
    if not isinstance(model, Embedder):
        names = {*inspect.signature(Embedder).parameters, *TRANSFORMERS_ARGUMENTS}
        model = Embedder(model, **{name: kwargs.pop(name) for name in list(kwargs) if name in names})
    return _TASKS[task or _task_of(model)](model, **kwargs)


def _no_argument(task: str, name: str, known: list[str]) -> str:
    hint = difflib.get_close_matches(name, known, n=1)
    if hint:
        instead = f"did you mean {hint[0]!r}?"
    elif name in {*inspect.signature(Embedder).parameters, *TRANSFORMERS_ARGUMENTS}:
        instead = f"it is an argument of pipeline(...) and Embedder(...): pass {name}= there"
    else:
        instead = f"it has {', '.join(known)}"
    return f"pipeline {task!r} has no argument {name!r}; {instead}"


def _task_of(embedder: Embedder) -> str:
    if embedder.engine.reads_texts:
        return ZeroShotImageClassification.task
    return (ImageClassification if embedder.engine.classifies else ImageFeatureExtraction).task


def _in_order(batches: Iterable[ImageBatch], finish: Callable[[np.ndarray], list]) -> Iterator[Any]:
    for indices, values, failures in batches:
        results = dict(zip(indices.tolist(), finish(values) if len(indices) else ()))
        results.update((failure.index, None) for failure in failures)
        yield from (results[index] for index in sorted(results))


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise ValueError(f"top_k: got {top_k!r}, expected a whole number of at least 1")
