"""The affine product of all layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import keras
from keras import ops

from keras_gpt2.layers.narrow import (
    check_float,
    check_plain,
    in_bfloat16,
    matmul_by_rows,
    narrow_matmul,
)

_by_rows: ContextVar[Mapping[int, Any]] = ContextVar("by_rows", default=MappingProxyType({}))


@keras.saving.register_keras_serializable(package="keras_gpt2")
class Dense(keras.layers.Dense):
    """`y = x W + b`, Keras's layer with one product over all rows.

    Arguments, shapes and errors are `keras.layers.Dense`'s. After `quantize("int8")` or
    `to_bfloat16()` the kernel is `(units, D)`, of that type, and the inputs stay float.

    Example:
        >>> Dense(5)(keras.ops.ones((2, 3, 4))).shape
        TensorShape([2, 3, 5])
    """

    _kernel: Any
    dtype_policy: Any
    lora_rank: Any
    lora_alpha: Any
    lora_kernel_a: Any
    lora_kernel_b: Any
    in_bfloat16 = False
    _is_quantized = False

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        by_rows = self._kernel_by_rows
        if by_rows is not None:
            kernel = ops.cast(by_rows, self.compute_dtype)
            return self._affine(inputs, lambda rows: matmul_by_rows(rows, kernel))
        if self.in_bfloat16:
            return self._affine(inputs, lambda rows: narrow_matmul(rows, self._kernel.value))
        return self._affine(inputs, self._with_lora if self.lora_enabled else self._plain)

    @property
    def _kernel_by_rows(self) -> Any:
        """Its copy within `reading_by_rows`, or None."""
        return _by_rows.get().get(id(getattr(self, "_kernel", None)))

    @property
    def kernel(self) -> Any:
        by_rows = self._kernel_by_rows
        return super().kernel if by_rows is None else ops.transpose(by_rows)

    def _plain(self, rows: Any) -> Any:
        return ops.matmul(rows, self._kernel)

    def _with_lora(self, rows: Any) -> Any:
        # Keras adds the two matrices first; then its backward pass has to form a gradient as large
        # as the frozen kernel.
        low = ops.matmul(ops.matmul(rows, self.lora_kernel_a), self.lora_kernel_b)
        return self._plain(rows) + self.lora_alpha / self.lora_rank * low

    def _int8_call(self, inputs: Any, training: bool | None = None) -> Any:
        return self._affine(
            inputs, lambda rows: narrow_matmul(rows, self._kernel, self.kernel_scale)
        )

    def _int8_build(self, kernel_shape: tuple, config: Any = None) -> None:
        super()._int8_build(kernel_shape[::-1], config)  # one row per output: see narrow.py

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        if mode != "int8":
            raise ValueError(f"mode must be 'int8'. Received: mode={mode!r}.")
        check_plain(self)
        shape = self._kernel.shape
        values, scale = keras.quantizers.abs_max_quantize(self._kernel, axis=0, to_numpy=True)
        self._untrack_variable(self._kernel)  # `del` of a variable makes Keras collect garbage
        self.quantized_build(shape, mode)
        self._kernel.assign(ops.transpose(values))
        self.kernel_scale.assign(ops.squeeze(scale, axis=0))
        self.dtype_policy = keras.dtype_policies.get(f"int8_from_{self.dtype_policy.name}")

    def to_bfloat16(self) -> None:
        """Keeps the kernel in bfloat16, for good; it is not trained any more."""
        check_plain(self)
        self._kernel = in_bfloat16(self, self._kernel, ops.transpose(self._kernel))
        self.in_bfloat16 = self._is_quantized = True

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        check_float(self)
        super().enable_lora(*args, **kwargs)

    def merged_kernel(self) -> Any:
        """`W + alpha / rank A B`, in the type of W, where LoRA is enabled."""
        low = ops.matmul(self.lora_kernel_a, self.lora_kernel_b)
        return self._kernel + ops.cast(self.lora_alpha / self.lora_rank * low, self._kernel.dtype)

    def merge_lora(self) -> None:
        """Adds what LoRA has learnt to the kernel, and removes its two matrices."""
        self._kernel.assign(self.merged_kernel())
        for weight in (self.lora_kernel_a, self.lora_kernel_b):
            self._untrack_variable(weight)
        self.lora_kernel_a = self.lora_kernel_b = None  # first, see `quantize`
        del self.lora_kernel_a, self.lora_kernel_b  # or TensorFlow would keep them
        self.lora_enabled = False
        self.lora_rank = self.lora_alpha = None

    def _get_kernel_with_merged_lora(self) -> tuple[Any, Any, Any]:
        # What is saved. Keras's rounds it to the type of computation, also where W is float32.
        if self.lora_enabled:
            return self.merged_kernel(), None, None
        return super()._get_kernel_with_merged_lora()

    def _affine(self, inputs: Any, product: Any) -> Any:
        # Keras's product of three axes with two asks for shapes at run time, a dozen small
        # operations for every token of a decoding loop. And a bias right behind the product would
        # be fused with it by TensorFlow, into a kernel that is slower for one row. Nor is it added
        # by Keras, which takes TensorFlow's BiasAdd, several times as slow as a sum.
        shape = inputs.shape
        outer = ops.shape(inputs)[:-1] if None in shape[1:] else (-1, *shape[1:-1])
        x = product(ops.reshape(inputs, (-1, shape[-1])))  # (B T, units)
        x = ops.reshape(x, (*outer, self.units))
        if self.bias is not None:
            x = x + ops.convert_to_tensor(self.bias)
        return x if self.activation is None else self.activation(x)


def kernels_by_rows(layer: keras.Layer) -> dict[int, Any]:
    """A copy, a row per output, of every float kernel in `layer`.

    For graphs that read all kernels again for every token: as rows they are read faster.

    Returns:
        The copies `(units, D)`, LoRA's product added, each under the `id` of the kernel that it
        stands for, for `reading_by_rows`.
    """
    changed = [x for x in layer._flatten_layers() if isinstance(x, Dense) and not x._is_quantized]
    return {id(dense._kernel): ops.transpose(dense.kernel) for dense in changed}


@contextmanager
def reading_by_rows(copies: Mapping[int, Any]) -> Iterator[None]:
    """Within, in this thread, a kernel that has a copy among `copies` is read from it."""
    token = _by_rows.set(copies)
    try:
        yield
    finally:
        _by_rows.reset(token)
