"""Searching for the likeliest text instead of drawing one."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_gpt2.generation.decoding import Decoded, Vocabulary, prefill, ruled
from keras_gpt2.generation.sampling import argmax

_NEVER = -1e30


class Beams(NamedTuple):
    """W texts of each row, the best first."""

    score: Any  # float32 (B, W)
    token_ids: Any  # int32 (B, W, N), -1 where there is none
    log_probs: Any  # float32 (B, W, N), 0 where there is none

    def best(self, count: int) -> tuple[Beams, Any]:
        """The `count` of the highest score, and which ones they were, int32 (B, count)."""
        order = _likeliest(self.score, count)
        return self.take(order), order

    def take(self, order: Any) -> Beams:
        return Beams(
            ops.take_along_axis(self.score, order, axis=1),
            ops.take_along_axis(self.token_ids, order[..., None], axis=1),
            ops.take_along_axis(self.log_probs, order[..., None], axis=1),
        )


def beam_search(
    model: Any,
    token_ids: Any,
    max_new_tokens: Any,
    num_beams: int,
    length_penalty: float,
    num_steps: Any,
    vocabulary: Vocabulary,
    in_place: bool = False,
    rules: tuple = (),
) -> Decoded:
    """The best text that is found when only the `num_beams` likeliest beginnings are continued.

    A text of n tokens (its end-of-text token counts) is worth `log_prob / n ** length_penalty`. A
    row is done when no beginning can become better than the worst of its finished texts.

    Args:
        model, token_ids, num_steps, vocabulary, in_place, rules: as in `decode`.
        max_new_tokens: int32 `(B,)`.
        num_beams: int, W.
        length_penalty: float >= 0; 0 compares plain probabilities, which favours short texts.

    Returns:
        `Decoded`, one text for each row.

    Source: Graves 2012, "Sequence Transduction with Recurrent Neural Networks", section 2.5; the
    length normalization as in Bahdanau et al. and in the large libraries.
    """
    batch, length = ops.shape(token_ids)
    logits, cache, mask = prefill(model, token_ids, num_steps, in_place)
    prompts = ops.repeat(token_ids, num_beams, axis=0)  # (B W, P)
    mask = ops.repeat(mask, num_beams, axis=0)
    first_row = ops.arange(batch, dtype="int32")[:, None] * num_beams  # (B, 1)
    penalty_of_all = ops.cast(ops.maximum(max_new_tokens, 1), "float32") ** length_penalty

    def expand(step: Any, live: Beams, finished: Beams, logits: Any) -> tuple:
        """Adds a token to every beginning; also which beam each came from, int32 (B, W)."""
        texts = ops.reshape(live.token_ids, (-1, num_steps))  # (B W, N)
        logits = ruled(logits, prompts, texts, step, vocabulary, rules)
        log_probs = logits - ops.logsumexp(logits, axis=-1, keepdims=True)
        log_probs = ops.reshape(log_probs, (-1, num_beams, vocabulary.size))  # (B, W, V)
        totals = ops.reshape(live.score[..., None] + log_probs, (-1, num_beams * vocabulary.size))
        # Twice as many: each beam may bring one end of text, and W must go on.
        places = _likeliest(totals, 2 * num_beams)  # (B, 2 W)
        beam, token = places // vocabulary.size, places % vocabulary.size
        scores = ops.take_along_axis(totals, places, axis=1)
        log_prob = ops.take_along_axis(ops.reshape(log_probs, ops.shape(totals)), places, axis=1)
        here = ops.arange(num_steps, dtype="int32") == step  # (N,)
        longer = live.take(beam)
        longer = Beams(
            scores,
            ops.where(here, token[..., None], longer.token_ids),
            ops.where(here, log_prob[..., None], longer.log_probs),
        )
        last = (step + 1 >= max_new_tokens)[:, None]  # (B, 1)
        ends = ops.logical_or(token == vocabulary.end_id, last)
        worth = scores / ops.cast(step + 1, "float32") ** length_penalty
        candidates = longer._replace(score=ops.where(ends, worth, _NEVER))
        both = (ops.concatenate([a, b], axis=1) for a, b in zip(finished, candidates, strict=True))
        finished_now, _ = Beams(*both).best(num_beams)
        live_now, order = longer._replace(score=ops.where(ends, _NEVER, scores)).best(num_beams)
        unfinished = active(step, live, finished)
        beam = ops.take_along_axis(beam, order, axis=1)  # (B, W)
        return (
            step + 1,
            _where(unfinished, live_now, live),
            _where(unfinished, finished_now, finished),
            beam,
        )

    def active(step: Any, live: Beams, finished: Beams) -> Any:
        """Rows in which something better may still be found; bool (B,)."""
        hope = live.score[:, 0] / penalty_of_all
        return ops.logical_and(step < max_new_tokens, hope > finished.score[:, -1])

    def going(step: Any, live: Beams, finished: Beams, *_: Any) -> Any:
        return ops.any(active(step, live, finished))

    def advance(step: Any, live: Beams, finished: Beams, beam: Any, cache: Any) -> tuple:
        rows = ops.reshape(first_row + beam, (-1,))  # (B W,)
        cache = keras.tree.map_structure(lambda tensor: ops.take(tensor, rows, axis=0), cache)
        last = ops.take(live.token_ids, step - 1, axis=2)  # (B, W)
        last = ops.reshape(last, (-1, 1))
        logits, cache = model.call_with_cache(last, cache, length + step - 1, mask)
        return *expand(step, live, finished, logits), cache

    nothing = Beams(
        ops.full((batch, num_beams), _NEVER, "float32"),
        ops.full((batch, num_beams, num_steps), -1, "int32"),
        ops.zeros((batch, num_beams, num_steps), "float32"),
    )
    # One beginning, the empty one.
    alone = ops.where(ops.arange(num_beams) == 0, 0.0, nothing.score)
    logits = ops.repeat(logits, num_beams, axis=0)
    start = expand(ops.array(0, "int32"), nothing._replace(score=alone), nothing, logits)
    cache = keras.tree.map_structure(lambda tensor: ops.repeat(tensor, num_beams, axis=0), cache)
    # All beams were copies of one: the first reordering changes nothing.
    finished = ops.while_loop(going, advance, (*start, cache))[2]
    best = finished.take(ops.zeros((batch, 1), "int32"))
    tokens = best.token_ids[:, 0]  # (B, N)
    return Decoded(
        tokens,
        ops.sum(ops.cast(tokens >= 0, "int32"), axis=1),
        best.log_probs[:, 0],
        ops.any(ops.logical_and(tokens == vocabulary.end_id, tokens >= 0), axis=1),
    )


def _where(rows: Any, new: Beams, old: Beams) -> Beams:
    def choose(a: Any, b: Any) -> Any:
        return ops.where(ops.reshape(rows, (-1,) + (1,) * (len(a.shape) - 1)), a, b)

    return Beams(*map(choose, new, old))


def _likeliest(scores: Any, count: int) -> Any:
    """Places of the `count` largest, the largest first, of equals the first; int32 (B, count)."""
    places = ops.arange(scores.shape[-1], dtype="int32")
    found = []
    for _ in range(count):
        found.append(argmax(scores)[:, None])
        scores = ops.where(places == found[-1], -float("inf"), scores)
    return ops.concatenate(found, axis=1)
