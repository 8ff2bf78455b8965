"""Compiling functions of a model once, on either backend."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import keras

_compiled: weakref.WeakKeyDictionary[Any, dict[tuple, Callable]] = weakref.WeakKeyDictionary()


def compiled(
    model: Any,
    function: Callable[..., Any],
    jit_compile: bool,
    *static: Any,
    rows: int | None = None,
) -> partial:
    """`lambda *tensors: function(model, *tensors, *static)`, compiled.

    The same model, function and static values share one compiled object (`.func` of what is
    returned), which compiles once for each shape of its tensors (without XLA once for all). A model
    whose weights are other objects than before (after `enable_lora`, `quantize`) is compiled anew.

    `rows` is how many rows most products have. Where XLA multiplies so many faster with copies of
    the kernels, they are made now, and gone with what is returned.
    """
    weights = tuple(id(weight) for weight in model.weights)
    key = (function, jit_compile, static, weights)
    cache = _compiled.setdefault(model, {})
    if key not in cache:
        # Only a weak reference inside, or the model would keep itself alive in the dictionary.
        reference = weakref.ref(model)

        def run(kernels: dict[int, Any], *tensors: Any) -> Any:
            alive: Any = reference()
            for_xla = alive.products_for_xla() if jit_compile else nullcontext()
            with for_xla, alive.reading_by_rows(kernels):
                return function(alive, *tensors, *static)

        if keras.backend.backend() == "jax":
            cache[key] = _for_jax(model, run, jit_compile)
        else:
            import tensorflow as tf

            cache[key] = (
                tf.function(run, autograph=False, jit_compile=True)
                if jit_compile
                else _for_any_shape(tf, run)
            )
    return partial(cache[key], model.kernels_for_xla(rows) if jit_compile else {})


def _for_any_shape(tf: Any, run: Callable) -> Callable:
    """A TensorFlow graph that is traced once: without XLA nothing is gained from known shapes."""
    traced = None

    def any_shape(tensor: Any) -> Any:
        return tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)

    def call(*tensors: Any) -> Any:
        nonlocal traced
        tensors = tf.nest.map_structure(tf.convert_to_tensor, tensors)
        if traced is None:
            specs = tf.nest.map_structure(any_shape, tensors)
            traced = tf.function(run, autograph=False).get_concrete_function(*specs)
        return traced(*tensors)

    return call


def _for_jax(model: Any, run: Callable, jit_compile: bool) -> Callable:
    import jax

    # Weights are arguments: a jitted closure would hold a constant copy of them.
    variables = list(model.variables)

    def stateless(values: list, *tensors: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return run(*tensors)

    step = jax.jit(stateless) if jit_compile else stateless
    return lambda *tensors: step([variable.value for variable in variables], *tensors)
