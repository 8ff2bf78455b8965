"""Text piece by piece, as it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_gpt2.generation.compiled import compiled
from keras_gpt2.generation.decoding import (
    Chooser,
    Decoded,
    Sampling,
    Vocabulary,
    nothing,
    prefill,
    random_numbers,
)
from keras_gpt2.generation.inputs import bucket, checked_sampling, checked_stops, cut, prompt_ids
from keras_gpt2.generation.rules import Rule


def stream(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] | None = None,
    jit_compile: bool = True,
    rules: Sequence[Rule] = (),
) -> Iterator[str]:
    """Yields the text that `generate` gives for one prompt, piece by piece as it is made.

    A piece is handed out once its characters are whole and no stop string can begin in it.
    Arguments and errors are `generate`'s.

    Example:
        >>> for piece in stream(model, tokenizer, "Once"):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
    """
    stops = checked_stops(stop)
    vocabulary = Vocabulary.of(tokenizer, model)
    sampling = checked_sampling(
        model.sequence_length - 1, 1, max_new_tokens, temperature, top_k, top_p, seed
    )
    token_ids = prompt_ids(model, tokenizer, [prompt], sampling)
    static = vocabulary, tuple(rules)
    return _stream(model, tokenizer, token_ids, sampling, static, stops, jit_compile)


def _stream(
    model: Any,
    tokenizer: Any,
    token_ids: np.ndarray,
    sampling: Sampling,
    static: tuple[Vocabulary, tuple],
    stops: list[str],
    jit_compile: bool,
) -> Iterator[str]:
    num_steps = bucket(int(sampling.max_new_tokens[0]))
    start = compiled(model, _start, jit_compile, num_steps, *static)
    advance = compiled(model, _advance, jit_compile, *static, rows=1)
    held_back = max((len(s) - 1 for s in stops), default=0)
    new_ids: list[int] = []
    sent = 0
    text = ""
    state: Any = None
    for step in range(int(sampling.max_new_tokens[0])):
        if state is None:
            state = start(token_ids, *sampling)
        else:
            place = token_ids.shape[1] + step - 1
            places = np.array(place, "int32"), np.array(step, "int32")
            state = advance(token_ids, *state, *sampling, *places)
        token_id = int(state[0][0])
        if token_id == static[0].end_id:
            break
        new_ids.append(token_id)
        text = tokenizer.decode(new_ids)
        until = cut(text, stops)
        if until != text:
            yield until[sent:]
            return
        # U+FFFD at the end may be a character whose last bytes are still to come.
        whole = max(len(text.rstrip("\ufffd")) - held_back, sent)
        if whole > sent:
            yield text[sent:whole]
            sent = whole
    if text[sent:]:
        yield text[sent:]


def _start(model: Any, token_ids: Any, *rest: Any) -> tuple:
    *parameters, num_steps, vocabulary, rules = rest
    sampling = Sampling(*parameters)
    bits = random_numbers(sampling, num_steps)
    logits, cache, mask = prefill(model, token_ids, num_steps)
    chooser = Chooser(token_ids, sampling, bits, vocabulary, rules)
    decoded, chosen = chooser.append(nothing(1, num_steps), logits, 0)
    return chosen, tuple(decoded), cache, mask, bits


def _advance(
    model: Any, token_ids: Any, last: Any, before: Any, cache: Any, mask: Any, *rest: Any
) -> tuple:
    bits, *parameters, place, step, vocabulary, rules = rest
    chooser = Chooser(token_ids, Sampling(*parameters), bits, vocabulary, rules)
    logits, cache = model.call_with_cache(last[:, None], cache, place, mask)
    decoded, chosen = chooser.append(Decoded(*before), logits, step)
    return chosen, tuple(decoded), cache, mask, bits
