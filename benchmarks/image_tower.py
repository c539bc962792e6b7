"""The image tower in Keras and in Flax NNX beside keras.applications' EfficientNet of the same size, on the same input.

    python benchmarks/image_tower.py --framework tf --batch 8
    python benchmarks/image_tower.py --framework flax --batch 8
    python benchmarks/image_tower.py --framework tf --size small --image-size 97 --batch 4 --training 1
    python benchmarks/image_tower.py --framework tf --depthwise 1    (depthwise convolution in both formulations)

Weights are random. The peer is cut before its top convolution, which ALIGN's tower does not have, and runs in the same
framework: TensorFlow in a graph and compiled by XLA, or JAX. Compiling comes before the measurement; for B7 it takes minutes.
"""

import os
import sys
import time

os.environ["KERAS_BACKEND"] = "jax" if "flax" in sys.argv else "tensorflow"

import keras
import numpy as np
from common import SIZES, arguments, interleaved, show


def peer(size: str) -> keras.Model:
    build = keras.applications.EfficientNetB7 if size == "base" else keras.applications.EfficientNetB0
    whole = build(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )  # without a size, as the original builds it
    pooled = keras.layers.GlobalAveragePooling2D()(whole.get_layer("top_conv").input)
    return keras.Model(whole.input, pooled)


def tf_steps(size: str, pixels: np.ndarray, training: bool) -> dict:
    """Name -> a compiled step without arguments: forward, or forward and gradients. `pixels` are (B, H, W, 3)."""
    import tensorflow as tf

    from kakao_models import TFAlignVisionModel

    ours, theirs = TFAlignVisionModel(SIZES[size]().vision_config), peer(size)
    images = tf.constant(pixels)
    forwards = {
        "keras.applications": (theirs, lambda x, training: theirs(x, training=training)),
        "kakao_models": (
            ours,
            lambda x, training: ours(tf.transpose(x, (0, 3, 1, 2)), training=training).pooler_output,
        ),
    }

    def made(model, forward, jit: bool):
        def backward(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(forward(x, True)))
            gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
            return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients if gradient is not None])

        step = tf.function(backward if training else lambda x: forward(x, False), jit_compile=jit)
        step(images)
        return lambda: step(images).numpy()

    return {
        f"{name}, {'XLA' if jit else 'graph'}": made(*forward, jit)
        for jit in (False, True)
        for name, forward in forwards.items()
    }


def flax_steps(size: str, pixels: np.ndarray, training: bool) -> dict:
    """Flax's twin of `tf_steps`. Both are compiled by `jax.jit`, without the time that NNX' own jit spends in Python."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from kakao_models import FlaxAlignVisionModel

    ours, theirs = FlaxAlignVisionModel(SIZES[size]().vision_config, rngs=nnx.Rngs(0)), peer(size)
    ours.train() if training else ours.eval()
    graph, params, rest = nnx.split(ours, nnx.Param, ...)
    weights, fixed = ([v.value for v in vs] for vs in (theirs.trainable_variables, theirs.non_trainable_variables))
    forwards = {
        "keras.applications": (weights, lambda w, x: theirs.stateless_call(w, fixed, x, training=training)[0]),
        "kakao_models": (
            params,
            lambda p, x: nnx.merge(graph, p, rest, copy=True)(x.transpose(0, 3, 1, 2)).pooler_output,
        ),
    }
    images = jnp.asarray(pixels)

    def made(state, forward):
        def backward(state, x):
            return jax.grad(lambda state: jnp.square(forward(state, x)).mean())(state)

        step = jax.jit(backward if training else forward)
        jax.block_until_ready(step(state, images))
        return lambda: jax.block_until_ready(step(state, images))

    return {f"{name}, jit": made(*forward) for name, forward in forwards.items()}


def depthwise(batch: int) -> None:
    """Milliseconds of both formulations, within XLA and without, on five of B7's shapes."""
    import tensorflow as tf

    from kakao_models.align import depthwise_tf

    shapes = ((144, 64, 3, 1), (72, 288, 5, 2), (36, 480, 5, 1), (18, 960, 5, 1), (9, 2304, 5, 1))
    rows, choice = [], depthwise_tf._compiled_for_cpu
    for side, channels, kernel, stride in shapes:
        x, weights = tf.random.normal((batch, side, side, channels)), tf.random.normal((kernel, kernel, channels, 1))
        row, values = [f"{side} x {side} x {channels}, {kernel} x {kernel}, stride {stride}"], []
        for shifted in (False, True):
            for jit in (False, True):
                depthwise_tf._compiled_for_cpu = lambda shifted=shifted: shifted
                run = tf.function(depthwise_tf.depthwise_convolution, jit_compile=jit)
                values.append(run(x, weights, stride, kernel // 2).numpy())
                start = time.perf_counter()
                for _ in range(3):
                    run(x, weights, stride, kernel // 2).numpy()
                row.append((time.perf_counter() - start) / 3 * 1e3)
        rows.append([*row, f"{max(np.abs(value - values[0]).max() for value in values):.0e}"])
    depthwise_tf._compiled_for_cpu = choice
    columns = ["ms", "native", "native, XLA", "shifted", "shifted, XLA", "largest difference"]
    show("Depthwise convolution", columns, rows)


def main() -> None:
    options = arguments(__doc__, framework="tf", batch=8, image_size=289, repeats=5, training=0, depthwise=0)
    if options.depthwise:
        return depthwise(options.batch)
    side, rows = options.image_size, []
    for training in [False, True][: 1 + options.training]:
        pixels = np.random.default_rng(0).uniform(-1, 1, (options.batch, side, side, 3)).astype(np.float32)
        steps = (flax_steps if options.framework == "flax" else tf_steps)(options.size, pixels, training)
        seconds = interleaved(steps, options.repeats)
        for name, x in seconds.items():
            theirs = seconds[f"keras.applications, {name.rpartition(', ')[2]}"]
            rows.append([name, "training step" if training else "forward", options.batch / x, theirs / x])
    title = f"Image tower {options.size}, batches of {options.batch} at {side} pixels, float32, {options.framework}"
    show(title, ["", "", "images/s", "times as fast"], rows)


if __name__ == "__main__":
    main()
