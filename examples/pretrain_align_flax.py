# /// script
# requires-python = ">=3.11"
# dependencies = ["kakao-models[flax]", "pyarrow"]
# [tool.uv.sources]
# kakao-models = { path = "..", editable = true }
# ///

"""Pretrains ALIGN in JAX with data parallelism: every text of every device is a negative, on CPUs, GPUs and TPU pods alike.

Here, eight simulated devices of one processor, with captions of the shards' own (columns `image`: encoded bytes or a
struct with `bytes`; and `text`, `caption` or `captions`: a string or a list of them):

    pip install 'kakao-models[flax]' pyarrow
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/pretrain_align_flax.py \\
        --data 'shards/*.parquet' --init align-small --steps 20 --batch-size 128

On a TPU pod, run the same command on every host, with --distributed, random weights of the released size and the released
processor:

    python examples/pretrain_align_flax.py --data 'gs-mount/coyo/*.parquet' --init kakaobrain/align-base --size base \\
        --distributed --batch-size 65536 --steps 300000 --warmup-steps 40000 --learning-rate 2e-3 --checkpointing --output runs/coyo

The script prints the loss of the global batch; chance level is 2 ln(batch size). As a smoke test, 4 steps of batch size 32 from
align-small on two simulated devices took 46 seconds of CPU time, most of it for compiling. The released model took 512 TPU v3 cores; its metric is zero-shot accuracy on ImageNet.

How it works: `jax.shard_map` gives each device its own rows. Ghost batches of 16 are normalised on their device, as in the
original code; embeddings are gathered by collectives (`train.loss_flax`); gradients are summed over devices by
`jax.grad` itself, and running statistics averaged.
"""

import argparse
import glob
import io
import os
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as parquet
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from kakao_models import AlignConfig, AlignProcessor, FlaxAlignModel
from kakao_models.checkpoint.hub import resolve
from kakao_models.train.lamb_flax import lamb, warmup_linear_decay
from kakao_models.train.loss_flax import global_contrastive_loss

AXIS = "data"
CAPTIONS = ("text", "caption", "captions")


def make_step(graph, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, label_smoothing: float):
    """The compiled step: (parameters, rest, optimizer state, batch, number) → the first three updated, and the loss."""

    def loss_of(parameters, rest, batch: dict, number: jax.Array):
        model = nnx.merge(graph, parameters, rest, copy=True)
        # dropout differs from step to step and from device to device
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), jax.lax.axis_index(AXIS))
        for place, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.RngKey))):
            variable.set_value(jax.random.fold_in(key, place))
        output = model(**batch)
        loss = global_contrastive_loss(
            output.image_embeds, output.text_embeds, model.temperature[...], label_smoothing, axis_name=AXIS
        )
        return loss, nnx.state(model, nnx.BatchStat)

    def step(parameters, rest, state, batch: dict, number: jax.Array):
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters, rest, batch, number)
        statistics = jax.lax.pmean(statistics, AXIS)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), nnx.merge_state(rest, statistics), state, loss

    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    sharded = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(everywhere, everywhere, everywhere, split, everywhere),
        out_specs=everywhere,
    )
    return jax.jit(sharded, donate_argnums=(0, 1, 2))


def batches(pattern: str, processor: AlignProcessor, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of this host's share of the shards, repeated endlessly; if a row has several captions, each pass takes
    another one."""
    files = sorted(glob.glob(pattern))
    own = files[jax.process_index() :: jax.process_count()]
    if not own:
        raise SystemExit(
            f"--data {pattern}: {len(files)} files for {jax.process_count()} hosts; each needs at least one"
        )
    images, texts = [], []
    epoch = 0
    while True:
        for name in np.random.default_rng(epoch).permutation(own):
            shard = parquet.ParquetFile(name)
            column = next((column for column in CAPTIONS if column in shard.schema_arrow.names), None)
            if column is None or "image" not in shard.schema_arrow.names:
                found = ", ".join(shard.schema_arrow.names)
                raise SystemExit(f"{name}: expected columns image and one of {', '.join(CAPTIONS)}, it has {found}")
            for rows in shard.iter_batches(batch_size=size, columns=["image", column]):
                for row in rows.to_pylist():
                    data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
                    images.append(Image.open(io.BytesIO(data)).convert("RGB"))
                    text = row[column]
                    texts.append(text if isinstance(text, str) else text[epoch % len(text)])
                    if len(images) == size:
                        tokens = processor.tokenizer(
                            texts, padding="max_length", truncation=True, max_length=64, return_tensors="np"
                        )
                        pixels = processor.image_processor(images=images, return_tensors="np")["pixel_values"]
                        yield {
                            "pixel_values": pixels,
                            "input_ids": tokens["input_ids"].astype(np.int32),
                            "attention_mask": tokens["attention_mask"].astype(np.int32),
                        }
                        images, texts = [], []
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Parquet files, as a pattern")
    parser.add_argument("--init", default="align-small", help="a checkpoint: weights and processor")
    parser.add_argument(
        "--size",
        choices=("mini", "base", "large"),
        help="start from random weights of this size, with the processor of --init",
    )
    parser.add_argument("--batch-size", type=int, default=128, help="total batch size of all devices")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup-steps", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--distributed", action="store_true", help="train on several hosts with jax.distributed")
    parser.add_argument("--output", help="folder for the trained checkpoint")
    options = parser.parse_args()
    if options.distributed:
        jax.distributed.initialize()
    devices = jax.device_count()
    if options.batch_size % (16 * devices):
        raise SystemExit(f"--batch-size {options.batch_size}: expected a multiple of 16 samples on {devices} devices")
    mesh = jax.make_mesh((devices,), (AXIS,))

    processor = AlignProcessor.from_pretrained(resolve(options.init))
    if options.size:
        model = FlaxAlignModel(getattr(AlignConfig, options.size)(), rngs=nnx.Rngs(0))
    else:
        model = FlaxAlignModel.from_pretrained(options.init)
    model.train()
    model.gradient_checkpointing_enable(options.checkpointing)
    optimizer = lamb(model, warmup_linear_decay(options.learning_rate, options.warmup_steps, options.steps))
    graph, *state = nnx.split(model, nnx.Param, ...)
    state = jax.device_put([*state, optimizer.init(state[0])], NamedSharding(mesh, PartitionSpec()))
    step = make_step(graph, optimizer, mesh, model.config.label_smoothing)
    place = partial(jax.make_array_from_process_local_data, NamedSharding(mesh, PartitionSpec(AXIS)))

    start = time.perf_counter()
    stream = batches(options.data, processor, options.batch_size // jax.process_count())
    for number, batch in zip(range(1, options.steps + 1), stream):
        *state, loss = step(*state, jax.tree.map(place, batch), jnp.int32(number))
        if jax.process_index() == 0:
            seconds = time.perf_counter() - start
            print(f"step {number}  loss {float(loss):.4f}  {seconds:.1f} s", flush=True)
    nnx.update(model, state[0], state[1])
    if options.output and jax.process_index() == 0:
        model.save_pretrained(options.output)
        processor.save_pretrained(options.output)
        print(f"saved {os.path.abspath(options.output)}")


if __name__ == "__main__":
    main()
