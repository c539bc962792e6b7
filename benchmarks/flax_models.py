"""The image tower in Flax NNX beside keras.applications.EfficientNetB7 on the JAX backend: same input, no top, one run.

    python benchmarks/flax_models.py --batch 8
    python benchmarks/flax_models.py --size small --batch 8 --image-size 97 --training 1    (B0; a training step too)

Weights are random. Both are compiled before they are timed, and run in turns; `compile` is the first call.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import time

import jax
import jax.numpy as jnp
import keras
import numpy as np
from common import SIZES, arguments, interleaved, show
from flax import nnx

from kakao_models import FlaxAlignVisionModel


def compiled_in(function, *inputs) -> float:
    """Seconds of the first call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*inputs))
    return time.perf_counter() - start


def main() -> None:
    options = arguments(__doc__, batch=8, image_size=289, repeats=5, training=0)
    config = SIZES[options.size]().vision_config
    model = FlaxAlignVisionModel(config, rngs=nnx.Rngs(0))
    side = options.image_size
    build = keras.applications.EfficientNetB7 if options.size == "base" else keras.applications.EfficientNetB0
    # without a size, as the original builds it, and cut before the top convolution, which ALIGN's tower has not
    whole = build(include_top=False, weights=None, input_shape=(None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(whole.get_layer("top_conv").input)
    theirs = keras.Model(whole.input, pooled)
    weights = [variable.value for variable in theirs.trainable_variables]
    fixed = [variable.value for variable in theirs.non_trainable_variables]

    def theirs_run(weights, fixed, x, training):
        return theirs.stateless_call(weights, fixed, x, training=training)

    def theirs_step(weights, fixed, x):
        def loss(weights):
            pooled, fixed_after = theirs_run(weights, fixed, x, True)
            return jnp.square(pooled).mean(), fixed_after

        return jax.grad(loss, has_aux=True)(weights)

    def ours_step(model, x):
        return nnx.grad(lambda model: jnp.square(model(x).pooler_output).mean())(model), nnx.state(model, nnx.BatchStat)

    def compiled(function, training: bool):
        """Of a model and images. Without NNX' own jit, whose time in Python counts here and not where steps are large."""
        model.train() if training else model.eval()
        graph, state = nnx.split(model)
        step = jax.jit(lambda state, x: function(nnx.merge(graph, state, copy=True), x))
        return lambda x: step(state, x)

    rows = []
    runs = [(batch, False) for batch in dict.fromkeys((1, options.batch))] + [(options.batch, True)] * options.training
    for batch, training in runs:
        pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
        nchw, nhwc = jnp.asarray(pixels), jnp.asarray(pixels.transpose(0, 2, 3, 1))
        forward = jax.jit(lambda weights, fixed, x: theirs_run(weights, fixed, x, False)[0])
        theirs_jit = jax.jit(theirs_step) if training else forward
        ours_jit = compiled(ours_step if training else lambda model, x: model(x).pooler_output, training)
        candidates = {
            "keras.applications on JAX": (theirs_jit, weights, fixed, nhwc),
            "kakao_models, NNX": (ours_jit, nchw),
        }
        compiling = {name: compiled_in(*call) for name, call in candidates.items()}
        seconds = interleaved(
            {name: lambda call=call: jax.block_until_ready(call[0](*call[1:])) for name, call in candidates.items()},
            options.repeats,
        )
        peer = seconds["keras.applications on JAX"]
        what = "training step" if training else "forward"
        rows += [[name, what, batch, compiling[name], x, batch / x, peer / x] for name, x in seconds.items()]
    versions = f"jax {jax.__version__} on {jax.default_backend()}, keras {keras.__version__}"
    columns = ["", "", "batch", "compile, s", "seconds", "images/s", "times as fast"]
    show(f"EfficientNet {options.size}, {side} x {side}, float32; {versions}", columns, rows)


if __name__ == "__main__":
    main()
