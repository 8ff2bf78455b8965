"""From prompts to new text."""

from keras_gpt2.generation.beam_search import beam_search
from keras_gpt2.generation.decoding import (
    Decoded,
    Sampling,
    Vocabulary,
    decode,
    decode_recomputing,
    sampling_rules,
)
from keras_gpt2.generation.generate import Completion, generate, generate_ids
from keras_gpt2.generation.inputs import checked_sampling
from keras_gpt2.generation.rules import Forbidden, Forced, MinimumLength, RepetitionPenalty
from keras_gpt2.generation.stream import stream

__all__ = [
    "Completion",
    "Decoded",
    "Forbidden",
    "Forced",
    "MinimumLength",
    "RepetitionPenalty",
    "Sampling",
    "Vocabulary",
    "beam_search",
    "checked_sampling",
    "decode",
    "decode_recomputing",
    "generate",
    "generate_ids",
    "sampling_rules",
    "stream",
]
