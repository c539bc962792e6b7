"""A model's towers as graphs: what every runtime outside PyTorch is made from.

    tensors = fused.tensors_of(AlignModel.from_pretrained("align-small"))
    tower = fused.towers(config, tensors)["image"]
    program = exported(tower, "image", image_size=(64, 64))  # a torch.export.ExportedProgram

Axes: B batch, of any size  C channels  H, W height, width  L tokens, of any number up to the model's
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# what → its inputs, and its output
TOWER_INPUTS = {
    "image": ("pixel_values",),
    "classifier": ("pixel_values",),
    "text": ("input_ids", "attention_mask"),
}
TOWER_OUTPUT = {"image": "image_features", "classifier": "logits", "text": "text_features"}


def exported(
    tower: nn.Module, what: str, image_size: tuple[int, int] | None = None, *, uint8: bool = False
) -> torch.export.ExportedProgram:
    """The graph of a tower of `fused.towers`, for any batch size and, of texts, any length.

    Its inputs are `TOWER_INPUTS[what]`: `pixel_values` (B, C, H, W), or `input_ids` and `attention_mask` (B, L), int64.

    Args:
        what: "image", "classifier" or "text".
        image_size: (H, W) of the images.
        uint8: take bytes, of a tower made with `pixels`; otherwise floating point in the tower's own type.
    """
    batch = torch.export.Dim("batch", min=1)
    if what == "text":
        example = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
        length = torch.export.Dim("length", min=2, max=len(tower.positions))
        shapes = ({0: batch, 1: length},) * 2
    else:
        if image_size is None:
            raise ValueError(f"exported(what={what!r}): image_size is required, (height, width)")
        first = next(tower.parameters())
        channels = getattr(tower, "tower", tower).channels
        dtype = torch.uint8 if uint8 else first.dtype
        example = (torch.zeros(2, channels, *image_size, dtype=dtype),)
        shapes = ({0: batch},)
    with torch.no_grad():
        return torch.export.export(tower, example, dynamic_shapes=shapes, strict=False)


@contextmanager
def quiet_converters() -> Iterator[None]:
    """Silences the converters' remarks about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
