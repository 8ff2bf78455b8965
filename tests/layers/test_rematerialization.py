"""What is computed again must be what was computed before: values, gradients, dropout."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.layers.rematerialization import rematerialized


def train(rematerialize, jit_compile, **kwargs):
    """Losses and weights of some steps of `fit` with dropout."""
    keras.utils.set_random_seed(1)
    model = kg.GPT2(
        31, 8, num_layers=2, num_heads=2, hidden_dim=6, dropout=0.3, rematerialize=rematerialize,
        **kwargs,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 31, (6, 9)).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, jit_compile=jit_compile)
    history = model.fit(
        ids[:, :-1], ids[:, 1:], batch_size=2, epochs=3, shuffle=False, verbose=0
    ).history["loss"]
    return history, [ops.convert_to_numpy(w) for w in model.trainable_weights], model


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_with_dropout_is_the_same(jit_compile):
    losses, weights, _ = train(False, jit_compile)
    again, weights_again, _ = train(True, jit_compile)
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    for a, b in zip(weights_again, weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_gradients_of_dropout_are_of_the_entries_that_were_kept():
    """The output is linear in x, so its gradient says which entries were kept."""
    dropout = keras.layers.Dropout(0.5, seed=3)
    double = rematerialized(lambda x: 2 * dropout(x, training=True), dropout.variables)
    x = ops.ones((100,))
    outputs = []
    for _ in range(2):
        if keras.backend.backend() == "jax":
            import jax

            y, pullback = jax.vjp(double, x)
            gradient = pullback(ops.ones((100,)))[0]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(x)
                y = double(x)
            gradient = tape.gradient(y, x)
        np.testing.assert_allclose(ops.convert_to_numpy(gradient), ops.convert_to_numpy(y))
        outputs.append(ops.convert_to_numpy(y))
    assert (outputs[0] != outputs[1]).any(), "each call draws anew"


def test_it_is_saved(tmp_path):
    _, weights, model = train(True, False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.rematerialize
    assert all(block.rematerialize for block in loaded.attention_blocks)
    for a, b in zip(loaded.trainable_weights, weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), b)


class Window(kg.layers.CausalSelfAttention):
    """Sees the next position too."""

    def visible(self, query_position, key_position):
        return key_position <= query_position + 1


@pytest.mark.parametrize("layer", [kg.layers.SelfAttention, kg.layers.CausalSelfAttention, Window])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_attention_in_blocks_is_attention_at_once(layer, jit_compile, monkeypatch):
    """A step of gradient descent is the same, with 8 queries in blocks of 2 and 3."""
    ids = ops.array([[1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, -1, -1, -1]])

    def after_a_step(block):
        monkeypatch.setattr("keras_gpt2.layers.self_attention.BLOCK", block)
        keras.utils.set_random_seed(1)
        model = keras.Sequential([kg.layers.TokenEmbedding(9, 4), layer(2)])
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=jit_compile)
        loss = model.train_on_batch(ids, ops.ones((2, 8, 4)))
        return [loss, *(ops.convert_to_numpy(w) for w in model.trainable_weights)]

    for a, b in zip(after_a_step(3), after_a_step(8), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
