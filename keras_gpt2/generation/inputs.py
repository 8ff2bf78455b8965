"""A user's arguments as checked arrays of few shapes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_gpt2.generation.decoding import Sampling, sampling_rules


def checked_sampling(limit: int, rows: int, *values: Any) -> Sampling:
    """One checked value per row; numpy arrays (rows,). `limit` is the largest max_new_tokens."""
    dtypes = Sampling("int32", "float32", "int32", "float32", "int32")
    rules = sampling_rules(limit)
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


def prompt_ids(
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
    return aligned(model, rows)


def aligned(model: Any, rows: Any) -> np.ndarray:
    """Rows of ids in a bucket, -1 before their first; int32 (rows, P)."""
    width = min(bucket(max(map(len, rows))), model.sequence_length)
    token_ids = np.full((len(rows), width), -1, "int32")
    for row, ids in zip(token_ids, rows, strict=True):
        row[width - len(ids) :] = ids
    return token_ids


def pad_rows(token_ids: np.ndarray, sampling: Sampling) -> list[np.ndarray]:
    """Adds rows that want no tokens, up to a power of two."""
    rows = len(token_ids)
    more = bucket(rows, smallest=1) - rows
    arrays = [np.concatenate([a, a[:1].repeat(more, axis=0)]) for a in (token_ids, *sampling)]
    arrays[1][rows:] = 0  # max_new_tokens
    return arrays


def bucket(size: int, smallest: int = 16) -> int:
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def checked_stops(stop: str | Sequence[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(stops):
        raise ValueError(f"A stop string must not be empty. Received: stop={stop!r}.")
    return stops


def cut(text: str, stops: list[str]) -> str:
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]
