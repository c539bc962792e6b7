"""The towers as graphs against PyTorch's, in ONNX Runtime and OpenVINO."""

import numpy as np
import pytest
import tiny
import torch

from kakao_models import AlignForImageClassification, AlignModel, ViTForImageClassification, ViTModel
from kakao_models.fused import graph as graph_module, layers
from kakao_models.fused.graph import Graph
from kakao_models.fused.graph_towers import graphs
from kakao_models.fused.towers import tensors_of, towers

BYTES = np.full(3, 1 / 127.5), np.full(3, 127.5)
TOLERANCE = 1e-5  # sums in another order, as in test_towers.py; measured: 4e-6


def in_onnx(graph: Graph, *arrays: np.ndarray) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    with graph.readable() as source:
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    assert [port.shape for port in session.get_inputs()] == [list(shape) for _, shape in graph.inputs.values()]
    return session.run(None, dict(zip(graph.inputs, arrays)))[0]


def in_openvino(graph: Graph, *arrays: np.ndarray) -> np.ndarray:
    pytest.importorskip("openvino")
    from kakao_models.inference.runners import openvino_core

    with graph.readable() as source:
        core = openvino_core()
        compiled = core.compile_model(core.read_model(source), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(list(arrays))[0]


RUNTIMES = pytest.mark.parametrize("run", [in_onnx, in_openvino])


def check(rows: np.ndarray, expected: torch.Tensor) -> None:
    assert rows.dtype == np.float32 and rows.shape == tuple(expected.shape)
    np.testing.assert_allclose(rows, expected.numpy(), rtol=0, atol=TOLERANCE * expected.abs().max().item())


def pictures(size: int) -> np.ndarray:
    """Bytes (3, 3, size, size) with extremes at the borders."""
    raw = np.random.default_rng(size).integers(0, 256, (3, 3, size, size), dtype=np.uint8)
    raw[:, :, -1], raw[:, :, :, 0] = 255, 0
    return raw


def compare_images(run, model, size: int) -> None:
    """Compares features and the last hidden state, of bytes and of floats, with PyTorch's."""
    tensors, raw = tensors_of(model), pictures(size)
    pixels = raw.astype(np.float32) / 127.5 - 1
    tower = towers(model.config, tensors)["image"]
    for expected, hidden in ((tower(torch.from_numpy(pixels)), False), (tower.hidden(torch.from_numpy(pixels)), True)):
        check(run(graphs(model.config, tensors, hidden=hidden)["image"], pixels), expected)
        check(run(graphs(model.config, tensors, BYTES, hidden=hidden)["image"], raw), expected)


@RUNTIMES
@torch.inference_mode()
def test_align(align, run):
    model = AlignModel.from_pretrained(align).eval()
    compare_images(run, model, 32)
    compare_images(run, model, 35)  # odd and even sizes are padded differently
    ids = np.random.default_rng(0).integers(5, 20, (4, 9))
    mask = (np.arange(9) < np.array([3, 9, 1, 6])[:, None]).astype(np.int64)
    expected = model.get_text_features(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).pooler_output
    arrays = {key: tensor.numpy() for key, tensor in tensors_of(model).items()}  # numpy's do as well
    text = graphs(model.config, arrays)["text"]
    check(run(text, ids, mask), expected)
    assert np.abs(run(text, ids, np.ones_like(mask)) - expected.numpy()).max() > 1e-3  # the mask is not ignored


@RUNTIMES
@torch.inference_mode()
def test_the_bundled_model(run):
    compare_images(run, AlignModel.from_pretrained("align-small").eval(), 64)


@RUNTIMES
@pytest.mark.parametrize("options", [{}, {"representation_size": 24}, {"qkv_bias": False, "hidden_act": "gelu_new"}])
@torch.inference_mode()
def test_vit(tmp_path, run, options):
    compare_images(run, ViTForImageClassification.from_pretrained(tiny.vit_folder(tmp_path, **options)).eval(), 32)


@torch.inference_mode()
def test_other_configurations(tmp_path):
    model = AlignForImageClassification.from_pretrained(tiny.align_classifier_folder(tmp_path)).eval()
    compare_images(in_onnx, model, 32)
    for activation in ("relu", "relu6"):
        config = tiny.align_config()
        for name, value in {"pooling_type": "max", "depthwise_padding": [1], "hidden_act": activation}.items():
            setattr(config.vision_config, name, value)
        compare_images(in_onnx, tiny.fill(AlignModel(config)), 35)
    compare_images(in_onnx, tiny.fill(ViTModel(tiny.vit_config(patch_size=7, representation_size=8))), 32)
    config.vision_config.hidden_act = "selu"
    with pytest.raises(ValueError, match="activation 'selu' has no fused form"):
        graphs(config, tensors_of(model))
    assert graph_module._ACTIVATIONS.keys() == layers._ACTIVATIONS.keys()  # as in PyTorch


def test_graphs_are_valid(align, vit):
    onnx = pytest.importorskip("onnx")
    for model in (AlignModel.from_pretrained(align), ViTForImageClassification.from_pretrained(vit)):
        for graph in graphs(model.config, tensors_of(model), BYTES).values():
            onnx.checker.check_model(graph.message(), full_check=True)


@RUNTIMES
@torch.inference_mode()
def test_a_graph_too_large_for_one_message_lies_beside_its_weights(vit, run, monkeypatch):
    monkeypatch.setattr(graph_module, "_LARGEST", 1000)
    with graphs((model := ViTForImageClassification.from_pretrained(vit).eval()).config, tensors_of(model))[
        "image"
    ].readable() as file:
        assert file.is_file() and file.stat().st_size < (file.parent / "weights").stat().st_size
    assert not file.exists()
    compare_images(run, model, 32)
