"""Settings of the trainers: transformers' `TrainingArguments`, and the settings of the original implementations."""

import dataclasses
import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from kakao_models.train.optim import OPTIMIZERS, check_schedule
from kakao_models.train.recompute import CHECKPOINTING

LOSSES = ("contrastive", "sigmoid")  # of an ALIGN

# Fields of `TrainingArguments` that `optimizer` and `schedule` replace.
_REPLACED = (
    "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs"
)  # fmt: skip


@dataclass
class TrainOptions:
    """The fields that `TrainArguments` adds to `transformers.TrainingArguments`.

    Args:
        optimizer: "lamb", "adamw" or "sgd", with the settings of the original implementations, which `optimizer_options`
            change. None: the optimizer and the schedule are those of transformers, by `optim` and `lr_scheduler_type`.
        schedule: "linear", "cosine" or "constant", after `warmup_steps` of warm-up; or points, {step: share of the rate}.
        end_lr: where the schedule ends.
        lr_scale: beginning of parameters' names → factor of their learning rate.
        freeze: beginnings of the names of modules that are not trained; their batch norms and dropouts rest too.
        loss: "contrastive" (softmax, ALIGN's) or "sigmoid" (SigLIP's, with a learned bias), of an ALIGN.
        temperature_range: lowest and highest temperature of an ALIGN, held after every step; None for no bounds.
        ema_decay: decay of the moving average that is saved and evaluated; None for none.
        chunk_size: number of samples of a process that have activations in memory at a time; None for its whole share. For
            classifiers it must be None: for them, `gradient_accumulation_steps` does the same.
        channels_last: memory layout of images and of convolutions' weights.
        checkpointing: "activations", "blocks" or None: the part that backward computes again (`recompute.checkpointing`).
        shard: share out parameters and the optimizer's moments among processes (FSDP2), which then hold a part of them each.
        shuffle_window: shards that are read at a time and shuffled among each other.
    """

    optimizer: str | None = "lamb"
    optimizer_options: dict = field(default_factory=dict)
    schedule: str | dict = "linear"
    end_lr: float = 0.0
    lr_scale: dict = field(default_factory=dict)
    freeze: list = field(default_factory=list)
    loss: str = LOSSES[0]
    temperature_range: list | None = None
    ema_decay: float | None = None
    chunk_size: int | None = None
    channels_last: bool = False
    checkpointing: str | None = None
    shard: bool = False
    shuffle_window: int = 16

    def __post_init__(self):
        for name, value, known in (
            ("optimizer", self.optimizer, (*OPTIMIZERS, None)),
            ("checkpointing", self.checkpointing, (*CHECKPOINTING, None)),
            ("loss", self.loss, LOSSES),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(str, known))}")
        check_schedule(self.schedule)
        if self.schedule not in ("linear", "cosine") and self.end_lr:
            raise ValueError(
                f"end_lr: got {self.end_lr}, but the schedule {self.schedule!r} does not end there. Leave end_lr out"
            )
        if isinstance(self.freeze, str) or not all(isinstance(name, str) for name in self.freeze):
            raise ValueError(f"freeze: expected a list of names of modules, got {self.freeze!r}")
        if not all(isinstance(scale, (int, float)) and scale >= 0 for scale in self.lr_scale.values()):
            raise ValueError(f"lr_scale: expected a factor of at least 0 for each name, got {self.lr_scale}")
        bounds = self.temperature_range
        numbers = bounds is None or all(isinstance(bound, (int, float)) for bound in bounds)
        if bounds is not None and not (numbers and len(bounds) == 2 and 0 < bounds[0] <= bounds[1]):
            raise ValueError(f"temperature_range: expected the lowest and the highest, above 0, got {bounds}")
        replacing = {"optimizer_options": {}, "schedule": "linear", "end_lr": 0.0, "lr_scale": {}}
        unused = [name for name, default in replacing.items() if getattr(self, name) != default]
        if self.optimizer is None and unused:
            raise ValueError(f"{unused[0]} needs an optimizer of this package, one of {', '.join(OPTIMIZERS)}")


@dataclass
class TrainArguments(TrainOptions, TrainingArguments):
    """`transformers.TrainingArguments` with the additional fields of `TrainOptions`.

    Raises:
        ValueError: a field has no such value, or `optimizer` and a field that it replaces (`optim`, `adam_beta1`,
            `lr_scheduler_type` ...) are both set.
    """

    def __post_init__(self):
        TrainOptions.__post_init__(self)
        defaults = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
        unused = [n for n in _REPLACED if getattr(self, n) and getattr(self, n) != defaults[n]]
        if self.optimizer is not None and unused:
            raise ValueError(
                f"{unused[0]}: got {getattr(self, unused[0])!r}, but optimizer={self.optimizer!r} and schedule replace it. "
                "Use optimizer, optimizer_options and schedule, or set optimizer=None"
            )
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # bf16 on a CPU needs it
        self.remove_unused_columns = False  # batches have what a model takes, and `keys` and `failures`
        self.logging_nan_inf_filter = False  # a loss that is not finite stops the run
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if several and self.ddp_backend is None and (self.use_cpu or not torch.cuda.is_available()):
            self.ddp_backend = "gloo"
        TrainingArguments.__post_init__(self)


def options_of(args: TrainingArguments) -> TrainOptions:
    """The additional fields of any arguments; with plain `TrainingArguments`, transformers' optimizer and schedule."""
    return args if isinstance(args, TrainOptions) else TrainOptions(optimizer=None)
