"""Choosing the next token: pure functions of logits, parameters of each row, and a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def random_bits(seed: Any, step: Any) -> Any:
    """32 random bits that depend on `seed` and `step` alone.

    No state is kept and no other row is looked at: the same request gives the same text whoever
    shares its batch, on every backend.

    Args:
        seed: int32, any shape.
        step: int32, broadcastable with `seed`.

    Returns:
        uint32 of the broadcast shape.

    Example:
        >>> int(random_bits(keras.ops.array([0]), keras.ops.array([0]))[0]) == 0x6B200159
        True

    Source: Threefry-2x32 with 20 rounds; Salmon et al. 2011, "Parallel Random Numbers: As Easy
    as 1, 2, 3", section 4.2.
    """
    return _threefry(seed, step)[0]


def _uint32(x: Any) -> Any:
    return ops.cast(x, "uint32")


def _rotate(x: Any, bits: int) -> Any:
    return ops.bitwise_or(ops.left_shift(x, _uint32(bits)), ops.right_shift(x, _uint32(32 - bits)))


def _threefry(key: Any, counter: Any) -> tuple[Any, Any]:
    key, counter = _uint32(key), _uint32(counter)
    zero = ops.zeros_like(key + counter)
    keys = (key + zero, zero, ops.bitwise_xor(key + zero, _uint32(0x1BD11BDA)))
    x, y = counter + keys[0], keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = ops.bitwise_xor(_rotate(y, bits), x)
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + _uint32(group + 1)
    return x, y


def _uniform(bits: Any, count: int) -> Any:
    """`count` numbers in (0, 1) for each 32 bits; float32 (B,) -> (B, count).

    The last step of MurmurHash3 spreads the bits: a twentieth of Threefry's cost for each token.
    """
    x = ops.arange(count, dtype="int32")
    x = ops.bitwise_xor(_uint32(x) * _uint32(np.uint32(0x9E3779B9)), bits[:, None])
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ops.bitwise_xor(x, ops.right_shift(x, _uint32(shift))) * _uint32(np.uint32(factor))
    x = ops.bitwise_xor(x, ops.right_shift(x, _uint32(16)))
    # Finest near 0, where the first of all waits lies; never 1.
    return ops.minimum((ops.cast(x, "float32") + 0.5) * 2.0**-32, 1 - 2.0**-24)


def sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, bits: Any) -> Any:
    """Draws one token per row, each row by its own parameters.

    The distribution is `softmax(logits / temperature)`, cut to its `top_k` likeliest tokens, then
    to the smallest set of likeliest tokens whose share of what is left reaches `top_p`. Each token
    waits for an exponential time of its probability, and the first is taken: rounding, which is
    not the same in every batch, then matters only where two are nearly first.

    Args:
        logits: float32 `(B, V)`.
        temperature: float32 `(B,)`; 0 takes the likeliest token.
        top_k: int32 `(B,)`; 0 switches this filter off.
        top_p: float32 `(B,)` in (0, 1]; 1 switches this filter off.
        bits: uint32 `(B,)`, random.

    Returns:
        int32 token ids `(B,)`.

    Example:
        >>> one = keras.ops.ones((1,))
        >>> logits = keras.ops.array([[0.0, 2.0, 1.0]])
        >>> bits = random_bits(keras.ops.array([7]), keras.ops.array([0]))
        >>> sample(logits, 0 * one, keras.ops.array([0]), one, bits).numpy().tolist()
        [1]

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.2 (top-k); Holtzman
    et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1 (top-p).
    """
    greedy = argmax(logits)  # (B,)
    drawn = ops.cond(
        ops.any(temperature > 0),
        lambda: _draw(logits, temperature, top_k, top_p, bits),
        lambda: greedy,
    )
    return ops.where(temperature > 0, drawn, greedy)


def _draw(logits: Any, temperature: Any, top_k: Any, top_p: Any, bits: Any) -> Any:
    warmth = ops.where(temperature > 0, temperature, 1.0)
    # The maximum goes first: logits divided by a tiny temperature would overflow.
    scaled = (logits - ops.max(logits, axis=-1, keepdims=True)) / warmth[:, None]
    weights = ops.exp(scaled)  # (B, V), 1 for the likeliest
    weights = ops.cond(ops.any(top_k > 0), lambda: _keep_top_k(weights, top_k), lambda: weights)
    weights = ops.cond(ops.any(top_p < 1), lambda: _keep_top_p(weights, top_p), lambda: weights)
    waits = -ops.log1p(-_uniform(bits, weights.shape[-1]))  # (B, V)
    return argmax(weights / waits)


def _keep_top_k(weights: Any, top_k: Any) -> Any:
    def enough(kept: Any) -> Any:
        return ops.sum(ops.cast(kept, "int32"), axis=-1) >= top_k

    kept = ops.logical_or(_likeliest(weights, enough), top_k[:, None] <= 0)
    return ops.where(kept, weights, 0.0)


def _keep_top_p(weights: Any, top_p: Any) -> Any:
    share = top_p * ops.sum(weights, axis=-1)

    def enough(kept: Any) -> Any:
        return ops.sum(ops.where(kept, weights, 0.0), axis=-1) >= share

    kept = ops.logical_or(_likeliest(weights, enough), top_p[:, None] >= 1)
    return ops.where(kept, weights, 0.0)


def _likeliest(weights: Any, enough: Any) -> Any:
    """The smallest set of the largest weights that is `enough`, of equals the first; bool (B, V).

    A search for the bits of the least weight, highest bit first: the bits of floats from 0 to 1
    have the order of the floats. Sorting 50,000 weights takes ten times as long under XLA.
    """
    bits = ops.view(weights, "int32")
    least = _search(30, lambda least: enough(bits >= least[:, None]), bits)
    above, equal = bits > least[:, None], bits == least[:, None]  # (B, V)

    def first_equals() -> Any:
        places = ops.arange(weights.shape[-1], dtype="int32")

        def before(end: Any) -> Any:
            return ops.logical_or(above, ops.logical_and(equal, places < end[:, None]))

        too_few = _search(
            weights.shape[-1].bit_length(), lambda end: ops.logical_not(enough(before(end))), bits
        )
        return before(too_few + 1)

    ties = ops.any(ops.sum(ops.cast(equal, "int32"), axis=-1) > 1)
    return ops.cond(ties, first_equals, lambda: ops.logical_or(above, equal))


def _search(num_bits: int, holds: Any, rows: Any) -> Any:
    """The largest int of so many bits for which `holds`, a falling condition; int32 (B,)."""

    def refine(i: Any, found: Any) -> Any:
        higher = found + ops.left_shift(ops.array(1, "int32"), num_bits - 1 - i)
        return ops.where(holds(higher), higher, found)

    return ops.fori_loop(0, num_bits, refine, ops.zeros_like(rows[:, 0]))


def argmax(logits: Any) -> Any:
    """The first index of the largest logit; int32 (B,)."""
    # Looking at all blocks and then into one is several times as fast under XLA as one argmax
    # over a vocabulary.
    size = logits.shape[-1]
    width = math.isqrt(size - 1) + 1
    blocks = ops.pad(logits, ((0, 0), (0, width * width - size)), constant_values=-float("inf"))
    blocks = ops.reshape(blocks, (-1, width, width))
    block = ops.argmax(ops.max(blocks, axis=-1), axis=-1)  # (B,)
    inside = ops.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # (B, W)
    return ops.cast(block * width + ops.argmax(inside, axis=-1), "int32")
