"""Finds the patches that a ViT's answer came from, by attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in
Transformers", section 3).

    with recorded_attention(model) as layers:
        scores = classify("cat.jpg")  # any forward pass of the model's own modules, which no engine takes
    heat = patch_map(attention_rollout(layers), model)  # (1, H, W)

Axes: B batch  N heads  L tokens (the class token, then the patches row by row)  H, W rows, columns of patches
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def attention_rollout(attentions: Sequence[np.ndarray], token: int = 0) -> np.ndarray:
    """Shares of the input tokens that have flowed to `token` behind the last layer: (B, L), rows that sum to 1.

    A layer passes tokens on by (A + I) / 2, where A is its attention averaged over heads and I stands for the residual
    connection; the layers' matrices are multiplied. The product's row of `token` is all that is computed, from the last
    layer back to the first: L² operations a layer, where the whole product takes L³.

    Args:
        attentions: from the first layer to the last, each (B, N, L, L) or, averaged over heads already, (B, L, L): the
            share that each token (row) takes of every other (column). Rows sum to 1.
        token: 0, the class token, or the number of another.

    Raises:
        ValueError: no layers, layers of different shapes, or rows that do not sum to 1.
    """
    if not len(attentions):
        raise ValueError(
            "attentions: got no layers. Did an engine run instead of the PyTorch model? Then pass the model object "
            "to pipeline(...) or Embedder(...)"
        )
    layers = [np.asarray(layer, np.float64) for layer in attentions]
    layers = [layer.mean(1) if layer.ndim == 4 else layer for layer in layers]  # (B, L, L)
    shapes = {layer.shape for layer in layers}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[1] != shape[2]:
        raise ValueError(
            f"attentions: expected the same (B, N, L, L) or (B, L, L) of every layer, got {[np.shape(a) for a in attentions]}"
        )
    if not -shape[1] <= token < shape[1]:
        raise ValueError(f"token: got {token}, expected one of the {shape[1]} tokens")
    flow = np.zeros(shape[:2])
    flow[:, token] = 1
    for number in reversed(range(len(layers))):
        off = np.abs(layers[number].sum(-1) - 1).max()
        if not off < 1e-2:  # in half precision 1,000 weights sum to 1 within 2e-3; also false for NaN
            raise ValueError(
                f"attentions[{number}]: rows must sum to 1, but one differs by {off:.2g}. Are these logits?"
            )
        flow = (flow + np.einsum("bk,bkl->bl", flow, layers[number])) / 2  # (B, L)
    return (flow / flow.sum(-1, keepdims=True)).astype(np.float32)


@contextlib.contextmanager
def recorded_attention(model: Any) -> Iterator[list[np.ndarray]]:
    """While it is open, the latest forward pass of a PyTorch ViT leaves its attention in the list that it gives.

    One array (B, L, L) a layer, averaged over heads: all heads of ViT-L/16 at 512 pixels would be 1.6 GB. Attention is
    "eager" meanwhile, since other implementations do not know their weights. Not for two threads at a time.

    Raises:
        ValueError: `model` is no ViT in PyTorch.
    """
    backbone = getattr(model, "base_model", None)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind != "vit" or not hasattr(model, "set_attn_implementation"):
        raise ValueError(f"attention rollout needs a ViT in PyTorch, got {kind!r} ({type(model).__name__})")
    recorded: list[np.ndarray] = []

    def record(number: int):
        def hook(module, arguments, output) -> None:
            if number == 0:
                recorded.clear()
            recorded.append(output[1].detach().float().mean(1).cpu().numpy())

        return hook

    usual = model.config._attn_implementation
    hooks = [layer.attention.register_forward_hook(record(number)) for number, layer in enumerate(backbone.layers)]
    model.set_attn_implementation("eager")
    try:
        yield recorded
    finally:
        model.set_attn_implementation(usual)
        for hook in hooks:
            hook.remove()


def patch_map(rollout: np.ndarray, model: Any) -> np.ndarray:
    """(B, L) → (B, H, W): what the patches of an image of the model's size contribute, without the class token."""
    embeddings = model.base_model.embeddings
    height, width = embeddings.grid(*embeddings.image_size)
    if rollout.shape[1:] != (1 + height * width,):
        raise ValueError(
            f"rollout: got {rollout.shape}, expected (B, {1 + height * width}): {height} x {width} patches"
        )
    return rollout[:, 1:].reshape(-1, height, width)
