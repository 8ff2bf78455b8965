"""Products with matrices that are kept with one row per output, of floats, int8 or bfloat16.

int8 and bfloat16 are less to keep and to read, and inputs stay float; of int8,
`W[:, o] = kernel[o] / scale[o]`. For one row of inputs, known when a graph is compiled for its
shapes (XLA, JAX), the narrow values are what is read from memory. For more rows the matrix becomes
floats first: XLA does that once before a loop and is as fast as with float32 weights; a graph
without XLA does it for every product, which saves memory and costs time.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


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
    product = _of_one_row(x, kernel) if x.shape[0] == 1 else _of_floats(x, kernel)
    return product if scale is None else product / ops.cast(scale, product.dtype)


def _of_floats(x: Any, kernel: Any) -> Any:
    return matmul_by_rows(x, ops.cast(kernel, x.dtype))


def _of_one_row(x: Any, kernel: Any) -> Any:
    # XLA takes all that is cheap and comes before a product into its loop over the weights, a
    # normalization for instance, and computes it for every weight. A division it leaves outside.
    x = x / ops.cast(ops.logical_not(ops.isnan(x[0, 0])), x.dtype)  # by 1
    unknown = ops.isnan(x[0, 0])
    product = _of_floats(x, _made_from(unknown, kernel))
    # Right behind a product, XLA would take a bias into it, and the matrix would be copied first.
    return ops.where(unknown, float("nan"), product)


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
    # TensorFlow is several times as fast for 2 to 30 rows if the large matrix comes first.
    if x.shape[0] == 1:
        return ops.matmul(x, ops.transpose(kernel))
    return ops.transpose(ops.matmul(kernel, ops.transpose(x)))


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
