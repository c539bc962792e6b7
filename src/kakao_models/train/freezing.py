"""Parts of a model that are not trained."""

from torch import nn

from kakao_models.train.optim import is_part

_WRAPPERS = ("module.", "_orig_mod.")  # prefixes by DistributedDataParallel and torch.compile


def freeze(model: nn.Module, prefixes: list[str]) -> None:
    """Takes the modules whose names begin with one of `prefixes` out of training.

    Raises:
        ValueError: a name that no module or parameter has.
    """
    for prefix in prefixes:
        chosen = [p for name, p in model.named_parameters() if is_part(name, prefix)]
        if not chosen:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"freeze: {type(model).__name__} has no part {prefix!r}; its parts are {parts}")
        for p in chosen:
            p.requires_grad_(False)


def rest_frozen(model: nn.Module, prefixes: list[str]) -> None:
    """Frozen modules in evaluation mode: their batch norms keep their statistics, their dropouts drop nothing."""
    for name, module in model.named_modules():
        while name.startswith(_WRAPPERS):
            name = name.partition(".")[2]
        if any(is_part(name, prefix) for prefix in prefixes):
            module.training = False
