"""Products with int8 matrices: weights are a quarter of the memory, inputs stay float.

A matrix is held with one row per output and one scale for each, `W[:, o] = kernel[o] / scale[o]`.
For one row of inputs, known when a graph is compiled for its shapes (XLA, JAX), the int8 values are
what is read from memory. For more rows the matrix becomes floats first: XLA does that once before a
loop and is as fast as with float weights; a graph without XLA does it for every product, which
saves memory and costs time.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def int8_matmul(x: Any, kernel: Any, scale: Any) -> Any:
    """`x W` for a matrix of int8 values and one scale per output.

    Args:
        x: float `(B, D)`.
        kernel: int8 `(V, D)`.
        scale: float `(V,)`, what the values are to be divided by.

    Returns:
        `(B, V)` of the type of `x`.

    Example:
        >>> kernel = keras.ops.array([[2, 6], [-4, 8]], "int8")
        >>> int8_matmul(keras.ops.ones((1, 2)), kernel, keras.ops.array([2.0, 4.0])).numpy()
        array([[4., 1.]], dtype=float32)
    """
    if x.shape[0] == 1:
        # Adds a zero (where there is no NaN) that a compiler cannot know. Without it the floats
        # would be made before a loop that does not change the matrix, and four times as much would
        # be read in every turn; with it they are made inside the product, one by one.
        kernel = kernel + ops.cast(ops.isnan(x[0, 0]), "int8")
    product = ops.matmul(x, ops.transpose(ops.cast(kernel, x.dtype)))
    return product / ops.cast(scale, product.dtype)
