"""Guessing what comes next from what was there before, and when a guess is worth checking.

A pass over several tokens costs little more than a pass over one while reading the weights decides.
So the loop may guess a few tokens, read them all at once, and keep those that it would have chosen
anyway: the text stays what it was.
"""

from __future__ import annotations

from typing import Any

from keras import ops

_SHORTEST, _LONGEST = 2, 4  # how many last tokens must have been there before, and are looked at
_COST = 1.7  # a pass over last token and guesses takes so many times the time of one token
_SHARE = 0.03  # of the time that guesses may cost where none is right


def look_up(tokens: Any, end: Any, count: int) -> tuple[Any, Any]:
    """What followed where the text was last as it is now.

    Of the places behind which the last two tokens, or more up to four, were there before, the one
    with most of them, and of these the last.

    Args:
        tokens: int32 `(B, S)`, negative where there is none.
        end: int scalar, the number of places that hold prompt and text so far.
        count: int, K, how many tokens to guess. A period shorter than that is continued.

    Returns:
        The pair of guesses, int32 `(B, K)`, and bool `(B,)`: False where nothing was found.

    Example:
        >>> tokens = keras.ops.array([[5, 1, 2, 3, 7, 8, 1, 2, 3, -1]])
        >>> look_up(tokens, 9, 2)[0].numpy().tolist()
        [[7, 8]]

    Source: Yang et al. 2023, "Inference with Reference: Lossless Acceleration of Large Language
    Models"; Saxena 2023, "Prompt Lookup Decoding".
    """
    size = ops.shape(tokens)[1]
    places = ops.arange(size, dtype="int32")  # (S,)
    same = places < end - 1
    number = ops.zeros_like(tokens)  # of tokens up to here that are the text's last ones
    for i in range(_LONGEST):
        last = ops.take(tokens, ops.reshape(ops.maximum(end - 1 - i, 0), (1,)), axis=1)  # (B, 1)
        equal = ops.logical_and(ops.roll(tokens, i, axis=1) == last, last >= 0)
        same = ops.logical_and(same, equal)
        number = number + ops.cast(same, "int32")
    rank = ops.where(number >= _SHORTEST, number * size + places, -1)
    best = ops.max(rank, axis=1, keepdims=True)  # (B, 1)
    found = best >= 0
    behind = ops.where(found, best % size + 1, 0)
    period = ops.maximum(end - behind, 1)
    wanted = behind + ops.arange(count, dtype="int32")[None] % period  # (B, K)
    return ops.take_along_axis(tokens, wanted, axis=1), found[:, 0]


def new_balance() -> Any:
    """How much time guesses have saved so far, in tokens; float32."""
    return ops.array(1.0, "float32")


def may_guess(balance: Any) -> Any:
    """Whether a wrong guess now would keep the loss small; bool."""
    return balance >= 0


def update_balance(balance: Any, checked: bool, taken: Any) -> Any:
    """The balance after a pass that gave `taken` tokens, with or without guesses; float32."""
    gain = ops.cast(taken, "float32") - _COST if checked else _SHARE
    return ops.minimum(balance + gain, 2 * _COST)
