"""Answers of the service: an `Embedder` behind a `Batcher`.

Axes: N inputs  D width of an embedding
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kakao_models.inference.embedder import Embedder, l2_normalize
from kakao_models.inference.labels import (
    LabelProblems,
    average_sentences,
    check_templates,
    label_sentences,
    only_label,
    repeated_labels,
)  # fmt: skip
from kakao_models.inference.pipelines import HYPOTHESIS_TEMPLATE
from kakao_models.inference.relevance import Limit
from kakao_models.inference.scores import SCORE_FUNCTIONS, ranked, score_function, softmax
from kakao_models.pixels.fetch import FetchError, fetch_url
from kakao_models.pixels.images import ImageError, image_size
from kakao_models.pixels.limits import MAX_SHOWN_PIXELS
from kakao_models.serve.batching import Batcher, Busy
from kakao_models.serve.schemas import (
    ClassifyRequest,
    ContentPart,
    EmbeddingsRequest,
    Refused,
    as_list,
    decoded,
    image_source,
)
from kakao_models.warn import warn

_FETCHERS = 16
_KEPT_CHARACTERS = 1000  # of a label's sentence: 20,000 of the longest that are read would be gigabytes
_LARGE = 2**22  # pixels, of which decoding takes up to 27 bytes each; of a JPEG 6


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    max_inputs: texts and images.
    max_labels: sentences, labels times templates.
    max_characters: characters of a text; the model reads its first 64 tokens.
    max_pixels: pixels of an image, by its header, before anything is decoded.
    max_fetched: bytes of an image that is fetched; fetch_timeout seconds for it.
    max_fetched_together: bytes of fetched images that all requests hold at the same time.
    allow_urls: whether http(s) URLs of images are fetched at all, from public addresses only.
    strings: see `image_source`.
    cached_texts: embeddings of labels' sentences that are kept.
    """

    max_inputs: int = 256
    max_labels: int = 1000
    max_characters: int = 20_000
    max_pixels: int = MAX_SHOWN_PIXELS
    max_fetched: int = 16 * 2**20
    max_fetched_together: int = 256 * 2**20
    fetch_timeout: float = 10.0
    allow_urls: bool = False
    strings: str = "refuse"
    cached_texts: int = 20_000


class Service:
    """Embeddings and classes for parsed requests.

    Args:
        embedder: runs in the batcher's one thread, and nowhere else.
        name: what the model is called in requests and answers.
        batching: arguments of `Batcher`.
    """

    def __init__(self, embedder: Embedder, name: str, limits: Limits, **batching: Any):
        self.embedder, self.name, self.limits = embedder, name, limits
        self.reads_texts = embedder.engine.reads_texts
        self.classifies = embedder.engine.classifies
        self.batcher = Batcher(self._run, **batching)
        self._sentences: OrderedDict[str, np.ndarray] = OrderedDict()  # → embedding of length 1
        self._label_problems = LabelProblems(embedder)
        self.relevance, self._uncalibrated = None, ""
        try:
            self.relevance = embedder.relevance  # runs the model, which no other thread does yet
        except (OSError, ValueError) as error:
            warn(f"min_relevance will be refused: {error}")
            self._uncalibrated = (
                f"min_relevance: {name} has a calibration that can't be used; the service's log says why"
            )
        # Threads of their own: a hundred slow hosts keep nobody waiting who fetches nothing.
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="kakao-models-fetches")
        self._fetched = 0  # bytes that requests hold

    async def warm_up(self) -> None:
        """Runs the model once, so that the first request does not wait for what is done on the first use."""
        grey = np.full((64, 64, 3), 128, np.uint8)
        await self._submit("image", [grey])
        if self.reads_texts:
            await self._submit("text", ["warm up"])

    async def embed(self, request: EmbeddingsRequest) -> tuple[np.ndarray, int]:
        """Embeddings (N, D) and the number of text tokens."""
        self._check_model(request.model)
        if request.dimensions not in (None, self.embedder.dim):
            raise Refused(
                400,
                f"dimensions: got {request.dimensions}, but the embeddings of this model always have {self.embedder.dim}",
                param="dimensions",
            )
        parts = self._checked_inputs(request.parts())
        sources = self._image_sources(parts)
        texts: dict[int, str] = {}
        for index, part in enumerate(parts):
            if index not in sources:
                text = part if isinstance(part, str) else part.text or ""
                texts[index] = self._checked_text(text, f"input[{index}]", "input")
        if request.truncate is False and texts:
            await asyncio.to_thread(self._check_lengths, texts)
        rows, tokens = np.empty((len(parts), self.embedder.dim), np.float32), 0
        async with self._image_files(sources) as images:
            of_images, of_texts = await asyncio.gather(
                self._images("image", images), self._submit("text", list(texts.values()))
            )
        rows[list(sources)] = of_images
        for index, (row, count) in zip(texts, of_texts):
            rows[index] = row
            tokens += count
        return (l2_normalize(rows) if request.unit_length else rows), tokens

    async def classify(self, request: ClassifyRequest) -> tuple[list[list[dict[str, Any]]], list[str]]:
        """Returns the labels of each image with their scores, the best first; and sentences about labels that the model can't read or
        tell apart, or that are there more than once, which count once. With `min_relevance` only the labels that fit are returned."""
        problems: list[str] = []
        self._check_model(request.model)
        parts = self._checked_inputs(request.input)
        sources = self._image_sources(parts)
        for index in range(len(parts)):
            if index not in sources:
                raise Refused(
                    400, f"input[{index}] is not an image; expected a data: URL, or {{'image': base64}}", param="input"
                )
        if request.labels is None:
            if not self.classifies:
                message = "labels: say what to choose from; this model has no classes of its own"
                raise Refused(400, message, param="labels")
            for field in ("templates", "min_relevance"):
                if getattr(request, field) is not None:
                    raise Refused(400, f"{field} needs labels", param=field)
            config = self.embedder.config
            labels = [config.id2label[index] for index in range(config.num_labels)]
            async with self._image_files(sources) as images:
                logits = await self._images("classifier", images)
            scores = SCORE_FUNCTIONS[score_function(config)](logits)
        else:
            if not self.reads_texts:
                own = ": it has classes of its own, leave labels out" if self.classifies else ""
                raise Refused(400, f"labels: this model has no text tower{own}", param="labels")
            limit = None if request.min_relevance is None else self._limit(request.min_relevance)
            labels = list(dict.fromkeys(request.labels))
            templates = as_list(HYPOTHESIS_TEMPLATE if request.templates is None else request.templates)
            sentences = self._sentences_of(labels, templates)
            problems = repeated_labels(request.labels)
            problems += await asyncio.to_thread(self._label_problems, labels)
            problems += [] if limit else only_label(labels)
            alone = labels if limit else []
            async with self._image_files(sources) as images:
                of_images, of_sentences = await asyncio.gather(
                    self._images("image", images), self._sentence_rows([*sentences, *alone])
                )
            of_sentences, of_labels = of_sentences[: len(sentences)], of_sentences[len(sentences) :]
            scores = softmax(self.embedder.logits(of_images, average_sentences(of_sentences, len(templates))))
            if limit is not None:
                cosines = self.embedder.similarity(of_images, of_labels)
                entries = [limit.entries(ranked(row, labels, None), labels, fits) for row, fits in zip(scores, cosines)]
                return [some[: request.top_k] for some in entries], problems
        return [ranked(row, labels, request.top_k) for row in scores], problems

    def _limit(self, least: float | str) -> Limit:
        if self._uncalibrated:
            raise Refused(400, self._uncalibrated, param="min_relevance")
        try:
            return Limit.of(self.relevance, "min_relevance", least, self.name)
        except ValueError as error:
            raise Refused(400, str(error), param="min_relevance") from None

    def _check_model(self, model: str | None) -> None:
        if model not in (None, self.name):
            message = f"the model {model[:100]!r} is not served here, {self.name!r} is"
            raise Refused(404, message, param="model", code="model_not_found")

    def _checked_inputs(self, inputs: Any) -> list[str | ContentPart]:
        parts = as_list(inputs)
        if not parts:
            raise Refused(400, "input: got nothing, expected at least one text or image", param="input")
        if isinstance(parts[0], (int, list)):
            raise Refused(
                400,
                "input: token ids are not accepted, because they depend on the tokenizer; send strings (LangChain: "
                "check_embedding_ctx_length=False)",
                param="input",
            )
        if len(parts) > self.limits.max_inputs:
            most = self.limits.max_inputs
            raise Refused(400, f"input: got {len(parts)} inputs, expected at most {most} in one request", param="input")
        return parts

    def _checked_text(self, text: str, place: str, param: str) -> str:
        if not self.reads_texts:
            raise Refused(400, f"{place}: this model reads only images; send a data: URL", param=param)
        if not text.strip():
            raise Refused(400, f"{place}: the text is empty", param=param)
        if len(text) > self.limits.max_characters:
            most = self.limits.max_characters
            raise Refused(400, f"{place}: got {len(text)} characters, expected at most {most}", param=param)
        return text

    def _check_lengths(self, texts: Mapping[int, str]) -> None:
        """Refuses texts of which the model would not read the end."""
        most = self.embedder.max_tokens
        for index, ids in zip(texts, self.embedder.inputs.token_ids(list(texts.values()), most + 1)):
            if len(ids) > most:
                message = f"input[{index}]: the text has more than the {most} tokens that the model reads; truncate: true cuts it"
                raise Refused(400, message, param="truncate")

    def _image_sources(self, parts: list[str | ContentPart]) -> dict[int, str]:
        """Place among the inputs → base64 or a URL, for those that are images."""
        strings = self.limits.strings
        sources = {index: image_source(part, f"input[{index}]", strings) for index, part in enumerate(parts)}
        return {index: source for index, source in sources.items() if source is not None}

    @asynccontextmanager
    async def _image_files(self, sources: dict[int, str]) -> AsyncIterator[dict[int, bytes]]:
        """Place among the inputs → the file. What was fetched counts in `_fetched` until the block ends."""
        sizes: list[int] = []
        tasks = [asyncio.ensure_future(self._content(source, index, sizes)) for index, source in sources.items()]
        try:
            yield dict(zip(sources, await asyncio.gather(*tasks)))
        finally:
            for task in tasks:  # after a failure, the others
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()
            self._fetched -= sum(sizes)

    async def _content(self, source: str, index: int, sizes: list[int]) -> bytes:
        """A file; its size is appended to `sizes` if it was fetched."""
        place = f"input[{index}]"
        if not source[:8].lower().startswith(("http://", "https://")):
            if len(source) > 100_000:
                return await asyncio.to_thread(decoded, source, place)
            return decoded(source, place)
        if not self.limits.allow_urls:
            raise Refused(400, f"{place}: this service does not fetch URLs; send a data: URL", param="input")
        fetch = partial(fetch_url, source, timeout=self.limits.fetch_timeout, max_bytes=self.limits.max_fetched)
        try:
            content = await asyncio.get_running_loop().run_in_executor(self._fetchers, fetch)
        except FetchError as error:
            # Which address a name of this network has is nobody's business either.
            hidden = "not a public address" in str(error)
            reason = "its host does not have a public address" if hidden else str(error)
            raise Refused(400, f"{place}: {reason}", param="input", code="image_not_fetched") from None
        sizes.append(len(content))
        self._fetched += len(content)
        if self._fetched > self.limits.max_fetched_together:
            raise Busy("fetched images fill the memory for them; send fewer URLs in one request", 1)
        return content

    async def _images(self, kind: str, images: dict[int, bytes]) -> np.ndarray:
        size = sum(map(len, images.values()))
        results = await self._submit(kind, list(images.values()), size, list(images))
        return np.stack(results) if results else np.empty((0, self.embedder.dim), np.float32)

    async def _submit(self, kind: str, values: list, size: int = 0, places: Sequence[int] = ()) -> list[Any]:
        results = await self.batcher.submit(kind, values, size)
        for index, result in enumerate(results):
            if isinstance(result, Refused):
                place = places[index] if places else index
                raise Refused(400, f"input[{place}]: {result}", param="input", code=result.code)
            if isinstance(result, BaseException):
                raise result
        return results

    def _sentences_of(self, labels: list[str], templates: list[str]) -> list[str]:
        """`label_sentences`, of what a stranger sent."""
        if not labels or not templates:
            raise Refused(400, "labels and templates: expected at least one of each", param="labels")
        if (count := len(labels) * len(templates)) > (most := self.limits.max_labels):
            message = f"{len(labels)} labels with {len(templates)} templates are {count} sentences, at most {most} in one request"
            raise Refused(400, message, param="labels")
        try:
            check_templates(templates, "templates")
        except ValueError as error:
            raise Refused(400, str(error), param="templates") from None
        for index, template in enumerate(templates):
            self._checked_text(template, f"templates[{index}]", "templates")
        for index, label in enumerate(labels):
            self._checked_text(label, f"labels[{index}]", "labels")
        # Before they are made: 5,000 {0} with a label of 20,000 characters would be 100 MB.
        longest = max(template.count("{") * max(map(len, labels)) + len(template) for template in templates)
        if longest > 2 * self.limits.max_characters:
            message = (
                f"a template with its label has {longest} characters, expected at most {2 * self.limits.max_characters}"
            )
            raise Refused(400, message, param="templates")
        return label_sentences(labels, templates)

    async def _sentence_rows(self, sentences: list[str]) -> np.ndarray:
        """(sentences, D), each row of length 1."""
        # Known rows are taken first: a sentence may be dropped while others are computed.
        rows = {sentence: self._sentences[sentence] for sentence in sentences if sentence in self._sentences}
        missing = [sentence for sentence in dict.fromkeys(sentences) if sentence not in rows]
        for sentence, (row, _) in zip(missing, await self._submit("text", missing)):
            rows[sentence] = l2_normalize(row)
        for sentence, row in rows.items():
            if len(sentence) <= _KEPT_CHARACTERS:
                self._sentences[sentence] = row
                self._sentences.move_to_end(sentence)
        while len(self._sentences) > self.limits.cached_texts:
            self._sentences.popitem(last=False)
        return np.stack([rows[sentence] for sentence in sentences])

    def _run(self, kind: str, values: list) -> list[Any]:
        """A batch, in the batcher's thread."""
        if kind == "text":
            rows, counts = self.embedder.texts_and_counts(values, progress=False)
            return list(zip(rows, counts.tolist()))
        results: list[Any] = [None] * len(values)
        output = "logits" if kind == "classifier" else "features"
        options = {"max_pixels": self.limits.max_pixels}
        large = {index for index, value in enumerate(values) if _is_large(value, self.limits.max_pixels)}
        together = [index for index in range(len(values)) if index not in large]
        for places in filter(None, (together, *([index] for index in large))):
            some = [values[index] for index in places]
            for batch in self.embedder.iter_images(some, output=output, on_error="ignore", image_options=options):
                for index, row in zip(batch.indices, batch.values):
                    results[places[index]] = row
                for failure in batch.failures:
                    results[places[failure.index]] = Refused(400, failure.reason, code="image_not_read")
        return results


def _is_large(image: Any, max_pixels: int) -> bool:
    """Whether an image is decoded alone: a file of 200 KB may need a gigabyte, and other threads would decode as many."""
    if not isinstance(image, bytes):
        return False
    try:
        width, height = image_size(image, max_pixels)
    except ImageError:
        return False
    return width * height > _LARGE * (4 if image.startswith(b"\xff\xd8") else 1)
