"""Run by test_loss_flax.py with several simulated devices: a training step on all of them against the step on one."""

import json

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

jax.config.update("jax_enable_x64", True)
DEVICES, GHOST = jax.device_count(), 4
BATCH = 2 * GHOST * DEVICES  # two ghost batches on every device


def new_model() -> FlaxAlignModel:
    config = tiny.align_config()
    config.vision_config.num_block_repeats, config.text_config.num_hidden_layers = [1, 2, 1], 1
    config.vision_config.drop_connect_rate, config.vision_config.virtual_batch_size = 0.0, GHOST
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


mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
errors = {"devices": DEVICES}
batch = new_batch()

# jit: a batch that is split over devices is one batch
model = new_model()
model.shard(mesh)
loss, gradients = one_step(model, jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS))))
errors |= compare("jit", results(loss, model, flax_arrays.canonical(model, gradients)), single(batch))

# shard_map: each device normalises the ghost batches of its own rows. One device has the same groups when group j's
# samples, which are rows i * n + j of its batch, are those of group j % 2 of device j // 2.
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

# tensor parallelism: half the heads and half the inner layer on either device
mesh = jax.make_mesh((DEVICES // 2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
model = new_model()
model.eval()
forward = nnx.jit(lambda model, batch: model(**batch).logits_per_image)
wanted = np.asarray(forward(model, batch))
model.shard(mesh)
kernel = model.text_model.encoder.layer[0].intermediate.dense.kernel.get_value()
halves = kernel.addressable_shards[0].data.shape
got = forward(model, jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data"))))
errors["tensor logits"] = float(np.abs(np.asarray(got) - wanted).max())
errors["tensor split"] = float(halves != (kernel.shape[0], kernel.shape[1] // 2))
print(json.dumps(errors))
