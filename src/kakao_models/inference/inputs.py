"""Prepares a model's inputs: its image processor and its tokenizer.

Importing transformers takes longer than everything else a process does before it runs a model. So a usual checkpoint's
parts are read without it (`light_processors`), and replaced by transformers' classes when somebody asks for those.
"""

import json
import os
import threading
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

import kakao_models
from kakao_models.checkpoint.hub import resolve
from kakao_models.checkpoint.kinds import MODEL_KINDS
from kakao_models.inference.light_processors import (
    BERT_TOKENIZERS,
    Tokenizer,
    read_light_tokenizer,
    read_preprocessing,
)
from kakao_models.pixels.preprocessing import Preprocessing

_CHARACTERS = 16  # per token, of a text that is tokenized at first: most words are shorter


class _Part:
    """An image processor or a tokenizer: an object, or what a checkpoint of this name has.

    Attributes:
        current: what runs. It is the light one until `complete` is asked for.
    """

    def __init__(self, source: Any, read_light: Callable[[str], Any], read_complete: Callable[[str], Any]):
        light = complete = None
        if isinstance(source, (str, os.PathLike)):
            source = os.fspath(source)
            light = read_light(source)
            complete = partial(read_complete, source)
            source = complete() if light is None else light
        self.current = source
        self._complete = None if light is None else complete

    @property
    def complete(self) -> Any:
        if read := self._complete:
            self.complete = read()
        return self.current

    @complete.setter
    def complete(self, value: Any) -> None:
        self.current, self._complete = value, None


class ModelInputs:
    """The image processor and the tokenizer of a model.

    Args:
        model_type: key of `MODEL_KINDS`.
        name: checkpoint that holds the parts that are not given: a Hub id, a folder or the name of a bundled checkpoint;
            None for a model that was not loaded from one.
        hub: `revision`, `token`, `subfolder`, `cache_dir` and `local_files_only`, those that have a value.
        processor, image_processor, tokenizer: an object, or the name of a checkpoint that holds it. `processor` stands for
            both parts.

    Raises:
        OSError: no such checkpoint, or one of its files can't be read.
        ValueError: a part is neither given nor in a checkpoint.
    """

    def __init__(
        self,
        model_type: str,
        name: str | None,
        hub: dict[str, Any],
        processor: Any = None,
        image_processor: Any = None,
        tokenizer: Any = None,
    ):
        kind = MODEL_KINDS[model_type]
        elsewhere = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}

        def place(source: str) -> dict[str, Any]:
            return hub if name in (None, source) else elsewhere  # a revision is of the model's own checkpoint

        def image_class() -> Any:
            processor_class = getattr(kakao_models, kind.processor)
            return getattr(processor_class, "image_class", processor_class)

        def complete_tokenizer(source: str) -> Any:
            from kakao_models.align.processing import read_tokenizer

            return read_tokenizer(source, **place(source))

        self._image = _Part(
            _source("image_processor", image_processor, processor, name),
            lambda source: read_preprocessing(source, model_type, place(source)),
            lambda source: image_class().from_pretrained(resolve(source), **place(source)),
        )
        self._text = None
        if kind.reads_texts:
            self._text = _Part(
                _source("tokenizer", tokenizer, processor, name),
                lambda source: read_light_tokenizer(source, place(source)),
                complete_tokenizer,
            )
        self._lock = threading.Lock()

    @property
    def image_processor(self) -> Any:
        """An `AlignImageProcessor` or a `ViTImageProcessor`, or the object that was given."""
        return self._image.complete

    @image_processor.setter
    def image_processor(self, value: Any) -> None:
        self._image.complete = value

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer, or the object that was given; None of a model that has no text tower."""
        return None if self._text is None else self._text.complete

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self._text_part().complete = value

    def _text_part(self) -> _Part:
        if self._text is None:
            raise ValueError("the model has no text tower, so it has no tokenizer")
        return self._text

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing of images, if the image processor does nothing else; None if only calling it tells."""
        current = self._image.current
        return current if isinstance(current, Preprocessing) and current.is_complete else None

    @property
    def image_settings(self) -> tuple[str, dict[str, Any]]:
        """The image processor's class, and the values of all its fields."""
        current = self._image.current
        if not isinstance(current, Preprocessing):
            return type(current).__name__, current.to_dict()
        name = type(current).__name__.replace("Preprocessing", "ImageProcessor")  # whose light form that is
        return name, {field: getattr(current, field) for field in current.fields}

    @property
    def vocabulary(self) -> Any:
        """The tokenizer's vocabulary and rules, as JSON."""
        current = self._text_part().current
        whole = getattr(current, "backend_tokenizer", None)
        if whole is None:
            return [type(current).__name__, current.get_vocab()]
        content = json.loads(whole.to_str())
        for setting in ("truncation", "padding"):  # of the last call
            content.pop(setting, None)
        return content

    @property
    def decode_size(self) -> tuple[int, int] | None:
        """(height, width) that images are read for; see `Preprocessing.decode_size`."""
        return getattr(self._image.current, "decode_size", None)

    @property
    def pad_token_id(self) -> int:
        return self._text_part().current.pad_token_id

    @property
    def unk_token_id(self) -> int | None:
        """The id of words that the tokenizer does not know; None where it has none."""
        return getattr(self._text_part().current, "unk_token_id", None)

    def token_ids(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        """The ids of each text, cut to `max_tokens`, without padding."""
        with self._lock:  # a tokenizer keeps the length of its last call
            tokenizer, options = self._text_part().current, {"truncation": True, "max_length": max_tokens}
            starts = texts
            if isinstance(tokenizer, Tokenizer) or type(tokenizer).__name__ in BERT_TOKENIZERS:
                single = getattr(tokenizer, "tokenize_chinese_chars", False)
                starts = [_start(text, _CHARACTERS * max_tokens, single) for text in texts]
            ids = list(tokenizer(starts, **options)["input_ids"])
            short = [i for i, start in enumerate(starts) if start is not texts[i] and len(ids[i]) < max_tokens]
            if short:
                for i, row in zip(short, tokenizer([texts[i] for i in short], **options)["input_ids"]):
                    ids[i] = row
            return ids


def _start(text: str, length: int, single: bool) -> str:
    """The start of a long text, of at most `length` characters, cut where BERT ends a word; all of a short one.

    Args:
        single: whether each Chinese character is a word.
    """
    if len(text) <= length:
        return text
    end = max(text.rfind(blank, 0, length) for blank in " \t\n\r")
    if end <= 0:  # as in Chinese and Japanese
        ends = (place for place in range(length, 0, -1) if _ends_word(text[place - 1], single))
        end = next(ends, 0)
    return text[:end] if end > 0 else text


def _ends_word(character: str, single: bool) -> bool:
    if character == "[":  # a special token may begin
        return False
    return unicodedata.category(character)[0] == "P" or single and "\u4e00" <= character <= "\u9fff"


def _source(part: str, value: Any, processor: Any, name: str | None) -> Any:
    """An object, or the name of a checkpoint, for the image processor or the tokenizer."""
    if value is None:
        value = processor if isinstance(processor, (str, os.PathLike)) else getattr(processor, part, None)
    if value is None and part == "image_processor":
        value = processor  # a model of images has no more
    if value is None and name is None:
        raise ValueError(
            f"no {part}: the model was not loaded from a checkpoint that has one. Pass {part}= or processor="
        )
    value = name if value is None else value
    if not (callable(value) or isinstance(value, (str, os.PathLike))):
        raise TypeError(f"{part}: got {value!r:.80}, expected a callable, or the name of a checkpoint")
    return value
