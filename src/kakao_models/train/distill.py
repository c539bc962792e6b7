"""Distillation (Hinton et al. 2015): an ALIGN that also learns from a teacher's embeddings or class probabilities.

Losses are those of this process's share of a batch; among several processes their mean counts.

Axes: n samples of this process  K width of what the teacher gives  D width of an embedding  C classes of a step
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kakao_models.align.modeling_torch import AlignModel, l2_normalize
from kakao_models.align.preprocessing import MAX_TOKENS
from kakao_models.evaluate.templates import read_templates
from kakao_models.files.lines import lines_of
from kakao_models.samples.rows import vectors_of
from kakao_models.samples.shards import Source
from kakao_models.samples.sources import Joined
from kakao_models.train.recipe import check_keys
from kakao_models.train.targets import class_loss, cosine_loss, pair_loss, relation_loss
from kakao_models.train.trainer import AlignTrainer

# loss -> temperature of the teacher, where none is chosen
LOSSES = {"relations": 0.1, "pairs": 0.1, "cosine": 1.0, "classes": 1.0}
Table = Mapping[str, Any]  # a sample's id -> what the teacher gives for it, (K,)
Teacher = Table | Sequence[Table | None] | Callable[[Mapping[str, Any]], torch.Tensor]


@dataclass(kw_only=True)
class Distillation:
    """A loss that follows one teacher.

    Args:
        targets: the teacher's embeddings or probabilities by the sample's id, as text; one such table for each of several sources, in
            their order, with None for a source that it says nothing of; or a function of the batch (`pixel_values`,
            `input_ids`, ... on the model's device, and `keys`) that gives them, (n, K), without gradients.
        loss: "relations": each sample is as similar to the others of the batch as in the teacher's embeddings, of any width.
            "pairs": the teacher's similarities share out the targets of the contrastive loss among images and texts.
            "cosine": embeddings point where the teacher's do, whose width must be the model's.
            "classes": images are classified as by the teacher's probabilities (not logits), by the names of its classes.
        of: "images" or "texts", whose embeddings "relations" and "cosine" are about.
        weight: factor of the loss.
        temperature: the teacher's: similarities are divided by it, probabilities raised to 1 / temperature. By default 0.1,
            and 1 for "classes".
        student_temperature: the model's; by default the teacher's for "relations", else the model's own.
        classes: names of the K classes.
        templates: sentences with a `{}` for the class name, of which each step draws one for each class.
        per_step: at most this many classes are compared in a step, the most probable ones of the batch.
    """

    targets: Teacher
    loss: str = "relations"
    of: str = "images"
    weight: float = 1.0
    temperature: float | None = None
    student_temperature: float | None = None
    classes: Sequence[str] = ()
    templates: Sequence[str] = ("a photo of a {}.",)
    per_step: int = 256

    def __post_init__(self):
        check_keys("distill: loss", [self.loss], LOSSES)
        check_keys("distill: of", [self.of], ["images", "texts"])
        if self.temperature is None:
            self.temperature = LOSSES[self.loss]
        for name in ("temperature", "student_temperature", "weight", "per_step"):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                number = (int if name == "per_step" else float)(value)
            except (TypeError, ValueError):
                raise ValueError(f"distill: {name} must be a number, got {value!r}") from None
            if not number > 0:
                raise ValueError(f"distill: {name} must be above 0, got {value}")
            setattr(self, name, number)
        if (self.loss == "classes") != bool(self.classes):
            raise ValueError(
                f"distill: loss {self.loss!r}: only the loss 'classes' takes the names of classes: leave classes out"
            )

    def rows(self, ids: Sequence[tuple[int, str | None]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets of samples, by ids as of `Source.identify`, zeros where there are none (n, K); whether there is one (n,)."""
        tables = [self.targets] if isinstance(self.targets, Mapping) else self.targets
        if beyond := next((source for source, _ in ids if source >= len(tables)), None):
            raise ValueError(f"distill: got targets for {len(tables)} sources, but the data has source number {beyond}")
        targets = [None if tables[source] is None else tables[source].get(name) for source, name in ids]
        shape = next((np.shape(row) for row in targets if row is not None), (len(self.classes) or 1,))
        rows = [np.zeros(shape, np.float32) if row is None else np.asarray(row, np.float32) for row in targets]
        return torch.from_numpy(np.stack(rows)), torch.tensor([row is not None for row in targets])

    def expected(self, source: int) -> bool:
        """Whether samples of a source should have targets."""
        return isinstance(self.targets, Mapping) or self.targets[source] is not None


def read_embeddings(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """The vectors of a folder of `kakao-models data embed`, or of any .parquet with `id` and `embedding`, by id.

    Raises:
        ValueError: no such file, a missing column, or a duplicate id.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, place = Path(source), f"distill: targets: {source}"
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"{place}: expected a .parquet, or a folder of them as data embed writes it")
    try:
        table = pa.concat_tables(pq.read_table(file, columns=["id", "embedding"]) for file in files)
    except (KeyError, pa.ArrowInvalid) as error:
        raise ValueError(f"{place}: expected columns id and embedding ({error})") from error
    vectors = dict(zip(map(str, table["id"].to_pylist()), vectors_of(table["embedding"].combine_chunks(), source)))
    if len(vectors) < len(table):
        raise ValueError(f"{place}: {len(table) - len(vectors)} ids are duplicates")
    return vectors


def build_distillations(settings: Mapping[str, Mapping], source: Source | None) -> dict[str, Distillation]:
    """Teachers of a recipe: name -> fields of `Distillation`. `source` is its data, None for a stream.

    `targets` is a file or folder for `read_embeddings`, or a list with one (or null) for each source of the data; `classes` a file
    with a name per line; `templates` a list of sentences, or a name that `evaluate zero-shot` knows.

    Raises:
        ValueError: an unknown field, or files that do not fit.
    """
    sources = len(source.sources) if isinstance(source, Joined) and source.is_list else 1
    distillations = {}
    for name, setting in settings.items():
        if not isinstance(setting, Mapping):
            raise ValueError(f"recipe: distill: {name}: expected a mapping with targets, got {setting!r}")
        check_keys(f"recipe: distill: {name}", setting, [field.name for field in fields(Distillation)])
        values = dict(setting)
        paths = values.get("targets")
        paths = paths if isinstance(paths, list) else [paths]
        if (
            len(paths) != sources
            or not any(paths)
            or not all(isinstance(path, str | os.PathLike | None) for path in paths)
        ):
            raise ValueError(
                f"recipe: distill: {name}: targets: expected one file for each of the {sources} sources of data, or null, got {paths}"
            )
        tables = {path: read_embeddings(path) for path in set(paths) if path is not None}  # a source may be there twice
        values["targets"] = [tables.get(path) for path in paths]
        if isinstance(values.get("classes"), str):
            values["classes"] = lines_of(values["classes"])
        if isinstance(values.get("templates"), str):
            values["templates"] = read_templates(values["templates"])
        distillations[name] = Distillation(**values)
    return distillations


class DistillTrainer(AlignTrainer):
    """Trains an `AlignModel` on teachers, beside the contrastive loss or instead of it. Logs each teacher's loss; `eval_loss` is
    the contrastive loss.

    Args:
        distill: name -> loss that follows that teacher.
        contrastive: factor of the contrastive loss; 0 leaves it out.
        args, kwargs: arguments of `AlignTrainer`.

    Raises:
        ValueError: class names in chunks among several processes, which cannot be exact.
    """

    def __init__(self, *args: Any, distill: Mapping[str, Distillation], contrastive: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.distill, self.contrastive = dict(distill), contrastive
        self._losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._prompts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._keys: list[str] = []
        classes = any(term.loss == "classes" for term in self.distill.values())
        if classes and len(self.chunks) > 1 and self.args.world_size > 1:
            raise ValueError(
                "distill: loss 'classes' with several processes needs the whole batch of a process in one chunk"
            )

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        self._keys = inputs.get("keys", [])
        for name, term in self.distill.items():
            if callable(term.targets):
                continue
            if "ids" not in inputs:
                raise ValueError(
                    f"distill: {name}: targets are looked up by id, but the batch has no ids. Pass images and captions as "
                    "train_dataset, not the model's inputs; or a function of the batch as targets"
                )
            rows, present = term.rows(inputs["ids"])
            samples = zip(self._keys, inputs["ids"], present)
            lacking = [key for key, (source, _), there in samples if not there and term.expected(source)]
            inputs["failures"] = [*inputs["failures"], *((key, f"distill: {name} has no target") for key in lacking)]
            inputs |= {f"distill/{name}": rows, f"distilled/{name}": present}
        return super().training_step(model, inputs, num_items_in_batch)

    def forward_backward(self, model: nn.Module, inputs: dict, num_items_in_batch: Any) -> torch.Tensor:
        self._start_step(model)
        inputs, plain = self._prepare_inputs(inputs), self.accelerator.unwrap_model(model)
        for name, term in self.distill.items():
            if callable(term.targets):
                with torch.no_grad():
                    rows = torch.as_tensor(term.targets({**inputs, "keys": self._keys})).float()
                inputs |= {f"distill/{name}": rows, f"distilled/{name}": torch.ones(len(rows), dtype=torch.bool)}
        self._prompts = {
            name: self._class_embeddings(plain, term, inputs[f"distill/{name}"])
            for name, term in self.distill.items()
            if term.loss == "classes"
        }
        loss = super().forward_backward(model, inputs, num_items_in_batch)
        others = 1 - 1 / self._shares  # as much as the other processes add
        return loss + others * sum(term.weight * self._losses[name][-1] for name, term in self.distill.items())

    def loss_parameters(self, model: nn.Module) -> list[torch.Tensor]:
        return [*super().loss_parameters(model), *(embeds for _, embeds in self._prompts.values())]

    @property
    def _shares(self) -> int:
        """Number of processes over which gradients are added up; with `compute_loss_func`, `AlignTrainer` takes their mean."""
        return self.accelerator.num_processes if self.compute_loss_func is None else 1

    def contrastive_loss(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, temperature: torch.Tensor, batch: Mapping
    ) -> torch.Tensor:
        if not self.model.training:  # in `evaluate` samples have no targets
            return super().contrastive_loss(image_embeds, text_embeds, temperature, batch)
        # each has a gradient, if only zeros, whatever the terms are
        loss = 0 * (image_embeds.sum() + text_embeds.sum() + temperature)
        if self.contrastive:
            loss = loss + self.contrastive * super().contrastive_loss(image_embeds, text_embeds, temperature, batch)
        for name, term in self.distill.items():
            value = self._loss(name, term, image_embeds, text_embeds, temperature, batch)
            self._losses[name].append(value.detach())
            loss = loss + term.weight / self._shares * value
        return loss

    def _loss(self, name: str, term: Distillation, image_embeds, text_embeds, temperature, batch) -> torch.Tensor:
        present = batch[f"distilled/{name}"].to(image_embeds.device)
        teacher, images, texts = (x[present] for x in (batch[f"distill/{name}"], image_embeds, text_embeds))
        own = images if term.of == "images" else texts
        if not len(own):
            return own.sum()
        if term.loss == "relations":
            return relation_loss(own, teacher, term.temperature, term.student_temperature or term.temperature)
        if term.loss == "cosine":
            return cosine_loss(own, teacher)
        temperature = temperature if term.student_temperature is None else term.student_temperature
        if term.loss == "pairs":
            return pair_loss(images, texts, teacher, term.temperature, temperature)
        columns, prompts = self._prompts[name]
        return class_loss(images, prompts, teacher[:, columns], term.temperature, temperature)

    def _class_embeddings(
        self, model: AlignModel, term: Distillation, probabilities: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The classes that are compared (C,), and the embeddings of their names (C, D)."""
        if probabilities.shape[1] != len(term.classes) or (probabilities < 0).any():
            raise ValueError(
                f"distill: expected probabilities (at least 0) of {len(term.classes)} classes, got shape {tuple(probabilities.shape)} "
                f"and a smallest value of {probabilities.min().item():.3g}"
            )
        columns = probabilities.sum(0).topk(min(term.per_step, len(term.classes))).indices
        random = np.random.default_rng([self.args.seed, self.state.global_step])
        templates = random.choice(list(term.templates), len(columns))
        prompts = [template.format(term.classes[column]) for template, column in zip(templates, columns.tolist())]
        most = min(MAX_TOKENS, model.config.text_config.max_position_embeddings)
        options: dict[str, Any] = dict(truncation=True, max_length=most, return_tensors="pt")
        tokens = self.processing_class(text=prompts, **options).to(probabilities.device)
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        with self.accelerator.autocast():
            features = model.get_text_features(**tokens).pooler_output
        return columns, l2_normalize(features.float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {f"distill/{name}": torch.stack(values).mean().item() for name, values in self._losses.items()}
            self._losses.clear()
        super().log(logs, start_time)
