"""Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_gpt2.generation.beam_search import beam_search
from keras_gpt2.generation.compiled import compiled
from keras_gpt2.generation.decoding import Decoded, Sampling, Vocabulary, decode
from keras_gpt2.generation.inputs import (
    aligned,
    bucket,
    checked_sampling,
    checked_stops,
    cut,
    pad_rows,
    prompt_ids,
)
from keras_gpt2.generation.rules import Rule


class Completion(NamedTuple):
    """What `generate(..., details=True)` gives for a prompt."""

    text: str
    token_ids: list[int]  # all that were chosen, a stop string's and the end-of-text token too
    log_probs: list[float]  # natural log of each one's probability, after the rules
    finish_reason: str  # "length", "end_of_text" or "stop"


class Search(NamedTuple):
    """How the next tokens are looked for; see `generate`."""

    num_draft_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0

    def check(self, sampling: Sampling) -> None:
        for name, least in (("num_draft_tokens", 0), ("num_beams", 1), ("length_penalty", 0)):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}. Received: {name}={value!r}.")
        if self.num_beams == 1:
            return
        if self.num_draft_tokens:
            raise ValueError(
                "Beam search takes no drafts. Received: "
                f"num_beams={self.num_beams}, num_draft_tokens={self.num_draft_tokens}."
            )
        plain = np.isin(sampling.temperature, (0, 1)).all()
        if not (plain and (sampling.top_k == 0).all() and (sampling.top_p == 1).all()):
            raise ValueError(
                "Beam search looks for the likeliest text: temperature, top_k and top_p must be "
                f"left out where num_beams is more than 1. Received: num_beams={self.num_beams}, "
                f"temperature={sampling.temperature}, top_k={sampling.top_k}, "
                f"top_p={sampling.top_p}."
            )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    stop: str | Sequence[str] | None = None,
    jit_compile: bool = True,
    rules: Sequence[Rule] = (),
    num_draft_tokens: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    details: bool = False,
) -> list[Any]:
    """Continues each prompt, by itself: no prompt changes another's text.

    Every parameter is one value for all prompts, or a list of one value each. The first call for
    a shape compiles; shapes are rounded up to powers of two, so later calls rarely do.

    Args:
        model: a `keras_gpt2.GPT2`.
        tokenizer: a `keras_gpt2.BytePairTokenizer` of at most the model's vocabulary.
        prompts: str, or a list of them. An empty prompt starts from end-of-text. Of a prompt that
            leaves too little room in the model's sequence_length the end is kept, with a warning.
        max_new_tokens: int >= 0 and less than sequence_length, the most tokens to add; a row
            ends earlier at end-of-text.
        temperature: float >= 0 that divides the logits; 0 takes the likeliest token.
        top_k: int >= 0, choose among the k likeliest tokens; 0 is off.
        top_p: float in (0, 1], choose among the likeliest tokens that make up this share; 1 is
            off.
        seed: int, the random numbers of a row. Equal prompt, parameters and seed give equal text.
        stop: str or list of str; a text ends before the first of them.
        jit_compile: bool; False runs without XLA.
        rules: functions `(logits, tokens, step) -> logits`, applied in order before a token is
            chosen: `keras_gpt2.generation.RepetitionPenalty` and others, or one's own. The same
            objects (equal ones of ours) compile once.
        num_draft_tokens: int >= 0, how many tokens to guess from the text so far and check in one
            pass: the same text, sooner where it repeats itself; 0 is off, 5 a good number.
        num_beams: int >= 1; with more than 1, beam search for the likeliest text.
        length_penalty: float >= 0, of beam search: texts are compared by log-probability divided
            by their number of tokens to this power.
        details: bool; True gives `Completion`s, with token ids and log-probabilities.

    Returns:
        The completions alone, one str (or `Completion`) for each prompt.

    Raises:
        ValueError: if a parameter breaks its rule, or the tokenizer has more tokens than the
            model.

    Example:
        >>> generate(model, tokenizer, ["Once upon a time"], temperature=0)  # doctest: +SKIP
        [' there was a king']
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        return []
    stops = checked_stops(stop)
    vocabulary = Vocabulary.of(tokenizer, model)
    sampling = checked_sampling(
        model.sequence_length - 1, len(prompts), max_new_tokens, temperature, top_k, top_p, seed
    )
    search = Search(num_draft_tokens, num_beams, length_penalty)
    token_ids = prompt_ids(model, tokenizer, prompts, sampling)
    decoded = _decoded(model, token_ids, sampling, vocabulary, search, jit_compile, rules)
    completions = [_completion(tokenizer, stops, *row) for row in zip(*decoded, strict=True)]
    return completions if details else [completion.text for completion in completions]


def generate_ids(
    model: Any,
    token_ids: Any,
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    end_id: int | None = None,
    jit_compile: bool = True,
    rules: Sequence[Rule] = (),
    num_draft_tokens: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
) -> np.ndarray:
    """`generate` for a user who has token ids instead of texts.

    Args:
        token_ids: int `(B, P)`, prompts aligned on their last token, negative before the first.
        end_id: int, the token that ends a row; None: nothing does.

    Returns:
        int32 `(B, N)`, N the largest max_new_tokens; -1 after a row's last token.
    """
    token_ids = np.asarray(token_ids, "int32")
    rows, length = token_ids.shape
    sampling = checked_sampling(
        model.sequence_length - 1, rows, max_new_tokens, temperature, top_k, top_p, seed
    )
    search = Search(num_draft_tokens, num_beams, length_penalty)
    longest = int(sampling.max_new_tokens.max())
    if length + longest > model.sequence_length:
        raise ValueError(
            "Prompt and new tokens must fit sequence_length. "
            f"Received: {length} + {longest}, sequence_length={model.sequence_length}."
        )
    vocabulary = Vocabulary(model.vocabulary_size, -1 if end_id is None else end_id)
    token_ids = aligned(model, token_ids)
    return _decoded(model, token_ids, sampling, vocabulary, search, jit_compile, rules).token_ids


def _decoded(
    model: Any,
    token_ids: np.ndarray,
    sampling: Sampling,
    vocabulary: Vocabulary,
    search: Search,
    jit_compile: bool,
    rules: Sequence[Rule],
) -> Decoded:
    """New tokens of each row as numpy arrays, N the largest max_new_tokens."""
    search.check(sampling)
    rows, longest = len(token_ids), int(sampling.max_new_tokens.max())
    in_place = keras.backend.backend() == "tensorflow" and not jit_compile
    static = bucket(longest), vocabulary, search, in_place, tuple(rules)
    padded = pad_rows(token_ids, sampling)
    products = len(padded[0]) * max(search.num_beams, 1 + search.num_draft_tokens)
    run = compiled(model, _decode, jit_compile, *static, rows=products)
    decoded = Decoded(*map(ops.convert_to_numpy, run(*padded)))
    return Decoded(*(x[:rows, :longest] if x.ndim == 2 else x[:rows] for x in decoded))


def _decode(model: Any, token_ids: Any, *rest: Any) -> tuple:
    *parameters, num_steps, vocabulary, search, in_place, rules = rest
    sampling = Sampling(*parameters)
    common = dict(num_steps=num_steps, vocabulary=vocabulary, in_place=in_place, rules=rules)
    drafts, num_beams, penalty = search
    if num_beams > 1:
        count = sampling.max_new_tokens
        return tuple(beam_search(model, token_ids, count, num_beams, penalty, **common))
    return tuple(decode(model, token_ids, sampling, num_draft_tokens=drafts, **common))


def _completion(
    tokenizer: Any, stops: list[str], token_ids: Any, count: int, log_probs: Any, ended: bool
) -> Completion:
    ids = token_ids[:count].tolist()
    whole = tokenizer.decode(ids[: len(ids) - ended])
    text = cut(whole, stops)
    reason = "stop" if text != whole else "end_of_text" if ended else "length"
    return Completion(text, ids, log_probs[:count].tolist(), reason)
