"""GPT-2's word pattern as tests on neighbouring characters, in core TensorFlow ops.

The pattern `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`
cuts a text into runs of letters, numbers, whitespace and other characters, except that
  - a U+0020 before another run that is not whitespace belongs to that run,
  - the last character of whitespace before another run stands apart from the run of whitespace,
  - an apostrophe which is a run by itself, without a U+0020 before it, takes the letters of a
    contraction with it.
Each of these looks at a fixed number of neighbours, so all words are found at once.
"""

import functools

import numpy as np
import tensorflow as tf

# The kinds of characters that the pattern tells apart, first those that make up the runs. EDGE is
# the end of a text. The last ones are letters in "s t m d", "re ve", "ll".
OTHER, LETTER, NUMBER, SPACE, EDGE, BLANK, APOSTROPHE, S, R, E, L = range(11)
_RUN = np.array([OTHER, LETTER, NUMBER, SPACE, EDGE, SPACE, OTHER, *[LETTER] * 4])
_KINDS = len(_RUN)
_SPECIAL = {BLANK: " ", APOSTROPHE: "'", S: "stmd", R: "rv", E: "e", L: "l"}


@functools.cache
def character_kinds() -> np.ndarray:
    """Returns the kinds of code points, with the Unicode tables of `tokenizers`.

    Returns:
        uint8 `[about 0x32000]`; all later code points are of the last one's kind.
    """
    from tokenizers import NormalizedString, Regex

    # Surrogates are in no text.
    points = np.r_[0:0xD800, 0xE000:0x110000].astype("<u4")
    text = points.tobytes().decode("utf-32-le")
    runs = NormalizedString(text).split(Regex(r"\p{L}+|\p{N}+|\s+"), "isolated")
    # A run is of its first character's kind, which shows once each kind is replaced by a
    # character that stands for it.
    firsts = NormalizedString("".join(run.normalized[0] for run in runs))
    for pattern, stand_in in (r"\p{L}", "a"), (r"\p{N}", "0"), (r"\s", " "):
        firsts.replace(Regex(pattern), stand_in)
    stands_for = {"a": LETTER, "0": NUMBER, " ": SPACE}
    kinds = np.full(0x110000, OTHER, np.uint8)
    kinds[points] = np.repeat(
        [stands_for.get(first, OTHER) for first in firsts.normalized],
        [len(run.normalized) for run in runs],
    )
    for kind, characters in _SPECIAL.items():
        kinds[[ord(character) for character in characters]] = kind
    return kinds[: np.flatnonzero(kinds != OTHER)[-1] + 2]


@functools.cache
def _rules() -> np.ndarray:
    """Returns what a character is, by the kinds of the one before it, it, and the two after it.

    1 starts a word, 2 starts a contraction of one letter and 3 one of two letters, 0 none.
    """
    before, this, after, second = np.indices([_KINDS] * 4).reshape(4, -1)
    follows_blank = (before == BLANK) & (_RUN[this] != SPACE)
    starts = (_RUN[before] != _RUN[this]) & ~follows_blank
    starts |= (_RUN[this] == SPACE) & (_RUN[after] != SPACE) & (after != EDGE)
    starts |= this == EDGE
    apostrophe = starts & (this == APOSTROPHE)
    long = (after == R) & (second == E) | (after == L) & (second == L)
    return np.select([apostrophe & (after == S), apostrophe & long, starts], [2, 3, 1], 0)


def word_starts(kinds: tf.Tensor) -> tf.Tensor:
    """Returns where the words of texts start; every EDGE is a word of its own.

    Args:
        kinds: int32 `[N]`: the kinds of the characters of all texts, each text ended by EDGE.

    Returns:
        bool `[N]`.
    """
    padded = tf.concat([[EDGE], kinds, [EDGE, EDGE]], 0)
    key = ((padded[:-3] * _KINDS + kinds) * _KINDS + padded[2:-1]) * _KINDS + padded[3:]
    rules = tf.gather(tf.constant(_rules(), tf.int32), key)
    padded = tf.concat([[0, 0, 0], rules], 0)
    return ((rules > 0) & (padded[2:-1] < 2)) | (padded[1:-2] == 2) | (padded[:-3] == 3)
