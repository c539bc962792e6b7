"""Recipes: all settings of a run in one YAML file. Every key is checked; a misspelt one is an error."""

import contextlib
import dataclasses
import difflib
import os
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kakao_models.align.config import BERT_SIZES
from kakao_models.align.preprocessing import MAX_TOKENS

FOLDER = Path(__file__).parent / "recipes"
_LISTED = 20  # a longer list of samples is described, not written
_LEAST = {  # the lowest value of numbers; None is allowed where a field may be None
    **dict.fromkeys(("batch_size", "chunk_size", "steps", "log_every", "save_every", "keep", "evaluate_every"), 1),
    **dict.fromkeys(("shuffle_window", "image_size", "max_tokens"), 1),
    **dict.fromkeys(("lr", "end_lr", "weight_decay", "warmup", "clip", "workers", "seed"), 0),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's, which also takes 5e-3 for a number, as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """The same for writing: a text such as "5e-3" is written in quotes."""


_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for _cls in (_Loader, _Dumper):
    _cls.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _from_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that all recipes have.

    about: the model, the hours, the hardware, and the metric it should reach.
    data: any source of `open_source`, or a mixture, `[{path: SOURCE, weight: 2}, ...]`; with `streaming`, a `hf://` name or a
    `datasets.IterableDataset`. columns: `image`, `caption` and `label`, the names of
    the data's columns; those left out are found by their usual names.
    start: checkpoint to start from, a folder or Hub id; without it, weights are random.
    model: fields of the configuration.
    batch_size: samples of all processes together. chunk_size: samples of a process that are in memory at a time.
    optimizer_options: further arguments of the optimizer: `{betas: [0.9, 0.98]}`.
    schedule: "linear", "cosine" or "constant" after `warmup`, or points of a curve, {step: share of lr, ...}.
    steps or epochs: how long. clip: largest norm of the gradient, 0 for none. ema: decay of the moving average.
    checkpointing: backward computes "activations" or "blocks" (or true) again instead of keeping them; false for neither.
    shard: share out the parameters among processes (FSDP2), where they do not fit into each one.
    evaluate: name → data or arguments (`build_evaluations`); run every `evaluate_every` steps and at the end.
    augment: fields of the augmentation; `kind` chooses "random" (ALIGN's `RandomCrop`) or "inception" (ViT's
    `InceptionCrop`). Its size (`crop`, `size`) may be a list of sizes, which `by` "stage" (the default) follow each other in
    equal parts of the run, and by "step" take turns (`Resolutions`).
    distort: fields of `Distorted`; without any, nothing is distorted.
    trainer: further fields of transformers' TrainingArguments.
    license: of the model, as in a card on the Hub ("apache-2.0"); by default that of `start`, if its card names one.
    """

    about: str
    output: str
    data: Any
    columns: dict = field(default_factory=dict)
    streaming: bool = False
    start: str | None = None
    model: dict = field(default_factory=dict)
    batch_size: int
    chunk_size: int | None = None
    steps: int | None = None
    epochs: float | None = None
    optimizer: str
    optimizer_options: dict = field(default_factory=dict)
    lr: float
    weight_decay: float
    warmup: int = 0
    schedule: str | dict = "linear"
    end_lr: float = 0.0
    clip: float = 0.0
    ema: float | None = None
    precision: str = "fp32"
    checkpointing: str | bool = False
    channels_last: bool = False
    compile: bool = False
    shard: bool = False
    freeze: list = field(default_factory=list)
    lr_scale: dict = field(default_factory=dict)
    augment: dict = field(default_factory=dict)
    distort: dict = field(default_factory=dict)
    workers: int = 2
    shuffle_window: int = 16
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    evaluate: dict = field(default_factory=dict)
    evaluate_every: int = 5000
    trainer: dict = field(default_factory=dict)
    license: str | None = None

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"recipe: give either steps or epochs, and set the other to null; got steps {self.steps} and epochs {self.epochs}"
            )
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"recipe: precision must be fp32, bf16 or fp16, got {self.precision!r}")
        if self.checkpointing not in (True, False, "activations", "blocks"):
            raise ValueError(f"recipe: checkpointing must be activations, blocks or false, got {self.checkpointing!r}")
        if self.streaming and self.steps is None:
            raise ValueError("recipe: a stream has no known length: give steps, not epochs")
        for name, least in _LEAST.items():
            value = getattr(self, name, None)
            if value is not None and not value >= least:
                raise ValueError(f"recipe: {name} must be at least {least}, got {value}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"recipe: epochs must be above 0, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class AlignRecipe(Recipe):
    """Contrastive training of an ALIGN.

    image_tower, text_tower: a size that starts at random ("b0" to "b7", "l2"; "mini", "base", "large"), or published weights to
    start from (`AlignModel.from_towers`); both only without `start`.
    tokenizer: Hub id or folder, where text_tower is a size. max_tokens, pad_to: see `SampleTransform`.
    image_size: pixels of a side of the images that the model takes; by default those of `start` or of published weights.
    vocabulary: cut the text tower's vocabulary to the word pieces of `texts`, text files (a line each) or sources of captions,
    by default the data; pieces that occur fewer than `at_least` times go too. {} cuts with the defaults.
    loss: "contrastive" (softmax, ALIGN's) or "sigmoid" (SigLIP's, with a learned bias).
    temperature_range: the lowest and the highest that the temperature may become.
    distill: teachers by their names, each with the fields of `train.distill.Distillation`. contrastive: factor of the
    contrastive loss beside them; 0 leaves it out.
    """

    image_tower: str = "b7"
    text_tower: str = "base"
    tokenizer: str | None = None
    image_size: int | None = None
    vocabulary: dict | None = None
    max_tokens: int = MAX_TOKENS
    pad_to: str = "longest"
    loss: str = "contrastive"
    temperature_range: list | None = None
    distill: dict = field(default_factory=dict)
    contrastive: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.contrastive < 0 or self.contrastive != 1 and not self.distill:
            raise ValueError(f"recipe: contrastive must be at least 0, and 1 without distill, got {self.contrastive}")
        if self.tokenizer is not None and not self.start and self.text_tower not in BERT_SIZES:
            raise ValueError(f"recipe: tokenizer: text_tower {self.text_tower} has its own; leave tokenizer out")


@dataclass(frozen=True, kw_only=True)
class ViTRecipe(Recipe):
    """Training of a classifier.

    backbone: "vit", or "align" for the image tower of the ALIGN `start`. size: "ti", "s", "b" or "l".
    classes: their number, or a file with a class name per line; by default, the classes that the data name.
    multi_label: images have several labels, each with a sigmoid of its own.
    image_size: side in pixels, by default that of `start`, or 224; if it differs, the position embeddings are resized.
    new_head: drop the classifier (and representation) of `start`, and begin with one of zeros.
    """

    backbone: str = "vit"
    size: str = "l"
    classes: int | str | None = None
    multi_label: bool = False
    image_size: int | None = None
    new_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.backbone not in ("vit", "align"):
            raise ValueError(f"recipe: backbone must be vit or align, got {self.backbone!r}")
        if self.backbone == "align" and self.start is None:
            raise ValueError(
                "recipe: backbone: align takes the image tower of an ALIGN: set start to its folder or Hub id"
            )


RECIPES = {"align": AlignRecipe, "vit": ViTRecipe}


def names() -> list[str]:
    """Recipes inside this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def summaries() -> list[dict[str, Any]]:
    """The recipes inside this package: name, command (align or vit), model, data, batch (samples), length and about."""
    rows = []
    for name in names():
        values = _from_yaml((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        command = "vit" if {"size", "backbone", "new_head"} & set(values) else "align"
        recipe = RECIPES[command](**values)
        if recipe.start:
            model = f"from {recipe.start}"
        elif isinstance(recipe, AlignRecipe):
            model = f"ALIGN, {recipe.image_tower} and {recipe.text_tower}"
        else:
            model = f"ViT, {recipe.size}"
        rows.append(
            {
                "name": name,
                "command": command,
                "model": model,
                "data": recipe.data,
                "batch": recipe.batch_size,
                "length": f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs:g} epochs",
                "about": " ".join(recipe.about.split()),
            }
        )
    return rows


def read_recipe(kind: str, source: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, or from this package by its name.

    Args:
        kind: "align" or "vit".
        changes: "key=value", the value in YAML; "a.b=value" changes one entry of a mapping.

    Raises:
        ValueError: an unknown key (with the nearest known one), a value of another type, or no such recipe.
    """
    path = Path(source) if Path(source).is_file() else FOLDER / f"{Path(source).name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise ValueError(f"recipe: {source} is neither a file nor a recipe of this package ({', '.join(names())})")
    try:
        values = _from_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path}: expected settings as name: value, got {reprlib.repr(values)}")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"{change}: expected key=value")
        *above, last = key.strip().split(".")
        inner = values
        for name in above:
            if not isinstance(inner.get(name) or {}, dict):
                raise ValueError(f"{change}: {name} is {inner[name]!r}, which has no keys")
            inner[name] = inner = dict(inner.get(name) or {})
        try:
            inner[last] = _from_yaml(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{change}: the value is not valid YAML ({error})") from error
    cls = RECIPES[kind]
    hints = typing.get_type_hints(cls)
    check_keys(f"{path}: a recipe for {kind}", values, hints)
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if absent := [name for name in needed if name not in values]:
        raise ValueError(f"{path}: a recipe for {kind} needs {', '.join(absent)}, which this one does not have")
    # null restores the default, unless null is a value of its own
    kept = {k: v for k, v in values.items() if v is not None or k in needed or _may_be_none(hints[k])}
    return cls(**{name: _typed(name, value, hints[name]) for name, value in kept.items()})


def check_keys(what: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """
    Raises:
        ValueError: one of `keys` is not in `known`; the message names the nearest that is.
    """
    known = list(known)
    for name in keys:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f", expected one of {', '.join(known)}"
            raise ValueError(f"{what} has no key {name!r}{hint}")


def _may_be_none(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def _typed(name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds or Any in kinds:
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = tuple(kind for kind in kinds if isinstance(kind, type))
    if not isinstance(value, fits) or isinstance(value, bool) and bool not in fits:
        expected = " or ".join(kind.__name__ for kind in fits if kind is not type(None))
        raise ValueError(f"recipe: {name} must be {expected}, got {value!r}")
    return value


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """All values that are not defaults, as YAML writes them; objects, such as a data set, are described by their type."""
    values = {}
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if f.default is not dataclasses.MISSING:
            changed = value != f.default
        else:
            changed = f.default_factory is dataclasses.MISSING or value != f.default_factory()
        if changed:
            values[f.name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and (len(value) <= _LISTED or all(isinstance(part, str) for part in value)):
        return [_plain(part) for part in value]
    if isinstance(value, str):  # of a class derived from it, such as numpy's
        return str(value)
    if getattr(value, "ndim", None) == 0:  # a number of numpy or PyTorch
        return value.item()
    counts = getattr(value, "counts", None)
    with contextlib.suppress(TypeError):  # of what has no length
        samples = len(value) if counts is None else sum(counts)
        return f"<{type(value).__name__} of {samples} samples>"
    return f"<{type(value).__name__}>"


def as_yaml(recipe: Recipe) -> str:
    return yaml.dump(as_dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
