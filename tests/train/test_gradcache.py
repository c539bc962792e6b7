"""A batch in chunks is the whole batch: gradients, running statistics, random numbers."""

import copy

import pytest
import tiny
import torch
from tolerances import TOLERANCE

from kakao_models import AlignModel
from kakao_models.align.modeling_torch import AlignBatchNorm, contrastive_loss
from kakao_models.train.gradcache import BatchNormStatistics, chunked_step, ghost_chunks
from kakao_models.train.loss import tiled_contrastive_loss

GHOST = 4


def model_and_inputs(batch: int, dropout: float) -> tuple[AlignModel, dict]:
    config = tiny.align_config()
    config.vision_config.virtual_batch_size, config.vision_config.drop_connect_rate = GHOST, 2 * dropout
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = dropout
    config.temperature_init_value = 0.1
    model = tiny.fill(AlignModel(config)).double().train()
    random = torch.Generator().manual_seed(1)
    inputs = {
        "pixel_values": torch.rand(batch, 3, 32, 32, generator=random, dtype=torch.float64) * 2 - 1,
        "input_ids": torch.randint(5, 60, (batch, 9), generator=random),
        "attention_mask": (torch.arange(9) < torch.randint(3, 10, (batch, 1), generator=random)).long(),
    }
    return model, inputs


def embed(model):
    def run(inputs):
        output = model(**inputs)
        return output.image_embeds, output.text_embeds

    return run


def chunked(model, inputs, chunk) -> torch.Tensor:
    chunks = ghost_chunks(len(inputs["input_ids"]), chunk, GHOST)
    statistics = BatchNormStatistics(model)
    return chunked_step(embed(model), inputs, chunks, tiled_contrastive_loss, model.temperature, statistics=statistics)


def step(model) -> dict[str, torch.Tensor]:
    # not LAMB: it makes full-size steps of gradients that are zero but for rounding
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.state_dict()


@pytest.mark.parametrize("chunk", [4, 8, 12, 100])  # of 28: 7 ghost batches, the last chunk with fewer
def test_parameters_and_running_statistics_after_a_step_are_those_of_the_whole_batch(chunk):
    model, inputs = model_and_inputs(28, dropout=0.0)
    whole = copy.deepcopy(model)
    expected = contrastive_loss(whole(**inputs).logits_per_image, 0.1)
    expected.backward()
    loss = chunked(model, inputs, chunk)
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=TOLERANCE["chunks float64"])
    before = {name: x.clone() for name, x in model.named_parameters()}
    ours, theirs = step(model), step(whole)
    for name, x in ours.items():
        torch.testing.assert_close(x, theirs[name], rtol=0, atol=TOLERANCE["chunks float64"], msg=name)
    changed = [name for name, x in model.named_parameters() if not torch.equal(x, before[name])]
    assert len(changed) > 0.9 * len(before) and "temperature" in changed
    norms = [module for module in model.modules() if isinstance(module, AlignBatchNorm)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


def test_chunks_that_cut_ghost_batches_would_be_another_function():
    """The test above bites: consecutive rows as chunks, which cut all ghost batches, give other gradients."""
    model, inputs = model_and_inputs(16, dropout=0.0)
    whole = copy.deepcopy(model)
    contrastive_loss(whole(**inputs).logits_per_image, 0.1).backward()
    cut = list(torch.arange(16).split(8))
    chunked_step(embed(model), inputs, cut, tiled_contrastive_loss, model.temperature)
    ours, theirs = (m.vision_model.embeddings.convolution.weight.grad for m in (model, whole))
    assert (ours - theirs).norm() > 0.01 * theirs.norm()


def test_dropout_and_drop_connect_drop_the_same_in_both_passes():
    model, inputs = model_and_inputs(16, dropout=0.3)
    reference = copy.deepcopy(model)
    torch.manual_seed(7)
    chunked(model, inputs, 8)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    parts = [embed(reference)({name: x[rows] for name, x in inputs.items()}) for rows in ghost_chunks(16, 8, GHOST)]
    images, texts = (torch.cat(side) for side in zip(*parts))
    contrastive_loss(images @ texts.T / reference.temperature, 0.1).backward()
    assert torch.equal(after, torch.get_rng_state())
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name], rtol=0, atol=TOLERANCE["chunks float64"], msg=name)


def test_gradient_checkpointing_changes_nothing():
    model, inputs = model_and_inputs(16, dropout=0.3)
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for m in (model, plain):
        torch.manual_seed(7)
        chunked(m, inputs, 8)
    for ours, theirs in zip(step(model).values(), step(plain).values()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE["chunks float64"])


def test_a_frozen_tower_keeps_its_statistics():
    model, inputs = model_and_inputs(8, dropout=0.0)
    model.vision_model.requires_grad_(False).eval()
    before = copy.deepcopy(model.vision_model.state_dict())
    chunks = ghost_chunks(8, 3, None)
    chunked_step(
        embed(model), inputs, chunks, tiled_contrastive_loss, model.temperature, statistics=BatchNormStatistics(model)
    )
    assert all(torch.equal(x, before[name]) for name, x in model.vision_model.state_dict().items())
    assert model.text_projection.weight.grad.abs().sum() > 0


def test_ghost_chunks_are_whole_ghost_batches_in_their_order():
    rows = ghost_chunks(24, 8, 4)
    assert sorted(torch.cat(rows).tolist()) == list(range(24))
    of_batch = [set(range(j, 24, 6)) for j in range(6)]
    of_chunks = [set(part[j :: len(part) // 4].tolist()) for part in rows for j in range(len(part) // 4)]
    assert of_chunks == of_batch
    assert [len(part) for part in ghost_chunks(24, 16, 4)] == [16, 8]
    assert [part.tolist() for part in ghost_chunks(5, 2, None)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("batch, chunk, try_", [(30, 8, "28 in chunks of 8"), (32, 6, "32 in chunks of 4")])
def test_a_batch_that_is_no_multiple_of_the_ghost_batch_is_refused_with_one_that_is(batch, chunk, try_):
    with pytest.raises(ValueError, match=f"virtual_batch_size 4.*Try {try_}"):
        ghost_chunks(batch, chunk, 4)
