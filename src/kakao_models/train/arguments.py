"""Settings of the trainers: transformers' `TrainingArguments` and what the originals have beside them."""

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from kakao_models.train.optim import OPTIMIZERS, check_schedule
from kakao_models.train.recompute import CHECKPOINTING


@dataclass
class TrainArguments(TrainingArguments):
    """`transformers.TrainingArguments` with these fields more. Of those, `optim`, `adam_*` and
    `lr_scheduler_type` are not used.

    Args:
        optimizer: "lamb", "adamw" or "sgd", with the originals' settings, which `optimizer_options` change.
        schedule: "linear", "cosine" or "constant", after `warmup_steps` of warm-up; or points, {step: share of the rate}.
        end_lr: where the schedule ends.
        lr_scale: beginning of parameters' names → factor of their learning rate.
        freeze: beginnings of the names of modules that are not trained; their batch norms and dropouts rest too.
        temperature_range: lowest and highest temperature of an ALIGN, held after every step; None for no bounds.
        ema_decay: of the moving average that is saved and evaluated; None for none.
        chunk_size: samples of a process whose activations are in memory at a time; None for its whole share. Without
            captions it must be None: there, `gradient_accumulation_steps` does the same.
        channels_last: memory layout of pictures and of convolutions' weights.
        checkpointing: "activations", "blocks" or None: what backward computes again, as of `recompute.checkpointing`.
        shuffle_window: shards that are read at a time and shuffled among each other.
    """

    optimizer: str = "lamb"
    optimizer_options: dict = field(default_factory=dict)
    schedule: str | dict = "linear"
    end_lr: float = 0.0
    lr_scale: dict = field(default_factory=dict)
    freeze: list = field(default_factory=list)
    temperature_range: list | None = None
    ema_decay: float | None = None
    chunk_size: int | None = None
    channels_last: bool = False
    checkpointing: str | None = None
    shuffle_window: int = 16

    def __post_init__(self):
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("checkpointing", self.checkpointing, (*CHECKPOINTING, None)),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(str, known))}")
        check_schedule(self.schedule)
        bounds = self.temperature_range
        if bounds is not None and not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1]):
            raise ValueError(f"temperature_range: wanted the lowest and the highest, above 0, got {bounds}")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # bf16 on a CPU wants to hear it
        self.remove_unused_columns = False  # batches have what a model takes, and `keys` and `failures`
        self.logging_nan_inf_filter = False  # a loss that is not finite stops the run
        self.ddp_find_unused_parameters = False
        self.ddp_broadcast_buffers = False  # batch norms' statistics are averaged instead, as the original's
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if several and self.ddp_backend is None and (self.use_cpu or not torch.cuda.is_available()):
            self.ddp_backend = "gloo"
        super().__post_init__()
