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

__all__ = [
    "Decoded",
    "Sampling",
    "Vocabulary",
    "decode",
    "decode_recomputing",
    "generate",
    "generate_ids",
    "sampling_rules",
    "stream",
]
