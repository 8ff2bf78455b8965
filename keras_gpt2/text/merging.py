"""Byte-pair merges of many words at once, in core TensorFlow ops."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_gpt2.text.tokenizer import BytePairTokenizer

# Words longer than a window are encoded in windows that overlap by half.
_WINDOW = 64


class WordEncoder(tf.Module):
    """The ids of words by the merges of a tokenizer, one step of every word at a time.

    Args:
        tokenizer: The `BytePairTokenizer` to follow.
        whole_words: Words, as bytes, that are known to be one id. They take no steps.
    """

    def __init__(self, tokenizer: BytePairTokenizer, whole_words: dict[bytes, int]) -> None:
        super().__init__(name="word_encoder")
        vocabulary, merges = tokenizer.vocabulary, tokenizer.merges
        size = self._size = tokenizer.vocabulary_size
        ids = {token: i for i, token in enumerate(tokenizer.tokens_as_bytes())}
        pairs = np.array([(vocabulary[a], vocabulary[b]) for a, b in merges], np.int64)
        pairs = pairs.reshape(-1, 2)  # (M, 2)
        results = np.array([vocabulary[a + b] for a, b in merges], np.int64)  # (M,)
        ranks = np.arange(len(merges))

        # All occurrences of a merge may be joined at once unless the token that it makes is part
        # of a merge with a lower rank, which would then come before the other occurrences.
        first_use = np.full(size, len(merges))
        np.minimum.at(first_use, pairs, ranks[:, None])
        one_by_one = first_use[results] < ranks

        with tf.device("CPU"):
            self._byte_ids = tf.constant([ids[bytes([byte])] for byte in range(256)], tf.int64)
            self._results = tf.constant(results, tf.int32)
            self._one_by_one = tf.constant(one_by_one) if any(one_by_one) else None
            self._whole_words = table(whole_words, tf.string, default=-1)
            keys = (pairs[:, 0] * (size + 1) + pairs[:, 1]).tolist()
            self._ranks = table(dict(zip(keys, ranks, strict=True)), tf.int64, default=len(merges))
        self._no_rank = np.int64(len(merges))

    def encode(self, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the ids of all words in a row, and where the ids of each word end.

        A sequence of tokens is the encoding of its bytes if and only if every two neighbours are
        the encoding of theirs: up to the first merge across a border, each token's bytes are
        joined as if they were alone. So two windows that share a token agree on it, and the ids
        of one before it and of the other after it are the ids of both. Windows that share none
        become one window and are encoded anew.

        Args:
            words: string `[D]`, none of them empty.

        Returns:
            int64 `[P]` and int64 `[D]`.
        """
        # A word that is one token is that one symbol, any other its bytes.
        whole = tf.cast(self._whole_words.lookup(words), tf.int64)  # (D,)
        words = tf.where(whole < 0, words, " ")
        lengths = tf.cast(tf.strings.length(words), tf.int64)  # (D,)
        word_ends = tf.cumsum(lengths)
        data = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        symbols = tf.gather(self._byte_ids, tf.cast(data, tf.int32))  # (N,)
        known = tf.where(whole >= 0)
        symbols = tf.tensor_scatter_nd_update(
            symbols, tf.gather(word_ends - lengths, known), tf.gather_nd(whole, known)
        )
        step = _WINDOW // 2
        counts = tf.maximum((lengths - 1) // step, 1)
        word = _row_ids(counts)  # (K,)
        starts = tf.gather(word_ends - lengths, word) + tf.ragged.range(counts).values * step
        ends = tf.minimum(starts + _WINDOW, tf.gather(word_ends, word))

        def encode_windows(
            starts: tf.Tensor, ends: tf.Tensor, word: tf.Tensor, *_: Any
        ) -> tuple[tf.Tensor, ...]:
            positions = tf.ragged.range(starts, ends).values  # (M,)
            rows = _row_ids(ends - starts)
            ids, left_over = self._merge(tf.gather(symbols, positions), rows)  # (P,), (P,)
            rows = tf.gather(rows, left_over)
            at = tf.gather(positions, left_over)  # (P,)

            # Looks for each token in the next window of its word, if there is one.
            linked = tf.concat([word[1:] == word[:-1], [False]], 0)  # (K,)
            overlapping = tf.where(tf.gather(linked, rows))[:, 0]  # (Q,)
            span = tf.size(symbols, tf.int64)
            keys = rows * span + at
            wanted = tf.gather(keys, overlapping) + span
            twins = tf.minimum(tf.searchsorted(keys, wanted), tf.size(keys) - 1)
            shared = tf.gather(keys, twins) == wanted
            shared &= tf.gather(ids, twins) == tf.gather(ids, overlapping)
            seams = tf.math.unsorted_segment_min(  # (K,)
                tf.where(shared, tf.gather(at, overlapping), span),
                tf.gather(rows, overlapping),
                tf.size(starts),
            )
            broken = linked & (seams == span)
            lower = tf.concat([[-1], tf.where(linked, seams, -1)[:-1]], 0)
            chosen = (at > tf.gather(lower, rows)) & (at <= tf.gather(seams, rows))
            ids = tf.boolean_mask(ids, chosen)
            owners = tf.boolean_mask(tf.gather(word, rows), chosen)
            first = tf.concat([[True], ~broken[:-1]], 0)
            return (
                tf.boolean_mask(starts, first),
                tf.boolean_mask(ends, ~broken),
                tf.boolean_mask(word, first),
                ids,
                owners,
                tf.reduce_any(broken),
            )

        none = tf.zeros([0], tf.int64)
        *_, ids, owners, _ = tf.while_loop(
            lambda *state: state[-1],
            encode_windows,
            (starts, ends, word, none, none, tf.size(words) > 0),
            (*[tf.TensorShape([None])] * 5, tf.TensorShape([])),
        )
        return ids, tf.searchsorted(owners, tf.range(tf.size(words, tf.int64)), "right", tf.int64)

    def _merge(self, symbols: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Joins the pairs of symbols of each row, lowest rank first, until none is left.

        Args:
            symbols: int64 `[N]`: the ids of the bytes of all rows.
            rows: int64 `[N]`: the row of each symbol, ascending.

        Returns:
            The ids that are left and the places that they start from.
        """
        # Symbols are a linked list in place. Place N, a row of its own with an id that no merge
        # knows, stands before the first and after the last symbol of every row.
        size = tf.size(symbols, tf.int64)
        absent, gone = self._no_rank, self._no_rank + 1
        num_rows = rows[-1] + 2
        index = tf.range(size)
        inner = rows[1:] == rows[:-1]
        after = tf.concat([tf.where(inner, index[1:], size), [size, size]], 0)  # (N + 1,)
        before = tf.concat([[size], tf.where(inner, index[:-1], size), [size]], 0)
        symbols = tf.concat([symbols, [self._size]], 0)
        rows = tf.concat([rows, [num_rows - 1]], 0)

        def pair_ranks(symbols: tf.Tensor, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
            left, right = tf.gather(symbols, left), tf.gather(symbols, right)
            return tf.cast(self._ranks.lookup(left * (self._size + 1) + right), tf.int64)

        def step(
            symbols: tf.Tensor, ranks: tf.Tensor, before: tf.Tensor, after: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            lowest = tf.math.unsorted_segment_min(ranks, rows, num_rows)
            lowest = tf.where(lowest < absent, lowest, -1)
            at = tf.where(ranks == tf.gather(lowest, rows))  # (A, 1)
            rank, right = tf.gather_nd(ranks, at), tf.gather_nd(after, at)  # (A,), (A,)
            touches = tf.gather(ranks, right) == rank
            at, rank, right = tf.cond(
                tf.reduce_any(touches),
                lambda: self._without_overlaps(touches, at, rank, right),
                lambda: (at, rank, right),
            )
            if self._one_by_one is not None:
                row = tf.gather_nd(rows, at)
                first = tf.concat([[True], row[1:] != row[:-1]], 0)
                first |= ~tf.gather(self._one_by_one, rank)
                at, rank, right = (tf.boolean_mask(values, first) for values in (at, rank, right))

            follower = tf.gather(after, right)
            results = tf.cast(tf.gather(self._results, rank), tf.int64)
            symbols = tf.tensor_scatter_nd_update(symbols, at, results)
            after = tf.tensor_scatter_nd_update(after, at, follower)
            left = tf.squeeze(at, 1)
            before = tf.tensor_scatter_nd_update(before, tf.expand_dims(follower, 1), left)
            firsts = tf.concat([tf.gather(before, left), left], 0)
            new_ranks = pair_ranks(symbols, firsts, tf.concat([left, follower], 0))
            ranks = tf.tensor_scatter_nd_update(
                ranks,
                tf.expand_dims(tf.concat([firsts, right], 0), 1),
                tf.concat([new_ranks, tf.fill(tf.shape(right), gone)], 0),
            )
            return symbols, ranks, before, after

        ranks = pair_ranks(symbols, tf.range(size + 1), after)
        symbols, ranks, _, _ = tf.while_loop(
            lambda symbols, ranks, before, after: tf.reduce_min(ranks) < absent,
            step,
            (symbols, ranks, before, after),
        )
        left_over = tf.where(ranks[:-1] != gone)[:, 0]
        return tf.gather(symbols, left_over), left_over

    @staticmethod
    def _without_overlaps(touches: tf.Tensor, *pairs: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Keeps every other pair of a run where each touches the next, as in "aaaa"."""
        starts = tf.concat([[True], ~touches[:-1]], 0)
        index = tf.range(tf.size(starts))
        runs = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        even = (index - tf.gather(tf.boolean_mask(index, starts), runs)) % 2 == 0
        return tuple(tf.boolean_mask(values, even) for values in pairs)


def _row_ids(lengths: tf.Tensor) -> tf.Tensor:
    """Returns each row's number as often as the row is long; tf.repeat would pad all rows."""
    limits = tf.cumsum(lengths)
    return tf.searchsorted(limits, tf.range(tf.reduce_sum(lengths)), "right", tf.int64)


def table(entries: dict, key_type: tf.DType, default: int) -> tf.lookup.StaticHashTable:
    """Returns a table of int32 values; -1 and the empty string are never asked of it."""
    # TensorFlow refuses a table without entries.
    entries = {b"" if key_type == tf.string else -1: default, **entries}
    initializer = tf.lookup.KeyValueTensorInitializer(
        list(entries), list(entries.values()), key_type, tf.int32
    )
    return tf.lookup.StaticHashTable(initializer, default)
