"""The originals' optimizers, schedules and moving average."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kakao_models.checkpoint.torch import wide_dtype


class LAMB(torch.optim.Optimizer):
    """LAMB (You et al. 2019) as in `tfa.optimizers.LAMB`, which the original code uses: Adam's bias-corrected step plus `weight_decay`
    times the weights, scaled for each tensor to the length of its weights ("layer adaptation").

    A tensor whose weights or step have length 0 takes the step as it is. Nothing is clipped.

    Args:
        params: parameters or groups; a group may have its own `lr`, `weight_decay` and `adapt`.
        eps: added to the root of the second moment.
        adapt: whether steps are scaled by layer adaptation.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-5,
        adapt: bool = True,
    ):
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"LAMB: expected lr >= 0, eps > 0, weight_decay >= 0 and betas in [0, 1), got {lr=}, {eps=}, "
                f"{weight_decay=}, {betas=}"
            )
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adapt=adapt))

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(params, group)
        return loss

    def _step(self, params: list[torch.Tensor], group: dict) -> None:
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        states = [self.state[p] for p in params]
        grads = [p.grad for p in params]
        first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        denominator = torch._foreach_div(second, [1 - beta2 ** state["step"] for state in states])
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, group["eps"])
        update = torch._foreach_div(first, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_div_(update, denominator)
        del denominator
        if group["weight_decay"]:
            torch._foreach_add_(update, params, alpha=group["weight_decay"])
        if group["adapt"]:
            lengths = zip(torch._foreach_norm(params), torch._foreach_norm(update))
            ratios = [torch.where((w > 0) & (u > 0), w / u, torch.ones_like(w)) for w, u in lengths]
            torch._foreach_mul_(update, ratios)
        torch._foreach_add_(params, update, alpha=-group["lr"])


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, lr_scale: Mapping[str, float] | None = None
) -> list[dict]:
    """Groups of all trainable parameters: weight decay, and LAMB's layer adaptation, on everything but batch norms.

    Biases, LayerNorms, embeddings and the temperature are decayed, as in both originals.

    Args:
        lr_scale: beginning of a parameter's name, at a dot → factor of its learning rate; the longest that fits counts.
            `{"vision_model": 0.1}` trains the image tower ten times more slowly.

    Returns:
        Groups for any optimizer; `adapt` matters only to LAMB. `name` describes a group.

    Raises:
        ValueError: a beginning that no parameter has, nothing to train, or a parameter narrower than float32.
    """
    scales = {"": 1.0, **(lr_scale or {})}
    names = [name for name, _ in model.named_parameters()]
    for prefix in scales:
        if prefix and not any(is_part(name, prefix) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"lr_scale: no parameter's name begins with {prefix!r}. Names begin with {', '.join(parts)}"
            )
    norms = {id(p) for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    groups: dict[tuple, dict] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name} is {str(p.dtype).removeprefix('torch.')}, which rounds the optimizer's averages and small steps away. Train "
                "float32 parameters: from_pretrained(..., dtype=torch.float32), with bf16=True to compute in bfloat16"
            )
        prefix = max((prefix for prefix in scales if not prefix or is_part(name, prefix)), key=len)
        norm = id(p) in norms
        group = groups.setdefault(
            (prefix, norm),
            {
                "params": [],
                "name": (prefix or "model") + (" batch norms" if norm else ""),
                "lr": lr * scales[prefix],
                "weight_decay": 0.0 if norm else weight_decay,
                "adapt": not norm,
            },
        )
        group["params"].append(p)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    return list(groups.values())


def is_part(name: str, prefix: str) -> bool:
    """Whether a parameter's or module's name begins with `prefix`, at a dot."""
    return name == prefix or name.startswith(prefix + ".")


OPTIMIZERS = ("lamb", "adamw", "sgd")


def build_optimizer(name: str, groups: list[dict], **options: Any) -> torch.optim.Optimizer:
    """One of `OPTIMIZERS` with the originals' settings, which `options` change.

    "lamb": ALIGN's. "adamw": ViT pretraining's (eps 1e-7). "sgd": ViT fine-tuning's, momentum 0.9, no Nesterov; its
    groups' weight decay is added to gradients.

    Raises:
        ValueError: another name, or an option that the optimizer does not take.
    """
    classes = {"lamb": LAMB, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    if name not in classes:
        raise ValueError(f"optimizer: got {name!r}, expected one of {', '.join(OPTIMIZERS)}")
    if name != "lamb":
        groups = [{key: value for key, value in group.items() if key != "adapt"} for group in groups]
    defaults = {"adamw": {"eps": 1e-7}, "sgd": {"momentum": 0.9}}.get(name, {})
    try:
        return classes[name](groups, **(defaults | options))
    except TypeError as error:
        raise ValueError(f"optimizer_options: {name} does not take {options} ({error})") from error


SCHEDULES = ("linear", "cosine", "constant")


def check_schedule(schedule: str | Mapping) -> None:
    """
    Raises:
        ValueError: it is neither one of `SCHEDULES` nor points of a curve.
    """
    if isinstance(schedule, Mapping):
        sound = all(isinstance(value, (int, float)) and value >= 0 for point in schedule.items() for value in point)
        if not schedule or not sound:
            raise ValueError(f"schedule: expected {{step: share of lr}} without negative numbers, got {schedule}")
    elif schedule not in SCHEDULES:
        raise ValueError(
            f"schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}, or points, {{step: share, ...}}"
        )


def schedule_factor(name: str | Mapping[int, float], step: int, warmup: int, total: int, end: float = 0.0) -> float:
    """Share of the learning rate at a step counted from 0: linear from 0 to 1 over `warmup` steps, then down to `end`
    at step `total` along a line or half a cosine, or not at all.

    Step 0 has rate 0 (with a warm-up), as in the originals: their first step moves no weight. "linear" is ALIGN's, and
    with end = 1e-5 / 6e-4 that of ViT's pretraining; "cosine" that of its fine-tuning.

    Points, {step: share}, are a curve of straight lines instead, flat before the first and after the last; they say all,
    and `warmup`, `total` and `end` do not count.
    """
    if isinstance(name, Mapping):
        return float(np.interp(step, *zip(*sorted(name.items()))))
    if step < warmup:
        return step / warmup
    if name == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = 1 - done if name == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return end + (1 - end) * left


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str | Mapping[int, float], warmup: int, total: int, end: float = 0.0
) -> LambdaLR:
    """`schedule_factor` times each group's own rate.

    Raises:
        ValueError: an unknown name, or a warm-up longer than the run.
    """
    check_schedule(name)
    if not 0 <= warmup <= total:
        raise ValueError(f"schedule: {warmup} steps of warm-up do not fit into a run of {total} steps")
    return LambdaLR(optimizer, lambda step: schedule_factor(name, step, warmup, total, end))


class MovingAverage:
    """Exponential moving average of a model's weights and floating-point buffers (batch norm statistics), in float32 or wider.

    After step t, counted from 1, average = d * average + (1 - d) * weights with d = min(decay, (1 + t) / (10 + t)), as
    `tfa.optimizers.MovingAverage(dynamic_decay=True)`.

    It starts from the model's weights, that of the original from zeros; after some ten steps there is no difference.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"MovingAverage: decay must lie in [0, 1), got {decay}")
        self.model, self.decay, self.step = model, decay, 0
        self.values = {name: x.detach().to(wide_dtype(x), copy=True) for name, x in self._averaged()}

    def _averaged(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, x in self.model.state_dict().items():
            if x.is_floating_point():
                yield name, x

    @torch.no_grad()
    def update(self) -> None:
        """Call it after each step of the optimizer."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        names, weights = zip(*self._averaged())
        averages = [self.values[name] for name in names]
        torch._foreach_lerp_(averages, [x.to(wide_dtype(x)) for x in weights], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has its averaged weights."""
        kept = {name: x.detach().clone() for name, x in self._averaged()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, x in self._averaged():
            x.copy_(values[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Averages by name, and `step`."""
        return {**self.values, "step": torch.tensor(self.step)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        state = dict(state)
        step = int(state.pop("step"))
        if state.keys() != self.values.keys():
            different = sorted(state.keys() ^ self.values.keys())
            raise ValueError(
                f"MovingAverage: the averages were saved for another model; only one of the two has {different[:3]}"
            )
        for name, value in self.values.items():
            value.copy_(state[name])
        self.step = step
