"""From prompts to new text."""

from keras_gpt2.generation.decoding import (
    Decoded,
    Sampling,
    Vocabulary,
    decode,
    decode_recomputing,
    sampling_rules,
)
from keras_gpt2.generation.generate import generate, generate_ids, stream
from keras_gpt2.generation.rules import Forbidden, Forced, MinimumLength, RepetitionPenalty

__all__ = [
    "Decoded",
    "Forbidden",
    "Forced",
    "MinimumLength",
    "RepetitionPenalty",
    "Sampling",
    "Vocabulary",
    "decode",
    "decode_recomputing",
    "generate",
    "generate_ids",
    "sampling_rules",
    "stream",
]
