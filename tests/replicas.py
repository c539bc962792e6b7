"""Two replicas on one processor, for tests of tf.distribute: import this before TensorFlow starts its devices."""

from functools import cache

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@cache  # a second strategy would count its collective operations from the same number, which TensorFlow refuses
def mirrored() -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
