"""JAX's exported programs, beside the embedder (of PyTorch)."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny
from exports import TEXTS, as_bytes, close, exported, of_bytes, of_page, tokens
from jax import export as jax_export

from kakao_models import Embedder
from kakao_models.export.exporter import summary


def called(file, *inputs):
    program = jax_export.deserialize(bytearray(file.read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    return np.asarray(program.call(*inputs))


def test_stablehlo(align_tf, tmp_path):
    embedder = Embedder(align_tf)
    folder, sheet = exported(align_tf, tmp_path / "out", to="stablehlo", input="picture", normalize=True)
    assert f"written with jax {jax.__version__}: {sheet['lifetime']}" in summary(sheet, folder)
    assert "6 months newer" in sheet["lifetime"]
    pictures = [tiny.picture(seed, 131, 77) for seed in range(2)]
    close(called(folder / "image.stablehlo", as_bytes(pictures)), embedder.images(pictures, normalize=True))
    rows = of_page("deserialize", "stablehlo", folder, images=as_bytes(pictures))["rows"]
    close(np.asarray(rows), embedder.images(pictures, normalize=True))
    close(called(folder / "text.stablehlo", *tokens(embedder, "int32").values()), embedder.texts(TEXTS, normalize=True))


@pytest.mark.parametrize("make", [tiny.vit_folder, partial(tiny.align_classifier_folder, **tiny.FEW_BLOCKS)])
def test_stablehlo_of_a_classifier(make, tmp_path):
    model = make(tmp_path / "model")
    folder, sheet = exported(model, tmp_path / "out", to="stablehlo", input="uint8", quantize="bfloat16")
    close(called(folder / "classifier.stablehlo", as_bytes()), of_bytes(Embedder(model), output="logits"), 0.05)
    assert 0.999 < sheet["functions"]["classifier"]["check"]["cosine"] < 0.9999999
