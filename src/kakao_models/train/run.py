"""Runs a recipe: it ends with a trained model in a folder that is ready for the Hub."""

import contextlib
import dataclasses
import functools
import json
import os
import platform
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import metadata_load
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint, set_seed

from kakao_models.align.classification_torch import AlignForImageClassification
from kakao_models.align.config import (
    BERT_SIZES,
    EFFICIENTNET_SIZES,
    AlignConfig,
    AlignTextConfig,
    AlignVisionConfig,
)
from kakao_models.align.modeling_torch import AlignModel
from kakao_models.align.processing import AlignImageProcessor, AlignProcessor, read_tokenizer
from kakao_models.align.towers import is_published, merged
from kakao_models.align.vocabulary import cut_vocabulary
from kakao_models.checkpoint.hub import described_by, fetch, pin
from kakao_models.files.lines import lines_of
from kakao_models.pixels.processor import ImageProcessor
from kakao_models.samples.columns import NAMES, Columns
from kakao_models.samples.paths import is_hub
from kakao_models.samples.shards import Source
from kakao_models.samples.sources import load_hub_dataset, open_source
from kakao_models.train.arguments import TrainArguments
from kakao_models.train.augment import Augmentation, Distorted, InceptionCrop, RandomCrop, Resolutions
from kakao_models.train.callbacks import Curves, JsonLines, ProgressBar, hours_of
from kakao_models.train.data import StreamData, TrainData
from kakao_models.train.distill import DistillTrainer, build_distillations
from kakao_models.train.evaluations import build_evaluations
from kakao_models.train.inputs import resized, sizes_of
from kakao_models.train.order import open_data
from kakao_models.train.recipe import AlignRecipe, Recipe, ViTRecipe, as_dict, as_yaml, check_keys
from kakao_models.train.sharding import class_of
from kakao_models.train.trainer import AlignTrainer, ViTTrainer
from kakao_models.train.transform import SampleTransform
from kakao_models.vit.config import ViTConfig
from kakao_models.vit.modeling_torch import ViTForImageClassification
from kakao_models.vit.processing import ViTImageProcessor

FINISHED = "_finished.json"  # written last; an upload of the folder leaves out names that begin so
OpenedData = Callable[[], Source | None]  # the data of a recipe, opened by the first call; None for a stream

# Keys of a recipe that are fields of `TrainArguments` too.
_SAME_NAMES = (
    *("optimizer", "optimizer_options", "weight_decay", "schedule", "end_lr"),
    *("channels_last", "shard", "freeze", "lr_scale", "shuffle_window", "seed"),
)


def build_trainer(
    recipe: Recipe, trainer_class: type | None = None, transform_class: Callable[..., SampleTransform] = SampleTransform
) -> AlignTrainer | ViTTrainer:
    """The trainer of a recipe, with its model, data, evaluations and callbacks.

    Args:
        trainer_class: a class of your own, with another loss; by default `AlignTrainer` or `ViTTrainer`.
        transform_class: a class of your own, with other targets.

    Raises:
        ValueError: settings that do not go together, or data that cannot be read.
        OSError: `start` cannot be read.
    """
    arguments = _arguments(recipe)
    evaluations = build_evaluations(recipe.evaluate) if recipe.evaluate else {}  # before a model is fetched
    if recipe.start:
        _look_for("start", recipe.start, "config.json")
    elif isinstance(recipe, AlignRecipe):
        if recipe.image_tower not in EFFICIENTNET_SIZES and not is_published(recipe.image_tower):
            _look_for("image_tower", recipe.image_tower, "config.json")
        if recipe.text_tower in BERT_SIZES:
            _look_for("tokenizer", _tokenizer(recipe), "tokenizer_config.json")
        else:
            _look_for("text_tower", recipe.text_tower, "config.json")
    set_seed(recipe.seed)  # for weights that are random
    columns, needs = _columns(recipe, other_targets=transform_class is not SampleTransform)
    opened = functools.cache(lambda: _open_data(recipe, columns, needs))
    if isinstance(recipe, AlignRecipe):
        model, processor, prepare, default = _align(recipe, transform_class, opened)
    else:
        model, processor, prepare, default = _vit(recipe, transform_class, _class_names(recipe, opened()))
    source = opened()
    if source is None:
        share, place = arguments.per_device_train_batch_size, (arguments.process_index, arguments.world_size)
        stream = load_hub_dataset(recipe.data, streaming=True) if isinstance(recipe.data, str) else recipe.data
        data = StreamData(stream, prepare, share, *place, recipe.seed, columns, needs)
    else:
        data = TrainData(source, prepare, recipe.seed, recipe.shuffle_window)
    callbacks = [JsonLines(), ProgressBar(), Curves()]
    trainer_class, options = trainer_class or default, {}
    if distill := getattr(recipe, "distill", None):
        trainer_class = DistillTrainer if trainer_class is AlignTrainer else trainer_class
        if not issubclass(trainer_class, DistillTrainer):
            raise ValueError(f"recipe: distill needs a DistillTrainer, got {trainer_class.__name__}")
        options = {"distill": build_distillations(distill, source), "contrastive": recipe.contrastive}
    trainer = trainer_class(
        model,
        arguments,
        train_dataset=data,
        processing_class=processor,
        callbacks=callbacks,
        evaluations=evaluations,
        **options,
    )
    trainer.remove_callback(PrinterCallback)  # `ProgressBar` prints the logs
    return trainer


def run(recipe: Recipe, resume: bool = True, build: Callable = build_trainer) -> dict[str, float]:
    """Trains, from the last checkpoint in `recipe.output` if there is one, evaluates, and writes the model.

    A finished run is not repeated: the same recipe only returns its metrics. With `push_to_hub` among the fields of
    `trainer`, the folder is uploaded in the end.

    Args:
        build: recipe → trainer, for classes of your own: `build_trainer` with them.

    Returns:
        The metrics of the evaluations.

    Raises:
        FileExistsError: there are checkpoints, and `resume` is False.
    """
    output = Path(recipe.output)
    last = get_last_checkpoint(output) if output.is_dir() else None
    if last and not resume:
        raise FileExistsError(f"{output} already has {Path(last).name}: resume from it, or choose another output")
    if (metrics := _finished(recipe)) is not None:
        return metrics
    trainer = build(recipe)
    try:
        trainer.train(resume_from_checkpoint=last)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressBar):
                callback.close()  # or the terminal would stay without its cursor
    metrics = trainer.last_metrics() if trainer.evaluations else {}
    trainer.save_final(output)
    trainer.card = card(recipe, trainer, metrics)
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        (output / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if trainer.is_world_process_zero():
        finished = {"recipe": as_yaml(recipe), "metrics": metrics}
        (output / FINISHED).write_text(json.dumps(finished), encoding="utf-8")
    return metrics


def _finished(recipe: Recipe) -> dict[str, float] | None:
    """The metrics of a run of the same recipe that has ended in its folder."""
    file = Path(recipe.output, FINISHED)
    try:
        finished = json.loads(file.read_text(encoding="utf-8"))
        same = finished["recipe"] == as_yaml(recipe) and Path(recipe.output, "config.json").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return finished["metrics"] if same else None


def _open_data(recipe: Recipe, columns: Columns, needs: Sequence[str]) -> Source | None:
    """The data of a recipe; None for a stream."""
    data, is_stream = recipe.data, hasattr(recipe.data, "set_epoch")
    if recipe.streaming:
        if not (isinstance(data, str) or is_stream):
            raise ValueError(
                f"recipe: streaming: expected a hf:// name or a datasets.IterableDataset, got {type(data).__name__}. Several "
                "streams become one by datasets.interleave_datasets, with probabilities"
            )
        return None
    if is_stream and not hasattr(data, "__len__"):
        raise ValueError("recipe: data is a datasets.IterableDataset, which is read in its order: set streaming: true")
    if isinstance(data, str) and data.startswith("<"):
        raise ValueError(
            f"recipe: data: {data} was a Python object: run this recipe from Python and pass the object as data"
        )
    return open_data(data, columns, needs)


def _look_for(key: str, name: str, file: str) -> None:
    """Fetches a file of a checkpoint; an error names the key of the recipe."""
    try:
        fetch(name, file)
    except OSError as error:
        raise OSError(f"recipe: {key}: {error}") from error


def _arguments(recipe: Recipe) -> TrainArguments:
    world = int(os.environ.get("WORLD_SIZE", 1))
    if recipe.batch_size % world:
        raise ValueError(f"batch_size {recipe.batch_size} cannot be shared evenly by {world} processes")
    share, accumulate = recipe.batch_size // world, 1
    if recipe.chunk_size and isinstance(recipe, ViTRecipe):
        if share % recipe.chunk_size:
            raise ValueError(
                f"a process has {share} samples per batch, which is not a multiple of chunk_size {recipe.chunk_size}"
            )
        share, accumulate = recipe.chunk_size, share // recipe.chunk_size
    length = {"max_steps": recipe.steps} if recipe.steps is not None else {"num_train_epochs": recipe.epochs}
    settings = {
        **{name: getattr(recipe, name) for name in _SAME_NAMES},
        **length,
        "learning_rate": recipe.lr,
        "warmup_steps": recipe.warmup,
        "max_grad_norm": recipe.clip,
        "ema_decay": recipe.ema,
        **{name: getattr(recipe, name) for name in ("loss", "temperature_range") if hasattr(recipe, name)},
        "per_device_train_batch_size": share,
        "gradient_accumulation_steps": accumulate,
        "chunk_size": recipe.chunk_size if isinstance(recipe, AlignRecipe) else None,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "checkpointing": {True: "blocks", False: None}.get(recipe.checkpointing, recipe.checkpointing),
        "torch_compile": recipe.compile,
        "dataloader_num_workers": recipe.workers,
        "logging_steps": recipe.log_every,
        "logging_first_step": True,
        "save_steps": recipe.save_every,
        "save_total_limit": recipe.keep,
        "eval_strategy": "steps" if recipe.evaluate else "no",
        "eval_steps": recipe.evaluate_every,
        "disable_tqdm": True,
        "report_to": _tensorboard(),
    }
    check_keys("recipe: trainer", recipe.trainer, [f.name for f in dataclasses.fields(TrainArguments) if f.init])
    return TrainArguments(recipe.output, **(settings | recipe.trainer))


def _tensorboard() -> list[str]:
    from transformers.integrations import is_tensorboard_available

    if not is_tensorboard_available():
        return []
    # Where TensorFlow is installed, TensorBoard's writer loads it, for seconds and hundreds of megabytes in every process,
    # unless there is a module of this name: then it does with what it brings itself.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    return ["tensorboard"]


def _align(recipe: AlignRecipe, transform_class: Callable[..., SampleTransform], opened: OpenedData):
    side = recipe.image_size
    if recipe.start:
        where = pin(recipe.start)
        config = AlignConfig.from_pretrained(recipe.start, **where)
        sizes = {"vision_config": {"image_size": side}} if side else {}
        with described_by("recipe: model"):
            config = AlignConfig(**merged(merged(config.to_dict(), sizes), recipe.model))
        model = AlignModel.from_pretrained(recipe.start, config=config, dtype=torch.float32, **where)
        processor = AlignProcessor.from_pretrained(recipe.start, **where)
        if side:
            processor = AlignProcessor(resized(processor.image_processor, side), processor.tokenizer)
    else:
        with described_by("recipe: model"):
            model, processor = _joined(recipe)
    if recipe.vocabulary is not None:
        tokenizer = _cut_vocabulary(recipe, model, processor.tokenizer, opened)
        processor = AlignProcessor(processor.image_processor, tokenizer)
    prepare = transform_class(
        _augmentation(recipe, "random", processor.image_processor),
        processor.image_processor,
        tokenizer=processor.tokenizer,
        max_tokens=min(recipe.max_tokens, model.config.text_config.max_position_embeddings),
        pad_to=recipe.pad_to,
    )
    return model, processor, prepare, AlignTrainer


def _joined(recipe: AlignRecipe) -> tuple[AlignModel, AlignProcessor]:
    """A model of two towers, each of a size or of published weights."""
    changes, image, text = dict(recipe.model), recipe.image_tower, recipe.text_tower
    tokenizer = read_tokenizer(_tokenizer(recipe))
    if image in EFFICIENTNET_SIZES:
        own = changes.pop("vision_config", {})
        side = recipe.image_size or _largest(recipe, "random") or own.get("image_size", 289)
        image = AlignVisionConfig.efficientnet(image, **{"image_size": side, **own})
        resize = recipe.augment.get("resize", round(side * 346 / 289))
        image_processor = AlignImageProcessor(preprocessing="tf", resample=2, size=resize, crop_size=side)
    else:
        image_processor = AlignImageProcessor.from_tower(image, recipe.image_size)
        if recipe.image_size:
            changes = merged({"vision_config": {"image_size": recipe.image_size}}, changes)
    if text in BERT_SIZES:
        text = AlignTextConfig.bert(text, **{"vocab_size": len(tokenizer), **changes.pop("text_config", {})})
    dimension = changes.pop("projection_dim", AlignConfig.projection_dim)
    model = AlignModel.from_towers(image, text, dimension, **changes)
    return model, AlignProcessor(image_processor, tokenizer)


def _tokenizer(recipe: AlignRecipe) -> str:
    return (recipe.tokenizer or "bert-base-uncased") if recipe.text_tower in BERT_SIZES else recipe.text_tower


def _cut_vocabulary(
    recipe: AlignRecipe, model: AlignModel, tokenizer: PreTrainedTokenizerBase, opened: OpenedData
) -> PreTrainedTokenizerBase:
    settings = dict(recipe.vocabulary)
    check_keys("recipe: vocabulary", settings, ["texts", "at_least"])
    if not isinstance(settings.get("at_least", 1), int):
        raise ValueError(f"recipe: vocabulary.at_least: expected a number of occurrences, got {settings['at_least']!r}")
    texts = settings.pop("texts", None)
    if texts is None:
        if (source := opened()) is None:
            raise ValueError(
                "recipe: vocabulary: a stream can be read only once: set texts to files with one text per line"
            )
        return cut_vocabulary(model, tokenizer, _captions(source), **settings)
    columns = Columns(caption=recipe.columns.get("caption"))
    return cut_vocabulary(model, tokenizer, _texts(texts if isinstance(texts, list) else [texts], columns), **settings)


def _texts(names: Sequence, columns: Columns) -> Iterator[str]:
    for name in names:
        if str(name).endswith(".txt"):
            yield from lines_of(name)
        else:
            yield from _captions(open_source(name, columns, ("caption",)))


def _captions(source: Source) -> Iterator[str]:
    for shard, count in enumerate(source.counts):
        for row in range(count):
            with contextlib.suppress(ValueError, OSError):  # broken samples are told when they are trained on
                yield from source.read(shard, row, with_image=False).captions


def _vit(recipe: ViTRecipe, transform_class: Callable[..., SampleTransform], labels: Sequence[str]):
    number = len(labels) if labels else recipe.classes
    if not number:
        raise ValueError("recipe: classes: the data do not name their classes; give their number, or a file of names")
    names = {"id2label": dict(enumerate(labels))} if labels else {"num_labels": number}
    where = pin(recipe.start) if recipe.start else {}
    problem = "multi_label_classification" if recipe.multi_label else "single_label_classification"
    settings, side = {"problem_type": problem, **recipe.model}, recipe.image_size
    if recipe.start:
        settings = {"dtype": torch.float32} | settings  # of whatever type the weights are in the file
        kind = AlignImageProcessor if recipe.backbone == "align" else ViTImageProcessor
        processor = kind.from_pretrained(recipe.start, **where)
        processor = resized(processor, side) if side else processor
        side = sizes_of(processor)[1]
    if recipe.backbone == "align":
        sizes = {"image_size": side} if recipe.image_size else {}
        new_head = {**names, "ignore_mismatched_sizes": True}
        model = AlignForImageClassification.from_pretrained(recipe.start, **new_head, **sizes, **settings, **where)
    elif recipe.start:
        head = {**names, "representation_size": None, "ignore_mismatched_sizes": True} if recipe.new_head else {}
        model = ViTForImageClassification.from_pretrained(recipe.start, image_size=side, **head, **settings, **where)
    else:
        side = side or _largest(recipe, "inception") or 224
        with described_by("recipe: model"):
            config = ViTConfig.vit(recipe.size, image_size=side, **names, **settings)
        model = ViTForImageClassification(config)
        processor = ViTImageProcessor(preprocessing="tf", size=side)
    augment = _augmentation(recipe, "inception", processor)
    if model.config.num_labels != number:
        raise ValueError(
            f"recipe: classes is {number}, but {recipe.start} has {model.config.num_labels}: set new_head: true"
        )
    prepare = transform_class(augment, processor, classes=number, multi_label=recipe.multi_label, names=labels)
    return model, processor, prepare, ViTTrainer


def _class_names(recipe: ViTRecipe, source: Source | None) -> Sequence[str]:
    """Names of the classes, empty where there is only a number of them: a file's, or those of the data."""
    if isinstance(recipe.classes, str):
        return lines_of(recipe.classes)
    names = (source.classes if source and (recipe.classes is None or source.described()) else None) or ()
    return names if recipe.classes in (None, len(names)) else ()


def _augmentation(recipe: Recipe, kind: str, processor: ImageProcessor) -> Augmentation | Resolutions:
    settings = {"antialias": processor.preprocessing == "hf", "kind": kind} | recipe.augment
    kind = settings.pop("kind")
    check_keys("recipe: augment: kind", [kind], _SIDES)
    cls, name = _SIDES[kind]
    resize, side = sizes_of(processor)
    sides = _sides(recipe, name) or [side]
    if side not in sides and recipe.image_size is None:
        raise ValueError(
            f"recipe: augment.{name} is {recipe.augment[name]}, but {recipe.start or 'the model'} takes images of {side} x {side} "
            f"pixels. Leave {name} out, or set image_size: {sides[-1]} for a model of that size, or image_size: {side} to train at "
            "another size than the model's"
        )
    by = settings.pop("by", None)
    if by is not None and not isinstance(recipe.augment.get(name), list):
        raise ValueError(f"recipe: augment.by is {by!r}, but {name} is a single size: make it a list")
    if not isinstance(settings.get("resize", resize), int):
        raise ValueError(f"recipe: augment.resize: expected pixels, got {settings['resize']!r}")
    around = settings.get("resize", resize if sides == [side] else round(max(sides) * resize / side))
    crops = []
    for one in sides:
        margin = {"resize": round(around * one / max(sides))} if cls is RandomCrop else {}
        crop = _filled(cls, "augment", settings | {name: one} | margin)
        crops.append(_filled(Distorted, "distort", {"crop": crop} | recipe.distort) if recipe.distort else crop)
    return crops[0] if sides == [side] else Resolutions(crops, by or "stage")


_SIDES = {"random": (RandomCrop, "crop"), "inception": (InceptionCrop, "size")}  # kind -> the field of its size


def _sides(recipe: Recipe, name: str) -> list[int]:
    """The sizes that an augmentation is asked for, none where it is not."""
    value = recipe.augment.get(name)
    sides = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides) or value == []:
        raise ValueError(f"recipe: augment.{name}: expected pixels, or a list of them, got {value!r}")
    return sides


def _largest(recipe: Recipe, kind: str) -> int | None:
    kind = recipe.augment.get("kind", kind)
    return max(_sides(recipe, _SIDES[kind][1]), default=None) if kind in _SIDES else None


def _filled(cls, what: str, settings: Mapping):
    check_keys(f"recipe: {what}", settings, [f.name for f in dataclasses.fields(cls)])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a text or a single number, where others are expected
        raise ValueError(f"recipe: {what}: {cls.__name__} does not take these values: {values} ({error})") from error


def _columns(recipe: Recipe, other_targets: bool) -> tuple[Columns, tuple[str, ...]]:
    """The columns that a recipe chooses, and those that its targets need."""
    check_keys("recipe: columns", recipe.columns, NAMES)
    for kind, name in recipe.columns.items():
        if not isinstance(name, str | None):
            raise ValueError(f"recipe: columns.{kind}: expected the name of a column, got {name!r}")
    columns = Columns(**recipe.columns, prefer=("labels",) if getattr(recipe, "multi_label", False) else ())
    target = "caption" if isinstance(recipe, AlignRecipe) else "label"
    return columns, ("image",) if other_targets else ("image", target)


def card(recipe: Recipe, trainer: AlignTrainer | ViTTrainer, metrics: Mapping[str, float]) -> str:
    """README.md of the model's folder: what it is, its data, recipe, hours and results."""
    logs = trainer.state.log_history
    losses = [line["loss"] for line in logs if "loss" in line]
    device = torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else platform.machine()
    results = "\n".join(f"| {name.removeprefix('eval_')} | {value:.4g} |" for name, value in metrics.items())
    results = f"| metric | value |\n|---|---|\n{results}" if metrics else "No evaluation was asked for."
    tail = f"; last logged loss {losses[-1]:.4g}" if losses else ""
    average = f", the moving average (decay {recipe.ema}) of the trained ones" if recipe.ema else ""
    steps, best = f"{trainer.state.global_step:,} steps", trainer.state.best_global_step
    if trainer.args.load_best_model_at_end and best:
        steps = f"{best:,} of {steps}, which had the best {trainer.args.metric_for_best_model}"
    return f"""---
{yaml.safe_dump(_metadata(recipe), sort_keys=False).rstrip()}
---

# {Path(recipe.output).resolve().name}

{" ".join(recipe.about.split())}

`{class_of(trainer.model).__name__}`, {sum(p.numel() for p in trainer.model.parameters()):,} parameters. The weights are those
after {steps}{average}.

## Data

{json.dumps(as_dict(recipe)["data"])}: {trainer.state.epoch or 0:.2f} epochs.

## Training

{hours_of(logs):.2f} hours on {trainer.args.world_size} x {device}{tail}. With kakao-models:

```yaml
{as_yaml(recipe).rstrip()}
```

## Results

{results}
"""


def _metadata(recipe: Recipe) -> dict[str, Any]:
    """Metadata of a card for the Hub: the task, the models and data sets of the Hub that it comes from, and the license."""
    align = isinstance(recipe, AlignRecipe)
    task = "zero-shot-image-classification" if align else "image-classification"
    towers = (recipe.image_tower, recipe.text_tower) if align and not recipe.start else ()
    bases = [name for name in (recipe.start, *towers) if name and _is_on_hub(name)]
    found = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["kakao-models", "align" if align else "vit"],
        "base_model": bases[0] if len(bases) == 1 else bases,
        "datasets": _hub_datasets(recipe.data),
        "license": recipe.license or _license(recipe.start),
    }
    return {name: value for name, value in found.items() if value}


def _is_on_hub(name: str) -> bool:
    """Whether a checkpoint is a repository of the Hub, and not a folder or a file."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def _hub_datasets(data: Any) -> list[str]:
    """The repositories of the Hub among the sources of a recipe."""
    if isinstance(data, str):
        return ["/".join(data.removeprefix("hf://").partition(":")[0].split("/")[:2])] if is_hub(data) else []
    parts = [data.get("path")] if isinstance(data, Mapping) else data if isinstance(data, (list, tuple)) else []
    return list(dict.fromkeys(name for part in parts for name in _hub_datasets(part)))


def _license(start: str | None) -> str | None:
    """The license that the card of a checkpoint names."""
    if start is None:
        return None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        return (metadata_load(fetch(start, "README.md")) or {}).get("license")
    return None
