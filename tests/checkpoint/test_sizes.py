"""Sizes in a configuration that no weights have: refused before anything of that size is built."""

import json

import pytest
import tiny

from kakao_models import (
    AlignModel,
    Embedder,
    FlaxAlignModel,
    FlaxViTModel,
    TFAlignModel,
    TFViTModel,
    ViTModel,
)

MOST = 2**31 - 1
SIZES = [
    ("align", "text_config", "num_hidden_layers", MOST),
    ("align", "text_config", "vocab_size", MOST),
    ("align", "text_config", "intermediate_size", 10**9),
    ("align", "vision_config", "depth_coefficient", 1e9),
    ("align", "vision_config", "width_coefficient", 1e6),
    ("align", None, "projection_dim", MOST),
    ("vit", None, "num_hidden_layers", MOST),
    ("vit", None, "intermediate_size", MOST),
]
LOADERS = {
    "align": (AlignModel.from_pretrained, TFAlignModel.from_pretrained, FlaxAlignModel.from_pretrained, Embedder),
    "vit": (ViTModel.from_pretrained, TFViTModel.from_pretrained, FlaxViTModel.from_pretrained, Embedder),
}


@pytest.mark.parametrize("kind,part,name,value", SIZES)
def test_sizes_beyond_the_weights_are_refused(kind, part, name, value, tmp_path):
    folder = {"align": tiny.align_folder, "vit": tiny.vit_folder}[kind](tmp_path / kind)
    file = tmp_path / kind / "config.json"
    config = json.loads(file.read_text())
    (config[part] if part else config)[name] = value
    file.write_text(json.dumps(config))
    for load in LOADERS[kind]:
        with pytest.raises(
            ValueError, match=rf"({name}|num_hidden_layers) is \d.* in the configuration, but |use_visual_projection"
        ):
            load(folder)
