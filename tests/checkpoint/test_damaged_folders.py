"""A few mutations of model folders; tests/fuzz/fuzz_folders.py tries more, with every reader."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzz.fuzz_folders import fuzz

import kakao_models

READERS = (
    *("align", "align processor", "align embedder", "info align"),
    *("vit", "vit processor", "vit embedder", "info vit"),
)


def test_fuzz(tmp_path):
    results = fuzz(200, seed=1_000_000, folder=tmp_path, readers=READERS)
    assert {outcome for _, outcome in results} == {"read", "refused"}
    assert sum(results.values()) == 200


@pytest.mark.parametrize("kind", ["align", "vit"])
def test_an_unknown_activation_is_named(kind, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(kind), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (config["vision_config"] if kind == "align" else config)["hidden_act"] = "x"
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("AlignModel", "FlaxAlignModel") if kind == "align" else ("ViTModel", "FlaxViTModel"):
        with pytest.raises(ValueError, match="hidden_act: got 'x', expected one of .*gelu"):
            getattr(kakao_models, name).from_pretrained(folder)


@pytest.mark.parametrize("name", ["num_block_repeats", "expand_ratios", "kernel_sizes", "strides", "out_channels"])
def test_numbers_of_a_stage_have_limits(name, align, tmp_path):
    config = json.loads((Path(align) / "config.json").read_text())
    config["vision_config"][name][-1] = 10**30
    with pytest.raises(ValueError, match=f"{name} is .*{10**30}.*, expected at most"):
        kakao_models.AlignConfig.from_dict(config)


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_images_of_another_size_than_a_vit_s_are_named(vit, engine, tmp_path):
    folder = shutil.copytree(vit, tmp_path / "model")
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    fields["size"] = {"height": 32, "width": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="makes images of 32 x 1 .height x width., but the ViT reads 32 x 32"):
        kakao_models.Embedder(str(folder), engine=engine).images(np.zeros((40, 40, 3), np.uint8))
