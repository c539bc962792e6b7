"""The originals' optimizer for Keras: LAMB (You et al. 2019), as tfa.optimizers.LAMB of coyo-align."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kakao_models.align.modeling_tf import TFAlignBatchNorm

_NARROW = "bfloat16", "float16"


@keras.saving.register_keras_serializable("kakao_models")
class Lamb(keras.optimizers.Lamb):
    """LAMB with weight decay inside the step that is adapted, on everything but batch norms (biases, LayerNorm and
    temperature included).

    `keras.optimizers.Lamb` takes the decay outside of the adapted step, and adapts batch norms too.

    Args:
        learning_rate: a number or a schedule; the original code uses `WarmupLinearDecay`.
        weight_decay: added to each step before it is scaled to the length of the weights.
        spared: places of the variables that are neither decayed nor adapted, among those that the optimizer is built with:
            the result of `spare_batch_norms`, in the form that a saved model keeps.
        others: further arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 1e-5,
        spared: Sequence[int] = (),
        name: str = "lamb",
        **others: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, name=name, **others)
        self.decay = weight_decay
        self.spared = list(spared)
        self.not_adapted: set[str] = set()

    def spare_batch_norms(self, model: keras.Model) -> "Lamb":
        """Neither decays nor adapts the batch norms of `model`; call it before `compile`. Returns the optimizer."""
        if self.built:
            raise ValueError(
                "Lamb.spare_batch_norms: the optimizer already has its variables. Call this before compile"
            )
        norms = [layer for layer in model._flatten_layers() if isinstance(layer, TFAlignBatchNorm)]
        self.not_adapted |= {self._var_key(variable) for layer in norms for variable in layer.trainable_variables}
        self.spared = self._places(model.trainable_variables)
        return self

    def build(self, variables: Any) -> None:
        if self.built:
            return
        if narrow := [variable for variable in variables if keras.backend.standardize_dtype(variable.dtype) in _NARROW]:
            raise ValueError(
                f"Lamb: {narrow[0].path} is {narrow[0].dtype}, which rounds beta_2 to 1 and small steps to 0. Train float32 "
                'variables under keras.config.set_dtype_policy("mixed_bfloat16"), set before the model is loaded'
            )
        super().build(variables)
        if not self.not_adapted:  # of a saved model
            self.not_adapted = {self._var_key(variables[place]) for place in self.spared}
        self.spared = self._places(variables)

    def _places(self, variables) -> list[int]:
        return [place for place, variable in enumerate(variables) if self._var_key(variable) in self.not_adapted]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any):
        rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(_dense(gradient), variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1 - self.beta_2))
        # ops.cast of a number would round it to float32 on the way
        beta_1, beta_2 = (ops.convert_to_tensor(beta, step.dtype) for beta in (self.beta_1, self.beta_2))
        mean = first / (1 - ops.power(beta_1, step))
        square = second / (1 - ops.power(beta_2, step))
        update = mean / (ops.sqrt(square) + self.epsilon)
        if self._var_key(variable) not in self.not_adapted:
            update = update + self.decay * variable
            length, length_of_update = (ops.sqrt(ops.sum(ops.square(x))) for x in (variable, update))
            both = ops.logical_and(length > 0, length_of_update > 0)
            ratio = ops.where(both, length / ops.where(both, length_of_update, 1.0), 1.0)
            update = ops.cast(ratio, update.dtype) * update
        self.assign_sub(variable, rate * update)

    def get_config(self) -> dict:
        return super().get_config() | {"weight_decay": self.decay, "spared": self.spared}


def _dense(gradient):
    """TensorFlow's gradient of a table as a tensor: its IndexedSlices hold a row twice if it was used twice."""
    if keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


@keras.saving.register_keras_serializable("kakao_models")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of the original code: linear from 0 (at step 0) to `peak`, then linear to 0 at step `steps`."""

    def __init__(self, peak: float, warmup_steps: int, steps: int):
        self.peak, self.warmup_steps, self.steps = peak, warmup_steps, steps

    def __call__(self, step: Any):
        step = ops.cast(step, "float32")
        rising = step / max(1, self.warmup_steps)
        falling = ops.clip((self.steps - step) / max(1, self.steps - self.warmup_steps), 0.0, 1.0)
        return self.peak * ops.where(step < self.warmup_steps, rising, falling)

    def get_config(self) -> dict:
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "steps": self.steps}
