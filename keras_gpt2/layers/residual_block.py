"""A residual connection around any layer."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_gpt2.layers.layer_normalization import LayerNormalization
from keras_gpt2.layers.rematerialization import rematerialized


@keras.saving.register_keras_serializable(package="keras_gpt2")
class ResidualBlock(keras.layers.Wrapper):
    r"""Adds a layer's output to its input, with layer normalization before, after, or not at all.

    | normalization | computes |
    | --- | --- |
    | `"pre"` (GPT-2) | `x + F(norm(x))` |
    | `"post"` (2017) | `norm(x + F(x))` |
    | `None` | `x + F(x)` |

    Args:
        inner: the layer F; it keeps the input's shape. If it returns a tuple, the first entry is
            added and the others are handed on.
        normalization: `"pre"`, `"post"` or None.
        scale: factor of the sum `x + F`: a float, None for 1, or `"rsqrt_dim"` for
            `1 / sqrt(D)`.
        dropout: float in [0, 1), share of F's output dropped in training.
        epsilon: float > 0, of the layer normalization.
        rematerialize: bool; in training, keeps nothing but `x` and computes all else again in the
            backward pass.

    Call arguments:
        x: `(..., D)`.
        mask: bool `(B, T)`; handed to `inner` if its `call` has a `mask`.
        cache, position, return_weights: handed to `inner` where given; see `SelfAttention`.

    Shapes: `(..., D)` -> `(..., D)`.

    Raises:
        ValueError: if normalization or scale is none of the above.

    Example:
        >>> block = ResidualBlock(keras.layers.Identity(), normalization=None, scale=0.5)
        >>> keras.ops.convert_to_numpy(block(keras.ops.array([[3.0]]))).tolist()
        [[3.0]]

    Source: He et al. 2016, "Deep Residual Learning"; "pre" from Radford et al. 2019, section 2.3;
    "post" from Vaswani et al. 2017, section 3.1.
    """

    def __init__(
        self,
        inner: keras.layers.Layer,
        normalization: str | None = "pre",
        scale: float | str | None = None,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        rematerialize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(inner, **kwargs)
        if normalization not in ("pre", "post", None):
            raise ValueError(
                'normalization must be "pre", "post" or None. '
                f"Received: normalization={normalization!r}."
            )
        if isinstance(scale, str) and scale != "rsqrt_dim":
            raise ValueError(
                f'scale must be a number, "rsqrt_dim" or None. Received: scale={scale!r}.'
            )
        self.normalization = normalization
        self.scale = scale
        self.dropout = dropout
        self.epsilon = epsilon
        self.rematerialize = rematerialize
        self.supports_masking = True
        self._inner_takes_mask = "mask" in inspect.signature(inner.call).parameters

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        if self.normalization is not None:
            self.norm = self.make_normalization()
            self.norm.build(input_shape)
        self.output_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)

    def make_normalization(self) -> keras.layers.Layer:
        """The normalization layer; override it to use another one."""
        return LayerNormalization(self.epsilon, dtype=self.dtype_policy, name="norm")

    def call(
        self,
        x: Any,
        mask: Any = None,
        cache: tuple[Any, Any] | None = None,
        position: Any = None,
        return_weights: bool = False,
        training: bool | None = None,
    ) -> Any:
        given: dict[str, Any] = {}
        if mask is not None and self._inner_takes_mask:
            given["mask"] = mask
        if cache is not None:
            given.update(cache=cache, position=position)
        if return_weights:
            given["return_weights"] = True
        if self.rematerialize and training:
            return rematerialized(lambda x: self._add(x, given, training), self.variables)(x)
        return self._add(x, given, training)

    def _add(self, x: Any, given: dict[str, Any], training: bool | None) -> Any:
        inner = self.norm(x) if self.normalization == "pre" else x
        inner = self.layer(inner, **given, training=training)
        inner, *others = inner if isinstance(inner, tuple) else (inner,)
        y = x + self.output_dropout(inner, training=training)  # (..., D)
        if self.scale == "rsqrt_dim":
            y = y * x.shape[-1] ** -0.5
        elif self.scale is not None:
            y = y * self.scale
        if self.normalization == "post":
            y = self.norm(y)
        return (y, *others) if others else y

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {
            **config,
            "normalization": self.normalization,
            "scale": self.scale,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "rematerialize": self.rematerialize,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ResidualBlock:
        # Wrapper takes the inner layer out of the dictionary it is given.
        return super().from_config(dict(config), custom_objects)
