"""GPT-2's tokenizer as TensorFlow graph operations, for models that take and give text."""

from collections.abc import Sequence

import tensorflow as tf

from keras_gpt2.text.merging import WordEncoder, table
from keras_gpt2.text.tokenizer import BytePairTokenizer
from keras_gpt2.text.word_pattern import EDGE, character_kinds, word_starts

# Words of up to 7 characters below U+01FE are looked up as numbers with 9 bits a character.
_SHORT, _BITS = 7, 9


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
        self.vocabulary_size = tokenizer.vocabulary_size
        tokens = tokenizer.tokens_as_bytes()
        short_words, long_words = {}, {}
        for i, (token, is_word) in enumerate(zip(tokens, tokenizer.whole_words(), strict=True)):
            characters = token.decode("utf-8", "replace")
            # The last digit stands for all characters that have none.
            if is_word and len(characters) <= _SHORT and ord(max(characters)) < 2**_BITS - 2:
                short_words[sum(ord(c) + 1 << _BITS * k for k, c in enumerate(characters))] = i
            elif is_word:
                long_words[token] = i
        with tf.device("CPU"):
            # The empty string stands for ids that are not in the vocabulary.
            self._token_bytes = tf.constant([*tokens, b""])
            self._kinds = tf.constant(character_kinds())
            self._short_table = table(short_words, tf.int64, default=-1)
            self._long_words = WordEncoder(tokenizer, long_words)

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
            keys = _short_keys(characters, is_start, starts, ends)  # (W,)
            ids = tf.cast(self._short_table.lookup(keys), tf.int64)
            unknown = tf.where((ids < 0) & ~is_edge)  # (U, 1)
            letters = tf.ragged.range(tf.gather_nd(starts, unknown), tf.gather_nd(ends, unknown))
            letters = letters.with_values(tf.gather(characters, letters.values))
            words, which = tf.unique(tf.strings.unicode_encode(letters, "UTF-8"), tf.int64)
            pieces, limits = self._long_words.encode(words)  # (P,), (D,)

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
        data = tf.cast(data, tf.int32)

        def unicode_characters() -> tuple[tf.Tensor, tf.Tensor]:
            decoded = tf.strings.unicode_decode(texts + "\n", "UTF-8", errors="replace")
            return decoded.values, decoded.row_splits[1:]

        characters, limits = tf.cond(
            (tf.reduce_max(data) >= 128) | (tf.size(texts) == 0),
            unicode_characters,
            lambda: (data, limits),
        )  # (N,), (B,)
        known = tf.minimum(characters, len(self._kinds) - 1)
        kinds = tf.cast(tf.gather(self._kinds, known), tf.int32)
        kinds = tf.tensor_scatter_nd_update(
            kinds, limits[:, None] - 1, tf.fill([tf.size(limits)], EDGE)
        )
        is_start = word_starts(kinds)
        starts = tf.where(is_start)[:, 0]  # (W,)
        return characters, is_start, starts, tf.gather(kinds, starts) == EDGE


def _short_keys(
    characters: tf.Tensor, is_start: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor
) -> tf.Tensor:
    """Returns the characters of each short word as the digits of one number, else -1."""
    base, room = 2**_BITS, [0] * (_SHORT + 1)
    digits = tf.concat([tf.minimum(characters + 1, base - 1), room], 0)  # (N + 8,)
    scales = tf.concat([tf.where(is_start, 0, base), room], 0)[1:]
    # Up to three digits of the same word, from each character on, fit into an int32.
    two = digits[:-1] + scales * digits[1:]
    three = digits[:-2] + scales[:-1] * two[1:]
    keys = tf.zeros_like(starts)
    for place in range(0, _SHORT, 3):
        part = tf.cast(tf.gather(three, starts + place), tf.int64)
        keys += tf.where(starts + place < ends, part, 0) * base**place
    return tf.where(ends - starts <= _SHORT, keys, -1)
