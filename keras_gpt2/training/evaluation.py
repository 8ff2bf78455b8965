"""Perplexity of a text under a model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_gpt2.training.metrics import Perplexity


class TextScore(NamedTuple):
    """How well a model predicts a text."""

    perplexity: float
    nats_per_token: float
    num_tokens: int  # that were predicted


def score_tokens(
    model: keras.Model,
    token_ids: Any,
    sequence_length: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> TextScore:
    """Scores every token of a long text but its first, each exactly once.

    The text is read in windows of sequence_length that begin every `stride` tokens; a window
    scores what the one before has not, so a smaller stride gives each token more context (at
    least sequence_length - stride tokens) and costs more.

    Args:
        model: int `(B, T)` -> logits `(B, T, V)`, negative ids being padding.
        token_ids: int `(N,)`, at least 2.
        sequence_length: int >= 1, inputs of one window.
        stride: int from 1 to sequence_length; sequence_length if None.
        batch_size: int >= 1, windows at a time.

    Returns:
        `TextScore`.

    Raises:
        ValueError: if there are fewer than 2 tokens, or the stride breaks its rule.

    Example:
        >>> score_tokens(model, ids, 1024, stride=512).perplexity  # doctest: +SKIP
        29.4

    Source: the sliding evaluation of Baevski, Auli 2019, "Adaptive Input Representations",
    section 4.3.
    """
    stride = sequence_length if stride is None else stride
    if not 1 <= stride <= sequence_length:
        raise ValueError(
            "stride must be from 1 to sequence_length. "
            f"Received: stride={stride}, sequence_length={sequence_length}."
        )
    if len(token_ids) < 2:
        raise ValueError(
            "A text must have at least 2 tokens to be scored: the first is given. "
            f"Received: {len(token_ids)}."
        )
    # The same layers under another model, so that the caller's compile() stays as it is.
    scorer = keras.Model(model.inputs, model.outputs)
    scorer.compile(loss=_no_loss, metrics=[Perplexity()])
    windows = _Windows(token_ids, sequence_length, stride, batch_size)
    perplexity = scorer.evaluate(windows, verbose=0, return_dict=True)["perplexity"]
    return TextScore(perplexity, math.log(perplexity), len(token_ids) - 1)


def _no_loss(y_true: Any, y_pred: Any) -> Any:
    """Keras wants a loss; the metric is what counts."""
    return keras.ops.zeros_like(y_true, "float32")


class _Windows(keras.utils.PyDataset):
    """(inputs, targets), each (B, T); -1 marks padding and targets scored before."""

    def __init__(self, token_ids: Any, length: int, stride: int, batch_size: int) -> None:
        super().__init__()
        self.token_ids = token_ids
        self.length = length
        self.batch_size = batch_size
        # The last window is the first one that reaches the end.
        overhang = max(len(token_ids) - 1 - length, 0)
        self.starts = np.arange(0, overhang + stride, stride)
        self.stride = stride

    def __len__(self) -> int:
        return -(-len(self.starts) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        starts = self.starts[index * self.batch_size :][: self.batch_size]
        batch = np.full((len(starts), self.length + 1), -1, "int32")
        for row, start in zip(batch, starts, strict=True):
            ids = self.token_ids[start : start + self.length + 1]
            row[: len(ids)] = ids
        targets = batch[:, 1:].copy()
        scored_before = self.length - self.stride
        targets[starts > 0, :scored_before] = -1
        return batch[:, :-1], targets
