"""GPT-2's tokenizer as TensorFlow graph operations, for models that take and give text."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_gpt2.text.tokenizer import BytePairTokenizer
from keras_gpt2.text.word_pattern import EDGE, character_kinds, word_starts

# Words of up to 7 characters below U+01FF are looked up as numbers with 9 bits a character.
_SHORT, _BITS = 7, 9

# Words longer than a window are encoded in windows that overlap by half.
_WINDOW = 64


class GraphTokenizer(tf.Module):
    """The mapping of a `BytePairTokenizer` in core TensorFlow operations, exactly.

    Texts are cut into words by tests on neighbouring characters. A word that is one token is
    looked up; the pairs of all other words are joined together, one step of every word at a
    time. Nothing is remembered between calls. Any bytes are taken: what is not UTF-8 is read as
    U+FFFD, as by `bytes.decode("utf-8", "replace")`.

    Args:
        tokenizer: The `BytePairTokenizer` to follow.

    Example:

    >>> tokenizer = BytePairTokenizer.train_from_iterator(["low lower lowest"], 260)
    >>> graph_tokenizer = GraphTokenizer(tokenizer)
    >>> ids = graph_tokenizer.encode(["lower", ""])
    >>> ids.to_list() == [tokenizer.encode("lower"), []]
    True
    >>> graph_tokenizer.decode(ids).numpy().tolist()
    [b'lower', b'']

    Reference: Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2.
    """

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        super().__init__(name="graph_tokenizer")
        vocabulary, merges = tokenizer.vocabulary, tokenizer.merges
        tokens = tokenizer.tokens_as_bytes()
        size = self.vocabulary_size = tokenizer.vocabulary_size
        pairs = np.array([(vocabulary[a], vocabulary[b]) for a, b in merges], np.int64)
        pairs = pairs.reshape(-1, 2)  # (M, 2)
        results = np.array([vocabulary[a + b] for a, b in merges], np.int64)  # (M,)
        ranks = np.arange(len(merges))
        short_words = {}
        for i, (token, is_word) in enumerate(zip(tokens, tokenizer.whole_words(), strict=True)):
            characters = token.decode("utf-8", "replace")
            if is_word and len(characters) <= _SHORT and max(characters) < chr(2**_BITS - 1):
                short_words[sum(ord(c) + 1 << _BITS * k for k, c in enumerate(characters))] = i

        # All occurrences of a merge may be joined at once unless the token that it makes is part
        # of a merge with a lower rank, which would then come before the other occurrences.
        first_use = np.full(size, len(merges))
        np.minimum.at(first_use, pairs, ranks[:, None])
        one_by_one = first_use[results] < ranks

        with tf.device("CPU"):
            # The empty string stands for ids that are not in the vocabulary.
            self._token_bytes = tf.constant([*tokens, b""])
            self._token_lengths = tf.constant([len(token) for token in tokens], tf.int64)
            self._byte_ids = tf.constant([tokens.index(bytes([i])) for i in range(256)], tf.int64)
            self._kinds = tf.constant(character_kinds())
            self._results = tf.constant(np.append(results, -1), tf.int64)
            self._one_by_one = tf.constant(np.append(one_by_one, False)) if any(one_by_one) else None
            self._word_table = _table(list(short_words), list(short_words.values()), -1)
            keys = pairs[:, 0] * (size + 1) + pairs[:, 1]
            self._rank_table = _table(keys, ranks, len(merges))
        self._no_rank = np.int64(len(merges))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(self, texts: tf.Tensor | Sequence[str]) -> tf.RaggedTensor:
        """Returns the token ids of each text, equal to `BytePairTokenizer.encode`.

        Args:
            texts: string `[B]`, any bytes.

        Returns:
            Ragged int32 `[B, None]`.
        """
        with tf.device("CPU"):
            characters, is_start, starts, is_edge = self._split(texts)  # (N,), (N,), (W,), (W,)
            ends = tf.concat([starts, [tf.size(characters, tf.int64)]], 0)[1:]
            keys = tf.gather(self._short_keys(characters, is_start), starts)
            ids = self._word_table.lookup(tf.where(ends - starts <= _SHORT, keys, -1))  # (W,)
            unknown = tf.where((ids < 0) & ~is_edge)  # (U, 1)
            letters = tf.ragged.range(tf.gather_nd(starts, unknown), tf.gather_nd(ends, unknown))
            letters = letters.with_values(tf.gather(characters, letters.values))
            words, which = tf.unique(tf.strings.unicode_encode(letters, "UTF-8"), tf.int64)
            pieces, limits = self._encode_words(words)  # (P,), (D,)

            # Ids of known words, then pieces of the others: a word is a range of these.
            source = tf.concat([ids, pieces], 0)
            first = tf.range(tf.size(ids, tf.int64))
            last = first + tf.cast(~is_edge, tf.int64)
            limits = tf.concat([[0], limits], 0) + tf.size(ids, tf.int64)
            first = tf.tensor_scatter_nd_update(first, unknown, tf.gather(limits, which))
            last = tf.tensor_scatter_nd_update(last, unknown, tf.gather(limits, which + 1))
            order = tf.ragged.range(first, last).values
            row_limits = tf.boolean_mask(tf.cumsum(last - first), is_edge)  # (B,)
            return tf.RaggedTensor.from_row_splits(
                tf.cast(tf.gather(source, order), tf.int32),
                tf.concat([[0], row_limits], 0),
                validate=False,
            )

    def decode(self, token_ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Returns the text of each row of token ids, equal to `BytePairTokenizer.decode`.

        Ids that are negative (padding) or not in the vocabulary are skipped.

        Args:
            token_ids: int32 `[B, T]`, dense or ragged.

        Returns:
            string `[B]`: valid UTF-8; other bytes became U+FFFD.
        """
        if isinstance(token_ids, tf.RaggedTensor):
            token_ids = token_ids.to_tensor(-1)
        return self.decode_padded(token_ids)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)], autograph=False)
    def decode_padded(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Is `decode` for dense ids alone: the function that a SavedModel keeps."""
        with tf.device("CPU"):
            size = self.vocabulary_size
            known = (token_ids >= 0) & (token_ids < size)
            pieces = tf.gather(self._token_bytes, tf.where(known, token_ids, size))  # (B, T)
            text = tf.strings.reduce_join(pieces, axis=1)  # (B,)
            return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")

    def _split(self, texts: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns the characters of all texts, where words start, as flags and as places, and
        which words are EDGEs."""
        # One more character after each text makes room for EDGE.
        limits = tf.cumsum(tf.cast(tf.strings.length(texts), tf.int64) + 1)
        data = tf.io.decode_raw(tf.strings.reduce_join(texts, separator="\n") + "\n", tf.uint8)

        def unicode_characters():
            decoded = tf.strings.unicode_decode(texts + "\n", "UTF-8", errors="replace")
            return decoded.values, decoded.row_splits[1:]

        characters, limits = tf.cond(
            tf.reduce_any(data >= 128) | (tf.size(texts) == 0),
            unicode_characters,
            lambda: (tf.cast(data, tf.int32), limits),
        )  # (N,), (B,)
        kinds = tf.cast(tf.gather(self._kinds, characters), tf.int32)
        kinds = tf.tensor_scatter_nd_update(
            kinds, limits[:, None] - 1, tf.fill([tf.size(limits)], EDGE)
        )
        is_start = word_starts(kinds)
        starts = tf.where(is_start)[:, 0]  # (W,)
        return characters, is_start, starts, tf.gather(kinds, starts) == EDGE

    def _short_keys(self, characters: tf.Tensor, is_start: tf.Tensor) -> tf.Tensor:
        """Returns, where a short word starts, its characters as the digits of one number."""
        base, room = np.int64(2**_BITS), np.zeros(_SHORT, np.int64)
        digits = tf.minimum(tf.cast(characters, tf.int64) + 1, base - 1)
        digits = tf.concat([digits, room], 0)
        scales = tf.concat([tf.where(is_start, np.int64(0), base), room, [0]], 0)[1:]
        # Each step joins numbers of 1, 2, 4 digits with those that follow in the same word.
        for step in (1, 2, 4):
            digits = digits[:-step] + scales[:-step] * digits[step:]
            scales = scales[:-step] * scales[step:]
        return digits

    def _encode_words(self, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the ids of words, string `[D]`, in a row and where each word's ids end.

        A sequence of tokens is the encoding of its bytes if and only if every two neighbours are
        the encoding of theirs: up to the first merge across a border, each token's bytes are
        joined as if they were alone. So two windows that share a token agree on it, and the ids
        of one before it and of the other after it are the ids of both. Windows that share none
        become one window and are encoded anew.
        """
        symbols = tf.gather(
            self._byte_ids,
            tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32),
        )  # (N,)
        lengths = tf.cast(tf.strings.length(words), tf.int64)  # (D,)
        word_ends = tf.cumsum(lengths)
        step = _WINDOW // 2
        counts = tf.maximum((lengths - 1) // step, 1)
        word = _row_ids(counts)  # (K,)
        starts = tf.gather(word_ends - lengths, word) + tf.ragged.range(counts).values * step
        ends = tf.minimum(starts + _WINDOW, tf.gather(word_ends, word))

        def encode_windows(starts, ends, word, *_):
            positions = tf.ragged.range(starts, ends)
            rows = _row_ids(ends - starts)
            ids, rows = self._merge(tf.gather(symbols, positions.values), rows)  # (P,), (P,)
            sizes = tf.gather(self._token_lengths, ids)
            offsets = tf.cumsum(ends - starts, exclusive=True) - starts
            at = tf.cumsum(sizes, exclusive=True) - tf.gather(offsets, rows)  # (P,)

            # Looks for each token in the next window.
            span = tf.size(symbols, tf.int64) + 1
            keys = rows * span + at
            twins = tf.minimum(tf.searchsorted(keys, keys + span), tf.size(keys) - 1)
            linked = tf.concat([word[1:] == word[:-1], [False]], 0)  # (K,)
            shared = (tf.gather(keys, twins) == keys + span) & (tf.gather(sizes, twins) == sizes)
            shared &= tf.gather(linked, rows)
            seams = tf.math.unsorted_segment_min(
                tf.where(shared, at, span), rows, tf.size(starts)
            )  # (K,)
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
            The ids that are left and their rows.
        """
        # Symbols are a linked list in place. Place N, with an id that no merge knows, stands
        # before the first and after the last symbol of every row. `state` holds the symbols,
        # then the place after each, then the place before each: one scatter changes all three.
        size = tf.size(symbols, tf.int64)
        after_at, before_at = size + 1, 2 * (size + 1)
        absent, gone = self._no_rank, self._no_rank + 1
        num_rows = rows[-1] + 1
        index = tf.range(size)
        inner = rows[1:] == rows[:-1]
        after = tf.concat([tf.where(inner, index[1:], size), [size, size]], 0)
        before = tf.concat([[size], tf.where(inner, index[:-1], size), [size]], 0)
        state = tf.concat([symbols, [self.vocabulary_size], after, before], 0)  # (3 (N + 1),)

        def pair_ranks(state, left, right):
            pairs = tf.gather(state, left) * (self.vocabulary_size + 1) + tf.gather(state, right)
            return self._rank_table.lookup(pairs)

        def step(state, ranks):
            lowest = tf.math.unsorted_segment_min(ranks[:-1], rows, num_rows)
            lowest = tf.where(lowest < absent, lowest, -1)
            left = tf.where(ranks[:-1] == tf.gather(lowest, rows))[:, 0]  # (A,)
            right = tf.gather(state, left + after_at)
            touching = right[:-1] == left[1:]
            left, right = tf.cond(
                tf.reduce_any(touching),
                lambda: self._without_overlaps(touching, left, right),
                lambda: (left, right),
            )
            rank = tf.gather(ranks, left)
            if self._one_by_one is not None:
                row = tf.gather(rows, left)
                first = tf.concat([[True], row[1:] != row[:-1]], 0)
                first |= ~tf.gather(self._one_by_one, rank)
                left, right, rank = (tf.boolean_mask(x, first) for x in (left, right, rank))

            follower = tf.gather(state, right + after_at)
            state = tf.tensor_scatter_nd_update(
                state,
                tf.concat([left, left + after_at, follower + before_at], 0)[:, None],
                tf.concat([tf.gather(self._results, rank), follower, left], 0),
            )
            firsts = tf.concat([tf.gather(state, left + before_at), left], 0)
            new_ranks = pair_ranks(state, firsts, tf.concat([left, follower], 0))
            ranks = tf.tensor_scatter_nd_update(
                ranks,
                tf.concat([firsts, right], 0)[:, None],
                tf.concat([new_ranks, tf.fill(tf.shape(right), gone)], 0),
            )
            return state, ranks

        state, ranks = tf.while_loop(
            lambda state, ranks: tf.reduce_min(ranks) < absent,
            step,
            (state, pair_ranks(state, tf.range(size + 1), after)),
        )
        left_over = tf.where(ranks[:-1] != gone)[:, 0]
        return tf.gather(state, left_over), tf.gather(rows, left_over)

    @staticmethod
    def _without_overlaps(touching: tf.Tensor, *pairs: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Keeps every other pair of each run of pairs that touch, as in "aaaa", from the left."""
        starts = tf.concat([[True], ~touching], 0)
        index = tf.range(tf.size(starts))
        runs = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        even = (index - tf.gather(tf.boolean_mask(index, starts), runs)) % 2 == 0
        return tuple(tf.boolean_mask(values, even) for values in pairs)


def _row_ids(lengths: tf.Tensor) -> tf.Tensor:
    """Returns each row's number as often as the row is long; tf.repeat would pad all rows."""
    limits = tf.cumsum(lengths)
    return tf.searchsorted(limits, tf.range(tf.reduce_sum(lengths)), "right", tf.int64)


def _table(keys: Sequence[int], values: Sequence[int], default: int) -> tf.lookup.StaticHashTable:
    # A table must not be empty: -1 is never a key.
    initializer = tf.lookup.KeyValueTensorInitializer(
        [*keys, -1], [*values, default], tf.int64, tf.int64
    )
    return tf.lookup.StaticHashTable(initializer, default)
