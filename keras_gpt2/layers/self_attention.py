"""Multi-head self-attention, with and without causality, with and without a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_gpt2.layers.dense import Dense
from keras_gpt2.layers.device import on_cpu
from keras_gpt2.layers.dot_product import dot_product_attention
from keras_gpt2.layers.rematerialization import after, rematerialized

BLOCK = 256  # queries whose attention weights exist at a time in training: each block is compiled


class OwnedCache(NamedTuple):
    """A pair of keys and values whose tensors nobody else will read again.

    Attention writes into them where they lie, as TensorFlow can in a graph (not under XLA, which
    finds out by itself). A plain pair is left as it was and a copy returned.
    """

    key: Any
    value: Any


def write_to_cache(cache: Any, key: Any, value: Any, position: Any) -> Any:
    """`cache`, a pair of `(B, H, S, K)`, with `key` and `value` `(B, H, T, K)` from `position` on.

    The result is of the type of `cache`, or, where that is empty, `key` and `value` alone.
    """
    if not cache:
        return key, value
    if keras.backend.backend() != "tensorflow":
        start = (0, 0, position, 0)
        return ops.slice_update(cache[0], start, key), ops.slice_update(cache[1], start, value)
    # keras.ops.slice_update is an XLA op in TensorFlow, which a server without XLA cannot run.
    batch, heads, length, width = ops.shape(cache[0])
    places = ops.arange(batch * heads) * length + position  # (B H,)
    if key.shape[2] != 1:
        places = ops.expand_dims(places, 1) + ops.arange(ops.shape(key)[2])  # (B H, T)
        places = ops.reshape(places, (-1,))

    def write(old: Any, new: Any) -> Any:
        old, new = ops.reshape(old, (-1, width)), ops.reshape(new, (-1, width))
        if isinstance(cache, OwnedCache):
            import tensorflow as tf

            written = tf.raw_ops.InplaceUpdate(x=old, i=places, v=new)
        else:
            written = ops.scatter_update(old, ops.expand_dims(places, 1), new)
        return ops.reshape(written, (batch, heads, length, width))

    pair = write(cache[0], key), write(cache[1], value)
    return OwnedCache(*pair) if isinstance(cache, OwnedCache) else pair


@keras.saving.register_keras_serializable(package="keras_gpt2")
class SelfAttention(keras.layers.Layer):
    """Lets every position gather from the positions it may see, in several heads.

    `y = merge(attend(project(x)))`. Each of the steps is a method to override: `project` makes
    queries, keys and values; `visible` says who may see whom; `attend` mixes the values; `merge`
    joins the heads and projects the result.

    Args:
        num_heads: int, H; must divide the input's last axis D. K = D / H.
        dropout: float in [0, 1), share of the attention weights dropped in training.
        causal: bool; if True a position sees itself and those before it only.
        kernel_initializer: Keras initializer of the first kernel; GPT-2's normal(0.02) if None.
        output_initializer: the same for the last kernel.

    Call arguments:
        x: `(B, T, D)`.
        mask: bool `(B, T)`, True where an entry is real (others are never seen); with a cache,
            `(B, S)`. Keras fills it in from an embedding that masks.
        cache: pair of tensors `(B, H, S, K)`: keys and values of the places 0 .. position - 1;
            or `()` where there are none, and the keys and values of x become the cache.
        position: int scalar, the place of `x[:, 0]` in the cache.
        return_weights: bool; if True the weights `(B, H, T, S)` come last.

    Returns:
        `y` `(B, T, D)`; or a tuple `(y, cache)`, `(y, weights)` or `(y, cache, weights)`.

    Raises:
        ValueError: if num_heads does not divide D.

    Example:
        >>> y, weights = SelfAttention(2)(keras.ops.ones((1, 3, 4)), return_weights=True)
        >>> y.shape, weights.shape
        (TensorShape([1, 3, 4]), TensorShape([1, 2, 3, 3]))

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.
    """

    def __init__(
        self,
        num_heads: int,
        dropout: float = 0.0,
        causal: bool = False,
        kernel_initializer: Any = None,
        output_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be at least 1. Received: num_heads={num_heads}.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=0.02)
        )
        self.output_initializer = keras.initializers.get(
            output_initializer or keras.initializers.RandomNormal(stddev=0.02)
        )
        self.supports_masking = True

    def build(self, input_shape: tuple) -> None:
        hidden_dim = input_shape[-1]
        if hidden_dim % self.num_heads:
            raise ValueError(
                "num_heads must divide the input's last axis. "
                f"Received: num_heads={self.num_heads}, last axis={hidden_dim}."
            )
        policy = self.dtype_policy
        self.query_key_value = Dense(
            3 * hidden_dim,
            kernel_initializer=self.kernel_initializer,
            dtype=policy,
            name="query_key_value",
        )
        self.output_projection = Dense(
            hidden_dim,
            kernel_initializer=self.output_initializer,
            dtype=policy,
            name="output_projection",
        )
        self.weights_dropout = keras.layers.Dropout(self.dropout, dtype="float32")
        self.query_key_value.build(input_shape)
        self.output_projection.build(input_shape)

    def project(self, x: Any) -> tuple[Any, Any, Any]:
        """`(B, T, D)` -> query, key and value, each `(B, H, T, K)`."""
        heads, width = self.num_heads, x.shape[-1] // self.num_heads
        together = self.query_key_value(x)  # (B, T, 3 D)
        if x.shape[1] == 1:
            return tuple(ops.unstack(ops.reshape(together, (-1, 3, heads, 1, width)), axis=1))

        batch, length, _ = ops.shape(x)

        def split(part: Any) -> Any:
            return ops.transpose(ops.reshape(part, (batch, length, heads, width)), (0, 2, 1, 3))

        query, key, value = ops.split(together, 3, axis=-1)  # (B, T, D)
        return split(query), split(key), split(value)

    def visible(self, query_position: Any, key_position: Any) -> Any:
        """Who may see whom: ints `(T, 1)` and `(1, S)` -> bool `(T, S)`, or None for everyone."""
        return key_position <= query_position if self.causal else None

    def attend(
        self, query: Any, key: Any, value: Any, mask: Any = None, training: bool | None = None
    ) -> tuple[Any, Any]:
        """Heads' values `(B, H, T, K)` and weights `(B, H, T, S)` from query, key and value.

        `mask` is a bool array broadcastable to `(B, H, T, S)`, or None.
        """

        def dropout(weights: Any) -> Any:
            return self.weights_dropout(weights, training=training)

        return dot_product_attention(query, key, value, mask, dropout=dropout)

    def _has_kernel(self, query: Any, training: bool | None) -> bool:
        """Whether JAX has one kernel for it on this device, in which the weights never exist."""
        return (
            keras.backend.backend() == "jax"
            and keras.backend.standardize_dtype(query.dtype) in ("bfloat16", "float16")
            and query.shape[2] != 1
            and type(self).attend is SelfAttention.attend
            and not (training and self.dropout)
            and keras.config.is_flash_attention_enabled() is not False
            and not on_cpu()
        )

    def _attend_in_kernel(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        """The values of `attend`."""
        of_keras = [ops.swapaxes(x, 1, 2) for x in (query, key, value)]  # (B, T or S, H, K)
        if mask is not None:
            mask = ops.reshape(mask, (-1, 1, *mask.shape[-2:]))  # (B or 1, 1, T or 1, S)
            mask = ops.broadcast_to(mask, (len(mask), 1, query.shape[2], key.shape[2]))
        return ops.swapaxes(ops.dot_product_attention(*of_keras, mask=mask), 1, 2)

    def _attend_in_blocks(self, query: Any, key: Any, value: Any, seen: Callable) -> Any:
        """The values of `attend` in training; the weights of BLOCK queries exist at a time.

        `(B, H, T, S)` is the largest thing here and cheap to compute again. No block is multiplied
        with the keys that come after it, where causality hides them.
        """
        queries, keys = ops.shape(query)[2], ops.shape(key)[2]  # ints where they are known
        bounds = [(0, queries)]
        if isinstance(queries, int) and type(self).attend is SelfAttention.attend:
            count = -(-queries // BLOCK)
            bounds = list(itertools.pairwise(queries * i // count for i in range(count + 1)))
        # A cache has other places, too; and a subclass's own `visible` may show what is to come.
        no_cache = isinstance(queries, int) and query.shape[2] == key.shape[2]
        hidden_ahead = self.causal and no_cache and type(self).visible is SelfAttention.visible

        def attend_from(begin: int, end: Any, last: Any) -> Callable:
            mask = seen(begin, end - begin, last)

            def attend(q: Any, k: Any, v: Any) -> Any:
                y, _ = self.attend(q, k[:, :, :last], v[:, :, :last], mask, training=True)
                return y, after(k, y)  # the next block, and its gradient, wait for this one

            return rematerialized(attend, self._attend_variables())

        values = []
        for begin, end in bounds:
            attend = attend_from(begin, end, end if hidden_ahead else keys)
            y, key = attend(query[:, :, begin:end], key, value)
            values.append(y)
        return values[0] if len(values) == 1 else ops.concatenate(values, axis=2)

    def _attend_variables(self) -> list[Any]:
        """The variables that `attend` may use: all that are not of `project` and `merge`."""
        others = self.query_key_value.variables + self.output_projection.variables
        return [v for v in self.variables if not any(v is other for other in others)]

    def merge(self, values: Any) -> Any:
        """`(B, H, T, K)` -> `(B, T, D)`."""
        hidden_dim = self.output_projection.units
        if values.shape[2] == 1:
            return self.output_projection(ops.reshape(values, (-1, 1, hidden_dim)))
        batch, _, length, _ = ops.shape(values)
        values = ops.transpose(values, (0, 2, 1, 3))  # (B, T, H, K)
        return self.output_projection(ops.reshape(values, (batch, length, hidden_dim)))

    def call(
        self,
        x: Any,
        mask: Any = None,
        cache: tuple[Any, Any] | None = None,
        position: Any = None,
        return_weights: bool = False,
        training: bool | None = None,
    ) -> Any:
        query, key, value = self.project(x)  # (B, H, T, K) each
        first = 0
        if cache is not None:
            first = ops.cast(0 if position is None else position, "int32")
            cache = write_to_cache(cache, key, value, first)
            key, value = cache  # (B, H, S, K)

        def seen(begin: int, queries: Any, keys: Any) -> Any:
            sight = self.visible(
                first + begin + ops.expand_dims(ops.arange(queries, dtype="int32"), 1),
                ops.expand_dims(ops.arange(keys, dtype="int32"), 0),
            )  # (queries, keys)
            if mask is None:
                return sight
            real = ops.cast(mask, "bool")[:, None, None]  # (B, 1, 1, S)
            if isinstance(keys, int):  # a number known at run time only is that of all places
                real = real[..., :keys]
            return real if sight is None else ops.logical_and(real, sight)

        def everything() -> Any:
            # All layers have the same mask: what depends on nothing else is computed once for all.
            places = ops.shape(key)[2] if mask is None else ops.shape(mask)[1]
            return seen(0, ops.shape(query)[2], places)

        if not return_weights and self._has_kernel(query, training):
            values = self._attend_in_kernel(query, key, value, everything())
        elif training and not return_weights:
            values = self._attend_in_blocks(query, key, value, seen)
        else:
            values, weights = self.attend(query, key, value, everything(), training)
        results = [self.merge(values)]
        if cache is not None:
            results.append(cache)
        if return_weights:
            results.append(weights)
        return results[0] if len(results) == 1 else tuple(results)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "causal": self.causal,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_gpt2")
class CausalSelfAttention(SelfAttention):
    """`SelfAttention` in which a position sees itself and those before it only.

    This is the attention of GPT-2; arguments, shapes and methods to override are those of
    `SelfAttention`.

    Args:
        num_heads: int, H; must divide the input's last axis.
        dropout: float in [0, 1), share of the attention weights dropped in training.

    Example:
        >>> _, weights = CausalSelfAttention(1)(keras.ops.zeros((1, 2, 4)), return_weights=True)
        >>> keras.ops.convert_to_numpy(weights)[0, 0].tolist()
        [[1.0, 0.0], [0.5, 0.5]]

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training",
    section 3.1.
    """

    def __init__(self, num_heads: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_heads, dropout, **{**kwargs, "causal": True})

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("causal")
        return config
