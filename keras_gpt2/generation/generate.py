"""Text in, text out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_gpt2.generation.compiled import compiled
from keras_gpt2.generation.decoding import (
    Chooser,
    Decoded,
    Sampling,
    Vocabulary,
    decode,
    nothing,
    prefill,
    random_numbers,
    sampling_rules,
)

Rule = Callable[[Any, Any, Any], Any]  # (logits, tokens, step) -> logits


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
) -> list[str]:
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

    Returns:
        The completions alone, one str for each prompt.

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
    stops = _stops(stop)
    vocabulary = Vocabulary.of(tokenizer, model)
    sampling = _sampling(model, len(prompts), max_new_tokens, temperature, top_k, top_p, seed)
    token_ids = _token_ids(model, tokenizer, prompts, sampling)
    rows = _new_ids(model, token_ids, sampling, vocabulary, jit_compile, rules)
    return [_cut(tokenizer.decode(_text_ids(row, vocabulary)), stops) for row in rows]


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
    sampling = _sampling(model, rows, max_new_tokens, temperature, top_k, top_p, seed)
    longest = int(sampling.max_new_tokens.max())
    if length + longest > model.sequence_length:
        raise ValueError(
            "Prompt and new tokens must fit sequence_length. "
            f"Received: {length} + {longest}, sequence_length={model.sequence_length}."
        )
    vocabulary = Vocabulary(model.vocabulary_size, -1 if end_id is None else end_id)
    token_ids = _aligned(model, token_ids)
    return _new_ids(model, token_ids, sampling, vocabulary, jit_compile, rules)


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
    stops = _stops(stop)
    vocabulary = Vocabulary.of(tokenizer, model)
    sampling = _sampling(model, 1, max_new_tokens, temperature, top_k, top_p, seed)
    token_ids = _token_ids(model, tokenizer, [prompt], sampling)
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
    num_steps = _bucket(int(sampling.max_new_tokens[0]))
    start = compiled(model, _start, jit_compile, num_steps, *static)
    advance = compiled(model, _advance, jit_compile, *static)
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
        cut = _cut(text, stops)
        if cut != text:
            yield cut[sent:]
            return
        # U+FFFD at the end may be a character whose last bytes are still to come.
        whole = max(len(text.rstrip("\ufffd")) - held_back, sent)
        if whole > sent:
            yield text[sent:whole]
            sent = whole
    if text[sent:]:
        yield text[sent:]


def _new_ids(
    model: Any,
    token_ids: np.ndarray,
    sampling: Sampling,
    vocabulary: Vocabulary,
    jit_compile: bool,
    rules: Sequence[Rule],
) -> np.ndarray:
    """The new tokens of each row; int32 (rows, N), N the largest max_new_tokens."""
    longest = int(sampling.max_new_tokens.max())
    in_place = keras.backend.backend() == "tensorflow" and not jit_compile
    static = _bucket(longest), vocabulary, in_place, tuple(rules)
    run = compiled(model, _decode, jit_compile, *static)
    decoded = Decoded(*run(*_pad_rows(token_ids, sampling)))
    return ops.convert_to_numpy(decoded.token_ids)[: len(token_ids), :longest]


def _decode(model: Any, token_ids: Any, *rest: Any) -> tuple:
    *sampling, num_steps, vocabulary, in_place, rules = rest
    parameters = Sampling(*sampling)
    return tuple(decode(model, token_ids, parameters, num_steps, vocabulary, in_place, rules))


def _start(model: Any, token_ids: Any, *rest: Any) -> tuple:
    *parameters, num_steps, vocabulary, rules = rest
    sampling = Sampling(*parameters)
    uniform = random_numbers(sampling, num_steps)
    logits, cache, mask = prefill(model, token_ids, num_steps)
    chooser = Chooser(token_ids, sampling, uniform, vocabulary, rules)
    decoded, chosen = chooser.append(nothing(1, num_steps), logits, 0)
    return chosen, tuple(decoded), cache, mask, uniform


def _advance(
    model: Any, token_ids: Any, last: Any, before: Any, cache: Any, mask: Any, *rest: Any
) -> tuple:
    uniform, *parameters, place, step, vocabulary, rules = rest
    chooser = Chooser(token_ids, Sampling(*parameters), uniform, vocabulary, rules)
    logits, cache = model.call_with_cache(last[:, None], cache, place, mask)
    decoded, chosen = chooser.append(Decoded(*before), logits, step)
    return chosen, tuple(decoded), cache, mask, uniform


def _sampling(model: Any, rows: int, *values: Any) -> Sampling:
    """One checked value per row; numpy arrays (rows,)."""
    dtypes = Sampling("int32", "float32", "int32", "float32", "int32")
    rules = sampling_rules(model.sequence_length - 1)
    arrays = []
    for name, dtype, (rule, words), value in zip(
        Sampling._fields, dtypes, rules, values, strict=True
    ):
        given = np.asarray(value)
        array = given.astype(dtype)
        exact = given.dtype.kind in "iu" if dtype == "int32" else given.dtype.kind in "iuf"
        if not exact or (dtype == "int32" and (array != given).any()) or not rule(array).all():
            raise ValueError(f"{name} must be {words}. Received: {name}={value!r}.")
        if array.ndim and array.shape != (rows,):
            raise ValueError(
                f"{name} must be one value, or one for each of the {rows} prompts. "
                f"Received: {array.size} values."
            )
        arrays.append(np.broadcast_to(array, (rows,)))
    return Sampling(*arrays)


def _token_ids(
    model: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling
) -> np.ndarray:
    """Prompts as ids, aligned on their last token, in a bucket; int32 (rows, P)."""
    end_id = tokenizer.end_of_text_id
    rows = []
    for prompt, max_new_tokens in zip(prompts, sampling.max_new_tokens, strict=True):
        ids = tokenizer.encode(prompt)
        if not ids and end_id is None:
            raise ValueError(
                "A prompt must not be empty where the tokenizer has no end-of-text token. "
                f"Received: prompt={prompt!r}."
            )
        room = model.sequence_length - int(max_new_tokens)
        if len(ids) > room:
            warnings.warn(
                f"Only the end of the prompt is kept: it has {len(ids)} tokens, and {room} fit "
                f"before max_new_tokens={max_new_tokens} in the model's sequence_length="
                f"{model.sequence_length}.",
                stacklevel=3,
            )
        rows.append(ids[-room:] or [end_id])
    return _aligned(model, rows)


def _aligned(model: Any, rows: Any) -> np.ndarray:
    """Rows of ids in a bucket, -1 before their first; int32 (rows, P)."""
    width = min(_bucket(max(map(len, rows))), model.sequence_length)
    token_ids = np.full((len(rows), width), -1, "int32")
    for row, ids in zip(token_ids, rows, strict=True):
        row[width - len(ids) :] = ids
    return token_ids


def _pad_rows(token_ids: np.ndarray, sampling: Sampling) -> list[np.ndarray]:
    """Adds rows that want no tokens, up to a power of two."""
    rows = len(token_ids)
    more = _bucket(rows, smallest=1) - rows
    arrays = [np.concatenate([a, a[:1].repeat(more, axis=0)]) for a in (token_ids, *sampling)]
    arrays[1][rows:] = 0  # max_new_tokens
    return arrays


def _bucket(size: int, smallest: int = 16) -> int:
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def _text_ids(row: np.ndarray, vocabulary: Vocabulary) -> list[int]:
    return [int(i) for i in row if i >= 0 and i != vocabulary.end_id]


def _stops(stop: str | Sequence[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(stops):
        raise ValueError(f"A stop string must not be empty. Received: stop={stop!r}.")
    return stops


def _cut(text: str, stops: list[str]) -> str:
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]
