"""The weight table: every tensor of every size, both ways, bit by bit."""

import goldens
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers.core_model_loading import revert_weight_conversion

from kakao_models import ViTConfig, ViTForImageClassification, ViTModel
from kakao_models.checkpoint.weightmap import permute
from kakao_models.vit.config import VIT_SIZES
from kakao_models.vit.weights import TPU_KEY_LAYOUTS, vit_tpu_slots

RUNS = [
    "vit_a",
    "vit_b",
    "vit_c",
    "vit_d",
    "vit_e",
    "vit_nano_ckpt",
    "vit_nano_model_weights",
    "vit_nano_backbone_weights",
]


def on_disk(config: ViTConfig, model_class=ViTForImageClassification) -> dict[str, tuple[int, ...]]:
    """Names and shapes as `save_pretrained` writes them, of a model that takes no memory."""
    with torch.device("meta"):
        model = model_class(config)
    return {key: tuple(value.shape) for key, value in revert_weight_conversion(model, model.state_dict()).items()}


def nano(**kwargs) -> ViTConfig:
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
    return ViTConfig(**(sizes | {"image_size": 6, "patch_size": 2, "num_labels": 5} | kwargs))


def random_checkpoint(config: ViTConfig, key_layout: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers under the original's keys, every tensor of its own shape and kind."""
    d, mlp, side = config.hidden_size, config.intermediate_size, config.patch_size
    shapes = {"class_emb": (1, 1, d), "pos_emb": (1, 1 + config.grid[0] * config.grid[1], d)}
    dense = {"embedding": (side, side, 3, d)}
    norms = ["norm"]
    for layer in range(config.num_hidden_layers):
        prefix = f"enc_layers/{layer}"
        dense |= {
            f"{prefix}/att/{name}": (d, d) for name in ("query_dense", "key_dense", "value_dense", "combine_heads")
        }
        dense |= {f"{prefix}/mlp/layer_with_weights-0": (d, mlp), f"{prefix}/mlp/layer_with_weights-1": (mlp, d)}
        norms += [f"{prefix}/layernorm1", f"{prefix}/layernorm2"]
    if config.representation_size:
        dense["representation"] = (d, config.representation_size)
    shapes |= {f"{name}/kernel": shape for name, shape in dense.items()}
    shapes |= {f"{name}/bias": shape[-1:] for name, shape in dense.items()}
    shapes |= {f"{name}/{leaf}": (d,) for name in norms for leaf in ("gamma", "beta")}
    prefix = {"manager": "backbone/", "model": "layer_with_weights-0/", "backbone": ""}[key_layout]
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    head = {"manager": "model/layer_with_weights-1/", "model": "layer_with_weights-1/"}.get(key_layout)
    if head:
        width = config.representation_size or d
        shapes |= {head + "kernel": (width, config.num_labels), head + "bias": (config.num_labels,)}
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("representation", [None, 1024])
@pytest.mark.parametrize("size", VIT_SIZES)
def test_covers_every_tensor_of_every_size(size, representation):
    config = ViTConfig.vit(size, representation_size=representation, num_labels=21841)
    wanted = on_disk(config)
    for key_layout in ("manager", "model"):
        slots = vit_tpu_slots(config, key_layout)
        assert sorted(slot.key for slot in slots) == sorted(wanted)
        assert len({slot.local_key for slot in slots}) == len(slots)
    backbone = {slot.key for slot in vit_tpu_slots(config, "backbone")}
    assert backbone == {key for key in wanted if not key.startswith("classifier.")}
    assert backbone == {"vit." + key for key in on_disk(config, ViTModel)}


def test_names_are_those_that_save_pretrained_writes(tmp_path):
    config = nano(representation_size=7)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert {key: value.shape for key, value in written.items()} == on_disk(config)
    assert "vit.encoder.layer.2.attention.attention.query.weight" in written  # the Hub's names


@pytest.mark.parametrize("name", RUNS)
def test_every_tensor_of_the_recorded_checkpoints_fits_the_model(name):
    golden = goldens.load(name)
    config = goldens.vit_config(golden.config)
    shapes = {
        entry["key"].removesuffix(goldens.weight_formula.SUFFIX): entry["shape"]
        for entry in golden.variables
        if entry["kind"] == "weight"
    }
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    slots = vit_tpu_slots(config, goldens.vit_key_layout(name))
    wanted = on_disk(config)
    for key, array in goldens.canonical(slots, empty).items():
        assert array.shape == wanted[key], key


@pytest.mark.parametrize("representation", [None, 7])
@pytest.mark.parametrize("key_layout", TPU_KEY_LAYOUTS)
def test_both_directions_are_bit_exact(key_layout, representation):
    config = nano(representation_size=representation)
    original = random_checkpoint(config, key_layout)
    slots = vit_tpu_slots(config, key_layout)
    canonical = goldens.canonical(slots, original)
    back = {slot.local_key: permute(canonical[slot.key], slot.axes, slot.local_axes) for slot in slots}
    assert back.keys() == original.keys()
    for key, array in original.items():
        assert back[key].dtype == array.dtype and np.array_equal(back[key], array), key
    again = goldens.canonical(slots, back)
    assert all(np.array_equal(again[key], canonical[key]) for key in canonical)


def test_where_tensors_go():
    config = nano(representation_size=7)
    original = random_checkpoint(config, "manager")
    canonical = goldens.canonical(vit_tpu_slots(config), original)
    layer, there = "vit.encoder.layer.1.", "backbone/enc_layers/1/"
    for ours, theirs in {
        "vit.embeddings.cls_token": "backbone/class_emb",
        "vit.embeddings.position_embeddings": "backbone/pos_emb",
        layer + "layernorm_before.weight": there + "layernorm1/gamma",
        layer + "layernorm_after.bias": there + "layernorm2/beta",
        layer + "attention.attention.key.bias": there + "att/key_dense/bias",
        "vit.layernorm.bias": "backbone/norm/beta",
        "classifier.bias": "model/layer_with_weights-1/bias",
    }.items():
        assert np.array_equal(canonical[ours], original[theirs]), ours
    for ours, theirs in {
        layer + "attention.attention.query.weight": there + "att/query_dense/kernel",
        layer + "attention.output.dense.weight": there + "att/combine_heads/kernel",
        layer + "intermediate.dense.weight": there + "mlp/layer_with_weights-0/kernel",
        layer + "output.dense.weight": there + "mlp/layer_with_weights-1/kernel",
        "vit.pooler.dense.weight": "backbone/representation/kernel",
        "classifier.weight": "model/layer_with_weights-1/kernel",
    }.items():
        assert np.array_equal(canonical[ours], original[theirs].T), ours
    kernel = original["backbone/embedding/kernel"]  # (H, W, I, O)
    assert canonical["vit.embeddings.patch_embeddings.projection.weight"][3, 2, 1, 0] == kernel[1, 0, 2, 3]


def test_an_unknown_key_layout_is_refused():
    with pytest.raises(ValueError, match="key layout: got 'keras', expected one of manager, model, backbone"):
        vit_tpu_slots(nano(), "keras")
