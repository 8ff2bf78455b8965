"""The position-wise feed-forward network."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_gpt2.layers.dense import Dense
from keras_gpt2.layers.rematerialization import rematerialized


@keras.saving.register_keras_serializable(package="keras_gpt2")
def gelu_tanh(x: Any) -> Any:
    """GELU in its tanh approximation, `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.

    Source: Hendrycks, Gimpel 2016, "Gaussian Error Linear Units", section 2; GPT-2 uses this
    form, Keras's `"gelu"` is the exact one.
    """
    return ops.gelu(x, approximate=True)


@keras.saving.register_keras_serializable(package="keras_gpt2")
class FeedForward(keras.layers.Layer):
    """Expands every position's vector, applies an activation, and projects it back.

    `y = activation(x W_expand + b_expand) W_project + b_project`

    Args:
        intermediate_dim: int, the width between the two products; GPT-2 takes 4 D.
        activation: `"gelu_tanh"` (GPT-2's), or any Keras activation.
        dropout: float in [0, 1), share of the activations dropped in training.
        kernel_initializer: Keras initializer of the first kernel; GPT-2's normal(0.02) if None.
        output_initializer: the same for the last kernel.

    Shapes: `(..., D)` -> `(..., D)`.

    Raises:
        ValueError: if intermediate_dim is less than 1.

    Example:
        >>> FeedForward(16)(keras.ops.ones((2, 3, 4))).shape
        TensorShape([2, 3, 4])

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.3.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: Any = "gelu_tanh",
        dropout: float = 0.0,
        kernel_initializer: Any = None,
        output_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if intermediate_dim < 1:
            raise ValueError(
                f"intermediate_dim must be at least 1. Received: intermediate_dim="
                f"{intermediate_dim}."
            )
        self.intermediate_dim = intermediate_dim
        self.activation = (
            gelu_tanh if activation == "gelu_tanh" else keras.activations.get(activation)
        )
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=0.02)
        )
        self.output_initializer = keras.initializers.get(
            output_initializer or keras.initializers.RandomNormal(stddev=0.02)
        )
        self.supports_masking = True

    def build(self, input_shape: tuple) -> None:
        policy = self.dtype_policy
        self.expand = Dense(
            self.intermediate_dim,
            kernel_initializer=self.kernel_initializer,
            dtype=policy,
            name="expand",
        )
        self.project = Dense(
            input_shape[-1],
            kernel_initializer=self.output_initializer,
            dtype=policy,
            name="project",
        )
        self.activation_dropout = keras.layers.Dropout(self.dropout, dtype=policy)
        self.expand.build(input_shape)
        self.project.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.expand(x)  # (..., intermediate_dim)
        if not training:
            return self._activate_and_project(x)
        # Of the wide values one is enough to keep; the activation is cheap to compute again.
        return rematerialized(
            lambda x: self._activate_and_project(x, training=True),
            [*self.activation_dropout.variables, *self.project.variables],
        )(x)

    def _activate_and_project(self, x: Any, training: bool = False) -> Any:
        x = self.activation_dropout(self.activation(x), training=training)
        return self.project(x, training=training)  # (..., D)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": "gelu_tanh"
            if self.activation is gelu_tanh
            else keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
