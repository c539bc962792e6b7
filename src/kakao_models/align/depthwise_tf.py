"""Depthwise convolution in Keras, in the formulation that is fast on the current platform; both give the same results.

On CPUs, XLA's depthwise convolution is 9 to 60 times slower than the sum of k * k shifted products (B7's shapes).

Axes: B batch  H, W height, width of a map  C channels  k size of the kernel
"""

import keras
from keras import ops

from kakao_models.checkpoint.keras import Tensor


def depthwise_convolution(x: Tensor, kernel: Tensor, stride: int, padding: int = 0):
    """(B, H, W, C), (k, k, C, 1) → (B, H', W', C), after `padding` zeros on every side."""
    size, shifting = kernel.shape[0], _compiled_for_cpu()
    same = stride == 1 and padding == size // 2 and not shifting  # without a padded copy of x
    if padding and not same:
        x = ops.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    if not shifting:
        sides = "same" if same else "valid"
        return ops.depthwise_conv(x, kernel, strides=stride, padding=sides, data_format="channels_last")
    height, width = ((side - size) // stride * stride + 1 for side in ops.shape(x)[1:3])
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return sum(x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j, :, 0] for i, j in shifts)


def _compiled_for_cpu() -> bool:
    """Whether XLA is tracing, on a machine where it compiles for the CPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    if not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return False
    return {device.device_type for device in tf.config.list_logical_devices()} <= {"CPU", "XLA_CPU"}
