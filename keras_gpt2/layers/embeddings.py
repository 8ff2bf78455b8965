"""Token and position embeddings."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_gpt2.layers.narrow import (
    check_float,
    check_plain,
    for_few_rows,
    in_bfloat16,
    matmul_by_rows,
    narrow_matmul,
)


def take_rows(table: Any, indices: Any) -> Any:
    """Rows of `table` (N, D) at `indices`; NaN where an index is not in 0..N-1.

    Compiled code cannot raise, and XLA would take the nearest row instead: NaN is the answer
    that no one can overlook.
    """
    size = table.shape[0]
    rows = ops.take(table, ops.clip(indices, 0, size - 1), axis=0)  # (..., D)
    valid = ops.logical_and(indices >= 0, indices < size)
    return ops.where(ops.expand_dims(valid, -1), rows, float("nan"))


def _values_if_eager(x: Any) -> Any:
    """`x` as a numpy array, or None while it is only a symbol in a graph being traced."""
    if isinstance(x, keras.KerasTensor):
        return None
    try:
        return ops.convert_to_numpy(x)
    except (NotImplementedError, TypeError, AttributeError):
        return None


@keras.saving.register_keras_serializable(package="keras_gpt2")
class TokenEmbedding(keras.layers.ReversibleEmbedding):
    """Looks up one vector per token id, and scores every token against a vector.

    The lookup is row `E[id]`; called with `reverse=True` it is the output product `x E^T`, with
    the same matrix `E` (tied) unless `tie_weights=False`.

    Negative ids are padding: they get the vector of id 0 and are masked for all later layers.
    (GPT-2 has no padding token, and its id 0 is a real one, `!`.)

    Args:
        input_dim: int, the vocabulary's size V.
        output_dim: int, the width D of a vector.
        **kwargs: the arguments of `keras.layers.ReversibleEmbedding`.

    Shapes: int `(B, T)` -> `(B, T, D)`; reverse: `(B, T, D)` -> float32 `(B, T, V)`.

    Raises:
        ValueError: if an id is V or more, where values can be seen (eager calls). In compiled
            code such an id gives NaN.

    Example:
        >>> embedding = TokenEmbedding(11, 4)
        >>> x = embedding(keras.ops.array([[3, 5, -1]]))
        >>> x.shape, embedding(x, reverse=True).shape
        (TensorShape([1, 3, 4]), TensorShape([1, 3, 11]))

    Source: Press, Wolf 2017, "Using the Output Embedding to Improve Language Models".
    """

    def __init__(self, input_dim: int, output_dim: int, **kwargs: Any) -> None:
        super().__init__(input_dim, output_dim, **kwargs)
        self.supports_masking = True

    _embeddings: Any
    reverse_embeddings: Any
    in_bfloat16 = False

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        if reverse and self.in_bfloat16:
            kernel = self._embeddings if self.tie_weights else self.reverse_embeddings
            return self._logits(inputs, lambda rows: narrow_matmul(rows, kernel.value))
        if reverse:
            plain = self.tie_weights and self.reverse_dtype is None and self.logit_soft_cap is None
            if plain and self._by_rows(inputs.shape):
                embeddings = ops.convert_to_tensor(self.embeddings)
                return self._logits(inputs, lambda rows: matmul_by_rows(rows, embeddings))
            return ops.cast(super().call(inputs, reverse=True), "float32")  # (B, T, V)
        self.check(_values_if_eager(inputs))
        token_ids = ops.cast(inputs, "int32")
        rows = take_rows(ops.convert_to_tensor(self.embeddings), ops.maximum(token_ids, 0))
        return ops.cast(rows, self.compute_dtype)  # (B, T, D)

    def _by_rows(self, shape: tuple) -> bool:
        outer = tuple(shape[:-1])
        rows = None if None in outer else math.prod(outer)
        return outer[1:] == (1,) or for_few_rows(rows)

    def _logits(self, inputs: Any, product: Any) -> Any:
        rows = ops.reshape(inputs, (-1, inputs.shape[-1]))
        logits = ops.cast(product(rows), "float32")
        if self.logit_soft_cap is not None:
            logits = ops.tanh(logits / self.logit_soft_cap) * self.logit_soft_cap
        return ops.reshape(logits, (*ops.shape(inputs)[:-1], self.input_dim))  # (B, T, V)

    @property
    def output_weight(self) -> Any:
        """The variable that `output_matrix` is made of."""
        return self._embeddings if self.tie_weights else self.reverse_embeddings

    def output_matrix(self) -> Any:
        """The output product's matrix with a row for each token, `(V, D)`, to train it."""
        check_float(self)
        if self.tie_weights:
            return ops.convert_to_tensor(self.embeddings)
        return ops.transpose(self.reverse_embeddings)

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        check_plain(self)
        super().quantize(mode, type_check=False, config=config)  # Keras's asks for its own class

    def _int8_call(self, inputs: Any, reverse: bool = False) -> Any:
        if reverse and self.tie_weights:
            return self._logits(
                inputs, lambda rows: narrow_matmul(rows, self._embeddings, self.embeddings_scale)
            )
        if reverse:
            return self._logits(
                inputs,
                lambda rows: (
                    ops.matmul(rows, ops.cast(self.reverse_embeddings, rows.dtype))
                    / ops.cast(self.reverse_embeddings_scale, rows.dtype)
                ),
            )
        self.check(_values_if_eager(inputs))
        token_ids = ops.maximum(ops.cast(inputs, "int32"), 0)
        safe = ops.minimum(token_ids, self.input_dim - 1)
        rows = ops.cast(ops.take(self._embeddings, safe, axis=0), self.compute_dtype)
        rows = rows / take_rows(ops.expand_dims(self.embeddings_scale, -1), token_ids)
        return ops.cast(rows, self.compute_dtype)  # (B, T, D)

    def to_bfloat16(self) -> None:
        """Keeps the vectors in bfloat16, for good; they are not trained any more."""
        check_plain(self)
        self._embeddings = in_bfloat16(self, self._embeddings, self._embeddings)
        if not self.tie_weights:
            turned = ops.transpose(self.reverse_embeddings)  # one row per output: see narrow.py
            self.reverse_embeddings = in_bfloat16(self, self.reverse_embeddings, turned)
        self.in_bfloat16 = self._is_quantized = True

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        check_float(self)
        super().enable_lora(*args, **kwargs)

    def check(self, token_ids: Any) -> None:
        """Raises ValueError if the array `token_ids` (None: nothing known) holds an id >= V."""
        if token_ids is None or token_ids.size == 0:
            return
        if token_ids.max() >= self.input_dim:
            raise ValueError(
                "token_ids must be less than the vocabulary's size (negative ids are padding). "
                f"Received: an id of {token_ids.max()}, vocabulary_size={self.input_dim}."
            )

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        is_token_ids = keras.backend.standardize_dtype(inputs.dtype).startswith(("int", "uint"))
        return inputs >= 0 if is_token_ids else mask

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> Any:
        shape = self.compute_output_shape(inputs.shape, reverse)
        return keras.KerasTensor(shape, dtype="float32" if reverse else self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_gpt2")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector for each position to the input.

    Position t is the number of real (not masked) entries before an entry, so that padding, left
    or right, does not move a text.

    Args:
        sequence_length: int, the number of positions that have a vector.
        embeddings_initializer: Keras initializer of the vectors; GPT-2's is a normal
            distribution of standard deviation 0.01.

    Call arguments:
        x: float `(B, T, D)`.
        mask: bool `(B, T)`, True where an entry is real; with `position`, `(B, S)` over the
            whole key/value cache.
        position: int scalar, the place in the cache of `x[:, 0]`; None without a cache.

    Shapes: `(B, T, D)` -> `(B, T, D)`.

    Raises:
        ValueError: if T is more than sequence_length.

    Example:
        >>> layer = PositionEmbedding(8, embeddings_initializer="ones")
        >>> keras.ops.convert_to_numpy(layer(keras.ops.zeros((1, 2, 1)))).tolist()
        [[[1.0], [1.0]]]

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training",
    section 3.1.
    """

    def __init__(
        self, sequence_length: int, embeddings_initializer: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if sequence_length < 1:
            raise ValueError(
                f"sequence_length must be at least 1. Received: sequence_length={sequence_length}."
            )
        self.sequence_length = sequence_length
        self.embeddings_initializer = keras.initializers.get(
            embeddings_initializer or keras.initializers.RandomNormal(stddev=0.01)
        )
        self.supports_masking = True

    def build(self, input_shape: tuple) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.sequence_length, input_shape[-1]),
            initializer=self.embeddings_initializer,
        )

    def call(self, x: Any, mask: Any = None, position: Any = None) -> Any:
        length = x.shape[1]
        if length is not None and length > self.sequence_length:
            raise ValueError(
                "A sequence must have at most sequence_length positions. "
                f"Received: {length} positions, sequence_length={self.sequence_length}."
            )
        indices = ops.arange(ops.shape(x)[1], dtype="int32")  # (T,)
        if position is not None:
            indices = indices + ops.cast(position, "int32")
        if mask is not None:
            counts = ops.cumsum(ops.cast(mask, "int32"), axis=1) - 1  # (B, T or S)
            if position is not None:
                counts = ops.take(counts, indices, axis=1)  # (B, T)
            indices = ops.maximum(counts, 0)
        return x + take_rows(ops.convert_to_tensor(self.embeddings), indices)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }
