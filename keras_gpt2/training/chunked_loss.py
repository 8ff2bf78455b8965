"""The cross-entropy of the next token, without the logits of all positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_gpt2.training.devices import on_cpu, sum_over_devices


class TokenSums(NamedTuple):
    """Weighted sums over the targets, scalars."""

    weight: Any
    cross_entropy: Any  # nats, neither smoothed nor regularized
    correct: Any


def chunked_loss(
    hidden: Any,
    matrix: Any,
    targets: Any,
    weights: Any = None,
    chunk_size: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    training: bool = True,
    train_matrix: bool = True,
) -> tuple[Any, TokenSums]:
    r"""Cross-entropy of the targets under `softmax(hidden matrix^T)`, averaged over the targets.

    The output product, the softmax and both gradients are computed for `chunk_size` positions at a
    time, in one pass: chunk by chunk the gradient of the matrix is added up and that of the hidden
    states filled in, so `(B, T, V)` never exists. With $p$ the softmax, $y$ the one-hot target and
    $w$ the weight over the number of targets, the logits' gradient of a position is $w (p - y)$.

    Args:
        hidden: float `(B, T, D)`, the hidden states that are multiplied with the matrix.
        matrix: float `(V, D)`, a row for each token. Logits are of the type of `hidden`, softmax,
            sums and the matrix's gradient float32.
        targets: int `(B, T)`; negative ones are left out. One of V or more makes the loss NaN.
        weights: float `(B, T)`, factors of the targets' losses; 1 if None. The sum is divided by
            the number of targets, not by the sum of the weights, as Keras's losses do.
        chunk_size: int >= 1, positions of which logits exist at a time; if None 512 on a CPU, where
            more is no faster, and 2048 elsewhere.
        label_smoothing: float in [0, 1), share of a target spread over all tokens evenly.
        z_loss: float >= 0, factor of the squared log of the softmax's denominator, which holds the
            logits near zero.
        training: bool; False leaves the gradients out.
        train_matrix: bool; False leaves out the matrix's, a third of the work.

    Returns:
        The scalar loss, of all devices' targets under `tf.distribute`, and this one's `TokenSums`.

    Example:
        >>> hidden, targets = keras.ops.zeros((1, 3, 2)), keras.ops.array([[4, 0, -1]])
        >>> loss, sums = chunked_loss(hidden, keras.ops.zeros((5, 2)), targets)
        >>> round(float(loss), 4), float(sums.weight)  # ln 5
        (1.6094, 2.0)

    Source: gradients formed in the forward pass, Hsu et al. 2024, "Liger Kernel", section 3.2;
    label smoothing, Szegedy et al. 2016, section 7; z-loss, Chowdhery et al. 2022, "PaLM",
    section 5.
    """
    width = hidden.shape[-1]
    if chunk_size is None:
        chunk_size = 512 if on_cpu() else 2048
    # The gradient of the matrix is added up in parts of as many rows each. They cost a GPU time,
    # and what they spare is little beside the logits of its chunks.
    parts = max(p for p in range(1, 33 if on_cpu() else 2) if matrix.shape[0] % p == 0)
    targets = ops.reshape(ops.cast(targets, "int32"), (-1,))  # (N,)
    real = ops.cast(targets >= 0, "float32")
    weights = real if weights is None else real * ops.reshape(ops.cast(weights, "float32"), (-1,))
    sum_of_weights = ops.sum(weights)
    count = ops.maximum(sum_over_devices(ops.sum(real)), 1.0)

    number = ops.shape(targets)[0]
    # Of a short batch one of several devices may get no row: that is one chunk of padding.
    at_least_one = max if isinstance(number, int) else ops.maximum
    chunks = at_least_one(-(-number // chunk_size), 1)
    size = at_least_one(-(-number // chunks), 1)  # C: all chunks are equally long

    def in_chunks(x: Any) -> Any:
        x = ops.pad(x, ((0, chunks * size - number), *[(0, 0)] * (len(x.shape) - 1)))
        return ops.reshape(x, (chunks, size, *x.shape[1:]))

    targets, weights = in_chunks(targets), in_chunks(weights)

    @ops.custom_gradient
    def loss_of(hidden: Any, matrix: Any) -> Any:
        states = in_chunks(ops.reshape(hidden, (-1, width)))  # (N / C, C, D)
        rows = ops.cast(matrix, states.dtype)  # (V, D)

        def add_chunk(i: Any, sums: Any, *gradients: Any) -> tuple:
            x, weight = states[i], ops.expand_dims(weights[i], 1)  # (C, D), (C, 1)
            logits = ops.cast(ops.matmul(x, ops.transpose(rows)), "float32")  # (C, V)
            terms, dlogits = _cross_entropy(logits, targets[i], label_smoothing, z_loss)
            sums = sums + ops.sum(weight * terms, axis=0)  # (3,)
            if not training:
                return i + 1, sums
            dstates, *dmatrix = gradients
            # A weight is a factor of a whole row: it is cheapest where rows are narrow.
            dlogits = ops.cast(dlogits, x.dtype)
            dx = weight / count * ops.cast(ops.matmul(dlogits, rows), "float32")  # (C, D)
            dstates = ops.scatter_update(dstates, ops.reshape(i, (1, 1)), dx[None])
            if not train_matrix:
                return i + 1, sums, dstates
            x = ops.cast(weight, x.dtype) * x
            dlogits = ops.reshape(dlogits, (size, parts, -1))

            def add_part(j: Any, dmatrix: Any) -> tuple:
                more = ops.cast(ops.matmul(ops.transpose(dlogits[:, j]), x), "float32")
                place = ops.reshape(j, (1, 1))
                return j + 1, ops.scatter_update(dmatrix, place, (dmatrix[j] + more / count)[None])

            # At once, the product would be as large as the gradient that it is added to.
            first = ops.zeros((), "int32")
            _, dmatrix = ops.while_loop(lambda j, _: j < parts, add_part, (first, *dmatrix))
            return i + 1, sums, dstates, dmatrix

        start: tuple = (ops.zeros((), "int32"), ops.zeros((3,)))
        if training:
            start += (ops.zeros_like(states, "float32"),)
            shape = (parts, rows.shape[0] // parts, width)  # of the gradient of the matrix
            start += (ops.zeros(shape),) if train_matrix else ()
        _, sums, *gradients = ops.while_loop(lambda i, *_: i < chunks, add_chunk, start)

        def gradient(*upstream: Any) -> tuple[Any, Any]:
            # Mostly 1, which a compiler takes out; another factor would copy the whole gradient.
            scale = keras.tree.flatten(upstream)[0]
            dstates, *rest = gradients
            dhidden = ops.reshape(ops.reshape(dstates, (-1, width))[:number], ops.shape(hidden))
            dhidden = ops.cast(scale * dhidden, hidden.dtype)
            if not rest:
                return dhidden, ops.zeros_like(matrix)
            dmatrix = ops.reshape(ops.cast(scale * rest[0], matrix.dtype), matrix.shape)
            return dhidden, dmatrix

        return (sums[0] / count, sums), gradient

    loss, sums = loss_of(hidden, ops.convert_to_tensor(matrix))
    return sum_over_devices(loss), TokenSums(sum_of_weights, sums[1], sums[2])


def _cross_entropy(
    logits: Any, targets: Any, label_smoothing: float, z_loss: float
) -> tuple[Any, Any]:
    """(loss, cross-entropy, correct) `(C, 3)`, and the gradient of the loss `(C, V)`."""
    vocabulary_size = logits.shape[1]
    known = ops.expand_dims(targets < vocabulary_size, 1)  # (C, 1)
    targets = ops.clip(targets, 0, vocabulary_size - 1)
    at_target = ops.take_along_axis(logits, ops.expand_dims(targets, 1), axis=1)  # (C, 1)
    # No higher than the highest. But what follows waits for it, and then, as nothing else reads the
    # logits, XLA lets the softmax and the gradient take their place.
    highest = ops.maximum(ops.max(logits, axis=1, keepdims=True), at_target)
    shares = ops.exp(logits - highest)  # (C, V)
    total = ops.sum(shares, axis=1, keepdims=True)
    log_total = ops.log(total) + highest

    cross_entropy = ops.where(known, log_total - at_target, float("nan"))
    loss, slope = cross_entropy, 1 / total  # of the softmax's terms
    if z_loss:
        loss = loss + z_loss * log_total**2
        slope = slope * (1 + 2 * z_loss * log_total)
    dlogits = shares * slope
    if label_smoothing:
        mean = ops.mean(logits, axis=1, keepdims=True)
        loss = loss + label_smoothing * (at_target - mean)
        dlogits = dlogits - label_smoothing / vocabulary_size
    at_its_target = ops.arange(vocabulary_size, dtype="int32") == ops.expand_dims(targets, 1)
    dlogits = dlogits - (1 - label_smoothing) * ops.cast(at_its_target, "float32")
    correct = ops.cast(at_target >= highest, "float32")
    return ops.concatenate([loss, cross_entropy, correct], axis=1), dlogits
