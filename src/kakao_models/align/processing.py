"""Processors of ALIGN, which turn images and texts into inputs of the model."""

import copy
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import AutoTokenizer, BatchFeature, BertTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin, TextKwargs

from kakao_models.align.preprocessing import MAX_TOKENS, AlignPreprocessing
from kakao_models.align.towers import is_published, read_published
from kakao_models.checkpoint.hub import (
    HUB_ARGUMENTS,
    TOKENIZER_FILES,
    MissingFile,
    fetch,
    fetch_all,
    hub_arguments,
    pin,
    read_config,
    resolve,
)
from kakao_models.files.atomic import write_text
from kakao_models.pixels.images import is_image_text
from kakao_models.pixels.preprocessing import FOREIGN, INSTEAD
from kakao_models.pixels.processor import ImageProcessor
from kakao_models.pixels.tensors import as_tensors

# Fields of a tokenizer_config.json that say how transformers 5 loaded it, and nothing about the tokenizer
_LOADING_FIELDS = ("backend", "is_local", "local_files_only", "name_or_path")
# Arguments of `from_pretrained` that neither part has
_OF_LOADING = ("trust_remote_code", "use_fast", "backend", "proxies", "return_unused_kwargs", "code_revision")
_DEFAULTS = ("padding", "truncation", "max_length")  # of a call, which a tokenizer may be made with, as in transformers
# Those that a tokenizer of another model, such as one of sentence-transformers, is saved with
_OTHERS_DEFAULTS = (*_DEFAULTS, "stride", "truncation_strategy", "pad_to_multiple_of")
_PLACE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)  # http:, data:, ...


class AlignImageProcessor(AlignPreprocessing, ImageProcessor):
    """Prepares images for ALIGN: resizes them to 346 x 346 regardless of their shape, crops the centre 289 x 289, scales to -1..1.

    Reads and writes the `preprocessor_config.json` of transformers' `EfficientNetImageProcessor`, with one field more:
    `preprocessing="tf"` for the original code's own resizing (see `ImageProcessor`). Without arguments it is that
    of the released models on the Hub.
    """

    transformers_type = "EfficientNetImageProcessor"

    @classmethod
    def from_tower(cls, image: str | os.PathLike, image_size: int | None = None) -> "AlignImageProcessor":
        """Image processor with the preprocessing that the image tower of `AlignModel.from_towers` was trained with.

        Args:
            image_size: pixels of a side, instead of the tower's own.

        Raises:
            ValueError, OSError: there is no such tower, or its files are damaged.
        """
        if is_published(image):
            return cls(**read_published(image, image_size=image_size).preprocessing)
        sizes = {} if image_size is None else {"size": image_size, "do_center_crop": False}
        return cls.from_pretrained(image, **sizes)


def read_tokenizer(
    name_or_path: str | os.PathLike, *, options: Mapping[str, Any] | None = None, **where: Any
) -> PreTrainedTokenizerBase:
    """Reads the tokenizer of a folder, of a name on the Hub or of a checkpoint inside the package. No code of it is run.

    A folder may hold only BERT's `vocab.txt`; then texts are lower-cased unless the vocabulary has capitals.

    Args:
        options: further arguments of the tokenizer, such as `bos_token`.
        where: HUB_ARGUMENTS.

    Raises:
        OSError, ValueError: its files are missing or damaged.
    """
    options, pinned = dict(options or {}), pin(name_or_path, **where)
    source, where = fetch_all(name_or_path, TOKENIZER_FILES, **pinned)
    with suppress(MissingFile):  # of a model, it names the class of a tokenizer that does not
        fetch(name_or_path, "config.json", **pinned)
    folder = Path(source, where.get("subfolder") or "")
    try:
        if not _names_no_class(folder):
            return AutoTokenizer.from_pretrained(source, **{**options, "trust_remote_code": False, **where})
        tokenizer = BertTokenizer.from_pretrained(folder, **options)
        chosen = folder / "tokenizer_config.json"
        if (
            "do_lower_case" in options
            or is_uncased(tokenizer.get_vocab())
            or chosen.is_file()
            and "do_lower_case" in read_config(chosen)
        ):
            return tokenizer
        return BertTokenizer.from_pretrained(folder, **{**options, "do_lower_case": False})
    except (OSError, ImportError):
        raise
    except ValueError as error:
        raise ValueError(f"{name_or_path}: {' '.join(str(error).split())}") from error
    except Exception as error:  # tokenizers raises plain Exception, and transformers any error that a wrong type causes
        raise ValueError(
            f"{name_or_path}: its tokenizer's files can't be read ({type(error).__name__}: {error}). Is the download complete?"
        ) from error


def _names_no_class(folder: Path) -> bool:
    """Whether a folder has BERT's vocab.txt, and no file that says which class of transformers reads it."""
    if not (folder / "vocab.txt").is_file() or (folder / "tokenizer.json").is_file():
        return False
    named = {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class"}
    return not any(read_config(folder / file).get(field) for file, field in named.items() if (folder / file).is_file())


def is_uncased(vocabulary: Iterable[str]) -> bool:
    """Whether no word has a capital letter; special tokens such as [CLS] do not count."""
    return not any(word != word.lower() for word in vocabulary if not (word.startswith("[") and word.endswith("]")))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer's files for transformers 4 and 5: BERT's with `vocab.txt`, which version 5 leaves out."""
    tokenizer._set_processor_class("AlignProcessor")
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    if fields.get("model_max_length", 0) > 10**9:  # transformers' sign for no limit, which is the default
        del fields["model_max_length"]
    write_text(
        file, json.dumps({name: fields[name] for name in fields if name not in _LOADING_FIELDS}, indent=2) + "\n"
    )
    if isinstance(tokenizer, BertTokenizer):
        rows = tokenizer.get_vocab()
        write_text(folder / "vocab.txt", "".join(f"{word}\n" for word in sorted(rows, key=rows.get)))


class AlignProcessor(ProcessorMixin):
    """An `AlignImageProcessor` and a BERT tokenizer in one, called as transformers' `AlignProcessor`.

    Unlike there, texts are padded to the longest of a call only, which gives the same embeddings for less work, and cut at
    64 tokens. `padding="max_length"` gives transformers' layout. An image processor of transformers is replaced by an
    `AlignImageProcessor` with the same fields. transformers' Auto classes give its own processor, whatever is imported.
    """

    image_class: ClassVar[type] = AlignImageProcessor

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)
        if not isinstance(image_processor, ImageProcessor):
            self.image_processor = AlignImageProcessor.from_dict(image_processor.to_dict())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Loads the processor from the Hub or a folder. `cache_dir`, `force_download`, `local_files_only`, `token`,
        `revision` and `subfolder` say where; other arguments are fields of the image processor, or else arguments of the
        tokenizer."""
        source = resolve(pretrained_model_name_or_path)
        where = pin(source, **hub_arguments(kwargs))
        image_processor = AlignImageProcessor.from_pretrained(source, **(kwargs | where))
        of_images = {*image_processor.fields, *FOREIGN, *HUB_ARGUMENTS, *_OF_LOADING}
        options = {name: value for name, value in kwargs.items() if name not in of_images and not name.startswith("_")}
        return cls(image_processor, read_tokenizer(source, options=options, **where))

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes preprocessor_config.json and the tokenizer's files, which transformers 4 and 5 read alike.

        Args:
            push_to_hub: whether to upload them, to `repo_id` or else to the folder's name.
            kwargs: arguments of transformers' `push_to_hub`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        image_processor = copy.copy(self.image_processor)
        image_processor.processor_class = "AlignProcessor"
        image_processor.save_pretrained(folder)
        write_tokenizer(self.tokenizer, folder)
        (folder / "processor_config.json").unlink(missing_ok=True)  # version 5 would read an older one first
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)

    @classmethod
    def from_towers(
        cls, image: str | os.PathLike, text: str | os.PathLike, image_size: int | None = None
    ) -> "AlignProcessor":
        """The processor of `AlignModel.from_towers(image, text, ...)`: pictures as the image tower was trained on, and the
        text tower's tokenizer. Its defaults of a call, such as sentence-transformers' `max_length` 128, were for another model:
        they are left out.

        Arguments are those of `AlignImageProcessor.from_tower`, and what `read_tokenizer` takes.
        """
        tokenizer = read_tokenizer(text)
        for name in _OTHERS_DEFAULTS:
            tokenizer.init_kwargs.pop(name, None)
        return cls(AlignImageProcessor.from_tower(image, image_size), tokenizer)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        *,
        return_tensors: str | None = None,
        common_kwargs: dict | None = None,
        text_kwargs: dict | None = None,
        images_kwargs: dict | None = None,
        videos_kwargs: dict | None = None,
        audio_kwargs: dict | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares texts, images or both.

        Args:
            images: anything that `load_image` reads, or a list of such images.
            text: one text or a list of texts.
            return_tensors: "np", "pt", "tf" or "jax"; None for lists.
            common_kwargs, text_kwargs, images_kwargs, kwargs: options of the tokenizer and fields of the image processor,
                together or apart. By default `padding=True, truncation=True, max_length=64`.
            videos, audio: None; their options are ignored.

        Returns:
            `input_ids`, `token_type_ids` and `attention_mask`, integers (texts, tokens), if there is text;
            `pixel_values`, float32 (images, 3, height, width), if there are images.

        Raises:
            ValueError: nothing to prepare, or videos or audio; or texts where images are expected.
            TypeError: an option that neither the tokenizer nor the image processor has.
        """
        if videos is not None or audio is not None:
            raise ValueError("AlignProcessor takes images and texts, got videos or audio")
        if images is None and text is None:
            raise ValueError("AlignProcessor needs text, images or both; got neither")
        _refuse_texts(images)
        kwargs = {**(common_kwargs or {}), **kwargs}
        return_tensors = return_tensors or kwargs.pop("return_tensors", None)
        of_images = {
            **{name: kwargs.pop(name) for name in self._image_options & kwargs.keys()},
            **{name: value for name, value in (images_kwargs or {}).items() if name != "return_tensors"},
        }
        of_texts = {name: value for name, value in (text_kwargs or {}).items() if name != "return_tensors"}
        for options in (text_kwargs, images_kwargs):
            return_tensors = return_tensors or (options or {}).get("return_tensors")
        if unknown := kwargs.keys() - TextKwargs.__annotations__.keys():
            name = min(unknown)
            near = difflib.get_close_matches(name, [*self._image_options, *TextKwargs.__annotations__], n=1)
            instead = INSTEAD.get(name) or (
                f"did you mean {near[0]!r}?"
                if near
                else f"it takes those of the tokenizer, and {', '.join(sorted(self._image_options))}"
            )
            raise TypeError(f"AlignProcessor has no option {name!r}; {instead}")
        batch = {}
        if text is not None:
            batch |= self._tokens(text, {**kwargs, **of_texts}, return_tensors)
        if images is not None:
            batch |= self.image_processor(images, return_tensors=return_tensors, **of_images)
        return BatchFeature(batch)

    @property
    def _image_options(self) -> set[str]:
        return {*self.image_processor.fields, "do_convert_rgb"}

    def _tokens(self, text: str | list[str], options: dict, return_tensors: str | None) -> dict:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(part, str) for part in texts):
            raise ValueError(f"text must be a string or a list of at least one string, got {text!r:.200}")
        own = {name: self.tokenizer.init_kwargs[name] for name in _DEFAULTS if name in self.tokenizer.init_kwargs}
        options = {"padding": True, "truncation": True, **own, **options}
        if options["truncation"] or options["padding"] == "max_length":
            options.setdefault("max_length", min(MAX_TOKENS, self.tokenizer.model_max_length))
        tokens = self.tokenizer(list(texts), **options)
        if isinstance(text, str) and return_tensors is None:
            return {name: value[0] for name, value in tokens.items()}
        return as_tensors(dict(tokens), return_tensors)


def _refuse_texts(images) -> None:
    """Raises ValueError where `images` are texts, as the first argument was in early examples of ALIGN."""
    for image in images if isinstance(images, (list, tuple)) else [images]:
        if isinstance(image, str) and not (
            _PLACE.match(image.lstrip()) or os.path.exists(image) or is_image_text(image)
        ):
            raise ValueError(
                f"AlignProcessor: {image!r:.80} is not an image (neither a file nor a URL). Pass texts by name: text=[...]"
            )
