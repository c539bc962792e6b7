"""Run by test_loss_flax.py with several simulated devices: a training step on all of them against the step on one."""

import json
from functools import partial

import flax_arrays
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from pretrain_align_flax import AXIS, make_step

from kakao_models import FlaxAlignModel
from kakao_models.train.loss_flax import classification_loss

jax.config.update("jax_enable_x64", True)
DEVICES, GHOST = jax.device_count(), 4
BATCH = 2 * GHOST * DEVICES  # two ghost batches on every device


def new_model() -> FlaxAlignModel:
    vision = tiny.align_config().vision_config.to_dict() | dict(
        kernel_sizes=[3, 5], in_channels=[32, 16], out_channels=[16, 24], strides=[1, 2], num_block_repeats=[1, 2],
        expand_ratios=[1, 6], hidden_dim=8, drop_connect_rate=0.0, virtual_batch_size=GHOST,
    )  # fmt: skip
    config = tiny.align_config(vision_config=vision)
    config.text_config.num_hidden_layers = 1
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    config.temperature_init_value = 0.3
    model = FlaxAlignModel(config, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for variable in model._variables().values():
        value = np.asarray(variable.get_value(), np.float64)
        variable.set_value(jnp.asarray(value + 0.05 * random.random(value.shape)))
    model.train()
    return model


def new_batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "pixel_values": random.standard_normal((BATCH, 3, 16, 16)),
        "input_ids": random.integers(5, 80, (BATCH, 6)).astype(np.int32),
        "attention_mask": (np.arange(6) < random.integers(2, 7, (BATCH, 1))).astype(np.int32),
    }


@nnx.jit
def one_step(model, batch):
    return nnx.value_and_grad(lambda model: model(**batch, return_loss=True).loss)(model)


def results(loss, model, gradients) -> dict[str, dict]:
    statistics = flax_arrays.canonical(model, nnx.state(model, nnx.BatchStat))
    return {"loss": {"": np.asarray(loss)}, "gradients": gradients, "statistics": statistics}


def compare(name: str, got: dict, wanted: dict) -> dict[str, float]:
    assert all(got[kind].keys() == wanted[kind].keys() and len(got[kind]) for kind in wanted)
    return {
        f"{name} {kind}": max(float(np.abs(got[kind][key] - wanted[kind][key]).max()) for key in wanted[kind])
        for kind in wanted
    }


def single(batch: dict) -> dict:
    model = new_model()
    loss, gradients = one_step(model, batch)
    return results(loss, model, flax_arrays.canonical(model, gradients))


def on_mesh(*sizes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(sizes, (AXIS, "tensor")[: len(sizes)], axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))


def shares(model) -> dict[str, float]:
    """Of layers split by their outputs and by their inputs: how much of the kernel the first device holds."""
    block, layer = model.vision_model.encoder.blocks[1], model.text_model.encoder.layer[0]
    chosen = {
        "expand": block.expansion.expand_conv.kernel,
        "variance": block.depthwise_conv.depthwise_norm.var,
        "project": block.projection.project_conv.kernel,
        "inner": layer.intermediate.dense.kernel,
        "outer": layer.output_layer.dense.kernel,
        "stem": model.vision_model.embeddings.convolution.kernel,
    }
    values = {name: variable.get_value() for name, variable in chosen.items()}
    return {name: value.addressable_shards[0].data.size / value.size for name, value in values.items()}


errors = {"devices": DEVICES}
batch = new_batch()

# jit: a batch that is split over devices is one batch; half the heads, inner layer and channels on either device of a pair
mesh = on_mesh(DEVICES // 2, 2)
model = new_model()
model.shard(mesh)
errors["shares"] = shares(model)
loss, gradients = one_step(model, jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS))))
errors |= compare("jit", results(loss, model, flax_arrays.canonical(model, gradients)), single(batch))

# shard_map: each device normalises the ghost batches of its own rows. One device has the same groups when group j's
# samples, which are rows i * n + j of its batch, are those of group j % 2 of device j // 2.
mesh = on_mesh(DEVICES)
order = np.empty(BATCH, int)
n = BATCH // GHOST
for j in range(n):
    for i in range(GHOST):
        order[i * n + j] = j // 2 * 2 * GHOST + i * 2 + j % 2
model = new_model()
graph, parameters, rest = nnx.split(model, nnx.Param, ...)
before = jax.tree.map(np.asarray, parameters)
optimizer = optax.sgd(1.0)
step = make_step(graph, optimizer, mesh, model.config.label_smoothing)
placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
after, rest, _, loss = step(parameters, rest, optimizer.init(parameters), placed, jnp.int32(0))
gradients = flax_arrays.canonical(model, jax.tree.map(lambda a, b: a - np.asarray(b), before, after))  # a step of 1
nnx.update(model, rest)
wanted = single({name: array[order] for name, array in batch.items()})
errors |= compare("shard_map", results(loss, model, gradients), wanted)

# the losses of a classifier, of one label an image and of several
random = np.random.default_rng(2)
weights, rows = random.standard_normal((5, 7)), random.standard_normal((BATCH, 5))
kinds = {"one": (random.integers(0, 7, BATCH), 0.1), "several": (random.integers(0, 2, (BATCH, 7)), 1e-4)}
for kind, (labels, smoothing) in kinds.items():

    def value_and_gradient(weights, rows, labels, axis_name=None, smoothing=smoothing):
        return jax.value_and_grad(
            lambda weights: classification_loss(rows @ weights, labels, smoothing, axis_name=axis_name)
        )(weights)

    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    sharded = jax.shard_map(
        partial(value_and_gradient, axis_name=AXIS),
        mesh=mesh,
        in_specs=(everywhere, split, split),
        out_specs=everywhere,
    )
    got, wanted = jax.jit(sharded)(weights, rows, labels), value_and_gradient(weights, rows, labels)
    errors[f"labels, {kind}"] = max(float(np.abs(np.asarray(a) - b).max()) for a, b in zip(got, wanted))
print(json.dumps(errors))
