"""Rules that change the logits before a token is chosen; a rule is any function like these.

`rule(logits, tokens, step) -> logits`, with float32 logits `(B, V)`, int32 tokens `(B, P + N)` (the
prompts, aligned on their last token, then the new tokens; -1 where there is none), and the int
step, 0 for the first new token. It must be pure: it is compiled into the decoding loop. Those here
take one value for all rows, or a tuple of one for each, and are compiled once for equal values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

Rule = Callable[[Any, Any, Any], Any]
_NEVER = -1e30


def _column(values: Any) -> Any:
    """One value per row (B,), or one for all, to stand beside logits (B, V)."""
    return ops.reshape(ops.array(values, "float32"), (-1, 1))


def _one_hot(token_ids: tuple[int, ...], size: int) -> Any:
    """True at these ids; bool (V,)."""
    places = ops.arange(size, dtype="int32")
    return ops.any(places[None] == ops.array(token_ids, "int32")[:, None], axis=0)


class RepetitionPenalty(NamedTuple):
    """Divides the positive logits of tokens that were there before, multiplies the negative ones.

    Attributes:
        penalty: float > 0, or a tuple of one for each row; 1 changes nothing.

    Example:
        >>> rule = RepetitionPenalty(2.0)
        >>> rule(keras.ops.array([[4.0, -4.0, 4.0]]), keras.ops.array([[-1, 0, 1]]), 0).numpy()
        array([[ 2., -8.,  4.]], dtype=float32)

    Source: Keskar et al. 2019, "CTRL: A Conditional Transformer Language Model for Controllable
    Generation", section 4.1.
    """

    penalty: float | tuple[float, ...]

    def __call__(self, logits: Any, tokens: Any, step: Any) -> Any:
        batch, size = ops.shape(logits)[0], logits.shape[-1]
        # One more column takes what is no token.
        columns = ops.where(tokens < 0, size, tokens)  # (B, P + N)
        rows = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], ops.shape(columns))
        places = ops.reshape(rows * (size + 1) + columns, (-1, 1))
        seen = ops.zeros((batch * (size + 1),), "float32")
        seen = ops.scatter_update(seen, places, ops.ones_like(places[:, 0], "float32"))
        seen = ops.reshape(seen, (batch, size + 1))[:, :size] > 0  # (B, V)
        penalty = _column(self.penalty)
        return ops.where(seen, ops.where(logits > 0, logits / penalty, logits * penalty), logits)


class MinimumLength(NamedTuple):
    """Keeps the end-of-text token from being chosen among the first tokens.

    Attributes:
        length: int, the fewest new tokens before the end, or a tuple of one for each row.
        end_id: int, the end-of-text token's id.
    """

    length: int | tuple[int, ...]
    end_id: int

    def __call__(self, logits: Any, tokens: Any, step: Any) -> Any:
        early = ops.cast(step, "float32") < _column(self.length)  # (B, 1)
        end = _one_hot((self.end_id,), logits.shape[-1])
        return ops.where(ops.logical_and(early, end[None]), _NEVER, logits)


class Forbidden(NamedTuple):
    """Tokens that are never chosen.

    Attributes:
        token_ids: tuple of int.
    """

    token_ids: tuple[int, ...]

    def __call__(self, logits: Any, tokens: Any, step: Any) -> Any:
        return ops.where(_one_hot(self.token_ids, logits.shape[-1])[None], _NEVER, logits)


class Forced(NamedTuple):
    """The first new tokens, whatever the model thinks; after them it goes on by itself.

    Attributes:
        token_ids: tuple of int.
    """

    token_ids: tuple[int, ...]

    def __call__(self, logits: Any, tokens: Any, step: Any) -> Any:
        count = len(self.token_ids)
        wanted = ops.take(ops.array(self.token_ids, "int32"), ops.minimum(step, count - 1))
        other = ops.arange(logits.shape[-1], dtype="int32") != wanted
        return ops.where(ops.logical_and(step < count, other)[None], _NEVER, logits)
