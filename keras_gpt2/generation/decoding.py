"""From prompt ids to new ids: the obvious way, and the fast way that equals it."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_gpt2.generation.drafts import look_up, may_guess, new_balance, update_balance
from keras_gpt2.generation.sampling import random_bits, sample


class Sampling(NamedTuple):
    """How to choose tokens; each entry has one value per row, shape `(B,)`."""

    max_new_tokens: Any  # int32
    temperature: Any  # float32, 0 is greedy
    top_k: Any  # int32, 0 is off
    top_p: Any  # float32, 1 is off
    seed: Any  # int32


def sampling_rules(limit: int) -> Sampling:
    """For each parameter its rule, a function of an array or tensor, and the rule in words.

    `limit` is the largest max_new_tokens.
    """
    return Sampling(
        (lambda v: (v >= 0) & (v <= limit), f"from 0 to {limit}"),
        (lambda v: (v >= 0) & (v < float("inf")), "a number >= 0"),
        (lambda v: v >= 0, "an integer >= 0"),
        (lambda v: (v > 0) & (v <= 1), "in (0, 1]"),
        (lambda v: v == v, "an integer of 32 bits"),
    )


class Decoded(NamedTuple):
    """New tokens of each row."""

    token_ids: Any  # int32 (B, N), -1 after the row's last token
    num_tokens: Any  # int32 (B,), the end-of-text token included
    log_probs: Any  # float32 (B, N), natural log of each one's probability, after rules; 0 for none
    ended: Any  # bool (B,), True where the end-of-text token came

    @property
    def log_prob(self) -> Any:
        """Natural log of the probability of all new tokens; float32 (B,)."""
        return ops.sum(self.log_probs, axis=1)


class Vocabulary(NamedTuple):
    """What decoding needs to know of a tokenizer."""

    size: int  # tokens with ids from here on are never chosen
    end_id: int  # the token that ends a row; -1 for none

    @classmethod
    def of(cls, tokenizer: Any, model: Any) -> Vocabulary:
        """That of `tokenizer`; raises ValueError if it has more tokens than `model`."""
        if tokenizer.vocabulary_size > model.vocabulary_size:
            raise ValueError(
                "The tokenizer must not have more tokens than the model. Received: a tokenizer of "
                f"{tokenizer.vocabulary_size}, model.vocabulary_size={model.vocabulary_size}."
            )
        end_id = tokenizer.end_of_text_id
        return cls(tokenizer.vocabulary_size, -1 if end_id is None else end_id)


def prefill(
    model: Any, token_ids: Any, num_steps: Any, in_place: bool = False
) -> tuple[Any, Any, Any]:
    """Reads the prompts.

    Returns:
        Logits `(B, V)` of the next token, a cache with room for num_steps more places, and the
        mask `(B, P + num_steps)` of that cache.
    """
    room = ops.ones((ops.shape(token_ids)[0], num_steps), "bool")
    mask = ops.concatenate([token_ids >= 0, room], axis=1)
    logits, cache = model.call_with_cache(token_ids)
    return logits, model.extend_cache(cache, num_steps, in_place), mask


def decode(
    model: Any,
    token_ids: Any,
    sampling: Sampling,
    num_steps: Any,
    vocabulary: Vocabulary,
    in_place: bool = False,
    rules: tuple = (),
    num_draft_tokens: int = 0,
) -> Decoded:
    """Continues every prompt, keeping keys and values of what was read.

    Args:
        model: has `extend_cache` and `call_with_cache` as `keras_gpt2.GPT2`.
        token_ids: int32 `(B, P)`, prompts aligned on their last token, -1 before the first.
        sampling: parameters of each row.
        num_steps: int (a scalar tensor in a TensorFlow graph), N, at least every max_new_tokens
            and at least 1.
        vocabulary: the tokenizer's size and end.
        in_place: bool; True in a TensorFlow graph without XLA, where keys and values can be
            written without a copy of the cache.
        rules: functions that change the logits, in this order; see `rules.py`.
        num_draft_tokens: int, how many tokens to guess from the text so far and to check in one
            pass, where there is something to guess; 0 is off. See `drafts.py`.

    Returns:
        `Decoded`, equal to `decode_recomputing`'s to rounding. Prompt and new tokens together
        must not exceed the model's sequence_length.
    """
    batch, length = ops.shape(token_ids)
    bits = random_numbers(sampling, num_steps)
    logits, cache, mask = prefill(model, token_ids, num_steps, in_place)
    chooser = Chooser(token_ids, sampling, bits, vocabulary, rules)
    decoded, last = chooser.append(nothing(batch, num_steps), logits, 0)

    def going(step: Any, decoded: Decoded, *_: Any) -> Any:
        return ops.any(active_rows(decoded, sampling, step))

    def advance(step: Any, decoded: Decoded, last: Any, cache: Any) -> tuple:
        place = length + step - 1
        logits, cache = model.call_with_cache(last[:, None], cache, place, mask)
        decoded, last = chooser.append(decoded, logits, step)
        return step + 1, decoded, last, cache

    def check(guesses: Any, step: Any, decoded: Decoded, last: Any, cache: Any) -> tuple:
        """Chooses tokens as long as they are the guessed ones (of all rows), and one more."""
        tokens = ops.concatenate([last[:, None], guesses], axis=1)  # (B, 1 + K)
        place = length + step - 1
        logits, cache = model.call_with_cache(tokens, cache, place, mask, every=True)

        def right(i: Any, decoded: Decoded, last: Any) -> Any:
            guessed = ops.take(tokens, ops.minimum(i, num_draft_tokens), axis=1)
            active = active_rows(decoded, sampling, step + i)
            agreed = ops.all(ops.logical_or(guessed == last, ops.logical_not(active)))
            return ops.logical_and(i <= num_draft_tokens, ops.logical_and(agreed, ops.any(active)))

        def choose(i: Any, decoded: Decoded, last: Any) -> tuple:
            decoded, last = chooser.append(decoded, ops.take(logits, i, axis=1), step + i)
            return i + 1, decoded, last

        start = (ops.array(0, "int32"), decoded, last)
        taken, decoded, last = ops.while_loop(right, choose, start)
        return step + taken, decoded, last, cache

    if not num_draft_tokens:
        start = (ops.array(1, "int32"), decoded, last, cache)
        return ops.while_loop(going, advance, start)[1]

    def guess(step: Any, decoded: Decoded, balance: Any) -> tuple[Any, Any]:
        """Guesses `(B, K)`, and whether to check them now."""
        text = ops.concatenate([token_ids, decoded.token_ids], axis=1)
        guesses, found = look_up(text, length + step, num_draft_tokens)
        # Every row that goes on has a guess, and room for all of it.
        room = step + num_draft_tokens < sampling.max_new_tokens
        idle = ops.logical_not(active_rows(decoded, sampling, step))
        ready = ops.all(ops.logical_or(ops.logical_and(found, room), idle))
        return guesses, ops.logical_and(ready, may_guess(balance))

    def turn(move: Any, checked: bool) -> Any:
        """`move` while there is something (nothing) to check. Loops and no branch, through which
        XLA would copy the cache."""

        def moving(state: tuple, balance: Any, guesses: Any, ready: Any) -> Any:
            return ops.logical_and(going(*state), ready == checked)

        def run(state: tuple, balance: Any, guesses: Any, ready: Any) -> tuple:
            after = move(guesses, *state)
            balance = update_balance(balance, checked, after[0] - state[0])
            return after, balance, *guess(after[0], after[1], balance)

        return lambda *carried: ops.while_loop(moving, run, carried)

    check_some = turn(check, True)
    advance_some = turn(lambda guesses, *state: advance(*state), False)
    state = (ops.array(1, "int32"), decoded, last, cache)
    carried = (state, new_balance(), *guess(state[0], decoded, new_balance()))
    carried = ops.while_loop(
        lambda state, *_: going(*state),
        lambda *carried: check_some(*advance_some(*carried)),
        carried,
    )
    return carried[0][1]


def decode_recomputing(
    model: Any,
    token_ids: Any,
    sampling: Sampling,
    num_steps: int,
    vocabulary: Vocabulary,
    rules: tuple = (),
) -> Decoded:
    """What `decode` computes, by running the whole model on the whole text for every token.

    Slow and obvious: the oracle of the tests. Arguments and result are `decode`'s.
    """
    bits = random_numbers(sampling, num_steps)
    decoded = nothing(ops.shape(token_ids)[0], num_steps)
    chooser = Chooser(token_ids, sampling, bits, vocabulary, rules)
    for step in range(num_steps):
        logits = model(token_ids, training=False)[:, -1]
        decoded, last = chooser.append(decoded, logits, step)
        token_ids = ops.concatenate([token_ids, last[:, None]], axis=1)
        if not ops.any(active_rows(decoded, sampling, step + 1)):
            break
    return decoded


def random_numbers(sampling: Sampling, num_steps: Any) -> Any:
    """The random bits of all steps, uint32 `(B, num_steps)`."""
    # All steps at once: one small table instead of a hundred tiny operations for every token.
    steps = ops.arange(num_steps, dtype="int32")
    return random_bits(sampling.seed[:, None], steps[None])  # (B, N)


def nothing(batch: Any, num_steps: Any) -> Decoded:
    return Decoded(
        ops.full((batch, num_steps), -1, "int32"),
        ops.zeros((batch,), "int32"),
        ops.zeros((batch, num_steps), "float32"),
        ops.zeros((batch,), "bool"),
    )


def active_rows(decoded: Decoded, sampling: Sampling, step: Any) -> Any:
    """Which rows take a token at this step; bool (B,)."""
    return ops.logical_and(sampling.max_new_tokens > step, ops.logical_not(decoded.ended))


def ruled(
    logits: Any, prompt: Any, new_ids: Any, step: Any, vocabulary: Vocabulary, rules: tuple
) -> Any:
    """The logits of the tokenizer's tokens after all rules, from logits (B, V)."""
    logits = logits[:, : vocabulary.size]
    for rule in rules:
        logits = rule(logits, ops.concatenate([prompt, new_ids], axis=1), step)
    return logits


class Chooser(NamedTuple):
    """Chooses tokens; what stays the same from step to step."""

    prompt: Any  # int32 (B, P)
    sampling: Sampling
    bits: Any  # uint32 (B, N), of `random_numbers`
    vocabulary: Vocabulary
    rules: tuple

    def append(self, decoded: Decoded, logits: Any, step: Any) -> tuple[Decoded, Any]:
        """Chooses the tokens of one step and writes them down; also gives them, int32 (B,)."""
        logits = ruled(logits, self.prompt, decoded.token_ids, step, self.vocabulary, self.rules)
        _, temperature, top_k, top_p, _ = self.sampling
        chosen = sample(logits, temperature, top_k, top_p, ops.take(self.bits, step, axis=1))
        active = active_rows(decoded, self.sampling, step)
        log_prob = ops.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
        log_prob = log_prob - ops.logsumexp(logits, axis=-1)
        here = ops.arange(ops.shape(decoded.token_ids)[1]) == step  # (N,)
        write = ops.logical_and(active[:, None], here[None])
        ended = ops.logical_and(active, chosen == self.vocabulary.end_id)
        decoded = Decoded(
            ops.where(write, chosen[:, None], decoded.token_ids),
            decoded.num_tokens + ops.cast(active, "int32"),
            ops.where(write, log_prob[:, None], decoded.log_probs),
            ops.logical_or(decoded.ended, ended),
        )
        return decoded, chosen
