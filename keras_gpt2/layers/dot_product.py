"""Averages by the softmax of products, and the forms of them that are fast for few queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_gpt2.layers.device import on_cpu, xla_on_cpu


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    scale: float | None = None,
    dropout: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Averages values by the softmax of scaled query-key products.

    `weights = softmax(scale Q K^T)`, `output = weights V`; the softmax is taken in float32.

    Args:
        query: `(..., T, K)`.
        key: `(..., S, K)`.
        value: `(..., S, K)`.
        mask: bool, broadcastable to `(..., T, S)`; True where a query may see a key. A query that
            may see none gets the plain mean of all values, never NaN.
        scale: float; 1 / sqrt(K) if None.
        dropout: function applied to the weights before the average.

    Returns:
        The pair of output `(..., T, K)` and float32 weights `(..., T, S)`.

    Example:
        >>> q = keras.ops.array([[1.0, 0.0]])
        >>> kv = keras.ops.array([[3.0, 0.0], [1.0, 0.0]])
        >>> _, weights = dot_product_attention(q, kv, kv, scale=1.0)
        >>> [round(float(weight), 4) for weight in weights[0]]
        [0.8808, 0.1192]

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    # The query is scaled, not the product: float16 products overflow before they are scaled.
    query = query * ops.cast(scale, query.dtype)
    one_token = query.shape[-2] == 1
    if one_token:
        scores = one_row_matmul(query, key, transpose_y=True)
    else:
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
    scores = ops.cast(scores, "float32")  # (..., T, S)
    if mask is not None:
        scores = scores + ops.where(mask, 0.0, -1e30)
    # TensorFlow's softmax, too, is slow for little; and Keras warns of one over a single entry.
    if one_token or scores.shape[-1] == 1:
        shares = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
        weights = shares / ops.sum(shares, axis=-1, keepdims=True)
    else:
        weights = ops.softmax(scores, axis=-1)
    kept = weights if dropout is None else dropout(weights)
    product = one_row_matmul if one_token else ops.matmul
    return product(ops.cast(kept, value.dtype), value), weights


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
