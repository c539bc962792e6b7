"""`AlignTrainer` and `ViTTrainer`: transformers' `Trainer` with the originals' loss, optimizers and data."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from kakao_models.train.arguments import TrainArguments
from kakao_models.train.data import Failures, GlobalBatches, Loader, StreamData, TrainData
from kakao_models.train.gradcache import BatchNormStatistics, chunked_step, ghost_chunks
from kakao_models.train.loss import tiled_contrastive_loss
from kakao_models.train.memory import keep_memory
from kakao_models.train.optim import MovingAverage, build_optimizer, build_schedule, parameter_groups
from kakao_models.train.recompute import checkpointing
from kakao_models.train.saving import AtomicCheckpoints

EvaluationFunction = Callable[[nn.Module, object], dict[str, float]]  # (model, processor) → metrics


class _BaseTrainer(AtomicCheckpoints):
    """What both have in common. `inputs` of a step are batches of `SampleTransform.collate`.

    Args:
        model: on whose `forward` gradients are taken.
        args: `TrainArguments`; `per_device_train_batch_size` is this process's share of a batch.
        train_dataset: `TrainData` or `StreamData`.
        processing_class: processor, saved beside the model and used for evaluation.
        evaluations: name → evaluation, run every `eval_steps` on the moving average where there is one; a metric "x"
            of the evaluation "name" is logged as "eval_name/x".

    Raises:
        FloatingPointError: the loss is not finite; the batch's sample keys are in `bad_batch.txt`.
        DataError: half of the samples are broken; all are in `broken_samples.txt`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainArguments,
        train_dataset: TrainData | StreamData,
        processing_class=None,
        evaluations: Mapping[str, EvaluationFunction] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process: start one process for each with torchrun "
                "--nproc-per-node, or show it one with CUDA_VISIBLE_DEVICES"
            )
        self.evaluations = dict(evaluations or {})
        freeze(model, args.freeze)
        if args.channels_last:
            model.to(memory_format=torch.channels_last)
        if args.checkpointing:
            model.activation_checkpointing_enable(checkpointing(args.checkpointing))
        if args.device.type == "cpu":
            keep_memory()
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=self.evaluations or None,  # transformers wants something there; `evaluate` is ours
            processing_class=processing_class,
            callbacks=[_Bookkeeping(self), *(callbacks or [])],
        )
        self.remove_callback(PrinterCallback)
        self.ema = MovingAverage(model, args.ema_decay) if args.ema_decay else None
        self.failures = Failures(self._write_line("broken_samples.txt"), _warn)
        self._clock = None

    # data

    def get_train_dataloader(self) -> Loader:
        data, args = self.train_dataset, self.args
        batches = None
        if isinstance(data, TrainData):
            share = args.per_device_train_batch_size
            batches = GlobalBatches(len(data), share * args.world_size, args.process_index, args.world_size, self.ghost)
        return Loader(
            data, batches, args.dataloader_num_workers, args.dataloader_pin_memory and args.device.type == "cuda"
        )

    @property
    def ghost(self) -> int | None:
        """Samples of a ghost batch, if the model trains batch norms that have such."""
        sizes = {
            module.virtual_batch_size
            for module in self.model.modules()
            if hasattr(module, "virtual_batch_size") and any(p.requires_grad for p in module.parameters())
        }
        return sizes.pop() if sizes else None

    # optimizer, schedule

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups = parameter_groups(model or self.model, args.learning_rate, args.weight_decay, args.lr_scale)
            self.optimizer = build_optimizer(args.optimizer, groups, **args.optimizer_options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            args, optimizer = self.args, optimizer or self.optimizer
            warmup = args.get_warmup_steps(num_training_steps)
            end = args.end_lr / args.learning_rate if args.learning_rate else 0.0
            self.lr_scheduler = build_schedule(optimizer, args.schedule, warmup, num_training_steps, end)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # one step

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # a finished run that is gone on with: not one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        keys, failures = inputs.pop("keys"), inputs.pop("failures")
        self.failures.count(len(keys), failures)
        model.train()
        rest_frozen(model, self.args.freeze)
        inputs = self._prepare_inputs(inputs)
        if self.args.channels_last:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        loss = self.forward_backward(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._write_line("bad_batch.txt")("\n".join(keys))
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}. The batch's {len(keys)} sample keys are in "
                f"{self._path('bad_batch.txt')}. Is the learning rate too high, or a picture or caption damaged?"
            )
        return loss

    def forward_backward(self, model: nn.Module, inputs: dict, num_items_in_batch) -> torch.Tensor:
        """Adds the gradients of a batch to those of the parameters, and returns its loss, detached."""
        raise NotImplementedError

    # evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of all evaluations, of the moving average where there is one."""
        metrics, start = {}, time.perf_counter()
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            if self.is_world_process_zero():
                for name, run in self.evaluations.items():
                    found = run(self.accelerator.unwrap_model(self.model), self.processing_class)
                    metrics |= {f"{metric_key_prefix}_{name}/{key}": float(value) for key, value in found.items()}
                metrics[f"{metric_key_prefix}_seconds"] = round(time.perf_counter() - start, 2)
            if self.args.world_size > 1:
                shared = [metrics]
                dist.broadcast_object_list(shared, src=0)
                (metrics,) = shared
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            if hasattr(self.model, "temperature"):
                logs["temperature"] = self.model.temperature.item()
            logs |= self._speed()
        super().log(logs, start_time)

    def _speed(self) -> dict[str, float]:
        """Samples of all processes a second since the last call, and the most memory that this process has had."""
        now, step = time.perf_counter(), self.state.global_step
        before, done = self._clock or (now, step)
        self._clock = now, step
        if self.args.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        speed = batch * (step - done) / (now - before) if step > done else 0.0
        return {"samples_per_second": round(speed, 2), "memory_gb": round(memory / 1e9, 2)}

    def _path(self, name: str) -> Path:
        suffix = f".{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(self.args.output_dir, name + suffix)

    def _write_line(self, name: str) -> Callable[[str], None]:
        def write(line: str) -> None:
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

        return write


TOWER_INPUTS = {"pixel_values", "input_ids", "attention_mask", "token_type_ids", "position_ids"}


class AlignTrainer(_BaseTrainer):
    """Trains an `AlignModel` with the loss of the global batch.

    Every process embeds its share, `per_device_train_batch_size` samples, in chunks of `chunk_size`; the loss is that of
    all processes' samples together. `gradient_accumulation_steps` = k is the same: it becomes a share of k times
    `per_device_train_batch_size` in chunks of that, so that negatives are those of the whole batch.

    BERT's pooler, which ALIGN does not use, is left out of training, as by the original.

    For a loss of your own override `contrastive_loss`: what your `SampleTransform.collate` puts into a batch beside the inputs of
    the towers comes to it. Texts may then be more or fewer than pictures, as long as there are no chunks.
    """

    def __init__(
        self, model, args: TrainArguments, train_dataset, processing_class=None, evaluations=None, callbacks=None
    ):
        if args.fsdp:
            raise ValueError(
                "fsdp: ALIGN's temperature is a scalar, which FSDP refuses. Where memory is short, set chunk_size and "
                "checkpointing; docs/scaling.md says how to shard parameters in a loop of your own"
            )
        if args.gradient_accumulation_steps > 1:
            args.chunk_size = args.chunk_size or args.per_device_train_batch_size
            args.per_device_train_batch_size *= args.gradient_accumulation_steps
            args.gradient_accumulation_steps = 1
        if model.text_model.pooler is not None:
            model.text_model.pooler.requires_grad_(False)
        super().__init__(model, args, train_dataset, processing_class, evaluations, callbacks)
        share, chunk = args.per_device_train_batch_size, args.chunk_size or args.per_device_train_batch_size
        self.chunks = ghost_chunks(share, chunk, self.ghost)
        if len(self.chunks) > 1 and self.ghost is None and _trains_batch_norm(model):
            raise ValueError(
                "chunk_size: the image tower normalises over its whole batch (virtual_batch_size is None), which chunks "
                "would change. Set it (of a recipe: model.vision_config.virtual_batch_size=16), or leave chunk_size out"
            )

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
            image_embeds, text_embeds: of the whole share, whatever the chunks.
            batch: what was collated beside the inputs of the towers.
        """
        smoothing = self.accelerator.unwrap_model(self.model).config.label_smoothing
        return tiled_contrastive_loss(image_embeds, text_embeds, temperature, smoothing)

    def forward_backward(self, model, inputs, num_items_in_batch) -> torch.Tensor:
        plain = self.accelerator.unwrap_model(model)
        statistics = BatchNormStatistics(plain)
        world = self.accelerator.num_processes
        rest = {name: inputs.pop(name) for name in inputs.keys() - TOWER_INPUTS}
        order = torch.cat(self.chunks).argsort()
        if len(self.chunks) > 1 and (sizes := {name: len(x) for name, x in inputs.items() if len(x) != len(order)}):
            raise ValueError(f"chunk_size: chunks need a text for each of {len(order)} pictures, got {sizes}")

        def embed(part: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            output = model(**part)
            return output["image_embeds"], output["text_embeds"]

        def loss(images, texts, temperature) -> torch.Tensor:
            if len(self.chunks) > 1:
                images, texts = (x[order.to(x.device)] for x in (images, texts))
            return self.contrastive_loss(images, texts, temperature, rest)

        def backward(scalar: torch.Tensor) -> None:
            self.accelerator.backward(scalar * world)  # which takes the mean over processes, and this wants the sum

        if len(self.chunks) == 1:
            value = loss(*embed(inputs), plain.temperature)
            backward(value)
        else:
            value = chunked_step(
                embed, inputs, self.chunks, loss, plain.temperature, backward=backward, statistics=statistics,
                no_sync=lambda: self.accelerator.no_sync(model), frozen={} if self.args.torch_compile else _frozen(plain),
            )  # fmt: skip
        if world > 1:
            statistics.average()
        return value.detach()


class ViTTrainer(_BaseTrainer):
    """Trains a `ViTForImageClassification` or an `AlignForImageClassification` on labels."""

    def __init__(
        self, model, args: TrainArguments, train_dataset, processing_class=None, evaluations=None, callbacks=None
    ):
        if args.fsdp and args.ema_decay:
            raise ValueError(
                "fsdp: a moving average is kept of whole parameters, not of shards: leave out one of the two"
            )
        if args.chunk_size is not None:
            raise ValueError("chunk_size is for ALIGN's loss; with labels, gradient_accumulation_steps does the same")
        super().__init__(model, args, train_dataset, processing_class, evaluations, callbacks)

    def forward_backward(self, model, inputs, num_items_in_batch) -> torch.Tensor:
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if not self.model_accepts_loss_kwargs or num_items_in_batch is None:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        if self.accelerator.num_processes > 1:
            BatchNormStatistics(self.accelerator.unwrap_model(model)).average()
        return loss.detach()


def freeze(model: nn.Module, prefixes: list[str]) -> None:
    """Takes the modules whose names begin with one of `prefixes` out of training.

    Raises:
        ValueError: a name that no module or parameter has.
    """
    for prefix in prefixes:
        chosen = [p for name, p in model.named_parameters() if name == prefix or name.startswith(prefix + ".")]
        if not chosen:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"freeze: there is no {prefix!r} in {type(model).__name__}; it has {parts}")
        for p in chosen:
            p.requires_grad_(False)


def rest_frozen(model: nn.Module, prefixes: list[str]) -> None:
    """Frozen modules in evaluation mode: their batch norms keep their statistics, their dropouts drop nothing."""
    for name, module in model.named_modules():
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
            module.training = False


def _frozen(model: nn.Module) -> dict[nn.Module, Callable]:
    """Towers that give the same each time, and what the projections take of their outputs."""
    keep = {
        model.vision_model: lambda output: type(output)(pooler_output=output.pooler_output),
        model.text_model: lambda output: type(output)(last_hidden_state=output.last_hidden_state[:, :1].clone()),
    }
    resting = {tower for tower in keep if not any(m.training for m in tower.modules())}
    return {t: keep[t] for t in keep if t in resting and not any(p.requires_grad for p in t.parameters())}


_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put around a model


def _trains_batch_norm(model: nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(p.requires_grad for norm in norms for p in norm.parameters())


class _Bookkeeping(TrainerCallback):
    """Moves the average after each step, and gives each process random numbers of its own."""

    def __init__(self, trainer: _BaseTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._clock = time.perf_counter(), state.global_step
        if args.world_size > 1 and state.global_step == 0:
            torch.manual_seed(args.seed + args.process_index)

    def on_step_end(self, args, state, control, **kwargs):
        if args.temperature_range:
            with torch.no_grad():
                self.trainer.accelerator.unwrap_model(self.trainer.model).temperature.clamp_(*args.temperature_range)
        if self.trainer.ema:
            self.trainer.ema.update()


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
