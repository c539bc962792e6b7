"""Parameters shared out among processes (PyTorch's FSDP2), where they and the optimizer's moments do not fit into each one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer


def shard(model: nn.Module, device: torch.device) -> None:
    """Shares out the parameters of a model among all processes, block by block. Its class becomes one derived from its own.

    Scalars, such as ALIGN's temperature, stay whole, as FSDP2 takes none; their gradients are averaged like those of shards.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    scalars = {p for p in model.parameters() if p.ndim == 0}
    for block in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    for name in ("get_image_features", "get_text_features"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    for p in scalars:
        p.register_post_accumulate_grad_hook(_average)


def _average(p: torch.Tensor) -> None:
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class of a model, that from before it was sharded."""
    return next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole tensors of a sharded model, in the first process, and nothing in the others. All processes call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_whole(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Gives a sharded model its share of whole tensors, which every process has."""
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))


def whole_copy(model: nn.Module) -> nn.Module | None:
    """A copy of a sharded model that is not, in evaluation mode, in the first process. All processes call it."""
    weights = whole_weights(model)
    if dist.get_rank():
        return None
    copy = class_of(model)(model.config)
    copy.load_state_dict(weights)
    return copy.to(next(model.parameters()).device).eval()


def whole_state(state: Any) -> Any:
    """A copy of an optimizer's `state_dict` with whole tensors. All processes call it."""
    if isinstance(state, dict):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [whole_state(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def share_out(optimizer: torch.optim.Optimizer) -> None:
    """Shares out whole moments that an optimizer has loaded, as its parameters are. All processes call it."""
    for p, state in optimizer.state.items():
        for name, x in state.items():
            if (
                isinstance(p, DTensor)
                and isinstance(x, torch.Tensor)
                and x.shape == p.shape
                and not isinstance(x, DTensor)
            ):
                state[name] = distribute_tensor(x, p.device_mesh, p.placements)
