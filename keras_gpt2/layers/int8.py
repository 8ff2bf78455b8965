"""Products with int8 matrices: weights are a quarter of the memory, inputs stay float.

A matrix is held per output channel, `W[:, o] = kernel[:, o] / scale[o]`. For one row, known when a
graph is compiled for its shapes (XLA, JAX), the int8 values are what is read from memory. For more
rows the matrix becomes floats first: XLA does that once before a loop and is as fast as with float
weights; a graph without XLA does it for every product, which saves memory and costs time.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from keras import ops

# So many terms in one expression keep XLA from moving it into the sum that follows, where it
# would not be vectorized.
_TERMS = 16


def int8_matmul(x: Any, kernel: Any, scale: Any, transposed: bool = False) -> Any:
    """`x W` for a matrix of int8 values and one scale per column.

    Args:
        x: float `(B, D)`.
        kernel: int8 `(D, V)`, or `(V, D)` if `transposed`.
        scale: float `(V,)`, what the values are to be divided by.

    Returns:
        `(B, V)` of the type of `x`.

    Example:
        >>> kernel = keras.ops.array([[2, -4], [6, 8]], "int8")
        >>> int8_matmul(keras.ops.ones((1, 2)), kernel, keras.ops.array([2.0, 4.0])).numpy()
        array([[4., 1.]], dtype=float32)
    """
    rows, size = x.shape
    if rows == 1 and size % _TERMS == 0:
        product = (_one_row_transposed if transposed else _one_row)(x, kernel)
    else:
        kernel = ops.cast(kernel, x.dtype)
        product = ops.matmul(x, ops.transpose(kernel) if transposed else kernel)
    return product / ops.cast(scale, product.dtype)


def _one_row(x: Any, kernel: Any) -> Any:
    """Runs of 16 rows of the matrix are summed in one vectorized pass over the outputs."""
    size, width = kernel.shape
    parts = ops.reshape(kernel, (size // _TERMS, _TERMS, width))  # (D/16, 16, V)
    factors = ops.reshape(x, (size // _TERMS, _TERMS))
    sums = _sum_of_terms(x, parts, lambda i: factors[:, i, None])
    return ops.sum(sums, axis=0)[None]


def _one_row_transposed(x: Any, kernel: Any) -> Any:
    """The same for a matrix whose rows are outputs: 16 terms for each of D/16 lanes."""
    width, size = kernel.shape
    parts = ops.reshape(kernel, (width, _TERMS, size // _TERMS))  # (V, 16, D/16)
    factors = ops.reshape(x, (_TERMS, size // _TERMS))
    sums = _sum_of_terms(x, parts, lambda i: factors[i])
    return ops.transpose(ops.matmul(sums, ops.ones((size // _TERMS, 1), x.dtype)))


def _sum_of_terms(x: Any, parts: Any, factor: Any) -> Any:
    """The sum over i of `factor(i) * parts[:, i]`, as one expression."""
    # A zero (where there is no NaN) that a compiler cannot know. With places that it knows, parts
    # would become floats before a loop that does not change the matrix, and four times as much
    # would be read in every turn.
    zero = ops.cast(ops.isnan(x[0, 0]), "int32")

    def term(i: int) -> Any:
        part = ops.take(parts, ops.minimum(i + zero, _TERMS - 1), axis=1)
        return factor(i) * ops.cast(part, x.dtype)

    return functools.reduce(operator.add, map(term, range(_TERMS)))
