"""The image tower in Flax NNX beside keras.applications.EfficientNetB7 on the JAX backend: same input, no top, one run.

    python benchmarks/flax_models.py --batch 8
    python benchmarks/flax_models.py --size small --batch 8     (B0)

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
    options = arguments(__doc__, batch=8, image_size=289, repeats=5)
    config = SIZES[options.size]().vision_config
    model = FlaxAlignVisionModel(config, rngs=nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    side = options.image_size
    build = keras.applications.EfficientNetB7 if options.size == "base" else keras.applications.EfficientNetB0
    # without a size, as the original builds it
    theirs = build(include_top=False, weights=None, input_shape=(None, None, 3), pooling="avg")
    weights = [variable.value for variable in theirs.trainable_variables]
    fixed = [variable.value for variable in theirs.non_trainable_variables]

    ours_run = jax.jit(lambda state, x: nnx.merge(graph, state)(x).pooler_output)
    theirs_run = jax.jit(lambda weights, fixed, x: theirs.stateless_call(weights, fixed, x, training=False)[0])
    rows = []
    for batch in dict.fromkeys((1, options.batch)):
        pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
        nchw, nhwc = jnp.asarray(pixels), jnp.asarray(pixels.transpose(0, 2, 3, 1))
        candidates = {
            "keras.applications on JAX": (theirs_run, weights, fixed, nhwc),
            "kakao_models, NNX": (ours_run, state, nchw),
        }
        compiling = {name: compiled_in(*call) for name, call in candidates.items()}
        seconds = interleaved(
            {name: lambda call=call: jax.block_until_ready(call[0](*call[1:])) for name, call in candidates.items()},
            options.repeats,
        )
        peer = seconds["keras.applications on JAX"]
        rows += [[name, batch, compiling[name], value, batch / value, peer / value] for name, value in seconds.items()]
    versions = f"jax {jax.__version__} on {jax.default_backend()}, keras {keras.__version__}"
    columns = ["", "batch", "compile, s", "seconds", "images/s", "times as fast"]
    show(f"EfficientNet {options.size}, {side} x {side}, float32, forward; {versions}", columns, rows)


if __name__ == "__main__":
    main()
