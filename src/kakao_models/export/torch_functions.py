"""The functions of an export as PyTorch's exported programs, for the formats that are made from PyTorch.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call
from torch.nn import functional as F

from kakao_models.export.contract import Contract, Function, ImageInput
from kakao_models.fused.towers import tensors_of, towers
from kakao_models.inference.embedder import Embedder
from kakao_models.inference.engine_torch import TorchEngine

NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_MOST = 1 << 20  # of a batch, and of the sides of a picture: PyTorch's exporter wants a bound


def programs(embedder: Embedder, contract: Contract, *, narrow: bool = False) -> dict[str, ExportedProgram]:
    """name → the function as PyTorch exports it, its sizes free where the contract names them.

    Args:
        narrow: whether parameters are stored as `contract.quantize` says. Computed is always in float32.
    """
    model = contract.source_model(embedder, TorchEngine).eval()
    pixels = contract.pixels
    scale = torch.tensor(pixels.scale, dtype=torch.float64)
    byte_values = scale, -torch.tensor(pixels.offset, dtype=torch.float64) / scale  # scale, and the byte that is 0
    made = towers(model.config, tensors_of(model), byte_values if pixels.kind == "uint8" else None)
    for tower in made.values():
        for tensor in tower.parameters():  # parts of a larger one would be saved with the whole of it
            if tensor.untyped_storage().nbytes() > tensor.nbytes:
                tensor.data = tensor.data.clone()
    result = {}
    for name, function in contract.functions.items():
        module = TextFunction(made[name], contract) if name == "text" else ImageFunction(made[name], function, contract)
        if narrow and contract.quantize:
            module = Narrow(module, NARROW[contract.quantize])
        inputs, shapes = _examples(embedder, function)
        with torch.no_grad():
            result[name] = torch.export.export(module.eval(), (), inputs, dynamic_shapes=shapes, strict=False)
    return result


class ImageFunction(nn.Module):
    """Images as they come in → features (B, D) or logits (B, classes)."""

    def __init__(self, tower: nn.Module, function: Function, contract: Contract):
        super().__init__()
        self.tower, self.pixels, self.output = tower, contract.pixels, function.output.name
        self.normalize = contract.normalize
        self.prepare = Resizing(contract.pixels) if contract.pixels.kind == "picture" else None
        if contract.pixels.kind == "float":
            self.forward = self._of_pixel_values

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = images.permute(0, 3, 1, 2)  # (B, C, H, W)
        return self._of_pixel_values(x if self.prepare is None else self.prepare(x))

    def _of_pixel_values(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tower(pixel_values)
        return {self.output: _l2_normalize(x) if self.normalize else x}


class Resizing(nn.Module):
    """Bytes of any size (B, C, H, W) → pixel values of the model's size."""

    def __init__(self, pixels: ImageInput):
        super().__init__()
        self.pixels = pixels
        for name in ("scale", "offset"):
            values = torch.tensor(getattr(pixels, name), dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x.float(), size=self.pixels.resized, mode="bilinear", align_corners=False, antialias=False)
        top, left, height, width = self.pixels.box
        return x[:, :, top : top + height, left : left + width] * self.scale + self.offset


class TextFunction(nn.Module):
    """Token ids and their mask (B, L) → features (B, D)."""

    def __init__(self, tower: nn.Module, contract: Contract):
        super().__init__()
        self.tower, self.normalize = tower, contract.normalize

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tower(input_ids, attention_mask)
        return {"text_features": _l2_normalize(x) if self.normalize else x}


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


def _examples(embedder: Embedder, function: Function) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """Inputs to trace with, and by name which of their axes are free."""
    free = {"batch": Dim("batch", max=_MOST), "height": Dim("height", max=_MOST), "width": Dim("width", max=_MOST)}
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


@contextmanager
def quiet_converters() -> Iterator[None]:
    """Silences the converters' remarks about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
