"""Perplexity."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_gpt2")
class Perplexity(keras.metrics.Mean):
    """The exponential of the mean cross-entropy of the targets, in nats per token.

    `exp(-mean(log p(target)))`; a model that spreads its belief evenly over n tokens has
    perplexity n.

    Args:
        name: str.
        dtype: of the sums; Keras's float type if None.

    Shapes: `update_state(y_true, y_pred)` takes int targets `(B, T)` (negative ones are left out)
    and logits `(B, T, V)`.

    Example:
        >>> perplexity = Perplexity()
        >>> perplexity.update_state(keras.ops.array([[1]]), keras.ops.zeros((1, 1, 4)))
        >>> round(float(perplexity.result()), 4)
        4.0

    Source: Jelinek et al. 1977, "Perplexity: a measure of the difficulty of speech recognition
    tasks".
    """

    def __init__(self, name: str = "perplexity", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        y_true = ops.cast(y_true, "int32")
        real = ops.cast(y_true >= 0, self.dtype)
        losses = keras.losses.sparse_categorical_crossentropy(
            ops.maximum(y_true, 0), ops.cast(y_pred, "float32"), from_logits=True
        )
        super().update_state(losses, real if sample_weight is None else real * sample_weight)

    def result(self) -> Any:
        return ops.exp(super().result())
