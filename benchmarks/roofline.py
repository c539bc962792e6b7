"""How near each kind of layer comes to what this machine can do, for EfficientNet-B7 and ViT-L/16 in OpenVINO.

    python benchmarks/roofline.py --picture roofline.png
    python benchmarks/roofline.py --models align-small --batch 1 --dtype bfloat16

Operations and bytes are counted from the shapes of each executed layer, with every input and output moved once. The roof of a
layer is the smaller of the measured peak of matrix products and (operations per byte) x (measured memory bandwidth), as by Williams,
Waterman and Patterson (2009). Time is OpenVINO's own count for each layer. A share above 100 % means that the data came from a
cache, and not from memory.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import openvino
import torch
from common import SIZES, arguments, product, shortest, show

from kakao_models import AlignModel, ViTConfig, ViTModel
from kakao_models.fused.graph_towers import graphs
from kakao_models.fused.towers import tensors_of

MODELS = {
    "b7": lambda: AlignModel(SIZES["base"]()),
    "b0": lambda: AlignModel(SIZES["small"]()),
    "vit-l16": lambda: ViTModel(ViTConfig.vit("l", image_size=384)),
    "align-small": lambda: AlignModel.from_pretrained("align-small"),
}
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
BYTES = {"f32": 4, "bf16": 2, "f16": 2}


class Layer(NamedTuple):
    kind: str
    operations: float
    bytes: float
    seconds: float


def bandwidth_of_memory() -> float:
    """Bytes per second, read and written, of a copy that fits no cache."""
    source = torch.ones(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * len(source) / shortest(lambda: target.copy_(source))


def kind_of(layer: str, primitive: str, weights: tuple[int, ...]) -> str:
    if layer == "Convolution":
        if "_dw_" in primitive or (len(weights) == 5 and weights[1] == weights[2] == 1):
            return "depthwise convolution"
        return "1 x 1 product" if math.prod(weights[2:]) == 1 else "convolution"
    names = {
        "FullyConnected": "matrix product", "MatMul": "matrix product", "Reduce": "mean of a map",
        "ScaledDotProductAttention": "attention", "MHA": "attention", "MVN": "normalization",
        "Reorder": "layout", "Transpose": "layout", "Reshape": "layout", "Concatenation": "layout", "Split": "layout",
    }  # fmt: skip
    return names.get(layer, "gates, sums, activations")


def operations_of(layer: str, shapes: list[tuple[int, ...]], result: tuple[int, ...]) -> float:
    """Multiplications and additions; one for each output where a layer has no product."""
    if layer == "Convolution":  # (out, in, height, width), with groups in front
        return 2 * math.prod(result) * math.prod(shapes[1][-3:])
    if layer in ("FullyConnected", "MatMul"):
        return 2 * math.prod(result) * shapes[0][-1]
    if layer in ("ScaledDotProductAttention", "MHA"):
        return 4 * math.prod(shapes[0]) * shapes[1][-2]  # scores, and the weighted sum of values
    return math.prod(shapes[0]) if layer == "Reduce" else math.prod(result)


def layers_of(compiled: openvino.CompiledModel, inputs: np.ndarray, repeats: int) -> list[Layer]:
    """The executed layers with their shortest times."""
    request = compiled.create_infer_request()
    taken: dict[str, float] = defaultdict(lambda: math.inf)
    for _ in range(repeats + 1):
        request.infer({0: inputs})
        for node in request.profiling_info:
            taken[node.node_name] = min(taken[node.node_name], node.real_time.total_seconds())
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        layer, primitive = (about[key].astype(str) for key in ("layerType", "primitiveType"))
        seconds = taken.get(node.get_friendly_name(), 0.0)
        if seconds in (0.0, math.inf) or not node.get_output_size():
            continue
        shapes = [tuple(port.get_source_output().get_shape()) for port in node.inputs()]
        result = tuple(node.output(0).get_shape())
        each = BYTES.get(primitive.rpartition("_")[2], 4)
        moved = each * (sum(map(math.prod, shapes)) + math.prod(result))
        kind = kind_of(layer, primitive, shapes[1] if len(shapes) > 1 else ())
        found.append(Layer(kind, operations_of(layer, shapes, result), moved, seconds))
    return found


def draw(path: str, points: dict[str, list[tuple]], peak: float, bandwidth: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    intensity = np.geomspace(0.1, 1e4, 200)
    axes.loglog(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, color="black", label="roof")
    for model, rows in points.items():
        x, y, share = (np.array([row[at] for row in rows]) for at in (1, 2, 3))
        axes.scatter(x, y, s=30 + 2000 * share, alpha=0.5, label=model)
        for name, a, b, _ in rows:
            axes.annotate(name, (a, b), fontsize=8, ha="center")
    axes.set(xlabel="operations per byte", ylabel="GFLOP/s", title="Layers and the roof; the area is the share of time")
    axes.legend(markerscale=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    options = arguments(__doc__, models="b7,vit-l16", batch=8, repeats=3, dtype="float32", picture="")
    peak, bandwidth = product(options.dtype)[1], bandwidth_of_memory()
    threads = torch.get_num_threads()
    points = {}
    for name in options.models.split(","):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        size = getattr(model.config, "vision_config", model.config).image_size
        core = openvino.Core()
        graph = core.read_model(graphs(model.config, tensors_of(model))["image"].message())
        shape = (options.batch, 3, size, size)
        graph.reshape(shape)
        settings = {"PERF_COUNT": "YES", "INFERENCE_PRECISION_HINT": PRECISIONS[options.dtype],
                    "INFERENCE_NUM_THREADS": threads}  # fmt: skip
        compiled = core.compile_model(graph, "CPU", settings)
        pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        layers = layers_of(compiled, pixels, options.repeats)
        whole = sum(layer.seconds for layer in layers)

        def row(kind: str, some: list[Layer], whole: float = whole) -> list:
            operations, moved, seconds = (sum(layer[at] for layer in some) for at in (1, 2, 3))
            ideal = sum(max(layer.operations / peak, layer.bytes / bandwidth) for layer in some)
            return [kind, len(some), operations / 1e9, moved / 1e9, 1e3 * seconds, seconds / whole,
                    operations / moved, operations / seconds / 1e9, ideal / seconds]  # fmt: skip

        kinds = {layer.kind for layer in layers}
        rows = sorted((row(kind, [x for x in layers if x.kind == kind]) for kind in kinds), key=lambda r: -r[4])
        points[name] = [(r[0], r[6], r[7], r[5]) for r in rows]
        rows = [[*r[:5], f"{r[5]:.1%}", *r[6:8], f"{r[8]:.0%}"] for r in (*rows, row("all", layers))]
        show(
            f"{name}, {size} pixels, batch {options.batch}, {options.dtype}: peak {peak / 1e9:.0f} GFLOP/s, "
            f"{bandwidth / 1e9:.0f} GB/s",
            ["kind", "layers", "GFLOP", "GB", "ms", "of the time", "FLOP per byte", "GFLOP/s", "of its roof"],
            rows,
        )
    if options.picture:
        draw(options.picture, points, peak, bandwidth)


if __name__ == "__main__":
    main()
