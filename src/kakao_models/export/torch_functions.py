"""The functions of an export as PyTorch modules, for the formats that are made from PyTorch.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import copy
import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call
from torch.nn import functional as F

from kakao_models.export.contract import Contract, Function, Pixels
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.engines import TorchEngine

NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MOST = 1 << 20  # sizes of a batch, and of the sides of a picture: a bound that PyTorch's exporter wants


def programs(embedder: Embedder, contract: Contract, narrow: bool = True) -> dict[str, ExportedProgram]:
    """name → the function as PyTorch exports it, its sizes free where the contract names them.

    Args:
        narrow: whether the parameters are stored as `contract.quantize` says. Computed is always in float32.
    """
    model = _model(embedder)
    made = {}
    for name, function in contract.functions.items():
        module = _FUNCTIONS[name](_without(model, _UNUSED[name]), contract)
        dtype = NARROW.get(contract.quantize) if narrow else None
        if dtype is not None:
            module = Narrow(module, dtype)
        inputs, shapes = _examples(embedder, function)
        with torch.no_grad():
            made[name] = torch.export.export(module.eval(), (), inputs, dynamic_shapes=shapes, strict=False)
    return made


class Preparing(nn.Module):
    """Images as they come in → pixel values (B, C, H, W)."""

    def __init__(self, pixels: Pixels):
        super().__init__()
        self.pixels = pixels
        for name in ("scale", "offset"):
            values = torch.tensor(getattr(pixels, name), dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pixels.kind == "float":
            return images
        x = images.permute(0, 3, 1, 2).float()  # (B, C, H, W)
        if self.pixels.kind == "picture":
            x = F.interpolate(x, size=self.pixels.resized, mode="bilinear", align_corners=False, antialias=False)
            top, left, height, width = self.pixels.box
            x = x[:, :, top : top + height, left : left + width]
        return x * self.scale + self.offset


class Images(nn.Module):
    """Images → features (B, D), or with `output="logits"` (B, classes)."""

    def __init__(self, model: nn.Module, contract: Contract, output: str = "image_features"):
        super().__init__()
        self.prepare, self.model = Preparing(contract.pixels), model
        self.output, self.normalize = output, contract.normalize and output != "logits"
        if contract.pixels.kind == "float":
            self.forward = self._of_pixel_values

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self._run(self.prepare(images))
        return {self.output: _l2_normalize(x) if self.normalize else x}

    def _of_pixel_values(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return Images.forward(self, pixel_values)

    def _run(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.output == "logits":
            return self.model(pixel_values).logits
        if hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(pixel_values).pooler_output
        output = self.model.base_model(pixel_values)
        return output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output


class Texts(nn.Module):
    """Token ids and their mask (B, L) → features (B, D)."""

    def __init__(self, model: nn.Module, contract: Contract):
        super().__init__()
        self.model, self.normalize = model, contract.normalize

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return {"text_features": _l2_normalize(x) if self.normalize else x}


_FUNCTIONS: dict[str, Callable[[nn.Module, Contract], nn.Module]] = {
    "image": Images,
    "text": Texts,
    "classifier": lambda model, contract: Images(model, contract, "logits"),
}


# Parts of a model that a function does not use, and whose parameters would be exported along.
_UNUSED = {
    "image": ("text_model", "text_projection", "classifier"),
    "text": ("vision_model", "visual_projection", "text_model.pooler"),
    "classifier": (),
}


def _without(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The model, sharing its tensors, without some of its modules."""
    model = copy.copy(model)
    model._modules = dict(model._modules)
    for name in names:
        part, _, rest = name.partition(".")
        if model._modules.get(part) is not None:
            model._modules[part] = _without(model._modules[part], (rest,)) if rest else None
    return model


class Narrow(nn.Module):
    """A module whose matrices and kernels are stored in `dtype` and widened when they are used."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self._module = [module]  # in a list, so that its own parameters are not this module's
        self._names = {}
        for index, (name, tensor) in enumerate(module.state_dict(keep_vars=True).items()):
            narrow = tensor.is_floating_point() and tensor.ndim > 1
            self.register_buffer(f"tensor_{index}", tensor.detach().to(dtype) if narrow else tensor.detach())
            self._names[f"tensor_{index}"] = (name, tensor.dtype)

        self.forward = partial(self._run)
        self.forward.__signature__ = inspect.signature(module.forward)  # names of inputs, for the exporter

    def _run(self, *args: torch.Tensor, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = {name: getattr(self, key).to(dtype) for key, (name, dtype) in self._names.items()}
        return functional_call(self._module[0], tensors, args, inputs)


def _l2_normalize(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()


def _model(embedder: Embedder) -> nn.Module:
    """The plain PyTorch model in float32: the embedder's, or where another framework runs that, its own."""
    engine = embedder.engine
    return (engine if isinstance(engine, TorchEngine) else TorchEngine.load(embedder.name, device="cpu")).model.eval()


def _examples(embedder: Embedder, function: Function) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """Inputs to trace with, and by name which of their axes are free."""
    free = {"batch": Dim("batch", max=MOST), "height": Dim("height", max=MOST), "width": Dim("width", max=MOST)}
    if function.name == "text":
        free["tokens"] = Dim("tokens", max=embedder.max_tokens)
    # No two sizes alike, and none of 0 or 1, which PyTorch would take for constants.
    sizes = {"batch": 2, "tokens": 5, "height": 37, "width": 41}
    inputs, shapes = {}, {}
    for tensor in function.inputs:
        shape = [sizes.get(size, size) for size in tensor.shape]
        inputs[tensor.name] = torch.ones(shape, dtype=getattr(torch, tensor.dtype))
        shapes[tensor.name] = {axis: free[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
    return inputs, shapes
