"""Losses, LAMB and a whole step over several devices, each against one device, numpy or the recorded original."""

import json
import os
import subprocess
import sys
from pathlib import Path

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from tolerances import TOLERANCE

from kakao_models import FlaxAlignModel
from kakao_models.align.modeling_flax import contrastive_loss
from kakao_models.train.lamb_flax import lamb, warmup_linear_decay
from kakao_models.train.loss_flax import classification_loss, global_contrastive_loss

SCRIPT = Path(__file__).with_name("devices_flax.py")


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrastive_loss_is_the_definition(smoothing):
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((2, 6, 5))
    logits = images @ texts.T / 0.3
    targets = (1 - smoothing) * np.eye(6) + smoothing / 6
    wanted = -(targets * np.log(softmax(logits))).sum() / 6 - (targets * np.log(softmax(logits.T))).sum() / 6
    with jax.enable_x64(True):
        images, texts, logits = (jnp.asarray(x) for x in (images, texts, logits))
        assert float(contrastive_loss(logits, smoothing)) == pytest.approx(wanted, abs=1e-12)
        got = global_contrastive_loss(images, texts, jnp.asarray(0.3), smoothing)
        assert float(got) == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(ValueError, match=r"\(6, 5\) and \(5, 5\)"):
        global_contrastive_loss(images, texts[:5], jnp.asarray(0.3))


def test_classification_losses_are_the_definitions():
    random = np.random.default_rng(0)
    logits, several, one = random.standard_normal((4, 7)), random.integers(0, 2, (4, 7)), random.integers(0, 7, 4)
    targets = 0.9 * np.eye(7)[one] + 0.1 / 7
    probability, smooth = 1 / (1 + np.exp(-logits)), 0.8 * several + 0.1
    binary = -(smooth * np.log(probability) + (1 - smooth) * np.log(1 - probability)).sum() / 4
    with jax.enable_x64(True):
        got = [classification_loss(jnp.asarray(logits), jnp.asarray(y), e) for y, e in ((one, 0.1), (several, 0.2))]
    wanted = -(targets * np.log(softmax(logits))).sum() / 4, binary
    np.testing.assert_allclose([float(x) for x in got], wanted, rtol=1e-12)
    for wrong in (-1, -100, 7):  # -1 is no name of the last class
        assert np.isnan(classification_loss(jnp.asarray(logits), jnp.asarray([0, 1, 2, wrong])))
    for labels in (one[:, None], one[:1], several[:1]):  # which would be stretched over the logits
        with pytest.raises(ValueError, match=r"expected class numbers \(4,\) or"):
            classification_loss(jnp.asarray(logits), jnp.asarray(labels))


@pytest.mark.parametrize("devices", [4])
def test_several_devices_take_the_step_of_one(devices):
    """Loss, gradients and running statistics: under jit on a mesh of data and tensors, and under shard_map; and the losses
    of classifiers."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    folders = SCRIPT.parent.parent, SCRIPT.parents[2] / "examples", os.environ.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, map(str, folders)))
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=600, env=environment
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors.pop("devices") == devices
    shares = errors.pop("shares")
    assert shares.pop("stem") == 1 and set(shares.values()) == {0.5} and len(shares) == 5
    assert errors.keys() == {
        "jit loss", "jit gradients", "jit statistics", "shard_map loss", "shard_map gradients", "shard_map statistics",
        "labels, one", "labels, several",
    }  # fmt: skip
    for name, value in errors.items():
        assert value <= 1e-9, f"{name} differ by {value}"


# --- LAMB


def test_lamb_is_the_paper_s_and_spares_batch_norm():
    """Two steps against numpy: You et al. 2019 with bias correction, as tfa.optimizers.LAMB computes it."""
    model = FlaxAlignModel(tiny.one_block_config(), rngs=nnx.Rngs(0))
    model.vision_model.embeddings.batchnorm.scale.set_value(jnp.linspace(0.5, 2, 8))
    optimizer = nnx.Optimizer(model, lamb(model, 0.01, weight_decay=0.1), wrt=nnx.Param)
    start = {path: np.asarray(v.get_value(), np.float64) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    moments = {path: [0.0, 0.0] for path in start}
    wanted = dict(start)
    random = np.random.default_rng(0)
    update = nnx.jit(lambda model, optimizer, gradients: optimizer.update(model, gradients))
    for number in (1, 2):
        gradients = {path: random.standard_normal(x.shape) for path, x in start.items()}
        gradients |= {path: 0 * x for path, x in gradients.items() if "pooler" in path}
        update(
            model,
            optimizer,
            nnx.from_flat_state([(path, nnx.Param(jnp.asarray(x, jnp.float32))) for path, x in gradients.items()]),
        )
        for path, gradient in gradients.items():
            if "pooler" in path:
                continue
            m, v = moments[path]
            moments[path] = m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            step = m / (1 - 0.9**number) / (np.sqrt(v / (1 - 0.999**number)) + 1e-6)
            if not any("bn" in str(name) or "norm" in str(name) for name in path):  # LayerNorm is written with capitals
                step = step + 0.1 * wanted[path]
                norms = np.linalg.norm(wanted[path]), np.linalg.norm(step)
                step = step * (norms[0] / norms[1] if all(norms) else 1)
            wanted[path] = wanted[path] - 0.01 * step
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        np.testing.assert_allclose(value.get_value(), wanted[path], rtol=2e-5, atol=2e-6, err_msg=str(path))
    assert all(np.array_equal(start[path], wanted[path]) == ("pooler" in path) for path in start)


def test_lamb_refuses_narrow_parameters():
    model = nnx.Linear(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="bias is bfloat16, which rounds b2 to 1"):
        lamb(model, 1e-3)


@pytest.mark.parametrize("name", ["default", "cc3m", "coyo700m"])
def test_schedule_golden(name):
    recorded = json.loads((goldens.FOLDER / "golden_align_schedule.json").read_text())[name]
    schedule = warmup_linear_decay(recorded["lr"], recorded["warmup_steps"], recorded["train_steps"])
    for step, value in recorded["values"]:
        # the original's own rounding is 1e-7 of the peak
        assert float(schedule(step)) == pytest.approx(
            value, rel=TOLERANCE["schedule, relative"], abs=recorded["lr"] * 1e-7
        )


@pytest.mark.slow
def test_lamb_golden(golden_folder):
    """Two steps of the original, on EfficientNet-B0 and BERT-mini."""
    from flax_arrays import canonical
    from tolerances import TOLERANCE

    from kakao_models import AlignConfig
    from kakao_models.align.weights import align_tpu_slots
    from kakao_models.checkpoint.weightmap import permute

    recorded, golden = goldens.load_arrays("align_a_lamb"), goldens.load("align_a")
    config = AlignConfig.from_pretrained(golden_folder("align_a"))
    config.vision_config.drop_connect_rate = 0.0
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = FlaxAlignModel.from_pretrained(golden_folder("align_a"), config=config)
    model.train()
    inputs = {key: golden.arrays[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    inputs["pixel_values"] = golden.images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    optimizer = nnx.Optimizer(model, lamb(model, 1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs):
        loss, gradients = nnx.value_and_grad(lambda model: model(**inputs, return_loss=True).loss)(model)
        optimizer.update(model, gradients)
        return loss, gradients

    def original(arrays):
        slots = {slot.key: slot for slot in align_tpu_slots(config)}
        moved = {key: (slots[key], array) for key, array in arrays.items()}
        return {slot.local_key: permute(array, slot.axes, slot.local_axes) for slot, array in moved.values()}

    states, losses, gradients = [original(canonical(model))], [], []
    for _ in range(3):
        loss, gradient = step(model, optimizer, inputs)
        losses.append(float(loss))
        states.append(original(canonical(model)))
        gradients.append(gradient)
    gradients = original(canonical(model, gradients[0]))
    assert abs(losses[0] - recorded["loss"][0]) <= TOLERANCE["lamb loss, first"]
    np.testing.assert_allclose(losses[1:], recorded["loss"][1:], rtol=0, atol=TOLERANCE["lamb loss, later"])
    pooler = np.array(["/pooler/" in key for key in recorded["trainable_keys"]])  # unused, so without a gradient
    assert pooler.any() and all(
        np.array_equal(states[0][key], states[2][key]) for key in recorded["trainable_keys"][pooler]
    )
    exact = ~recorded["zero_gradient"] & ~pooler
    keys = recorded["trainable_keys"][exact]
    norms = np.array([np.linalg.norm(gradients[key]) for key in keys])
    np.testing.assert_allclose(norms, recorded["grad_norm"][exact], rtol=TOLERANCE["step norms"])
    for number in (1, 2):
        norms = np.array([np.linalg.norm(states[number][key] - states[number - 1][key]) for key in keys])
        np.testing.assert_allclose(norms, recorded[f"update{number}_norm"][exact], rtol=TOLERANCE["lamb step norms"])
    for name, key in zip(recorded["variables"], recorded["keys"]):
        first = states[1][key].ravel()[:32]
        assert np.abs(first - recorded[f"{name}/step1"]).max() <= TOLERANCE["lamb steps"], name
    moving = [np.linalg.norm(states[2][key]) for key in recorded["moving_keys"]]
    np.testing.assert_allclose(moving, recorded["moving_norm_after2"], rtol=1e-4)
