"""Products of one row, as the attention of one token needs them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_gpt2.layers.device import on_cpu, xla_on_cpu


def one_row_matmul(x: Any, y: Any, transpose_y: bool = False) -> Any:
    """`x y`, or `x y^T`, for batches of `x` of one row and small `y`.

    TensorFlow gives products on processors to oneDNN, for which these are too little: a layer's
    attention of one token takes 0.2 ms where Eigen takes 0.04. `BatchMatMulV3` is the operation
    that it leaves to Eigen.

    Args:
        x: `(..., 1, D)`.
        y: `(..., D, V)`, or `(..., V, D)` if it is to be transposed.

    Returns:
        `(..., 1, V)`.

    Example:
        >>> y = keras.ops.array([[2.0, 6.0], [-4.0, 8.0]])
        >>> one_row_matmul(keras.ops.ones((1, 2)), y, transpose_y=True).numpy()
        array([[8., 4.]], dtype=float32)
    """
    if keras.backend.backend() == "tensorflow" and not xla_on_cpu() and on_cpu():
        import tensorflow as tf

        x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
        if x.dtype == y.dtype == tf.float32:
            return tf.raw_ops.BatchMatMulV3(x=x, y=y, Tout=tf.float32, adj_y=transpose_y)
    if transpose_y:  # read as it lies
        return ops.swapaxes(ops.matmul(y, ops.swapaxes(x, -1, -2)), -1, -2)
    return ops.matmul(x, y)
