"""Attention weights as the layers compute them, and their picture."""

import keras
import numpy as np
import pytest

import keras_gpt2 as kg
from keras_gpt2.visualize import attention_weights, plot_attention
from tests.conftest import random_weights

IDS = np.array([[5, 7, 300, 2, 11], [-1, -1, 3, 4, 9]])


def test_weights_of_gpt2(gpt2):
    """Each layer's weights are those that it gives when the blocks are called one by one."""
    found = attention_weights(gpt2, IDS)
    x = gpt2.position_embedding(gpt2.token_embedding(IDS))
    for weights, attention, feed_forward in zip(
        found, gpt2.attention_blocks, gpt2.feed_forward_blocks, strict=True
    ):
        x, expected = attention(x, return_weights=True)
        x = feed_forward(x)
        assert weights.shape == (2, 3, 5, 5)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        assert np.all(weights[0] * np.triu(np.ones((5, 5)), 1) == 0)  # nothing of what comes later
        assert np.all(weights[1, :, 2:, :2] == 0)  # nothing of padding


def test_weights_of_another_model():
    inputs = keras.Input((None, 6))
    x = kg.layers.SelfAttention(2)(inputs)
    x = kg.layers.ResidualBlock(kg.layers.FeedForward(7))(x)
    outputs = kg.layers.ResidualBlock(kg.layers.SelfAttention(3))(x)
    model = random_weights(keras.Model(inputs, outputs))
    x = np.random.default_rng(0).normal(size=(1, 4, 6)).astype("float32")
    first, second = attention_weights(model, x)
    assert first.shape == (1, 2, 4, 4) and second.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(first, model.layers[1](x, return_weights=True)[1], atol=1e-6)
    assert len(plot_attention([first, second]).axes) == 6  # one panel stays empty


def test_model_without_attention():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="plain")])
    with pytest.raises(ValueError, match="attention layers. Received: the layers plain"):
        attention_weights(model, np.zeros((1, 3)))


def test_picture(tmp_path):
    weights = [np.random.default_rng(0).random((2, 3, 4, 4)) for _ in range(2)]
    figure = plot_attention(weights, ["a", "b", "c", "d"], row=1)
    assert [axes.get_title() for axes in figure.axes] == [
        f"layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1, 2)
    ]
    drawn = figure.axes[4].images[0].get_array()
    np.testing.assert_array_equal(drawn, weights[1][1, 1])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list("abcd")
    figure.savefig(tmp_path / "attention.png")
    with pytest.raises(ValueError, match="Received: 3 labels, 4 positions"):
        plot_attention(weights, ["a", "b", "c"])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"keras_gpt2\[plot\]"):
        plot_attention([np.eye(2)[None, None]])
