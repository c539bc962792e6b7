import numpy as np
import pytest
import tiny
import torch

from kakao_models import ViTForImageClassification
from kakao_models.vit.rollout import attention_rollout, patch_map, recorded_attention

TOKENS = 5


def random_attention(seed: int, layers: int = 3, heads: int = 2, tokens: int = TOKENS) -> list[np.ndarray]:
    weights = np.random.default_rng(seed).exponential(size=(layers, 2, heads, tokens, tokens))
    return list(weights / weights.sum(-1, keepdims=True))


def whole_product(attentions: list[np.ndarray]) -> np.ndarray:
    """As the paper writes it: the product of all layers' matrices, (B, L, L)."""
    product = np.eye(attentions[0].shape[-1])
    for layer in attentions:
        product = (0.5 * layer.mean(1) + 0.5 * np.eye(layer.shape[-1])) @ product
    return product


@pytest.mark.parametrize("token", range(TOKENS))
def test_it_is_a_row_of_the_product_of_all_layers(token):
    attentions = random_attention(0)
    np.testing.assert_allclose(attention_rollout(attentions, token), whole_product(attentions)[:, token], atol=1e-6)


def test_layers_that_look_at_themselves_alone_change_nothing():
    found = attention_rollout([np.eye(4)[None]] * 7, token=2)
    np.testing.assert_array_equal(found, [[0, 0, 1, 0]])


def test_uniform_attention_halves_what_is_the_tokens_own_in_each_layer():
    """A token keeps 1/2 in each layer; the rest is spread evenly, and stays so."""
    layers = 3
    found = attention_rollout([np.full((1, 4, 4), 1 / 4)] * layers)
    own = 0.5**layers
    np.testing.assert_allclose(found, [[own + (1 - own) / 4, *[(1 - own) / 4] * 3]], atol=1e-7)


def test_the_first_layer_is_applied_first():
    """0 looks at 1 in the last layer, 1 at 2 in the first: a quarter has come from 2. The other way round, nothing has."""
    looks = {(0, 1): np.eye(3), (1, 2): np.eye(3)}
    for (row, column), matrix in looks.items():
        matrix[row, row], matrix[row, column] = 0, 1
    first, last = looks[1, 2][None], looks[0, 1][None]
    np.testing.assert_allclose(attention_rollout([first, last]), [[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(attention_rollout([last, first]), [[0.5, 0.5, 0]])


def test_wrong_attentions_are_refused():
    with pytest.raises(ValueError, match="got no layers.*Did an engine run"):
        attention_rollout([])
    with pytest.raises(ValueError, match="same"):
        attention_rollout([np.eye(3)[None], np.eye(4)[None]])
    with pytest.raises(ValueError, match=r"attentions\[1\].*differs by 1"):
        attention_rollout([np.eye(3)[None], 2 * np.eye(3)[None]])
    with pytest.raises(ValueError, match="differs by nan"):
        attention_rollout([np.full((1, 3, 3), np.nan)])
    with pytest.raises(ValueError, match="token: got 3"):
        attention_rollout([np.eye(3)[None]], token=3)


@pytest.fixture(scope="module")
def model() -> ViTForImageClassification:
    return tiny.fill(ViTForImageClassification(tiny.vit_config(image_size=[16, 32])))


def test_recording_gives_the_models_own_attention(model):
    pixels = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = model(pixels)
        wanted = model(pixels, output_attentions=True).attentions
        hooks = [dict(layer.attention._forward_hooks) for layer in model.base_model.layers]
        with recorded_attention(model) as layers:
            model(pixels[:1])  # only the latest pass counts
            during = model(pixels)
    assert len(layers) == model.config.num_hidden_layers == len(wanted)
    for found, attention in zip(layers, wanted):
        np.testing.assert_allclose(found, attention.mean(1), atol=1e-6)
    torch.testing.assert_close(during.logits, before.logits, atol=1e-5, rtol=1e-5)
    assert model.config._attn_implementation == "sdpa"
    assert hooks == [dict(layer.attention._forward_hooks) for layer in model.base_model.layers]


def test_a_map_has_the_patches_in_their_places(model):
    rollout = np.arange(9, dtype=np.float32)[None]  # the class token is 0
    np.testing.assert_array_equal(patch_map(rollout, model), [[[1, 2, 3, 4], [5, 6, 7, 8]]])
    with pytest.raises(ValueError, match="2 x 4 patches"):
        patch_map(rollout[:, :-1], model)


def test_a_model_that_is_put_where_a_patch_is_looks_there(model):
    """Attention turned to one patch in every layer shows in the map at that patch."""
    look = np.zeros((1, 9, 9))
    look[:, :, 1 + 6] = 1
    heat = patch_map(attention_rollout([look] * 4), model)
    assert np.unravel_index(heat[0].argmax(), heat[0].shape) == (1, 2)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="needs a ViT in PyTorch"), recorded_attention(torch.nn.Linear(1, 1)):
        pass
