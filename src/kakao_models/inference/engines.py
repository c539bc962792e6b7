"""What runs a model for the `Embedder`: arrays in, float32 arrays out.

Axes: B batch  C channels  H, W height, width  L tokens  D width of the features
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedModel

from kakao_models.checkpoint.hub import described_by, fetch, read_config


class TorchEngine:
    """An ALIGN or a ViT in PyTorch, always in evaluation mode.

    A model object is used as it is: `device="auto"` and `dtype=None` leave it where and what it is, and its training
    mode is put back after each batch.
    """

    def __init__(self, model: PreTrainedModel, *, device: str | int = "auto", dtype: str | None = None):
        kind = model.config.model_type
        if kind not in ("align", "vit"):
            raise ValueError(f"the model is of type {kind!r}, wanted 'align' or 'vit': an AlignModel or a ViT")
        if device != "auto" or dtype is not None:
            model = model.to(
                device=_device(device) if device != "auto" else None, dtype=_dtype(dtype) if dtype else None
            )
        self.model = model
        self.config = model.config

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike, *, device: str | int = "auto", dtype: str | None = None, **where
    ) -> "TorchEngine":
        """The model of a checkpoint, by the `model_type` of its config.json.

        Args:
            device: "auto" (CUDA, else Apple's GPU, else the processor), a name PyTorch knows, or a CUDA number.
            dtype: "float32" (the default), "bfloat16" or "float16".
            where: `revision`, `token`, `subfolder`, as of `from_pretrained`.

        Raises:
            OSError: no such checkpoint, or a file of it can't be read.
            ValueError: a checkpoint of another kind of model.
        """
        config_file = fetch(name_or_path, "config.json", **{name: value for name, value in where.items() if value})
        with described_by(config_file):
            model_class = _model_class(read_config(config_file), name_or_path)
            model = model_class.from_pretrained(name_or_path, dtype=_dtype(dtype or "float32"), **where)
        return cls(model.eval(), device=str(_device(device)))

    @property
    def reads_texts(self) -> bool:
        return self.config.model_type == "align"

    @property
    def classifies(self) -> bool:
        """Whether the model has a classifier, and so `logits`."""
        return hasattr(self.model, "classifier") and self.config.num_labels > 0

    @property
    def dim(self) -> int:
        """D, the width of `features` and `texts`."""
        if self.reads_texts:
            return self.config.projection_dim
        pooler = self.model.base_model.pooler
        return self.config.hidden_size if pooler is None else pooler.dense.out_features

    @property
    def temperature(self) -> float:
        return self.model.temperature.item()

    def features(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W), as a processor gives it → (B, D), not normalised.

        Of ALIGN the image features; of ViT the pre-logits, or the final [CLS] of a model without them.
        """
        with self._evaluating():
            pixels = self._to_device(pixel_values)
            if self.reads_texts:
                return _to_numpy(self.model.get_image_features(pixels).pooler_output)
            output = self.model.base_model(pixels)
            pooled = output.pooler_output
            return _to_numpy(output.last_hidden_state[:, 0] if pooled is None else pooled)

    def hidden(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W) → the image tower's last hidden state: (B, tokens, D) of ViT, (B, C', H', W') of ALIGN."""
        with self._evaluating():
            tower = self.model.vision_model if self.reads_texts else self.model.base_model
            return _to_numpy(tower(self._to_device(pixel_values)).last_hidden_state)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W) → (B, classes), before any softmax or sigmoid. Only where the model `classifies`."""
        with self._evaluating():
            return _to_numpy(self.model(self._to_device(pixel_values)).logits)

    def texts(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """(B, L), (B, L) → (B, D), not normalised. Only where the model `reads_texts`."""
        with self._evaluating():
            ids, mask = (torch.from_numpy(array).to(self.model.device) for array in (input_ids, attention_mask))
            return _to_numpy(self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)

    def _to_device(self, pixel_values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixel_values).to(self.model.device, self.model.dtype)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _model_class(config: dict, name) -> type[PreTrainedModel]:
    kind = config.get("model_type")
    if kind == "align":
        from kakao_models.align.modeling_torch import AlignModel

        return AlignModel
    if kind == "vit":
        from kakao_models.vit.modeling_torch import ViTForImageClassification, ViTModel

        classifies = "ViTForImageClassification" in (config.get("architectures") or ())
        return ViTForImageClassification if classifies else ViTModel
    raise ValueError(
        f"{name}: its config.json has model_type {kind!r}, wanted 'align' or 'vit'. Only ALIGN and ViT run here."
    )


def _device(name: str | int) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if isinstance(name, int):  # transformers' pipelines count CUDA devices, and -1 is the processor
        name = f"cuda:{name}" if name >= 0 else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # AssertionError where PyTorch is built without it
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device {name!r} can't be used ({reason}): wanted 'auto', 'cpu', 'cuda', 'cuda:1', 'mps', ..."
        ) from error
    return device


def _dtype(name: str | torch.dtype) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype {name!r}: wanted 'float32', 'bfloat16' or 'float16'")
    return dtype
