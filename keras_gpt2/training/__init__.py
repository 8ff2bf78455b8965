"""The parts of training that Keras leaves to the model's author."""

from keras_gpt2.training.callbacks import callbacks, save_model
from keras_gpt2.training.evaluation import TextScore, score_tokens
from keras_gpt2.training.metrics import Perplexity
from keras_gpt2.training.optimizer import adamw

__all__ = ["Perplexity", "TextScore", "adamw", "callbacks", "save_model", "score_tokens"]
