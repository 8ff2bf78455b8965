"""Choosing the next token: pure functions of logits, parameters of each row, and a number."""

from __future__ import annotations

from typing import Any

from keras import ops

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def random_uniform(seed: Any, step: Any) -> Any:
    """Numbers in [0, 1) that depend on `seed` and `step` alone, 24 random bits each.

    No state is kept and no other row is looked at: the same request gives the same text whoever
    shares its batch, on every backend.

    Args:
        seed: int32, any shape.
        step: int32, broadcastable with `seed`.

    Returns:
        float32 of the broadcast shape.

    Example:
        >>> float(random_uniform(keras.ops.array([7]), keras.ops.array([0]))[0]) < 1.0
        True

    Source: Threefry-2x32 with 20 rounds; Salmon et al. 2011, "Parallel Random Numbers: As Easy
    as 1, 2, 3", section 4.2.
    """
    bits = ops.right_shift(_threefry(seed, step)[0], _uint32(8))
    return ops.cast(bits, "float32") * 2.0**-24


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


def sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, uniform: Any) -> Any:
    """Draws one token per row, each row by its own parameters.

    The distribution is `softmax(logits / temperature)`, cut to its `top_k` likeliest tokens, then
    to the smallest set of likeliest tokens whose share of what is left reaches `top_p`. The token
    is where the cumulated distribution passes `uniform`.

    Args:
        logits: float32 `(B, V)`.
        temperature: float32 `(B,)`; 0 takes the likeliest token.
        top_k: int32 `(B,)`; 0 switches this filter off.
        top_p: float32 `(B,)` in (0, 1]; 1 switches this filter off.
        uniform: float32 `(B,)` in [0, 1).

    Returns:
        int32 token ids `(B,)`.

    Example:
        >>> one = keras.ops.ones((1,))
        >>> logits = keras.ops.array([[0.0, 2.0, 1.0]])
        >>> sample(logits, 0 * one, keras.ops.array([0]), one, 0.5 * one).numpy().tolist()
        [1]

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation", section 5.2 (top-k); Holtzman
    et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1 (top-p).
    """
    greedy = ops.cast(ops.argmax(logits, axis=-1), "int32")  # (B,)
    drawn = ops.cond(
        ops.any(temperature > 0),
        lambda: _draw(logits, temperature, top_k, top_p, uniform),
        lambda: greedy,
    )
    return ops.where(temperature > 0, drawn, greedy)


def _draw(logits: Any, temperature: Any, top_k: Any, top_p: Any, uniform: Any) -> Any:
    warmth = ops.where(temperature > 0, temperature, 1.0)
    # The maximum goes first: logits divided by a tiny temperature would overflow.
    scaled = (logits - ops.max(logits, axis=-1, keepdims=True)) / warmth[:, None]
    filtered = ops.logical_or(top_k > 0, top_p < 1)  # (B,)
    whole = _invert(ops.exp(scaled), uniform)
    return ops.cond(
        ops.any(filtered),
        lambda: ops.where(filtered, _draw_filtered(scaled, top_k, top_p, uniform), whole),
        lambda: whole,
    )


def _draw_filtered(scaled: Any, top_k: Any, top_p: Any, uniform: Any) -> Any:
    size = scaled.shape[-1]
    ordered, token_ids = ops.top_k(scaled, size)  # (B, V), likeliest first
    weights = ops.exp(ordered)
    rank = ops.arange(size, dtype="int32")[None]  # (1, V)
    kept = ops.where(top_k > 0, top_k, size)[:, None]
    weights = ops.where(rank < kept, weights, 0.0)
    before = ops.cumsum(weights, axis=-1) - weights
    share = top_p[:, None] * ops.sum(weights, axis=-1, keepdims=True)
    kept_by_p = ops.logical_or(before < share, rank == 0)
    weights = ops.where(ops.logical_or(kept_by_p, top_p[:, None] >= 1), weights, 0.0)
    place = _invert(weights, uniform)
    return ops.cast(ops.take_along_axis(token_ids, place[:, None], axis=-1)[:, 0], "int32")


def _invert(weights: Any, uniform: Any) -> Any:
    """The first index whose cumulated weight passes `uniform` times the whole; int32 (B,)."""
    cumulated = ops.cumsum(weights, axis=-1)
    goal = uniform[:, None] * cumulated[:, -1:]
    return ops.cast(ops.argmax(cumulated > goal, axis=-1), "int32")
