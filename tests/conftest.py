"""Fixtures that several folders share. Sizes are different small primes where they can be."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import pytest

TEXT = (
    "The king is dead, long live the king! A function definition defines a user-defined "
    "function object; it's executed when the name is bound.\n\nÄrger über 12 Vögel, naïve: 漢字. "
)


@pytest.fixture(autouse=True, scope="module")
def _seeded():
    # Once a module: after a new seed TensorFlow instantiates every function again.
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["keras"] = keras


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-pair tokenizer of 311 tokens."""
    from keras_gpt2 import BytePairTokenizer

    return BytePairTokenizer.train_from_iterator([TEXT * 3], 311)


def random_weights(model, seed=0, scale=0.3):
    """Draws every weight anew, biases and gammas too, so that each of them matters."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        center = 1.0 if weight.name == "gamma" else 0.0
        weight.assign(rng.normal(center, scale, weight.shape))
    return model


@pytest.fixture
def gpt2():
    """2 layers, 3 heads of width 5, 7 x 15 inside, 23 positions, 311 tokens, random weights."""
    from keras_gpt2 import GPT2

    model = GPT2(
        311, sequence_length=23, num_layers=2, num_heads=3, hidden_dim=15, intermediate_dim=35
    )
    return random_weights(model)
