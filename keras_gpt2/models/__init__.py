"""The assembled models."""

from keras_gpt2.models.gpt2 import GPT2
from keras_gpt2.models.presets import PRESETS

__all__ = ["GPT2", "PRESETS"]
