"""Layer normalization with GPT-2's epsilon."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_gpt2")
class LayerNormalization(keras.layers.LayerNormalization):
    r"""Normalizes every vector along the last axis, then scales and shifts it.

    $$y = \gamma \odot \frac{x - \operatorname{mean}(x)}
                            {\sqrt{\operatorname{var}(x) + \epsilon}} + \beta$$

    It is `keras.layers.LayerNormalization` with two things settled: GPT-2's epsilon (Keras's own
    default is 1e-3), and mean and variance in float32 whatever the dtype policy.

    Args:
        epsilon: float > 0, added to the variance.
        **kwargs: the arguments of `keras.layers.LayerNormalization`.

    Shapes: `(..., D)` -> `(..., D)`, in the layer's compute dtype.

    Example:
        >>> x = keras.ops.convert_to_tensor([[1.0, 3.0]])
        >>> keras.ops.convert_to_numpy(LayerNormalization()(x)).round(3).tolist()
        [[-1.0, 1.0]]

    Source: Ba, Kiros, Hinton 2016, "Layer Normalization", section 3; epsilon from OpenAI's
    gpt-2 `src/model.py`, function `norm`.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(epsilon=epsilon, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # build() turns -1 into a list; Keras's deprecated argument only warns.
        if config["axis"] == [-1]:
            config["axis"] = -1
        config.pop("rms_scaling", None)
        return config
