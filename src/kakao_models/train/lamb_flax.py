"""The originals' optimizer for Flax: LAMB (You et al. 2019), as tfa.optimizers.LAMB of coyo-align."""

import jax.numpy as jnp
import optax
from flax import nnx


def lamb(
    model: nnx.Module,
    learning_rate: float | optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 1e-5,
) -> optax.GradientTransformation:
    """LAMB with weight decay and layer adaptation on everything but BatchNorm (biases, LayerNorm and temperature included).

    `optax.lamb` can spare BatchNorm the decay, but not the layer adaptation. BERT's pooler of an ALIGN has no part in the
    loss and stays as it is (with decay, layer adaptation would shrink it by the learning rate every step).

    Args:
        model: whose parameters, `nnx.state(model, nnx.Param)`, are to be optimised; for their places only.
        learning_rate: a number or a schedule; the original code uses `warmup_linear_decay`.

    Raises:
        ValueError: a parameter is narrower than float32.

    Returns:
        What `nnx.Optimizer(model, lamb(model, 1e-3), wrt=nnx.Param)` takes.
    """
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if jnp.finfo(parameter.dtype).bits < 32:
            raise ValueError(
                f"lamb: {'.'.join(map(str, path))} is {parameter.dtype}, which rounds b2 to 1 and small steps to 0. Train "
                "a model of float32 parameters: from_pretrained(..., param_dtype='float32'), with dtype='bfloat16' to "
                "compute in bfloat16"
            )
    normalised, unused = set(), set()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            normalised.add(path)
        elif hasattr(module, "text_projection"):
            unused.add((*path, "text_model", "pooler", "dense"))

    def mask(expected) -> nnx.State:
        paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
        return nnx.from_flat_state([(path, expected(path[:-1])) for path in paths])

    adapted = optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_trust_ratio())
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.masked(adapted, mask(lambda path: path not in normalised)),
        optax.masked(optax.set_to_zero(), mask(lambda path: path in unused)),
        optax.scale_by_learning_rate(learning_rate),
    )


def warmup_linear_decay(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """The learning rate of the original code: linear from 0 (at step 0) to `peak`, then linear to 0 at step `steps`."""

    def rate(step):  # not optax's: it counts down from 1, which costs the first steps three digits in float32
        step = jnp.asarray(step, jnp.float32)
        left = jnp.clip((steps - step) / max(1, steps - warmup_steps), 0, 1)
        return peak * jnp.where(step < warmup_steps, step / max(1, warmup_steps), left)

    return rate
