"""`AlignTrainer` and `ViTTrainer`: transformers' `Trainer` with the loss, optimizers and data of the original implementations."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from kakao_models.align.classification_torch import AlignForImageClassification
from kakao_models.align.modeling_torch import AlignModel, AlignOutput
from kakao_models.checkpoint.config import as_pair
from kakao_models.train.arguments import LOSSES, TrainOptions
from kakao_models.train.augment import Resolutions
from kakao_models.train.base_trainer import BaseTrainer
from kakao_models.train.data import StreamData, TrainData
from kakao_models.train.freezing import rest_frozen
from kakao_models.train.gradcache import BatchNormStatistics, chunked_step, ghost_chunks
from kakao_models.train.inputs import align_transform, class_transform
from kakao_models.train.loss import tiled_contrastive_loss, tiled_sigmoid_loss
from kakao_models.train.transform import DataError, SampleTransform
from kakao_models.vit.modeling_torch import ViTForImageClassification

TOWER_INPUTS = {"pixel_values", "input_ids", "attention_mask", "token_type_ids", "position_ids"}


class AlignTrainer(BaseTrainer):
    """Trains an `AlignModel` with the loss of the global batch. It is called like `transformers.Trainer`.

    Every process embeds its share, `per_device_train_batch_size` samples, in chunks of `chunk_size`; the loss is that of
    all processes' samples together. `gradient_accumulation_steps` = k is the same: the share becomes k times
    `per_device_train_batch_size`, in chunks of that, so that negatives are those of the whole batch. The samples of an
    epoch that fill no batch are left out of it.

    BERT's pooler, which ALIGN does not use, is not trained, as in the original.

    `evaluate` and `predict` give (image embeddings, text embeddings), (N, P) each, as predictions, and the row of each
    pair, 0..N-1, as label. `eval_loss` is the loss within each batch, so it depends on `per_device_eval_batch_size`.

    The loss is ALIGN's, `tiled_contrastive_loss`, or with `loss="sigmoid"` SigLIP's, `tiled_sigmoid_loss`; then a model
    without a `logit_bias` gets one, which is saved with it. For a loss of your own override `contrastive_loss`: it receives
    everything that your `SampleTransform.collate` puts into a batch beside the inputs of the towers. Texts may then be more
    or fewer than images, as long as there are no chunks.
    `compute_loss_func` is called with an `AlignOutput` of this process's share, with logits and embeddings.
    """

    models = (AlignModel,)
    other_models = "Load it with kakao_models.AlignModel.from_pretrained, or train a classifier with ViTTrainer"
    default_transform = staticmethod(align_transform)

    def _check_arguments(self, args: TrainingArguments, options: TrainOptions) -> None:
        super()._check_arguments(args, options)
        if args.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size: a smaller batch has fewer negatives, so it would change the loss. Set "
                "gradient_accumulation_steps, or chunk_size of TrainArguments, to need less memory"
            )
        if args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor: ALIGN does not use it. Set model.config.label_smoothing instead")

    def _check_transform(self, transform: SampleTransform) -> None:
        if transform.tokenizer is None:
            raise ValueError("its SampleTransform has no tokenizer, but AlignTrainer trains on captions")

    def _set_up(self) -> None:
        args, model = self.args, self.model
        if model.text_model.pooler is not None:
            model.text_model.pooler.requires_grad_(False)
        if self.options.loss == "sigmoid" and self.compute_loss_func is not None:
            raise ValueError("loss='sigmoid' and compute_loss_func exclude each other: leave out one of the two")
        if self.options.loss == "sigmoid" and model.logit_bias is None:
            model.add_logit_bias()
        own = self.compute_loss_func is not None or type(self).contrastive_loss is not AlignTrainer.contrastive_loss
        if self.options.loss == "contrastive" and model.logit_bias is not None and not own:
            model.logit_bias.requires_grad_(False)  # a softmax is the same with it and without
        super()._set_up()
        chunk = self.options.chunk_size or args.per_device_train_batch_size
        share = self._train_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.chunks = ghost_chunks(share, chunk, self.ghost)
        if len(self.chunks) > 1 and self.ghost is None and _trains_batch_norm(model):
            raise ValueError(
                "chunk_size or gradient_accumulation_steps: the image tower normalises over its whole batch "
                "(virtual_batch_size is None), which chunks would change. Set it (in a recipe: "
                "model.vision_config.virtual_batch_size=16), or train without chunks"
            )

    def _inner_training_loop(self, *args, **kwargs) -> TrainOutput:
        with _replaced(
            self.args, per_device_train_batch_size=self._train_batch_size, gradient_accumulation_steps=1
        ):  # the share of a process is one batch, regardless of chunks
            return super()._inner_training_loop(*args, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        with _replaced(self.args, dataloader_drop_last=True):
            loader = super().get_train_dataloader()
        if has_length(loader) and not len(loader):
            samples, batch = len(self.train_dataset), self._train_batch_size
            raise DataError(f"{samples} samples are fewer than a batch of {batch}: choose a smaller one")
        return loader

    def contrastive_loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        temperature: torch.Tensor,
        batch: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The loss of this process's share of a batch, in the order in which it was collated.

        Among several processes, gradients must be such that their **sum** over processes is that of the whole batch, as
        of `tiled_contrastive_loss`.

        Args:
            image_embeds, text_embeds: embeddings of the whole share, regardless of chunks.
            batch: everything that was collated beside the inputs of the towers.
        """
        if self.compute_loss_func is not None:
            logits = image_embeds @ text_embeds.t() / temperature
            output = AlignOutput(None, logits, logits.t(), text_embeds, image_embeds)
            return self.compute_loss_func(output, batch.get("labels"), num_items_in_batch=None)
        plain = self.accelerator.unwrap_model(self.model)
        if self.options.loss == "sigmoid":
            return tiled_sigmoid_loss(image_embeds, text_embeds, temperature, plain.logit_bias)
        return tiled_contrastive_loss(image_embeds, text_embeds, temperature, plain.config.label_smoothing)

    def loss_parameters(self, model: nn.Module) -> list[torch.Tensor]:
        """The tensors beside embeddings and temperature that the loss has gradients of: all parameters of the model outside
        of its towers and projections. With chunks, others have no gradient."""
        parts = ("text_model.", "vision_model.", "text_projection.", "visual_projection.", "temperature")
        return [p for name, p in model.named_parameters() if not name.startswith(parts)]

    def _split(self, inputs: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Splits a batch into inputs of the towers and everything else."""
        inputs = self._prepare_inputs(inputs)
        if absent := [name for name in ("pixel_values", "input_ids") if name not in inputs]:
            raise ValueError(
                f"a batch has {', '.join(inputs)}, but no {absent[0]}: AlignTrainer needs images and texts"
            )
        towers = {name: x for name, x in inputs.items() if name in TOWER_INPUTS}
        return towers, {name: x for name, x in inputs.items() if name not in TOWER_INPUTS}

    def _start_step(self, model: nn.Module) -> None:
        """Puts the model into training mode, all but what is frozen."""
        model.train()
        if hasattr(self.optimizer, "train"):  # a schedule-free one
            self.optimizer.train()
        rest_frozen(model, self.options.freeze)

    def forward_backward(self, model: nn.Module, inputs: dict, num_items_in_batch: Any) -> torch.Tensor:
        self._start_step(model)
        plain = self.accelerator.unwrap_model(model)
        statistics = BatchNormStatistics(plain)
        world = self.accelerator.num_processes
        # accelerate takes the mean over processes; `contrastive_loss` needs the sum
        scale = world if self.compute_loss_func is None else 1
        inputs, rest = self._split(inputs)
        order = torch.cat(self.chunks).argsort()
        if len(self.chunks) > 1 and (sizes := {name: len(x) for name, x in inputs.items() if len(x) != len(order)}):
            raise ValueError(f"chunk_size: chunks need one text for each of {len(order)} images, got {sizes}")

        def embed(part: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            output = model(**part, return_dict=True)
            return output["image_embeds"], output["text_embeds"]

        def loss(images, texts, temperature) -> torch.Tensor:
            if len(self.chunks) > 1:
                images, texts = (x[order.to(x.device)] for x in (images, texts))
            return self.contrastive_loss(images, texts, temperature, rest)

        def backward(scalar: torch.Tensor) -> None:
            self.accelerator.backward(scalar * scale)

        if len(self.chunks) == 1:
            value = loss(*embed(inputs), plain.temperature)
            backward(value)
        else:
            value = chunked_step(
                embed, inputs, self.chunks, loss, plain.temperature, backward=backward, statistics=statistics,
                parameters=self.loss_parameters(plain),
                no_sync=lambda: self.accelerator.no_sync(model), frozen={} if self.args.torch_compile else _frozen(plain),
            )  # fmt: skip
        if world > 1:
            statistics.average()
        return value.detach()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._evaluated = 0  # samples of this process
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None):
        inputs, rest = self._split(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, return_dict=True)
            embeds, plain = (output["image_embeds"], output["text_embeds"]), self.accelerator.unwrap_model(model)
            loss = self.contrastive_loss(*embeds, plain.temperature, rest)
        if prediction_loss_only:
            return loss, None, None
        batch = len(embeds[0])
        first = self._evaluated * self.args.world_size + self.args.process_index * batch
        self._evaluated += batch
        return loss, embeds, torch.arange(first, first + batch, device=loss.device)


class ViTTrainer(BaseTrainer):
    """Trains a `ViTForImageClassification` or an `AlignForImageClassification` on labels. It is called like
    `transformers.Trainer`; `evaluate` and `predict` give logits and labels as there."""

    models = (ViTForImageClassification, AlignForImageClassification)
    other_models = "An AlignModel is trained by AlignTrainer; other models are loaded by one of these classes"
    default_transform = staticmethod(class_transform)

    def _check_arguments(self, args: TrainingArguments, options: TrainOptions) -> None:
        super()._check_arguments(args, options)
        if options.chunk_size is not None:
            raise ValueError("chunk_size is only for ALIGN's loss. With labels, use gradient_accumulation_steps")
        if options.loss != LOSSES[0]:
            raise ValueError(
                f"loss: {options.loss} is for an AlignModel; the loss of a classifier follows from problem_type"
            )
        if options.temperature_range is not None:
            raise ValueError("temperature_range is for an AlignModel; a classifier has no temperature")

    def compute_loss(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any):
        data, size = self.train_dataset, inputs["pixel_values"].shape[-2:]
        plain = self.accelerator.unwrap_model(self.model)
        if (
            isinstance(plain, ViTForImageClassification)
            and isinstance(data, (TrainData, StreamData))
            and isinstance(data.prepare.augment, Resolutions)
            and size != as_pair(plain.config.image_size)
        ):
            inputs = {**inputs, "interpolate_pos_encoding": True}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _check_transform(self, transform: SampleTransform) -> None:
        own, classes = transform.classes or "no", self.accelerator.unwrap_model(self.model).config.num_labels
        if own != classes:
            raise ValueError(f"its SampleTransform has {own} classes, but the model has {classes}")


def _frozen(model: nn.Module) -> dict[nn.Module, Callable]:
    """Towers without training or dropout, and the part of their output that the projections read."""
    keep = {
        model.vision_model: lambda output: type(output)(pooler_output=output.pooler_output),
        model.text_model: lambda output: type(output)(last_hidden_state=output.last_hidden_state[:, :1].clone()),
    }
    for tower in list(keep):
        if any(m.training for m in tower.modules()) or any(p.requires_grad for p in tower.parameters()):
            del keep[tower]
    return keep


def _trains_batch_norm(model: nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(p.requires_grad for norm in norms for p in norm.parameters())


@contextlib.contextmanager
def _replaced(args: TrainingArguments, **values) -> Iterator[None]:
    """Gives some arguments other values inside the block."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)
