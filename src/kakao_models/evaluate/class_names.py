"""Names of classes, and their places among a classifier's outputs."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kakao_models.files.lines import json_of, lines_of

from .datasets import Labelled
from .templates import imagenet_class_names

logger = logging.getLogger(__name__)

_WORDNET = re.compile(r"n\d{8}")


def read_class_names(path: str | os.PathLike, keys: Sequence[str]) -> list[str]:
    """The names of the classes `keys`, from a file.

    Args:
        path: .txt with a name per line, in the order of the labels; .txt with a key and a name per line (as ImageNet's
            LOC_synset_mapping.txt: the first name is taken); .json with a list, with {key: name}, or
            imagenet_class_index.json ({"0": ["n01440764", "tench"], ...}). "clip": CLIP's names of ImageNet's classes.
        keys: classes of the data. In a subset such as ImageNet-R, the names of its folders say which classes there are;
            folders may be called by a class's key or by its number, as ImageNet-V2's are.

    Raises:
        ValueError: not a name for every key; says which are missing.
    """
    named = imagenet_class_names() if os.fspath(path) == "clip" else _read_names(Path(path), set(keys))
    if isinstance(named, list):
        if len(named) == len(keys):
            return named
        numbers = [int(key) for key in keys if key.isdigit()]
        if len(numbers) < len(keys) or max(numbers) >= len(named):
            raise ValueError(
                f"{path}: got {len(named)} class names for {len(keys)} classes of the data ({_some(keys)}). For a part of a "
                "model's classes give a file that names them by folder, such as imagenet_class_index.json"
            )
        return [named[number] for number in numbers]
    missing = [key for key in keys if key not in named]
    in_order = [named[str(number)] for number in range(len(keys)) if str(number) in named]
    if len(missing) == len(keys) == len(in_order) and str(len(keys)) not in named:
        return in_order  # a table's own names of the same classes, such as "tench, Tinca tinca"
    if missing:
        raise ValueError(f"{path} has no name for {len(missing)} of {len(keys)} classes: {_some(missing)}")
    return [named[key] for key in keys]


def class_names_of(keys: Sequence[str], classes: str | os.PathLike | None = None, source: str = "") -> list[str]:
    """The names of the classes `keys`, for prompts: from a file, as `read_class_names` does, or else the keys themselves.

    Args:
        source: name of the data in messages.

    Raises:
        ValueError: keys that are numbers or WordNet ids and no file, and for the reasons of `read_class_names`.
    """
    if classes:
        return read_class_names(classes, keys)
    if all(key.isdigit() or _WORDNET.fullmatch(key) for key in keys):
        raise ValueError(
            f"{source}: its classes are named {', '.join(keys[:3])}, ...: give readable names (--classes; in a recipe, "
            "classes)"
        )
    return [key.replace("_", " ") for key in keys]


def repeated_names(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Names that several classes have, with the numbers of these classes."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    return [(name, numbers) for name, numbers in places.items() if len(numbers) > 1]


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, each different: a name that several classes have gets the number of its class, as in "crane (517)"."""
    repeated = {name for name, _ in repeated_names(names)}
    return [f"{name} ({number})" if name in repeated else name for number, name in enumerate(names)]


def read_class_index(path: str | os.PathLike) -> dict[str, int]:
    """Folder name → place among a classifier's outputs, from imagenet_class_index.json or LOC_synset_mapping.txt.

    Raises:
        ValueError: the file is of another form.
    """
    path = Path(path)
    if path.suffix != ".json":
        return {line.split()[0]: number for number, line in enumerate(lines_of(path))}
    value = json_of(path)
    if not isinstance(value, dict) or not all(key.isdecimal() and _is_entry(value[key]) for key in value):
        raise ValueError(f'{path}: expected {{"0": ["n01440764", "tench"], ...}}, as in imagenet_class_index.json')
    return {entry[0]: int(number) for number, entry in value.items()}


def _is_entry(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def class_places(path: Path, keys: Sequence[str]) -> list[int]:
    """The place of each class folder among a classifier's outputs, by the file of `read_class_index`. A folder may be called by
    a class's key, such as n01440764, or by its number, as ImageNet-V2's are.

    Raises:
        ValueError: the file does not have all folders.
    """
    index = read_class_index(path)
    index = {str(number): number for number in index.values()} | index
    if missing := [key for key in keys if key not in index]:
        raise ValueError(f"--class-index has no class of the model for {len(missing)} folders, such as {missing[0]}")
    return [index[key] for key in keys]


def model_labels(config: Any, data: Labelled) -> tuple[np.ndarray, list[str]]:
    """The data's labels as the model numbers its classes, and the names of these: found by name, or by order where both
    have as many and no name stands at another place.

    Args:
        config: the model's configuration.

    Raises:
        ValueError: the names of the classes differ, and so does their number.
    """
    names = [config.id2label[number] for number in range(config.num_labels)]
    place = {name: number for number, name in reversed(list(enumerate(names)))}  # of equal names the first
    if names == list(data.keys):
        numbers = range(len(names))
    elif all(key in place for key in data.keys):
        unclear = [(name, at) for name, at in repeated_names(names) if name in data.keys]
        if unclear:
            logger.warning(
                f"{data.name}: the model has several classes called {unclear[0][0]!r} ({', '.join(map(str, unclear[0][1]))}); "
                f"images of that name count as the first. Set --class-index to choose"
            )
        numbers = [place[key] for key in data.keys]
    elif len(data.keys) == len(names) and all(names[i] == key for i, key in enumerate(data.keys) if key in place):
        numbers = range(len(names))
        if names != [f"LABEL_{number}" for number in numbers]:
            first = next(number for number in numbers if names[number] != data.keys[number])
            logger.warning(
                f"{data.name}: its class names differ from the model's, so classes are matched by their order: "
                f"{data.keys[first]!r} counts as {names[first]!r}, and so on. Set --class-index to choose"
            )
    elif all(key.isdigit() and int(key) < len(names) for key in data.keys):
        numbers = [int(key) for key in data.keys]
    else:
        raise ValueError(
            f"{data.name} has {len(data.keys)} classes ({data.keys[0]!r}, ...), but the model has {len(names)} ({names[0]!r}, ...), "
            "and their names differ. Give both the same names, or map them with --class-index"
        )
    return np.where(data.labels < 0, -1, np.array(numbers)[data.labels]), names


def labels_by_keys(data: Labelled, other: Labelled) -> np.ndarray:
    """The labels of data, as places among the keys of other data.

    Raises:
        ValueError: an image has a class that the other data do not have.
    """
    unknown = sorted({data.keys[label] for label in np.unique(data.labels)} - set(other.keys))
    if unknown:
        raise ValueError(
            f"{data.name} has classes that {other.name} does not have: {', '.join(unknown[:5])}. Are both parts of one data set?"
        )
    place = {key: number for number, key in enumerate(other.keys)}
    return np.array([place[data.keys[label]] for label in data.labels])


def _read_names(path: Path, keys: set[str]) -> list[str] | dict[str, str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file of class names")
    if path.suffix == ".json":
        value = json_of(path)
        if isinstance(value, dict):
            pairs = [(key, entry) for key, entry in value.items() if not _is_entry(entry)]
            for number, entry in value.items():  # as in imagenet_class_index.json
                pairs += [(number, entry[1]), tuple(entry)] if _is_entry(entry) else []
            return {str(key): str(name).replace("_", " ") for key, name in pairs}
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{path}: expected a list of class names, or an object of names by class")
        return value
    lines = lines_of(path)
    split = [line.split(maxsplit=1) for line in lines]
    numbers = set(map(str, range(len(lines))))
    if split and all(len(parts) == 2 for parts in split) and keys & {parts[0] for parts in split}:
        return {key: name.partition(",")[0].strip() for key, name in split}
    if all(len(parts) == 2 and _WORDNET.fullmatch(parts[0]) for parts in split) and keys <= numbers:
        return [name.partition(",")[0].strip() for _, name in split]  # LOC_synset_mapping.txt and folders of numbers
    return lines


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
