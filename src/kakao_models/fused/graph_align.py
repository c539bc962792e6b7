"""ALIGN's towers as graphs: what align.py is in PyTorch.

Axes: B batch  C channels  H, W height, width of a map  L tokens  D width  P projection
"""

from typing import Any

import numpy as np

from kakao_models.align.blocks import BlockSpec, block_specs, output_channels, pools_by_mean, round_filters
from kakao_models.fused.graph import Graph, feed_forward, folded_convolution, pixel_input
from kakao_models.fused.weights import Weights

LOWEST = np.finfo(np.float32).min  # a logit whose share in a softmax is 0


def squeeze_excite(graph: Graph, x: str, weights: Weights, name: str, channels: int, inner: int, act: str) -> str:
    """Scales channels by what two small products make of their means."""

    def product(x: str, part: str, inner: int, outer: int) -> str:
        weight = weights(f"{name}.{part}.weight", outer, inner, 1, 1)
        return graph.convolution(x, weight, weights(f"{name}.{part}.bias", outer))

    y = graph.activate(product(graph.op("GlobalAveragePool", x), "reduce", channels, inner), act)
    return graph.op("Mul", x, graph.op("Sigmoid", product(y, "expand", inner, channels)))  # (B, C, 1, 1)


def block(graph: Graph, x: str, weights: Weights, name: str, spec: BlockSpec, activation: str, eps: float) -> str:
    """An inverted-residual block of EfficientNet."""
    width, kernel = spec.expanded_channels, spec.kernel_size

    def folded(x: str, layer: str, conv: str, norm: str, *shape: int, **options: Any) -> str:
        arrays = folded_convolution(weights, f"{name}.{layer}.{conv}", f"{name}.{layer}.{norm}", shape, eps)
        return graph.convolution(x, *arrays, **options)

    y = x
    if spec.expand_ratio != 1:
        shape = width, spec.in_channels, 1, 1
        y = folded(y, "expansion", "expand_conv", "expand_bn", *shape, activation=activation)
    high = kernel // 2
    low = high - 1 if spec.stride == 2 and not spec.symmetric_padding else high
    options = dict(stride=(spec.stride, spec.stride), pad=(low, high), groups=width, activation=activation)
    y = folded(y, "depthwise_conv", "depthwise_conv", "depthwise_norm", width, 1, kernel, kernel, **options)
    y = squeeze_excite(graph, y, weights, f"{name}.squeeze_excite", width, spec.se_channels, activation)
    y = folded(y, "projection", "project_conv", "project_bn", spec.out_channels, width, 1, 1)
    return graph.op("Add", y, x) if spec.skip else y


def image_tower(
    config: Any, weights: Weights, projection: int | None, pixels: tuple[np.ndarray, np.ndarray] | None, hidden: bool
) -> Graph:
    """The image tower and its projection: pixels (B, C, H, W) → features (B, P), not normalised.

    Args:
        config: `AlignVisionConfig`, or anything with its fields.
        weights: keys begin with "vision_model.", as in a whole ALIGN.
        projection: width of the projection behind it; None where there is none.
        pixels: as of `graph_towers.graphs`.
        hidden: give the last block's map (B, C', H', W') instead.
    """
    eps, activation, name = config.batch_norm_eps, config.hidden_act, "vision_model.embeddings."
    shape = round_filters(config, 32), config.num_channels, 3, 3
    weight, bias = folded_convolution(weights, name + "convolution", name + "batchnorm", shape, eps)
    graph, x, weight = pixel_input(config.num_channels, ("height", "width"), weight, pixels)
    x = graph.convolution(x, weight, bias, stride=(2, 2), pad=(0, 1), activation=activation)
    for index, spec in enumerate(block_specs(config)):
        x = block(graph, x, weights, f"vision_model.encoder.blocks.{index}", spec, activation, eps)
    width, arrays = output_channels(config), None
    if projection is not None:
        arrays = weights("visual_projection.weight", projection, width), weights("visual_projection.bias", projection)
    if hidden:
        graph.output = x, ("batch", width, "rows", "columns")
        return graph
    pool = "GlobalAveragePool" if pools_by_mean(config) else "GlobalMaxPool"
    x = graph.op("Flatten", graph.op(pool, x))
    graph.output = x if arrays is None else graph.linear(x, *arrays), ("batch", projection or width)
    return graph


def text_layer(graph: Graph, x: str, mask: str, config: Any, weights: Weights, name: str, first: bool) -> str:
    """A layer of BERT: normalisation behind each sum."""
    width, eps = config.hidden_size, config.layer_norm_eps
    projections = (f"{name}.attention.self.query", f"{name}.attention.self.key", f"{name}.attention.self.value")
    output, heads = f"{name}.attention.output.", config.num_attention_heads
    attended = graph.attention(x, weights, projections, output + "dense", width, heads, mask=mask, first=first)
    x = graph.op("Add", graph.first_token(x) if first else x, attended)
    x = graph.layer_norm(x, weights, output + "LayerNorm", width, eps)
    return feed_forward(graph, x, x, config, weights, name, norm=f"{name}.output.LayerNorm")


def text_tower(config: Any, weights: Weights, projection: int) -> Graph:
    """The text tower and its projection: token ids, mask (B, L) → features (B, P), not normalised.

    Args:
        config: `AlignTextConfig`, or anything with its fields.
        weights: of a whole ALIGN.
        projection: P.
    """
    name, width = "text_model.embeddings.", config.hidden_size
    tables = {"word": config.vocab_size, "position": config.max_position_embeddings}
    tables["token_type"] = config.type_vocab_size
    words, positions, types = (weights(f"{name}{t}_embeddings.weight", rows, width) for t, rows in tables.items())
    graph = Graph({key: ("int64", ("batch", "length")) for key in ("input_ids", "attention_mask")})
    length = graph.op("Shape", "input_ids", start=1, end=2)
    places = graph.op("Slice", graph.constant(positions + types[0]), graph.indices(0), length, graph.indices(0))
    x = graph.op("Add", graph.op("Gather", graph.constant(words), "input_ids"), places)
    x = graph.layer_norm(x, weights, name + "LayerNorm", width, config.layer_norm_eps)
    read = graph.op("Unsqueeze", graph.op("Cast", "attention_mask", to=9), graph.indices(1, 2))  # (B, 1, 1, L)
    mask = graph.op("Where", read, graph.constant(np.float32(0)), graph.constant(LOWEST))
    last = config.num_hidden_layers - 1
    for index in range(config.num_hidden_layers):
        x = text_layer(graph, x, mask, config, weights, f"text_model.encoder.layer.{index}", index == last)
    x = graph.op("Reshape", x, graph.indices(0, width))  # (B, 1, D) → (B, D)
    arrays = weights("text_projection.weight", projection, width), weights("text_projection.bias", projection)
    graph.output = graph.linear(x, *arrays), ("batch", projection)
    return graph
