"""ViT in Keras and Flax beside the last TensorFlow and Flax classes of transformers 4, which live in an environment of
their own:

    python -m venv old && old/bin/pip install 'transformers==4.57.6' 'tensorflow==2.21.0' tf-keras jax==0.10.2 flax==0.12.8
    python benchmarks/transformers4.py --peer old/bin/python
    python benchmarks/transformers4.py --peer old/bin/python --model large --batch 2 --repeats 3

Random weights, the same shapes, float32. One process of each runs at a time, in turns; compiling is not measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

MODELS = {  # width, layers, heads, inner width, pixels
    "tiny": (64, 2, 2, 128, 64),
    "base": (768, 12, 12, 3072, 224),
    "large": (1024, 24, 16, 4096, 384),
}
KINDS = {"tf": ("graph", "XLA"), "flax": ("jit",)}


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python of the environment that has transformers 4")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="forward and gradients of a training step too")
    parser.add_argument("--frameworks", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- in the process of one class


def model_of(framework: str, name: str, ours: bool):
    if ours:
        import kakao_models as library
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"  # transformers 4 knows Keras 2 alone
        import transformers as library
    width, layers, heads, inner, side = MODELS[name]
    config = library.ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        image_size=side, patch_size=16, num_labels=1000, hidden_act="gelu_new",
    )  # fmt: skip
    if framework == "tf":
        model = library.TFViTForImageClassification(config)
        model(np.zeros((1, 3, side, side), np.float32))  # which makes the variables of transformers' class
        return model, side
    if not ours:
        return library.FlaxViTForImageClassification(config, input_shape=(1, side, side, 3)), side
    from flax import nnx

    model = library.FlaxViTForImageClassification(config, rngs=nnx.Rngs(0))
    model.eval()
    return model, side


def tf_step(model, pixels, kind: str, training: bool):
    import tensorflow as tf

    def forward(x):
        return model(x, training=False).logits

    def backward(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True).logits - 1))
        gradients = tape.gradient(loss, variables)
        return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients if gradient is not None])

    # Keras 3 wraps TensorFlow's variables
    variables = [v if isinstance(v, tf.Variable) else v.value for v in model.trainable_variables]
    run, x = tf.function(backward if training else forward, jit_compile=kind == "XLA"), tf.constant(pixels)
    return lambda: run(x).numpy()


def flax_step(model, pixels, training: bool, ours: bool):
    import jax
    import jax.numpy as jnp

    if ours:
        from flax import nnx

        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def logits(params, x):
            return nnx.merge(graph, params, rest, copy=True)(x).logits
    else:
        params = model.params

        def logits(params, x):
            return model(x, params=params, train=False).logits

    def backward(params, x):
        gradients = jax.grad(lambda p: jnp.square(logits(p, x) - 1).mean())(params)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradients))

    run, x = jax.jit(backward if training else logits), jnp.asarray(pixels)
    return lambda: jax.block_until_ready(run(params, x))


def work(options: argparse.Namespace) -> None:
    """Reads lines from standard input: a kind of step to get ready, or "run"; answers each with seconds."""
    framework, who = options.worker.split("-")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    model, side = model_of(framework, options.model, who == "ours")
    pixels = np.random.default_rng(0).uniform(-1, 1, (options.batch, 3, side, side)).astype(np.float32)
    step = None
    for line in sys.stdin:
        if line.strip() != "run":
            kind, training = line.split()
            training = training == "True"
            make = (tf_step, (kind, training)) if framework == "tf" else (flax_step, (training, who == "ours"))
            step = make[0](model, pixels, *make[1])
        start = time.perf_counter()
        step()
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


# --- the comparison


def ask(process: subprocess.Popen, line: str) -> float:
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"{process.args[0]} ended: {process.wait()}")
    return json.loads(answer)


def main() -> None:
    options = options_of()
    if options.worker:
        return work(options)
    if not options.peer:
        raise SystemExit("--peer: wanted the Python of an environment with transformers 4, see --help")
    from common import show

    rows = []
    for framework in options.frameworks:
        flags = ["--model", options.model, "--batch", str(options.batch)]
        start = {"theirs": options.peer, "ours": sys.executable}
        workers = {
            who: subprocess.Popen(
                [python, __file__, "--worker", f"{framework}-{who}", *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )  # fmt: skip
            for who, python in start.items()
        }
        for training in [False, True][: 1 + options.training]:
            for kind in KINDS[framework]:
                compiling = {who: ask(worker, f"{kind} {training}") for who, worker in workers.items()}
                seconds = {who: [] for who in workers}
                for _ in range(options.repeats):
                    for who, worker in workers.items():
                        seconds[who].append(ask(worker, "run"))
                theirs, ours = (statistics.median(seconds[who]) for who in ("theirs", "ours"))
                name = {"tf": "TensorFlow", "flax": "Flax"}[framework]
                what = f"{name}, {'training step' if training else 'inference'}, {kind}"
                rows.append([what, compiling["theirs"], compiling["ours"], options.batch / theirs])
                rows[-1] += [options.batch / ours, theirs / ours]
                print(*rows[-1], file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    side = MODELS[options.model][-1]
    columns = ["", "first call, s: transformers 4", "ours", "images/s: transformers 4", "ours", "times as fast"]
    show(f"ViT {options.model}, batches of {options.batch} at {side} pixels, float32", columns, rows)


if __name__ == "__main__":
    main()
