"""Training on several devices, each with its share of every batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import keras


def on_devices(number: int) -> AbstractContextManager[Any]:
    """A scope to build, compile and fit a model in, which is then trained on `number` devices.

    Each holds all weights and computes the gradients of its share of a batch; their sum is
    applied. It is `tf.distribute.MirroredStrategy` on TensorFlow and
    `keras.distribution.DataParallel` on JAX. A `NextTokenModel` with `kg.training.adamw` takes the
    steps that it takes on one device, to rounding, without dropout.

    Args:
        number: int >= 1, of GPUs, or where there are none of CPU devices (one, unless virtual ones
            are configured). On JAX it must divide the rows of every batch.

    Raises:
        ValueError: if there are fewer devices, or the backend is neither of these.

    Example:
        >>> with on_devices(1):
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        ...     model.compile("sgd", "mse")

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.
    """
    if number == 1:
        return nullcontext()
    devices = _devices()
    if not 1 <= number <= len(devices):
        raise ValueError(
            f"devices must be from 1 to the number there are, {len(devices)}. "
            f"Received: devices={number}."
        )
    return _strategy(tuple(devices[:number])).scope()


def on_cpu() -> bool:
    """Whether Keras's first device is a processor, not a GPU or TPU."""
    return keras.distribution.list_devices()[0].startswith("cpu")


def sum_over_devices(value: Any) -> Any:
    """The sum of a tensor, or of each in a list, over the devices of a `tf.distribute` strategy.

    On JAX a batch is one array, however many devices hold it: nothing is left to be summed.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


@cache
def _strategy(devices: tuple[str, ...]) -> Any:
    """One for all calls: a model must be compiled under the strategy that it was built under."""
    if keras.backend.backend() == "jax":
        return keras.distribution.DataParallel(devices=list(devices))
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices)


def _devices() -> list[str]:
    if keras.backend.backend() == "jax":
        return keras.distribution.list_devices()
    if keras.backend.backend() != "tensorflow":
        return [""]
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in found]
