"""`Embedder`: the one door to a running model for everything that is not training.

Axes: N inputs  D width of an embedding
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from kakao_models.align.preprocessing import MAX_TOKENS
from kakao_models.checkpoint.hub import pin, place_of
from kakao_models.fused.weights import pair
from kakao_models.inference.arguments import dtype_name, takes_transformers_arguments
from kakao_models.inference.frameworks import engine_class, light_engine
from kakao_models.inference.inputs import ModelInputs
from kakao_models.inference.progress import Progress
from kakao_models.inference.relevance import Relevance, calibration_of, checked
from kakao_models.inference.runners import ENGINES, GRAPH_ENGINES
from kakao_models.inference.stream import (
    Failure,
    ImageBatch,
    collect,
    each_source,
    is_single,
    report,
    stream_batches,
)
from kakao_models.pixels.images import ImageError, has_fractions, load_image, load_pixels
from kakao_models.pixels.preprocessing import Preprocessing, rescales_bytes
from kakao_models.warn import warn

_WINDOW = 16_384  # texts that are tokenised and sorted by length at a time


class Embedder:
    """Images and texts → float32 numpy arrays, from an ALIGN, its image tower, a ViT, or a classifier on one of these.

    After each run `failures` lists the images that could not be read, of the last run that this thread began.

    Args:
        model: a Hub id, a folder, the name of a checkpoint inside this package, or a loaded model of
            PyTorch, Keras or Flax (see `TorchEngine`).
        processor: an `AlignProcessor` or a `ViTImageProcessor`, or the name of a checkpoint that has one; by default the
            model's own. `image_processor` and `tokenizer` replace one part of it.
        framework: what runs the model: "torch" (or "pt"), "tf" (Keras on TensorFlow) or "flax" (or "jax"); by default that
            of a loaded model, or the first of these that is installed. Preprocessing and results are the same. Where none
            is installed, ONNX Runtime or OpenVINO runs a checkpoint.
        device: "auto" takes the GPU if there is one and the engine can use it; a name such as "cuda:1", the number of a GPU
            (-1 is the CPU), or a device object of the framework.
        engine: program that runs the model. By default a checkpoint runs in "torch" with batch norms folded and
            operations fused, which gives the same numbers faster, and a model object as it is, with the weights it has
            at each call. "onnx" (ONNX Runtime) and "openvino" run the same operations on the CPU, and do not need PyTorch.
            "compile", and every engine in lower precision, is compared with "torch" in float32, on photographs and
            texts, once on each machine; "auto" measures those that are installed, for at most 20 seconds, and takes the
            fastest for each tower. `engine.checks` has what was measured. A model object given an engine runs with the weights it has now.
        dtype: what the model computes in: "float32" (the default), "bfloat16", "float16", or a dtype of the framework such
            as `torch.bfloat16`; "auto" for the fastest of them whose cosine to float32 stays above 0.9999. Results are
            always float32.
        batch_size: images at a time; as many texts of 64 tokens, and more of shorter ones.
        num_workers: threads that read and preprocess images; by default one per CPU core, at most 8.
        image_options: further arguments of `kakao_models.pixels.images.load_image`, such as `max_pixels`.
        fast_images: read images faster and less exactly; see docs/speed.md for its gain and its cost. A JPEG of more than
            four times the model's resolution is decoded at a fraction of its size, by simplejpeg if it is installed. Where
            the model runs as towers (see `engine`), images are resized by PyTorch's kernel for bytes. Without it, the
            default, pixels are those of transformers, whatever the form of the input. Only where preprocessing is "hf".
        srgb: convert images to sRGB by the ICC profile in their files, such as Display P3 of a phone or Adobe RGB. By
            default profiles are ignored, as transformers and the original implementations do.
        calibration: a file that `kakao-models evaluate relevance` wrote, instead of the checkpoint's own; see `relevance`.
        revision, token, subfolder, cache_dir, force_download, local_files_only: arguments of `from_pretrained`. `revision`
            and `subfolder` hold for the model's own checkpoint. A model object's processor is read from the commit and
            subfolder that the model was loaded from, unless they are given.
        device_map, torch_dtype, feature_extractor, model_kwargs, use_fast, trust_remote_code: arguments of
            `transformers.pipeline`; a model runs on one device, and no code of a checkpoint is run.

    Raises:
        OSError: no such checkpoint, or one of its files can't be read.
        ValueError: another kind of model, or one that does not go with the processor.
    """

    @takes_transformers_arguments
    def __init__(
        self,
        model: Any,
        *,
        processor: Any = None,
        image_processor: Any = None,
        tokenizer: Any = None,
        framework: str | None = None,
        engine: str | None = None,
        device: Any = "auto",
        dtype: Any = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        image_options: dict | None = None,
        fast_images: bool = False,
        srgb: bool = False,
        calibration: str | os.PathLike | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ):
        where = dict(
            revision=revision, token=token, subfolder=subfolder, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only,
        )  # fmt: skip
        loaded = not isinstance(model, (str, os.PathLike))
        if not loaded:
            where = pin(model, **where)  # one commit for model, image processor and tokenizer
        hub = (place_of(model) if loaded else {}) | {name: value for name, value in where.items() if value}
        checkpoint = getattr(model, "name_or_path", None) or None if loaded else os.fspath(model)
        self.name = checkpoint or type(model).__name__
        light = None if loaded else light_engine(framework, engine)
        kind = None if light else engine_class(framework, model)
        fused = kind is None or kind.__name__ == "TorchEngine" and (engine is not None or not loaded)
        if engine is not None and not fused:
            raise ValueError(
                f"engine={engine!r} is for PyTorch models only; {kind.__name__} has no engines. Leave engine out, or pass "
                "framework='torch' and the name of a checkpoint"
            )
        if fused:
            source = _source(model, hub, light or engine, dtype, light is not None)
            model_type = source.fields.model_type
        else:
            self.engine = (
                kind(model, device=device, dtype=dtype)
                if loaded
                else kind.load(model, device=device, dtype=dtype, **hub)
            )
            model_type = self.engine.config.model_type
        self.inputs = ModelInputs(model_type, checkpoint, hub, processor, image_processor, tokenizer)
        self.batch_size = _positive("batch_size", batch_size)
        self.num_workers = _workers(min(8, os.cpu_count() or 1) if num_workers is None else num_workers)
        self.image_options = ({"srgb": True} if srgb else {}) | dict(image_options or {})
        self._failures = _Failures()
        self._calibration, self._place = calibration, (checkpoint, hub)
        self.fast_images = fast_images
        if fused:
            self._choose_engine(source, light or engine, device, dtype)
        if fast_images and not (self.engine.takes_bytes or self.inputs.decode_size):
            raise ValueError(
                f"fast_images=True changes nothing for {self.name}: its preprocessing needs every pixel. Leave it out, or pass "
                'an image_processor with preprocessing="hf"'
            )

    def __repr__(self) -> str:
        return (
            f"Embedder({self.name!r}, dim={self.dim}, engine={self.engine.description!r}, device={str(self.device)!r}, "
            f"dtype={dtype_name(self.dtype)!r})"
        )

    @property
    def device(self) -> Any:
        """Device of the model, in its framework's own type: a `torch.device`, a `jax.Device`, a name of TensorFlow's; "cpu" where
        ONNX Runtime or OpenVINO runs a checkpoint."""
        return self.engine.device

    @property
    def dtype(self) -> Any:
        """dtype that the model (or its image tower) computes in: a `torch.dtype`, a numpy dtype of JAX, a name of Keras.
        Embeddings are float32 in any case."""
        return self.engine.dtype

    @property
    def image_processor(self):
        """An `AlignImageProcessor` or a `ViTImageProcessor`, or the object that was given."""
        return self.inputs.image_processor

    @image_processor.setter
    def image_processor(self, value: Any) -> None:
        self.inputs.image_processor = value

    @property
    def tokenizer(self):
        """transformers' tokenizer, or the object that was given; None of a ViT."""
        return self.inputs.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self.inputs.tokenizer = value

    def _choose_engine(self, source, engine: str | None, device: str | int, dtype: str | None) -> None:
        from kakao_models.inference.engine_towers import EngineChoice, TowerEngine

        preprocessing = self.inputs.preprocessing
        in_bytes = preprocessing is not None and preprocessing.gives_bytes
        pixels = self._byte_values = preprocessing.byte_values if in_bytes else None
        towers = ("image", "text") if source.reads_texts else ("image",)
        exact = (None, "torch", *GRAPH_ENGINES)  # by construction
        certain = engine in exact and dtype in (None, "float32")
        choice = EngineChoice("torch" if engine in (None, "auto") else engine, "float32")
        choices = dict.fromkeys(towers, choice) if certain else {}
        self.engine = TowerEngine(source, choices, device=device, pixels=pixels)
        if not certain:
            from kakao_models.inference import selfcheck

            selfcheck.choose(self.engine, self._examples(), engine or "torch", dtype)

    def _examples(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Inputs of a self-check: photographs and texts, as engines take them."""
        from kakao_models.inference.selfcheck import PHOTOS, TEXTS

        prepared = [self._preparing({}, {})(load_image(path)) for path in PHOTOS]
        alike = [pixels for pixels in prepared if pixels.shape == prepared[0].shape]  # usually all of them
        inputs: dict[str, tuple[np.ndarray, ...]] = {"image": (np.stack(alike),)}
        if self.engine.reads_texts:
            inputs["text"] = next(self._token_batches(TEXTS, MAX_TOKENS * len(TEXTS)))[1:]
        return inputs

    @property
    def config(self):
        """The model's configuration."""
        return self.engine.config

    @functools.cached_property
    def relevance(self) -> Relevance | None:
        """The model's calibration, which gives the probability that a text fits an image from the cosine of their embeddings.
        It is read on first use; None where the checkpoint has none.

        Raises:
            OSError: the file that was named can't be read.
            ValueError: it is no calibration, or is of other weights.
        """
        if self._calibration is None:
            return calibration_of(self, *self._place)
        return checked(Relevance.read(self._calibration), os.fspath(self._calibration), self)

    @property
    def failures(self) -> list[Failure]:
        """Images of this thread's last run that could not be read."""
        return self._failures.listed

    @property
    def dim(self) -> int:
        """D."""
        return self.engine.dim

    @property
    def max_tokens(self) -> int:
        """Longer texts are cut to this many tokens."""
        return min(MAX_TOKENS, self.engine.max_positions)

    def images(
        self,
        sources: Any,
        *,
        normalize: bool = False,
        batch_size: int | None = None,
        on_error: str = "report",
        progress: bool | None = None,
    ) -> np.ndarray:
        """Embeddings (N, D) of images, in the order given.

        Args:
            sources: an image as `load_image` takes it: a path, URL, PIL image, array (H, W, 3), bytes, file object, ...; a
                folder, or a pattern of names such as "photos/*.jpg"; or any iterable of images, which may be a generator
                of millions: besides the result only a few batches are in memory.
            normalize: scale each row to length 1.
            on_error: "report": an image that can't be read makes a row of NaN, an entry in `failures` and, at the end, one
                warning that names it, as long as others could be read; otherwise an error. "ignore": only the row and the
                entry. "raise": the first such image stops the run.
            progress: show a progress bar: at once, never, or (None) on a terminal when the run is long.

        Raises:
            ImageError: an image can't be read, with `on_error="raise"`; with "report", a single one, or all of them.
        """
        batches = self.iter_images(
            sources, normalize=normalize, batch_size=batch_size, on_error=on_error, progress=progress
        )
        return collect(batches, _length(sources), self.dim)

    def class_logits(
        self, sources: Any, *, batch_size: int | None = None, on_error: str = "report", progress: bool | None = None
    ) -> np.ndarray:
        """Logits of the model's classifier for images, (N, classes), before any softmax. Takes the arguments of `images`."""
        batches = self.iter_images(
            sources, output="logits", batch_size=batch_size, on_error=on_error, progress=progress
        )
        return collect(batches, _length(sources), self.engine.fields.num_labels)

    def iter_images(
        self,
        sources: Any,
        *,
        output: str = "features",
        normalize: bool = False,
        batch_size: int | None = None,
        on_error: str = "report",
        progress: bool | None = False,
        image_options: dict | None = None,
        processor_options: dict | None = None,
        num_workers: int | None = None,
    ) -> Iterator[ImageBatch]:
        """Yields the results for images, named by `output`, batch by batch; no batch is kept.

        Args:
            output: "features" (n, D); "logits" (n, classes) of a model with a classifier; "hidden", the last hidden
                state of the image tower.
            image_options, processor_options: further arguments of `load_image` and of the image processor.
            num_workers: instead of the embedder's own.
        """
        run = self._outputs(output)
        if on_error not in ("report", "ignore", "raise"):
            raise ValueError(f"on_error: got {on_error!r}, expected 'report', 'ignore' or 'raise'")
        size = self.batch_size if batch_size is None else _positive("batch_size", batch_size)
        prepare = self._preparing(image_options or {}, processor_options or {})
        workers = self.num_workers if num_workers is None else _workers(num_workers)
        if on_error == "report" and is_single(sources):
            on_error = "raise"
        return self._run(each_source(sources), prepare, run, normalize, size, workers, on_error, progress)

    def _run(
        self, sources, prepare, run, normalize, batch_size, num_workers, on_error, progress
    ) -> Iterator[ImageBatch]:
        failures = self._failures.listed = []
        done = 0
        batches = stream_batches(
            sources,
            prepare,
            batch_size=batch_size,
            num_workers=num_workers,
            stop_at_failure=on_error == "raise",
        )
        with Progress("images", _length(sources), progress) as bar:
            for batch in batches:
                values = run(batch.values) if len(batch.indices) else np.empty((0, 0), np.float32)
                failures += batch.failures
                yield batch._replace(values=l2_normalize(values) if normalize else values)
                steps = len(batch.indices) + len(batch.failures)
                done += steps
                bar.advance(steps)
        if failures and on_error == "report":
            if len(failures) == done:
                raise ImageError(*_summary(failures))
            warn(report(failures, done))

    def _outputs(self, output: str) -> Callable[[np.ndarray], np.ndarray]:
        known = {"features": self.engine.features, "hidden": self.engine.hidden, "logits": self.engine.logits}
        if output not in known:
            raise ValueError(f"output: got {output!r}, expected one of {', '.join(known)}")
        if output == "logits":
            self.check_classifier()
        return lambda pixels: known[output](self._fitting(pixels))

    def _fitting(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels (B, H, W, 3) uint8 or (B, 3, H, W).

        Raises:
            ValueError: a ViT reads images of another size.
        """
        fields = getattr(self.engine, "fields", None) or self.engine.config
        expected = getattr(fields, "image_size", None)
        if getattr(fields, "model_type", None) == "vit" and expected is not None:
            size = pixels.shape[1:3] if pixels.dtype == np.uint8 else pixels.shape[2:]
            expected = pair(expected)
            if tuple(size) != expected:
                raise ValueError(
                    f"{self.name}: the image processor makes images of {size[0]} x {size[1]} (height x width), but the ViT "
                    f"reads {expected[0]} x {expected[1]}: correct size in preprocessor_config.json"
                )
        return pixels

    def check_classifier(self) -> None:
        """Raises ValueError where the model has no classifier; the message says what it can do instead."""
        if self.engine.classifies:
            return
        instead = "the task for this model is image-feature-extraction"
        if self.engine.reads_texts:
            instead = "this model needs labels to choose from (--labels, or the task zero-shot-image-classification)"
        raise ValueError(
            f"{self.name} has no classifier. ViTForImageClassification and AlignForImageClassification have one; {instead}"
        )

    def _preparing(self, image_options: dict, processor_options: dict) -> Callable[[Any], np.ndarray]:
        options: dict[str, Any] = self.image_options | image_options
        if self.fast_images and not processor_options:  # with them, the processor may need more pixels than it said
            options = {"size_hint": self.inputs.decode_size} | options
        preprocessing = self.inputs.preprocessing
        if preprocessing is not None and not processor_options:
            if not self._in_bytes(preprocessing):
                return lambda source: preprocessing.pixel_values(load_image(source, **options), has_fractions(source))
            if self.fast_images:
                return lambda source: preprocessing.fast_pixels(load_pixels(source, **options))
            return lambda source: preprocessing.pixels(load_image(source, **options))

        def prepare(source) -> np.ndarray:
            image = load_image(source, **options)
            if has_fractions(source) and not self._rescales(processor_options):
                image = np.asarray(image, np.float32) / 255
            return self.image_processor(images=image, return_tensors="np", **processor_options)["pixel_values"][0]

        return prepare

    def _rescales(self, options: dict) -> bool:
        """Whether the image processor, with these options, rescales pixels in 0..255."""

        def value(name: str) -> Any:
            chosen = options.get(name)
            chosen = getattr(self.image_processor, name, None) if chosen is None else chosen
            return getattr(Preprocessing, name) if chosen is None else chosen

        return rescales_bytes(value("do_rescale"), value("rescale_factor"))

    def _in_bytes(self, preprocessing) -> bool:
        """Whether the engine knows what a preprocessing's bytes stand for: it may have been changed since."""
        if not (self.engine.takes_bytes and preprocessing.gives_bytes):
            return False
        ours = self._byte_values
        return ours is not None and all(map(np.array_equal, preprocessing.byte_values, ours))

    def texts(
        self,
        texts: str | Iterable[str],
        *,
        normalize: bool = False,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Embeddings (N, D) of texts, in the order given; equal texts are computed once.

        Texts of like length share a batch, padded to its longest, which gives what padding all to 64 tokens would.
        Longer texts are cut to `max_tokens`. Arguments as of `images`.

        Raises:
            ValueError: the model has no text tower, or one of `texts` is no string.
        """
        return self.texts_and_counts(texts, normalize=normalize, batch_size=batch_size, progress=progress)[0]

    def texts_and_counts(
        self,
        texts: str | Iterable[str],
        *,
        normalize: bool = False,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D), and the tokens (N,) that the model read of each text: [CLS] and [SEP] count, what is cut
        does not. Arguments and errors as of `texts`."""
        if not self.engine.reads_texts:
            raise ValueError(f"{self.name} has no text tower, so it cannot embed texts. Use an AlignModel")
        texts = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"texts[{index}]: expected a string, got {type(text).__name__} ({text!r:.80})")
            if not text.isascii():
                _check_unicode(index, text)
        place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        unique = list(place)
        budget = MAX_TOKENS * (self.batch_size if batch_size is None else _positive("batch_size", batch_size))
        embeddings, counts = np.empty((len(unique), self.dim), np.float32), np.zeros(len(unique), np.int64)
        with Progress("texts", len(unique), progress) as bar:
            for start in range(0, len(unique), _WINDOW):
                for rows, ids, mask in self._token_batches(unique[start : start + _WINDOW], budget):
                    embeddings[start + rows], counts[start + rows] = self.engine.texts(ids, mask), mask.sum(1)
                    bar.advance(len(rows))
        if normalize:
            embeddings = l2_normalize(embeddings)
        if len(unique) < len(texts):
            rows = [place[text] for text in texts]
            return embeddings[rows], counts[rows]
        return embeddings, counts

    def _token_batches(self, texts: list[str], budget: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows of `texts`, ids, mask), with at most `budget` tokens in a batch, padding included."""
        tokens = self.inputs.token_ids(texts, self.max_tokens)
        self._check_ids(texts, tokens)
        lengths = np.array([len(ids) for ids in tokens])
        longest_first = np.argsort(-lengths, kind="stable")
        while len(longest_first):
            longest = lengths[longest_first[0]]
            rows, longest_first = np.split(longest_first, [max(1, budget // longest)])
            ids = np.full((len(rows), longest), self.inputs.pad_token_id, np.int64)
            for line, row in zip(ids, rows):
                line[: lengths[row]] = tokens[row]
            yield rows, ids, (np.arange(longest) < lengths[rows, None]).astype(np.int64)

    def _check_ids(self, texts: list[str], tokens: list[list[int]]) -> None:
        most = self.engine.vocabulary
        for text, ids in zip(texts, tokens):
            if ids and max(ids) >= most:
                raise ValueError(
                    f"the tokenizer gives {text[:50]!r} the id {max(ids)}, but {self.name} has a vocabulary of {most:,}: the "
                    "tokenizer belongs to another model"
                )

    def similarity(self, image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
        """Cosine similarity (images, texts) of embeddings, normalised or not."""
        return l2_normalize(image_embeds) @ l2_normalize(text_embeds).T

    def logits(self, image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
        """`similarity` divided by the model's temperature: a softmax over the texts gives their scores."""
        return self.similarity(image_embeds, text_embeds) / np.float32(self.engine.temperature)


def _summary(failures: list[Failure]) -> tuple[str, str]:
    """Source and reason of the error where no image could be read."""
    first, *others = failures
    return (f"all {len(failures)} images", report(failures, len(failures))) if others else (first.source, first.reason)


class _Failures(threading.local):
    """The images that a run could not read, for each thread: several may use one `Embedder`."""

    def __init__(self):
        self.listed: list[Failure] = []


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Rows of `x` scaled to length 1, as the models do it: x / sqrt(max(sum of squares, 1e-12))."""
    return x / np.sqrt(np.maximum(np.square(x).sum(-1, keepdims=True), 1e-12))


def _length(sources) -> int | None:
    return len(sources) if isinstance(sources, (list, tuple)) else None


def _source(model, hub: dict, engine: str | None, dtype: str | None, light: bool):
    from kakao_models.inference.model_tensors import ModelTensors

    if engine not in (None, "auto", *ENGINES):
        raise ValueError(f"engine: got {engine!r}, expected 'auto' or one of {', '.join(map(repr, ENGINES))}")
    if dtype not in (None, "auto", "float32", "bfloat16", "float16"):
        if light:
            raise ValueError(f"dtype {dtype!r}: expected 'float32', 'bfloat16' or 'float16'")
        from kakao_models.inference.engine_torch import torch_dtype

        torch_dtype(dtype)
    return ModelTensors(model, hub, light=light)


def _check_unicode(index: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts[{index}]: {text!r:.80} is not valid Unicode ({error.reason}). Was it read in the wrong encoding?"
        ) from error


def _workers(count: int) -> int:
    return (
        1 if count == 0 else _positive("num_workers", count)
    )  # 0 is transformers' default: no threads beside the caller's


def _positive(name: str, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
    return value
