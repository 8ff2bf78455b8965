"""Choosing the next token: pure functions of logits, parameters of each row, and a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ABOVE_1 = 0x3F800001  # bits of the least float32 above 1


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


def _uniform(bits: Any, count: int, start: Any = 0) -> Any:
    """`count` numbers in (0, 1) for each 32 bits, the `start`-th on; uint32 (B,) -> (B, count).

    The last step of MurmurHash3 spreads the bits: a twentieth of Threefry's cost for each number.
    """
    x = start + ops.arange(count, dtype="int32")
    x = ops.bitwise_xor(_uint32(x) * _uint32(np.uint32(0x9E3779B9)), bits[:, None])
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ops.bitwise_xor(x, ops.right_shift(x, _uint32(shift))) * _uint32(np.uint32(factor))
    x = ops.bitwise_xor(x, ops.right_shift(x, _uint32(16)))
    # Finest near 0, where the first of all waits lies; never 1.
    return ops.minimum((ops.cast(x, "float32") + 0.5) * 2.0**-32, 1 - 2.0**-24)


def sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, bits: Any) -> Any:
    """Draws one token per row, each row by its own parameters.

    The distribution is `softmax(logits / temperature)`, cut to its `top_k` likeliest tokens, then
    to the smallest set of likeliest tokens whose share of what is left reaches `top_p`; of equal
    logits the first are kept. Rounding, which is not the same in every batch, changes the token
    only where two are nearly as good.

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
    blocks = _blocks(logits)  # (B, W, W)
    greedy = _first_largest(blocks)  # (B,)
    drawn = ops.cond(
        ops.any(temperature > 0),
        lambda: _draw(blocks, temperature, top_k, top_p, bits),
        lambda: greedy,
    )
    # Logits that are no numbers must not lead out of the vocabulary either.
    return ops.minimum(ops.where(temperature > 0, drawn, greedy), logits.shape[-1] - 1)


def argmax(logits: Any) -> Any:
    """The first index of the largest logit; float (B, V) -> int32 (B,)."""
    return _first_largest(_blocks(logits))


def _blocks(logits: Any) -> Any:
    """A vocabulary as a square, filled up with -inf; (B, V) -> (B, W, W).

    In a graph the largest of every block and a look into one of them take a third of the time of
    one argmax, and a token drawn in these two steps needs 2 W random numbers instead of V.
    """
    size = logits.shape[-1]
    width = math.isqrt(size - 1) + 1
    filled = ops.pad(logits, ((0, 0), (0, width * width - size)), constant_values=-float("inf"))
    return ops.reshape(filled, (-1, width, width))


def _first_largest(blocks: Any) -> Any:
    block = ops.argmax(ops.max(blocks, axis=-1), axis=-1)  # (B,)
    return block * blocks.shape[-1] + ops.argmax(_take(blocks, block), axis=-1)


def _take(x: Any, index: Any) -> Any:
    """`x[i, index[i]]` for every row i; (B, N, ...), (B,) -> (B, ...)."""
    # In a graph Keras's take_along_axis costs as much as five looks at the vocabulary.
    rows = ops.arange(ops.shape(x)[0], dtype="int32")
    return ops.take(ops.reshape(x, (-1, *x.shape[2:])), rows * x.shape[1] + index, axis=0)


def _draw(blocks: Any, temperature: Any, top_k: Any, top_p: Any, bits: Any) -> Any:
    """Draws a token, and if it is filtered out, one of the likelier tokens, until one is kept.

    Every set that is drawn from holds all that are to be kept, so that a token that is kept has
    the distribution of a draw from these alone. For that no order of all tokens is needed, only
    how many are likelier than one, and their share.
    """
    width = blocks.shape[-1]
    places = width * width
    # The maximum goes first: logits divided by a tiny temperature would overflow.
    scaled = blocks - ops.max(blocks, axis=(1, 2), keepdims=True)
    weights = ops.exp(scaled / ops.maximum(temperature, 1e-37)[:, None, None])  # (B, W, W)
    by_k, by_p = (top_k > 0) & (top_k < places), top_p < 1
    count = ops.where(by_k, top_k, places)
    kept, left = ops.cond(
        ops.any(by_k),
        lambda: _keep_top_k(weights, count, by_k & by_p),
        lambda: (weights, _sum(weights)),
    )
    share = ops.where(by_p, top_p * left, float("inf"))
    order = _order(weights)
    indices = ops.reshape(ops.arange(places, dtype="int32"), (width, width))

    def race(turn: Any, weights: Any) -> Any:
        """Each waits for an exponential time of its weight, and the first is taken; (B,)."""
        waits = -ops.log1p(-_uniform(bits, 2 * width, turn * 2 * width))  # (B, 2 W)
        block = ops.argmax(ops.sum(weights, axis=-1) / waits[:, :width], axis=-1)
        return block * width + ops.argmax(_take(weights, block) / waits[:, width:], axis=-1)

    def judge(turn: Any, token: Any, refused: Any) -> tuple[Any, Any, Any]:
        own = _take(ops.reshape(order, (-1, places)), token)[:, None, None]
        earlier = _positive(token[:, None, None] - indices)
        likelier = _positive(order - own + earlier)  # (B, W, W), 1 or 0
        number, before = _sum(likelier), weights * ops.cast(likelier, "float32")
        late = (_sum(before) >= share) & (number > 0)
        refused = refused & ((number >= count) | late)
        return turn + 1, ops.where(refused, race(turn, before), token), refused

    # Where a logit is no number nothing is refused, or the loop would not end.
    unsure = (by_k | by_p) & (left > 0)
    start = (ops.array(1, "int32"), race(0, kept), unsure)
    return ops.while_loop(lambda turn, token, refused: ops.any(refused), judge, start)[1]


def _keep_top_k(weights: Any, count: Any, exactly: Any) -> tuple[Any, Any]:
    """Weights with at least the `count` largest, others 0; and the sum of these where `exactly`.

    The `count`-th largest of the blocks' largest weights is a bound that leaves few others.
    """
    order = _order(weights)
    largest = ops.sort(ops.max(order, axis=-1), axis=-1)  # (B, W)
    width = largest.shape[-1]
    bound = _take(largest, ops.maximum(width - count, 0))
    bound = ops.where(count <= width, bound, 0)

    def at_least(bound: Any) -> Any:
        return _positive(order - bound[:, None, None] + 1)  # (B, W, W), 1 or 0

    def going(low: Any, high: Any, number: Any) -> Any:
        return ops.any(exactly & (number != count) & (high - low > 1))

    def halve(low: Any, high: Any, number: Any) -> tuple[Any, Any, Any]:
        middle = low + (high - low) // 2
        found = _sum(at_least(middle))
        enough = exactly & (found >= count)  # no other row depends on its neighbours' search
        return (
            ops.where(enough, middle, low),
            ops.where(enough, high, middle),
            ops.where(enough, found, number),
        )

    start = (bound, ops.full_like(bound, _ABOVE_1), _sum(at_least(bound)))
    bound, _, number = ops.while_loop(going, halve, start)
    kept = weights * ops.cast(at_least(bound), "float32")
    least = ops.view(bound[:, None], "float32")[:, 0]
    return kept, _sum(kept) - ops.cast(number - count, "float32") * least


def _order(weights: Any) -> Any:
    """Integers in the order of the weights: floats >= 0 have that of their bits."""
    return ops.view(weights, "int32")


def _positive(x: Any) -> Any:
    """1 where an integer is positive, else 0."""
    # A graph compares, selects and casts bools without vector instructions: six times as slow.
    return ops.minimum(ops.maximum(x, 0), 1)


def _sum(blocks: Any) -> Any:
    """(B, W, W) -> (B,)"""
    # Under XLA the sum of a long row is one chain of additions.
    return ops.sum(ops.sum(blocks, axis=-1), axis=-1)
