"""Between Flax models and the names of model.safetensors, for tests that compare with PyTorch or recorded arrays."""

import jax
import numpy as np
from flax import nnx

from kakao_models.checkpoint.weightmap import permute


def canonical(model, state: nnx.State | None = None) -> dict[str, np.ndarray]:
    """Variables of `model`, or of a `state` nested like it (gradients), by their keys in model.safetensors."""
    slots = {slot.local_key: slot for slot in model._slots()}
    state = nnx.state(model, (nnx.Param, nnx.BatchStat)) if state is None else state
    found = {}
    for path, variable in nnx.to_flat_state(state):
        slot = slots[".".join(map(str, path))]
        found[slot.key] = permute(np.asarray(variable.get_value()), slot.local_axes, slot.axes)
    return found


def jitted(function):
    """`function(model, **inputs)`, compiled; the model comes back unchanged, what it computed as numpy arrays."""

    def run(model, **inputs):
        graph, state = nnx.split(model)
        compute = jax.jit(lambda state, inputs: function(nnx.merge(graph, state, copy=True), **inputs))
        return jax.tree.map(np.asarray, compute(state, inputs))

    return run
