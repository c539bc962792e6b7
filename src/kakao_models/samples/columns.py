"""Names of the columns with images, captions and labels: the only such list, for every command and format.

"Column" means a column of a table, the suffix of a file in a tar, a feature of a TFRecord, a field of JSON.
"""

import decimal
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.pixels.formats import SUFFIXES

# Upper and lower case are the same; if a table has several of them, the first one here is used.
URLS = ("url", "image_url", "img_url", "uri")
IMAGES = (
    *("image", "images", "img", *(suffix[1:] for suffix in SUFFIXES)),
    *("image_path", "img_path", "file_name", "filename", "filepath", "file_path", "path", *URLS),
)
CAPTIONS = ("captions", "caption", "text", "txt", "sentences", "raw", "title", "alt_text")
CLASS_NAMES = ("label_name", "class_name")
LABELS = ("label", "labels", "fine_label", "cls", "class", *CLASS_NAMES)
KEYS = ("image_id", "imgid", "id", "uid", "key", "__key__")
FILES = ("file", "file_name", "filename")
IDS = ("id",)
NAMES = {"image": IMAGES, "caption": CAPTIONS, "label": LABELS}  # the kinds that can be named by an option


@dataclass(frozen=True)
class Fields:
    """The name of each column in one table or record; None if there is none."""

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    class_name: str | None = None  # names of the integers in `label`
    key: str | None = None
    file: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Columns:
    """Columns chosen by name; those left out are found by the names above.

    prefer: names that are taken before the others of their kind, such as `URLS`.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None
    prefer: tuple[str, ...] = ()

    def find(
        self, names: Iterable[str], needs: Iterable[str] = (), source: Any = "", *, optional: bool = False
    ) -> Fields:
        """The columns among `names`.

        Args:
            needs: kinds that must be there: "image", "caption", "label".
            source: the table's name in messages.
            optional: chosen columns may be missing, as in a sample that lacks what others have.

        Raises:
            ValueError: a chosen or required column is missing; the message lists the columns.
        """
        return _find(self, tuple(names), tuple(needs), str(source), optional)

    @property
    def chosen(self) -> list[str]:
        return [kind for kind in NAMES if getattr(self, kind) is not None]


BY_NAME = Columns()  # all are found by their usual names


@lru_cache(maxsize=1024)
def _find(columns: Columns, names: tuple[str, ...], needs: tuple[str, ...], source: str, optional: bool) -> Fields:
    fields = {}
    for kind, words in NAMES.items():
        option = getattr(columns, kind)
        if optional and option is not None and option.lower() not in map(str.lower, names):
            continue
        words = (*(word for word in columns.prefer if word in words), *words)
        fields[kind] = find_column(names, option, words, kind, source)
        if fields[kind] is None and kind in needs:
            raise ValueError(f"{source}: no column of {kind}s; its columns are {_listed(names)}: {_naming(kind)}")
    class_name = find_column(names, None, CLASS_NAMES)
    others = {"key": KEYS, "file": FILES, "id": IDS}
    return Fields(
        **fields,
        class_name=None if class_name == fields.get("label") else class_name,
        **{kind: find_column(names, None, words) for kind, words in others.items()},
    )


def find_column(
    names: Sequence[str], option: str | None, words: Sequence[str], kind: str = "image", source: str = ""
) -> str | None:
    """The name of a column: the chosen one, or the first of `words` that exists, or None.

    Raises:
        ValueError: the chosen one is missing, or two differ from it only in case.
    """
    if option is None and not any(name.lower() in words for name in names):
        return None
    for word in words if option is None else (option,):
        if word in names:
            return word
        alike = [name for name in names if name.lower() == word.lower()]
        if len(alike) > 1:
            raise ValueError(
                f"{source}: columns {' and '.join(map(repr, alike))} differ only in case: {_naming(kind)}".lstrip(": ")
            )
        if alike:
            return alike[0]
    if option is not None:
        raise ValueError(f"{source}: no column {option!r}; its columns are {_listed(names)}: {_naming(kind)}")
    return None


def _naming(kind: str) -> str:
    return f"name the column with --{kind}-column (in a recipe, columns.{kind})"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!s:.60}" for name in names[:40])
    return f"{shown or 'none'}{' ...' if len(names) > 40 else ''}"


@dataclass(slots=True)
class Sample:
    """An image with its captions, labels and metadata.

    key: names the sample in messages. id: its own id, where the source has one.
    image: encoded bytes, a Path, an address, or another input of `load_image`; None where images were left out.
    labels: class numbers or names of classes. class_name: the name of the class that the number stands for.
    file: name of the image's file, where it is known. record: all fields that were read. error: why it can't be read.
    """

    key: str
    image: Any
    captions: tuple[str, ...] = ()
    labels: tuple[int | str, ...] = ()
    id: int | str | None = None
    group: Any = None  # samples with the same one are of the same image
    path: str | None = None  # the text in the image's column: a path or an address
    class_name: str | None = None
    file: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    error: str | None = None


class SampleError(ValueError):
    """A record with an invalid image, caption or label: `reason` says why; `sample` has its name and the other values."""

    def __init__(self, reason: str, sample: Sample):
        super().__init__(reason, sample)
        self.reason, self.sample = reason, sample

    def __str__(self) -> str:
        return f"{self.sample.key}: {self.reason}"


def named(error: Exception, key: str) -> tuple[str, str]:
    """The name of the sample that an error is about (`key`, if the error does not say), and the reason."""
    return (error.sample.key, error.reason) if isinstance(error, SampleError) else (key, str(error))


def as_sample(
    record: Mapping[str, Any],
    key: str,
    fields: Fields | None = None,
    folder: Path | None = None,
    *,
    with_image: bool = True,
) -> Sample:
    """A sample of a record; its image is None where the record has none.

    Args:
        fields: the names of its fields; by default, found among those of this record that are not null.
        folder: the folder that relative paths of images start from.
        with_image: False leaves the image out.

    Raises:
        SampleError: an image, caption or label is invalid.
    """
    if fields is None:
        fields = Columns().find(name for name, value in record.items() if value is not None)
    value, own = record.get(fields.image), record.get(fields.key)
    own = own.decode(errors="replace") if isinstance(own, bytes) else own
    sample = Sample(
        key=key if own is None else f"{key} ({own})",
        image=None,
        id=record.get(fields.id),
        group=own if own is not None else _place_of(value, folder) if isinstance(value, str) else None,
        path=str(value) if isinstance(value, (str, int, float)) else None,
        class_name=str(name) if (name := record.get(fields.class_name)) else None,
        file=_file_name(value) or _file_name(record.get(fields.file)),
        record=record,
    )
    try:
        if with_image:
            sample.image = _image(value, folder)
        sample.captions, sample.labels = captions_of(record.get(fields.caption)), labels_of(record.get(fields.label))
    except ValueError as error:
        raise SampleError(str(error), sample) from error
    return sample


def image_of(record: Mapping[str, Any], folder: Path | None = None, columns: Columns = BY_NAME) -> Any:
    """The image of a record, for `load_image`: bytes, a Path or an address; None where it has none."""
    fields = columns.find(name for name, value in record.items() if value is not None)
    return _image(record.get(fields.image), folder)


def _image(value: Any, folder: Path | None) -> Any:
    if isinstance(value, Mapping):  # as `datasets` stores images
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, list) and len(value) == 1:  # `datasets` stores lists of images too
        return _image(value[0], folder)
    if isinstance(value, (bool, int, float, list, tuple)):
        raise ValueError(f"the image has type {type(value).__name__} ({value!r:.40}), expected bytes, a path or a URL")
    if isinstance(value, str):
        return None if not value else value if "://" in value else Path(folder or "", value)
    return value


def _place_of(value: str, folder: Path | None) -> str:
    """The address of an image, or its path with the folder: other folders may have a file of the same name."""
    return value if "://" in value else os.path.join(folder or "", value)


def _file_name(value: Any) -> str | None:
    value = value.get("path") if isinstance(value, Mapping) else value
    return value.replace("\\", "/").rpartition("/")[2] or None if isinstance(value, str) else None


def captions_of(value: Any) -> tuple[str, ...]:
    """The captions in a value: a text, a list of texts, or such a list written as JSON.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    if isinstance(value, Mapping):  # such as Karpathy's {"raw": ..., "tokens": ...}
        return captions_of(value.get(find_column(tuple(value), None, CAPTIONS)))
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(text for part in value for text in captions_of(part))
    if isinstance(value, (bytes, bytearray)):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"a caption is not UTF-8 text ({error})") from error
    if value is None or isinstance(value, float) and math.isnan(value):
        return ()
    text = str(value).strip()
    listed = _json_list(text)
    if listed and all(isinstance(part, str) for part in listed):
        return captions_of(listed)
    return (text,) if text else ()


def labels_of(value: Any) -> tuple[int | str, ...]:
    """The labels in a value: class numbers, names of classes, or a list of them; negative, empty and null ones are none.

    Raises:
        ValueError: a number that is not whole, or too large, or another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(label for part in value for label in labels_of(part))
    if isinstance(value, (bytes, bytearray)):
        value = value.decode("utf-8-sig", errors="replace")
    if isinstance(value, str):
        value = value.strip()
        listed = _json_list(value)
        return labels_of(listed) if listed is not None else (value,) if value else ()
    if value is None or isinstance(value, float) and math.isnan(value):
        return ()
    if not isinstance(value, (bool, int, float, decimal.Decimal)):
        raise ValueError(f"a label has type {type(value).__name__} ({value!r:.40}), expected a class number or a name")
    if not math.isfinite(value) or value != int(value) or not -(2**63) <= value < 2**63:
        raise ValueError(f"label {value:.3g} is not a class number")
    return (int(value),) if value >= 0 else ()


def _json_list(text: str) -> list | None:
    if not (text[:1] == "[" and text[-1:] == "]"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def class_names(labels: Iterable[str]) -> list[str]:
    """Class names in the order of their numbers: by name, or by number where all are numbers ("10" comes after "2")."""
    names = sorted(set(labels))
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else names
