"""The base of `AlignTrainer` and `ViTTrainer`: arguments, data, optimizers, evaluation, logs."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import EvalPrediction, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from kakao_models.train.arguments import TrainOptions, options_of
from kakao_models.train.augment import Resolutions
from kakao_models.train.data import Failures, GlobalBatches, Loader, SizeOf, StreamData, TrainData
from kakao_models.train.freezing import freeze, rest_frozen
from kakao_models.train.gradcache import BatchNormStatistics
from kakao_models.train.inputs import EvalData, eval_data, is_prepared, is_source, paired, train_data
from kakao_models.train.memory import keep_memory
from kakao_models.train.optim import MovingAverage, build_optimizer, build_schedule, parameter_groups
from kakao_models.train.recompute import checkpointing
from kakao_models.train.saving import AtomicCheckpoints
from kakao_models.train.sharding import is_sharded, shard, whole_copy
from kakao_models.train.transform import DataError, SampleTransform

try:
    import resource
except ImportError:  # Windows
    resource = None

Evaluation = Callable[[nn.Module, object], dict[str, float]]  # (model, processor) → metrics


class BaseTrainer(AtomicCheckpoints):
    """The base of both trainers. They are called like `transformers.Trainer`; only these arguments differ.

    Args:
        model: `AlignModel` for `AlignTrainer`, a classifier for `ViTTrainer`.
        args: `TrainArguments`. With plain `transformers.TrainingArguments`, or none, the optimizer and the schedule are
            those of transformers; the loss, the data and the checkpoints are those of this package.
        train_dataset, eval_dataset: anything that `open_source` opens (a path, a `datasets.Dataset`, a list of dicts ...) or a
            torch Dataset of such dicts, prepared by `processing_class`; `TrainData` or `StreamData`; or a dataset of the
            model's inputs (`pixel_values` ...), which goes through `data_collator` as in transformers. `eval_dataset` may
            also be a dict of datasets by name.
        processing_class: prepares images and captions, and is saved beside the model: `AlignProcessor`, an image
            processor, or a pair of an image processor and a tokenizer.
        evaluations: name → evaluation, run beside `eval_dataset`; a metric "x" of the evaluation "name" is logged as
            "eval_name/x".

    With `ema_decay`, the moving average is evaluated and saved. A broken training sample is replaced by another and
    written to `broken_samples.txt`.

    Raises:
        ValueError: arguments that do not fit each other, the model or the data; before anything is trained.
        FloatingPointError: the loss is not finite; the batch's sample keys are in `bad_batch.txt`.
        DataError: half of the training samples are broken.
    """

    models: tuple[type[nn.Module], ...]  # classes that it trains
    other_models: str  # a sentence for those who have another one
    default_transform: Callable[[nn.Module, Any], SampleTransform]  # (model, processor) → transform

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list], Mapping] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, LRScheduler | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        *,
        evaluations: Mapping[str, Evaluation] | None = None,
    ):
        args = TrainingArguments("tmp_trainer") if args is None else args
        self.options = options_of(args)
        self.evaluations = dict(evaluations or {})
        self._collates, self._ready, self.ema, self._clock = data_collator is not None, None, None, None
        self._evaluated_at: tuple[int | None, dict[str, float]] = None, {}
        self._check_arguments(args, self.options)
        if model is not None:
            self._check_model(model)
        if args.device.type == "cpu":
            keep_memory()
        super().__init__(
            model,
            args,
            data_collator,
            None,  # train_dataset: opened below, when the model is there
            eval_dataset if eval_dataset is not None else self.evaluations or None,  # checked with eval_strategy
            paired(processing_class),
            model_init,
            compute_loss_func,
            compute_metrics,
            [_Bookkeeping(self), *(callbacks or [])],
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
        )
        self.failures = Failures(partial(self._append, "broken_samples.txt"), _warn)
        self._set_up()
        self.train_dataset = self._training_data(train_dataset)
        self._validate_args()  # again, with the training data
        if isinstance(eval_dataset, Mapping):
            self.eval_dataset = {
                name: self._evaluation_data(data, f"eval_dataset[{name!r}]") for name, data in eval_dataset.items()
            }
        else:
            self.eval_dataset = self._evaluation_data(eval_dataset, "eval_dataset")

    def _check_arguments(self, args: TrainingArguments, options: TrainOptions) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process: start one process for each with torchrun "
                "--nproc-per-node, or choose one GPU with CUDA_VISIBLE_DEVICES"
            )
        if args.deepspeed or args.parallelism_config:
            name = "deepspeed" if args.deepspeed else "parallelism_config"
            raise ValueError(f"{name} is not supported: start a process for each GPU with torchrun instead")
        if args.fsdp:
            raise ValueError("fsdp: set shard=True of TrainArguments (shard: true in a recipe) to shard parameters")
        if options.shard and (options.ema_decay or args.fp16 or args.torch_compile):
            other = "ema_decay" if options.ema_decay else "fp16" if args.fp16 else "torch_compile"
            raise ValueError(f"shard and {other} exclude each other: leave out one of the two")

    def _check_model(self, model: nn.Module) -> None:
        """
        Raises:
            TypeError: the model is of another kind.
        """
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
        if not isinstance(model, self.models):
            expected = " or ".join(cls.__name__ for cls in self.models)
            raise TypeError(
                f"{type(self).__name__} trains {expected} of kakao_models, got {type(model).__module__}."
                f"{type(model).__name__}. {self.other_models}"
            )

    def _set_up(self) -> None:
        """Prepares the model and the settings of a run. transformers may have changed both since the last time: a new
        model by `model_init`, new values in `args` by a hyperparameter search."""
        if self._ready is self.model:
            return
        self._ready, options = self.model, self.options
        freeze(self.model, options.freeze)
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if options.checkpointing:
            self.model.activation_checkpointing_enable(checkpointing(options.checkpointing))
        self.ema = MovingAverage(self.model, options.ema_decay) if options.ema_decay else None
        if options.shard and self.args.world_size > 1:
            shard(self.model, self.args.device)
            # or accelerate would wrap it in DistributedDataParallel, which takes no shards
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        self._check_model(model)
        return model

    def _hp_search_setup(self, trial) -> None:
        """transformers calls this in `train`, once the model and `args` of the run exist."""
        super()._hp_search_setup(trial)
        self._set_up()

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        for handler in arguments["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.find_unused_parameters = False
                handler.broadcast_buffers = False  # batch norms' statistics are averaged instead, as in the original
        return arguments

    # data

    def _transform(self) -> SampleTransform:
        """The transform from images with captions or labels to inputs of the model: that of the training data, or the
        default for `processing_class`."""
        if isinstance(self.train_dataset, (TrainData, StreamData)):
            return self.train_dataset.prepare
        return self.default_transform(self.accelerator.unwrap_model(self.model), self.processing_class)

    def _raw(self, dataset: Any) -> bool:
        """Whether samples of a dataset have to be prepared.

        Raises:
            ValueError: a source that `data_collator` cannot work on.
        """
        opened_here = isinstance(dataset, (TrainData, StreamData)) or is_source(dataset)
        if self._collates and opened_here:
            raise ValueError(
                f"data_collator works on the items of a dataset, got {str(dataset)!r:.100}: pass a datasets.Dataset, or leave "
                "data_collator out"
            )
        return opened_here or not self._collates and not is_prepared(dataset)

    def _training_data(self, dataset: Any) -> Any:
        """`TrainData` or `StreamData` of images with captions or labels; a dataset of the model's inputs is returned unchanged."""
        args, seed = self.args, self.args.seed if self.args.data_seed is None else self.args.data_seed
        with _named("train_dataset"):
            if dataset is None or not self._raw(dataset):
                return dataset
            if isinstance(dataset, (TrainData, StreamData)):
                self._check_transform(dataset.prepare)
                return dataset
            shares = self._train_batch_size, args.process_index, args.world_size
            return train_data(dataset, self._transform, seed, self.options.shuffle_window, *shares)

    def _evaluation_data(self, dataset: Any, name: str, predict: bool = False) -> Any:
        """`EvalData` of images with captions or labels; a dataset of the model's inputs is returned unchanged."""
        with _named(name):
            if dataset is None or isinstance(dataset, EvalData) or not self._raw(dataset):
                return dataset
            if isinstance(dataset, TrainData):
                return EvalData(dataset.source, dataset.prepare)
            return eval_data(dataset, self._transform, predict)

    def _check_transform(self, transform: SampleTransform) -> None:
        """
        Raises:
            ValueError: it prepares samples for another model.
        """

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        data = self.train_dataset = self._training_data(self.train_dataset)
        args, batches = self.args, None
        if not isinstance(data, (TrainData, StreamData)):
            return super().get_train_dataloader()
        share, world = self._train_batch_size, args.world_size
        size_of = self._size_of(len(data) // (share * world) if isinstance(data, TrainData) else 0)
        if isinstance(data, TrainData):
            batches = GlobalBatches(len(data), share * world, args.process_index, world, self.ghost, size_of)
        else:
            data.size_of = size_of
        return Loader(data, batches, args.dataloader_num_workers, self._pins_memory)

    def _size_of(self, batches: int) -> SizeOf | None:
        """The size of images for each batch of the run, where training data have `Resolutions`; an epoch has `batches`."""
        augment, parts = self.train_dataset.prepare.augment, self.args.gradient_accumulation_steps
        if not isinstance(augment, Resolutions):
            return None
        steps = self.args.max_steps
        if steps <= 0:
            steps = math.ceil(self.args.num_train_epochs * batches / parts)
        return lambda batch: augment.number(batch // parts, steps)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, str) and isinstance(self.eval_dataset, Mapping) and data in self.eval_dataset:
            data = self.eval_dataset[data]
        data = self._evaluation_data(data, "eval_dataset")
        return self._in_order(data) if isinstance(data, EvalData) else super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        data = self._evaluation_data(test_dataset, "test_dataset", predict=True)
        return self._in_order(data) if isinstance(data, EvalData) else super().get_test_dataloader(data)

    def _in_order(self, data: EvalData) -> torch.utils.data.DataLoader:
        args = self.args
        loader = torch.utils.data.DataLoader(
            data,
            batch_size=args.eval_batch_size,
            collate_fn=data.collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=self._pins_memory,
        )
        return self.accelerator.prepare(loader)

    @property
    def _pins_memory(self) -> bool:
        return self.args.dataloader_pin_memory and self.args.device.type == "cuda"

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
        options = self.options
        if self.optimizer is not None or options.optimizer is None or self.optimizer_cls_and_kwargs is not None:
            return super().create_optimizer(model)
        args = self.args
        groups = parameter_groups(model or self.model, args.learning_rate, args.weight_decay, options.lr_scale)
        self.optimizer = build_optimizer(options.optimizer, groups, **options.optimizer_options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        options = self.options
        if self.lr_scheduler is not None or options.optimizer is None:
            return super().create_scheduler(num_training_steps, optimizer)
        args, optimizer = self.args, optimizer or self.optimizer
        warmup = args.get_warmup_steps(num_training_steps)
        end = options.end_lr / args.learning_rate if args.learning_rate else 0.0
        self.lr_scheduler = build_schedule(optimizer, options.schedule, warmup, num_training_steps, end)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # one step

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # a finished run that is resumed: not one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        keys = inputs.pop("keys", None)  # of our own data
        inputs.pop("ids", None)
        if keys is not None:
            self.failures.count(len(keys), inputs.pop("failures"))
        if self.options.channels_last:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        loss = self.forward_backward(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            place = ""
            if keys is not None:
                self._append("bad_batch.txt", "\n".join(keys))
                place = f" The batch's {len(keys)} sample keys are in {self._path('bad_batch.txt')}."
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}.{place} Is the learning rate too high, or an "
                "image or caption damaged?"
            )
        return loss

    def forward_backward(self, model: nn.Module, inputs: dict, num_items_in_batch: Any) -> torch.Tensor:
        """Adds the gradients of a batch to those of the parameters, and returns its loss, detached."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.num_processes > 1:
            BatchNormStatistics(self.accelerator.unwrap_model(model)).average()
        return loss

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any):
        if model.training:
            rest_frozen(model, self.options.freeze)
        return super().compute_loss(model, *args, **kwargs)

    # evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of `eval_dataset` as in transformers, and of all `evaluations`; of the moving average where there is
        one."""
        metrics = {}
        if eval_dataset is not None or self.eval_dataset is not None or not self.evaluations:
            metrics |= super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and self.evaluations:
            metrics |= self._run_evaluations(metric_key_prefix)
        if eval_dataset is None and metric_key_prefix == "eval":
            self._evaluated_at = self.state.global_step, metrics
        return metrics

    def last_metrics(self) -> dict[str, float]:
        """Metrics of the trained model: those of the evaluation after the last step, where there was one, and else of a new
        one. Times and epochs are left out."""
        step, metrics = self._evaluated_at
        if step != self.state.global_step or self.args.load_best_model_at_end:
            metrics = self.evaluate()
        others = ("_seconds", "_runtime", "_per_second", "_time")
        return {name: x for name, x in metrics.items() if name != "epoch" and not name.endswith(others)}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            return super().evaluation_loop(*args, **kwargs)

    def _run_evaluations(self, prefix: str) -> dict[str, float]:
        metrics, start = {}, time.perf_counter()
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            plain = self.accelerator.unwrap_model(self.model)
            plain = whole_copy(plain) if is_sharded(plain) else plain
            if self.is_world_process_zero():
                for name, run in self.evaluations.items():
                    values = run(plain, self.processing_class)
                    metrics |= {f"{prefix}_{name}/{key}": float(value) for key, value in values.items()}
                metrics[f"{prefix}_seconds"] = round(time.perf_counter() - start, 2)
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
        """Samples of all processes a second since the last call, and the most memory that this process has had, if it is known."""
        now, step = time.perf_counter(), self.state.global_step
        before, done = self._clock or (now, step)
        self._clock = now, step
        batch = self.get_total_train_batch_size(self.args)
        speed = batch * (step - done) / (now - before) if step > done else 0.0
        logs = {"samples_per_second": round(speed, 2)}
        if self.args.device.type == "cuda":
            logs["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        elif resource is not None:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            logs["memory_gb"] = round(most / 1e9, 2)
        return logs

    def _path(self, name: str) -> Path:
        suffix = f".{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(self.args.output_dir, name + suffix)

    def _append(self, name: str, line: str) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")


class _Bookkeeping(TrainerCallback):
    """Moves the average after each step, and gives each process its own random numbers."""

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._clock = time.perf_counter(), state.global_step
        if args.world_size > 1 and state.global_step == 0:
            torch.manual_seed(args.seed + args.process_index)

    def on_step_end(self, args, state, control, **kwargs):
        if bounds := self.trainer.options.temperature_range:
            with torch.no_grad():
                self.trainer.accelerator.unwrap_model(self.trainer.model).temperature.clamp_(*bounds)
        if self.trainer.ema:
            self.trainer.ema.update()


@contextlib.contextmanager
def _named(argument: str) -> Iterator[None]:
    """Errors of a dataset begin with the argument's name."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{argument}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {str(error).removeprefix('data: ')}") from error


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
