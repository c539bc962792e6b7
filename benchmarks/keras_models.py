"""Keras: the image tower beside `keras.applications`' EfficientNet of the same size (notop), on the same backend and
input; and depthwise convolution in both formulations.

    python benchmarks/keras_models.py --size base --batch 8
    python benchmarks/keras_models.py --size small --batch 4 --pixels 97 --repeats 3 --training 1
    python benchmarks/keras_models.py --xla 0    (2: with XLA alone, whose compiling takes minutes)

Both have random weights. The peer is cut before its top convolution, which ALIGN's tower has not. "graph" is a
tf.function, "XLA" one with jit_compile=True. Compiling is not measured, and takes minutes for B7.
"""

import time

import keras
import numpy as np
import tensorflow as tf
from common import SIZES, arguments, interleaved, show

from kakao_models import TFAlignVisionModel
from kakao_models.align import depthwise_tf


def towers(size: str) -> dict:
    """name → function of (B, H, W, 3) images that gives the pooled output, and its variables."""
    ours = TFAlignVisionModel(SIZES[size]().vision_config)
    peer_class = keras.applications.EfficientNetB7 if size == "base" else keras.applications.EfficientNetB0
    whole = peer_class(include_top=False, weights=None, input_shape=(None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(whole.get_layer("top_conv").input)
    peer = keras.Model(whole.input, pooled)

    def run_ours(images, training):
        return ours(tf.transpose(images, (0, 3, 1, 2)), training=training).pooler_output

    def run_peer(images, training):
        return peer(images, training=training)

    return {"keras.applications": (run_peer, peer), "kakao_models": (run_ours, ours)}


def steps(size: str, images: tf.Tensor, training: bool, jit: bool) -> dict:
    """name → a compiled step without arguments: forward, or forward and gradients."""
    made = {}
    for name, (run, model) in towers(size).items():

        def forward(x, run=run):
            return run(x, False)

        def backward(x, run=run, model=model):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(run(x, True)))
            gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
            return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients if gradient is not None])

        step = tf.function(backward if training else forward, jit_compile=jit)
        step(images)
        made[name] = lambda step=step: step(images).numpy()
    return made


def depthwise(batch: int) -> list[list]:
    """Milliseconds of both formulations, within XLA and without, on five of B7's shapes."""
    rows = []
    for side, channels, kernel, stride in (
        (144, 64, 3, 1), (72, 288, 5, 2), (36, 480, 5, 1), (18, 960, 5, 1), (9, 2304, 5, 1)
    ):  # fmt: skip
        x, weights = tf.random.normal((batch, side, side, channels)), tf.random.normal((kernel, kernel, channels, 1))
        row, values = [f"{side} x {side} x {channels}, {kernel} x {kernel}, stride {stride}"], []
        for shifted in (False, True):
            for jit in (False, True):
                depthwise_tf._compiled_for_cpu, real = (lambda shifted=shifted: shifted), depthwise_tf._compiled_for_cpu
                run = tf.function(depthwise_tf.depthwise_convolution, jit_compile=jit)
                values.append(run(x, weights, stride, kernel // 2).numpy())
                depthwise_tf._compiled_for_cpu = real
                start = time.perf_counter()
                for _ in range(3):
                    run(x, weights, stride, kernel // 2).numpy()
                row.append((time.perf_counter() - start) / 3 * 1e3)
        rows.append([*row, f"{max(np.abs(value - values[0]).max() for value in values):.0e}"])
    return rows


def main() -> None:
    options = arguments(__doc__, batch=8, pixels=289, repeats=5, training=0, xla=1, depthwise=1)
    images = tf.random.uniform((options.batch, options.pixels, options.pixels, 3), -1, 1)
    rows = []
    for training in [False, True][: 1 + bool(options.training)]:
        for jit in ([False], [False, True], [True])[options.xla]:
            seconds = interleaved(steps(options.size, images, training, jit), options.repeats)
            peer, ours = seconds["keras.applications"], seconds["kakao_models"]
            kind = f"{'training step' if training else 'inference'}, {'XLA' if jit else 'graph'}"
            rows.append([kind, options.batch / peer, options.batch / ours, peer / ours])
    title = f"Image tower {options.size}, batches of {options.batch} at {options.pixels} pixels"
    show(title, ["", "keras.applications, images/s", "kakao_models, images/s", "times as fast"], rows)
    if not options.depthwise:
        return
    columns = ["ms", "native", "native, XLA", "shifted", "shifted, XLA", "largest difference"]
    show("Depthwise convolution", columns, depthwise(options.batch))


if __name__ == "__main__":
    main()
