"""Values that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras


def after(x: Any, *others: Any) -> Any:
    """`x`, for which a compiler has to wait until `others` are computed.

    Without such an order XLA finds a value that is computed again to be the first one, which it
    then keeps; or it computes together what was to be computed in turn.
    """
    for other in others:
        entry = keras.ops.sum(keras.ops.reshape(other, (-1,))[:1])
        # Never true, but no compiler leaves it out.
        x = x + keras.ops.cast(entry > float("inf"), x.dtype)
    return x


def _remat(function: Callable, number: int) -> Callable:
    """`keras.remat`, whose order XLA keeps also where TensorFlow calls it.

    Of the arguments the first `number` are made to wait for the gradients of the outputs: the
    others may be large, and one is enough.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)
    import tensorflow as tf

    @tf.custom_gradient
    def call(*inputs: Any) -> Any:
        def gradient(*upstream: Any) -> Any:
            again = [after(x, *upstream) for x in inputs[:number]]
            again += [tf.identity(x) for x in inputs[number:]]
            with tf.GradientTape() as tape:
                tape.watch(again)
                outputs = function(*again)
            return tape.gradient(outputs, again, upstream, tf.UnconnectedGradients.ZERO)

        return function(*inputs), gradient

    return call


def rematerialized(function: Callable, variables: Iterable[Any] = ()) -> Callable:
    """`function`, whose intermediate values are not kept for its gradient but computed again.

    It is `keras.remat` for functions that use layers: on every backend the gradients of their
    variables are found, and dropout drops the same entries in both computations (with `keras.remat`
    alone, or Keras's `RematScope`, the second one would draw anew).

    Args:
        function: takes tensors and returns tensors. It passes `training` to every layer that it
            calls: in the backward pass no layer is around it.
        variables: the `keras.Variable`s that it uses; each random state among them once.

    Returns:
        A function of the same tensors, with the same values and gradients.

    Example:
        >>> square = rematerialized(lambda x: x**2)
        >>> float(square(keras.ops.array(3.0)))
        9.0

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 3.
    """
    variables = list(variables)
    states = [v for v in variables if not v.trainable]
    weights = [v for v in variables if v.trainable]

    def call(*inputs: Any) -> Any:
        # States are not differentiated, so they need not be arguments. Their values are taken
        # here, before they change.
        before = [(state, keras.ops.copy(state.value)) for state in states]

        def pure(*arguments: Any) -> Any:
            given = zip(weights, arguments[len(inputs) :], strict=True)
            with keras.StatelessScope([*before, *given]):
                return function(*arguments[: len(inputs)])

        outputs = _remat(pure, len(inputs))(*inputs, *[weight.value for weight in weights])
        for state, value in before:
            if "seed_generator_state" in state.name:
                state.assign(value + keras.ops.array([0, 1], value.dtype))  # as if drawn from
        return outputs

    return call
