"""The Flax engine gives what the PyTorch engine gives, compiles rarely, and does not touch the model it was given."""

import pickle

import jax
import numpy as np
import pytest
from tolerances import TOLERANCE

from kakao_models import AlignConfig, FlaxViTForImageClassification
from kakao_models.checkpoint.flax import _ACTIVATIONS
from kakao_models.inference.engine_flax import FlaxEngine
from kakao_models.inference.engine_torch import TorchEngine


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32)).astype(np.float32)


def tokens(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    lengths = random.integers(2, length + 1, (count, 1))
    return random.integers(5, 80, (count, length)), (np.arange(length) < lengths).astype(np.int64)


def same(got: np.ndarray, wanted: np.ndarray) -> bool:
    assert got.dtype == np.float32 and got.shape == wanted.shape
    return np.abs(got - wanted).max() <= TOLERANCE["batching"] * max(1, np.abs(wanted).max())


def test_align_gives_what_torch_gives(align):
    ours, theirs = FlaxEngine.load(align), TorchEngine.load(align)
    assert (ours.dim, ours.reads_texts, ours.classifies) == (theirs.dim, True, False)
    assert ours.temperature == theirs.temperature
    for count in (3, 2, 1):
        assert same(ours.features(images(count)), theirs.features(images(count)))
    assert same(ours.hidden(images(3)), theirs.hidden(images(3)))
    for count, length in ((3, 7), (2, 16), (4, 3)):
        assert same(ours.texts(*tokens(count, length)), theirs.texts(*tokens(count, length)))
    # three batches of images and of texts, of sizes that fit one power of two: one compilation each
    assert {name: ours._jitted[name]._cache_size() for name in ("features", "hidden", "texts")} == {
        "features": 1, "hidden": 1, "texts": 1
    }  # fmt: skip
    longest = AlignConfig.from_pretrained(align).text_config.max_position_embeddings - 1
    assert same(ours.texts(*tokens(1, longest)), theirs.texts(*tokens(1, longest)))


def test_vit_gives_what_torch_gives(vit):
    ours, theirs = FlaxEngine.load(vit), TorchEngine.load(vit)
    assert (ours.dim, ours.reads_texts, ours.classifies) == (theirs.dim, False, True)
    for name in ("features", "hidden", "logits"):
        assert same(getattr(ours, name)(images(3)), getattr(theirs, name)(images(3))), name


def test_a_model_object_is_used_as_it_is(vit):
    model = FlaxViTForImageClassification.from_pretrained(vit, hidden_dropout_prob=0.5)
    model.train()
    engine = FlaxEngine(model, device="cpu")
    assert np.array_equal(engine.logits(images(2)), engine.logits(images(2)))
    assert not model.vit.embeddings.dropout.deterministic
    half = FlaxEngine(model, dtype="bfloat16")
    assert not np.array_equal(half.logits(images(2)), engine.logits(images(2)))
    assert np.abs(half.logits(images(2)) - engine.logits(images(2))).max() <= 0.1
    assert model.classifier.kernel.dtype == jax.numpy.float32


def test_a_model_is_pickled_with_its_values_and_its_mode(vit):
    assert pickle.loads(pickle.dumps(_ACTIVATIONS)) == _ACTIVATIONS
    model = FlaxViTForImageClassification.from_pretrained(vit)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(FlaxEngine(again).logits(images(2)), FlaxEngine(model).logits(images(2)))
    assert again.config.to_dict() == model.config.to_dict() and again.vit.embeddings.dropout.deterministic
    model.train()
    assert not pickle.loads(pickle.dumps(model)).vit.embeddings.dropout.deterministic


def test_what_can_t_be_used_is_named(vit, tmp_path):
    with pytest.raises(ValueError, match=r"device 'cuda:7' can't be used .*: on this machine use 'auto', 'cpu:0'"):
        FlaxEngine.load(vit, device="cuda:7")
    with pytest.raises(ValueError, match="dtype 'float8'"):
        FlaxEngine.load(vit, dtype="float8")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="model_type is 'clip', expected one of 'align',"):
        FlaxEngine.load(tmp_path)
