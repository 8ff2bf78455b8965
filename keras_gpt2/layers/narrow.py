"""Products with matrices that are kept with one row per output, of floats, int8 or bfloat16.

int8 and bfloat16 are less to keep and to read, and inputs stay float; of int8,
`W[:, o] = kernel[o] / scale[o]`. For few rows of inputs, known when a graph is compiled for its
shapes (XLA, JAX), the narrow values are what is read from memory: they become floats where they are
used, a very large matrix block by block, in the processor's cache. Otherwise a matrix becomes
floats first, which saves memory and costs time: XLA does that once before a loop, a graph without
XLA for every product.

Under XLA on processors, matrices of floats are multiplied with 2 to 32 rows in two parts or more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_gpt2.layers.device import on_cpu, xla_on_cpu

_FEW_ROWS = 32
_BLOCK = 1 << 20  # values that become floats at a time: 4 MB, less than a processor's cache


def narrow_matmul(x: Any, kernel: Any, scale: Any = None) -> Any:
    """`x W` for a matrix of narrow values.

    Args:
        x: float `(B, D)`.
        kernel: int8 or bfloat16 `(V, D)`.
        scale: float `(V,)`, what the values are to be divided by; None: nothing.

    Returns:
        `(B, V)` of the type of `x`.

    Example:
        >>> kernel = keras.ops.array([[2, 6], [-4, 8]], "int8")
        >>> narrow_matmul(keras.ops.ones((1, 2)), kernel, keras.ops.array([2.0, 4.0])).numpy()
        array([[4., 1.]], dtype=float32)
    """
    form = _form(x.shape[0], kernel.shape[0] * kernel.shape[1])
    product = _of_full_rows(form, x, kernel)
    return product if scale is None else product / ops.cast(scale, product.dtype)


def _form(rows: int | None, size: int) -> Callable:
    if rows == 2 and xla_on_cpu():  # which makes floats inside the product for a single row only
        return _row_by_row
    # A copy of more than 32 MB is memory that the system must give, and clear, for each product.
    if rows != 1 and size >= 8 * _BLOCK and on_cpu():
        return _traced_once(_in_blocks)
    return _of_few_rows if rows is not None and rows <= _FEW_ROWS else _of_floats


def _of_floats(x: Any, kernel: Any) -> Any:
    return matmul_by_rows(x, ops.cast(kernel, x.dtype))


def _of_few_rows(x: Any, kernel: Any) -> Any:
    x, unknown = _alone(x)
    floats = ops.cast(_made_from(unknown, kernel), x.dtype)
    # What is right behind a product, a bias or a transposition, XLA would take into it, and the
    # matrix would be copied first.
    if x.shape[0] == 1:
        return ops.where(unknown, 0.0, ops.matmul(x, ops.transpose(floats)))
    return ops.transpose(ops.where(unknown, 0.0, ops.matmul(floats, ops.transpose(x))))


def _row_by_row(x: Any, kernel: Any) -> Any:
    return ops.concatenate([_of_few_rows(row, kernel) for row in ops.split(x, x.shape[0])])


def _alone(x: Any) -> tuple[Any, Any]:
    """`x`, and False, but a compiler does not know that.

    XLA takes all that is cheap and comes before a product into its loop over the weights, a
    normalization for instance, and computes it for every weight. A division it leaves outside.
    """
    unknown = x[0, 0] > float("inf")
    return x / (1 + ops.cast(unknown, x.dtype)), unknown


def _in_blocks(x: Any, kernel: Any) -> Any:
    # Of the whole matrix XLA would make floats before a loop, and keep them all.
    outputs, width = kernel.shape
    count = 1 + outputs * width // _BLOCK
    size = outputs // count
    columns = ops.transpose(x)  # (D, B)

    def of_block(start: Any) -> Any:
        block = ops.slice(kernel, (start, 0), (size, width))
        return ops.matmul(ops.cast(block, x.dtype), columns)

    products = ops.map(of_block, ops.arange(count) * size)  # (count, size, B)
    product = ops.transpose(ops.reshape(products, (count * size, -1)))
    return ops.concatenate([product, _of_floats(x, kernel[count * size :])], axis=1)


@functools.cache
def _traced_once(function: Callable) -> Callable:
    """`function`; in a graph of TensorFlow, arguments of the same shapes share one trace of it."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    traced = tf.function(function, autograph=False)

    def call(*tensors: Any) -> Any:
        if tf.executing_eagerly():  # no trace for each number of rows, which would be kept
            return function(*tensors)
        tensors = tuple(map(tf.convert_to_tensor, tensors))
        return traced.get_concrete_function(*tensors)(*tensors)

    return call


def few_rows(rows: int | None) -> bool:
    """Whether XLA's compiler for processors forms products of `rows` faster with rows of a matrix.

    It does up to 32, of more than one as a batch of products with a part of the matrix each.
    """
    return rows is not None and rows <= _FEW_ROWS and on_cpu()


def for_few_rows(rows: int | None) -> bool:
    """Whether `matmul_by_rows` does so here."""
    return xla_on_cpu() and few_rows(rows)


def _divisor(number: int, at_least: float) -> int:
    """The least divisor of `number` that is not less than `at_least`, at most `number`."""
    return next(n for n in range(1, number + 1) if number % n == 0 and n >= at_least)


def matmul_by_rows(x: Any, kernel: Any) -> Any:
    """`x W` for a matrix that is kept with one row per output.

    Args:
        x: `(B, D)`.
        kernel: `(V, D)`.

    Returns:
        `(B, V)`.

    Example:
        >>> kernel = keras.ops.array([[2.0, 6.0], [-4.0, 8.0]])
        >>> matmul_by_rows(keras.ops.ones((1, 2)), kernel).numpy()
        array([[8., 4.]], dtype=float32)
    """
    if x.shape[0] == 1 and not xla_on_cpu():
        return ops.matmul(x, ops.transpose(kernel))
    if x.shape[0] == 1:
        x, unknown = _alone(x)
        return ops.where(unknown, 0.0, ops.matmul(x, ops.transpose(kernel)))
    return _of_full_rows(_with_kernel_first, x, kernel)


def _with_kernel_first(x: Any, kernel: Any) -> Any:
    # TensorFlow is several times as fast for 2 to 30 rows if the large matrix comes first.
    columns = ops.transpose(x)  # (D, B)
    outputs, width = kernel.shape
    if for_few_rows(x.shape[0]):
        count = _divisor(outputs, at_least=max(2, outputs * width / (2 * _BLOCK)))
        if outputs // count * width >= _BLOCK // 4:
            parts = ops.reshape(kernel, (count, outputs // count, width))
            columns = ops.tile(columns, (count, 1, 1))
            return ops.transpose(ops.reshape(ops.matmul(parts, columns), (outputs, -1)))
    return ops.transpose(ops.matmul(kernel, columns))


def _of_full_rows(form: Callable, x: Any, kernel: Any) -> Any:
    """`form(x, kernel)`, of `x` filled up where that is faster."""
    full = _filled_up(x)
    return form(x, kernel) if full is x else form(full, kernel)[: x.shape[0]]


def _filled_up(x: Any) -> Any:
    """`x`, and under XLA rows of zeros that make 8 of 5 to 7 rows, and 16 of 9 to 15.

    Its products are as fast for 8 and 16 as for any fewer from 5 and 9 on.
    """
    rows = x.shape[0]
    if not for_few_rows(rows) or rows < 5 or rows > 16 or rows % 8 == 0:
        return x
    return ops.pad(x, ((0, -rows % 8), (0, 0)))


def _made_from(unknown: Any, kernel: Any) -> Any:
    """`kernel` where `unknown` is False, as it is; but a compiler cannot know that.

    Of the kernel itself the floats would be made before a loop that does not change it, and two or
    four times as much would be read in every turn; of this they are made inside the product.
    """
    if keras.backend.standardize_dtype(kernel.dtype) == "int8":
        return kernel + ops.cast(unknown, "int8")
    bits = ops.view(kernel, "uint16") + ops.cast(unknown, "uint16")
    return ops.view(bits, "bfloat16")


def check_plain(layer: Any) -> None:
    """Raises ValueError if weights are narrow already, or LoRA is enabled: its part would go."""
    check_float(layer)
    if layer.lora_enabled:
        raise ValueError(
            "LoRA must be merged into the weights before they are made narrow. "
            f"Received: {layer.path}, lora_rank={layer.lora_rank}."
        )


def check_float(layer: Any) -> None:
    """Raises ValueError if the weights are narrow: they are neither trained nor changed again."""
    if getattr(layer, "_is_quantized", False):
        raise ValueError(
            "Weights must be float here: int8 and bfloat16 ones stay as they are, and LoRA is "
            f"trained and merged before. Received: {layer.path}, which has narrow weights."
        )


def in_bfloat16(layer: keras.Layer, variable: Any, values: Any) -> Any:
    """A variable of `layer` of bfloat16 `values`, in the place of `variable`."""
    layer._tracker.unlock()
    layer._untrack_variable(variable)
    new = layer.add_weight(
        name=variable.name,
        shape=values.shape,
        initializer="zeros",
        dtype="bfloat16",
        autocast=False,
        trainable=False,
    )
    layer._tracker.lock()
    new.assign(ops.cast(values, "bfloat16"))
    return new
