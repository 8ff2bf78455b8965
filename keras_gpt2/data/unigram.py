"""The trivial baseline that a language model must beat."""

import numpy as np

from keras_gpt2.data.sharded_ids import ShardedIds

CHUNK_IDS = 1 << 20


def unigram_perplexity(
    train_ids: np.ndarray | ShardedIds,
    validation_ids: np.ndarray | ShardedIds,
    vocabulary_size: int,
) -> float:
    """Computes the perplexity of `validation_ids` under the token frequencies of `train_ids`.

    exp(-mean over v of log((count(v) + 1) / (len(train_ids) + vocabulary_size))): add-one
    smoothing, the context ignored. Constant memory, so both may be memory-mapped.

    Args:
        train_ids: integers in [0, vocabulary_size), shape (N,), an array or `ShardedIds`.
        validation_ids: the same, shape (M,), M at least 1.
        vocabulary_size: int.

    Returns:
        A float: 1 for a certain prediction, `vocabulary_size` for a uniform one.

    Raises:
        ValueError: no validation ids, or ids outside the vocabulary.

    >>> round(unigram_perplexity(np.array([0, 0, 1]), np.array([0, 1]), vocabulary_size=2), 4)
    2.0412

    which is 1 / sqrt(3/5 * 2/5).
    """
    if len(validation_ids) == 0:
        raise ValueError("validation_ids must not be empty. Received: 0 token ids.")
    train_counts = _counts(train_ids, vocabulary_size)
    validation_counts = _counts(validation_ids, vocabulary_size)
    log_probabilities = np.log(train_counts + 1) - np.log(len(train_ids) + vocabulary_size)
    return float(np.exp(-(validation_counts @ log_probabilities) / len(validation_ids)))


def _counts(ids: np.ndarray | ShardedIds, vocabulary_size: int) -> np.ndarray:
    counts = np.zeros(vocabulary_size, np.int64)
    for start in range(0, len(ids), CHUNK_IDS):
        chunk = ids[start : start + CHUNK_IDS]
        if chunk.max() >= vocabulary_size:
            raise ValueError(
                "ids must be below vocabulary_size. Received: "
                f"id {chunk.max()}, vocabulary_size={vocabulary_size}."
            )
        counts += np.bincount(chunk, minlength=vocabulary_size)
    return counts
