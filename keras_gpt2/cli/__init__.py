"""The command line, `keras-gpt2`."""

from keras_gpt2.cli.main import main

__all__ = ["main"]
