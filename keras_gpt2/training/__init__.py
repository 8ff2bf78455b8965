"""The parts of training that Keras leaves to the model's author."""

from keras_gpt2.training.callbacks import callbacks, save_model
from keras_gpt2.training.chunked_loss import chunked_loss
from keras_gpt2.training.devices import on_devices
from keras_gpt2.training.evaluation import TextScore, score_tokens
from keras_gpt2.training.metrics import Perplexity
from keras_gpt2.training.next_token_model import NextTokenModel
from keras_gpt2.training.optimizer import adamw
from keras_gpt2.training.resumable import fit_resumable

__all__ = [
    "NextTokenModel",
    "Perplexity",
    "TextScore",
    "adamw",
    "callbacks",
    "chunked_loss",
    "fit_resumable",
    "on_devices",
    "save_model",
    "score_tokens",
]
