"""ViT's tower as a graph: what vit.py is in PyTorch.

Axes: B batch  C channels  H, W height, width  L tokens  D width  R width of the pre-logits
"""

from typing import Any

import numpy as np

from kakao_models.fused.graph import Graph, feed_forward, pixel_input
from kakao_models.fused.weights import Weights, pair


def vit_layer(graph: Graph, x: str, config: Any, weights: Weights, name: str, first: bool) -> str:
    """A layer of ViT: normalisation in front of each block."""
    width, eps, heads = config.hidden_size, config.layer_norm_eps, config.num_attention_heads
    projections = (f"{name}.attention.attention.query", f"{name}.attention.attention.key")
    projections = (*projections, f"{name}.attention.attention.value")
    output, options = f"{name}.attention.output.dense", dict(mask=None, first=first, bias=config.qkv_bias)
    y = graph.layer_norm(x, weights, f"{name}.layernorm_before", width, eps)
    y = graph.attention(y, weights, projections, output, width, heads, **options)
    x = graph.op("Add", graph.first_token(x) if first else x, y)
    y = graph.layer_norm(x, weights, f"{name}.layernorm_after", width, eps)
    return feed_forward(graph, x, y, config, weights, name, norm=None)


def vit_tower(
    config: Any, weights: Weights, pixels: tuple[np.ndarray, np.ndarray] | None = None, hidden: bool = False
) -> Graph:
    """ViT's backbone: pixels (B, C, H, W) → the pre-logits (B, R), or the final [CLS] (B, D) of a model without them.

    Args:
        config: `ViTConfig`, or anything with its fields.
        weights: keys begin with "vit."; a pooler is used if it is there.
        pixels: as of `graph_towers.graphs`.
        hidden: give the last hidden state (B, L, D) instead.
    """
    name, width, channels = "vit.embeddings.", config.hidden_size, config.num_channels
    size, patch = pair(config.image_size), pair(config.patch_size)
    grid = size[0] // patch[0], size[1] // patch[1]
    weight = weights(name + "patch_embeddings.projection.weight", width, channels, *patch)
    bias = weights(name + "patch_embeddings.projection.bias", width)
    graph, x, weight = pixel_input(channels, size, weight, pixels)
    x = graph.convolution(x, weight, bias, stride=patch)  # (B, D, rows, columns)
    x = graph.op("Transpose", graph.op("Reshape", x, graph.indices(0, width, -1)), perm=[0, 2, 1])
    positions = weights(name + "position_embeddings", 1, 1 + grid[0] * grid[1], width)
    x = graph.op("Add", x, graph.constant(positions[:, 1:]))
    first = graph.constant(weights(name + "cls_token", 1, 1, width) + positions[:, :1])
    batch = graph.op("Concat", graph.op("Shape", x, start=0, end=1), graph.indices(1, 1), axis=0)
    x = graph.op("Concat", graph.op("Expand", first, batch), x, axis=1)  # (B, L, D)
    last = config.num_hidden_layers - 1
    for index in range(config.num_hidden_layers):
        x = vit_layer(graph, x, config, weights, f"vit.encoder.layer.{index}", index == last and not hidden)
    x = graph.layer_norm(x, weights, "vit.layernorm", width, config.layer_norm_eps)
    arrays = None
    if "vit.pooler.dense.weight" in weights:
        shape = config.pooler_output_size or width, width
        arrays = weights("vit.pooler.dense.weight", *shape), weights("vit.pooler.dense.bias", shape[0])
    if hidden:
        graph.output = x, ("batch", 1 + grid[0] * grid[1], width)
        return graph
    x = graph.op("Reshape", x, graph.indices(0, width))  # (B, 1, D) → (B, D)
    if arrays is not None:
        x, width = graph.activate(graph.linear(x, *arrays), config.pooler_act), len(arrays[1])
    graph.output = x, ("batch", width)
    return graph
