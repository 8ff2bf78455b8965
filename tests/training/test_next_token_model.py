"""The loss in chunks against the ordinary one: same numbers, same gradients, same training."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.training import NextTokenModel, Perplexity, chunked_loss
from tests.conftest import random_weights

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def gpt2(tie_weights=True, **kwargs):
    model = kg.GPT2(
        311, sequence_length=23, num_layers=2, num_heads=3, hidden_dim=15, intermediate_dim=35,
        tie_weights=tie_weights, **{"dropout": 0.0, **kwargs},
    )  # fmt: skip
    return random_weights(model)


def data(rows=5, length=9, seed=0):
    ids = np.random.default_rng(seed).integers(0, 311, (rows, length + 1)).astype("int32")
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def gradients(model, *batch):
    """The loss, and what one step of `fit` takes off each weight."""
    weights = model.trainable_weights
    before = [ops.convert_to_numpy(w).astype("float64") for w in weights]
    loss = model.train_on_batch(*batch, return_dict=True)["loss"]
    after = [ops.convert_to_numpy(w).astype("float64") for w in weights]
    for weight, value in zip(weights, before, strict=True):
        weight.assign(value)
    return loss, [b - a for a, b in zip(after, before, strict=True)]


def compare(plain, ours, batch, plain_batch=None, jit_compile=False):
    # Small steps would drown in the weights' own rounding, so the gradients are made large.
    plain.compile(keras.optimizers.SGD(1e3), SPARSE, jit_compile=jit_compile)
    ours.compile(keras.optimizers.SGD(1e3), jit_compile=jit_compile)
    expected, expected_gradients = gradients(plain, *(plain_batch or batch))
    loss, all_gradients = gradients(ours, *batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    for weight, a, b in zip(
        plain.trainable_weights, all_gradients, expected_gradients, strict=True
    ):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), weight.path


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_loss_and_gradients_are_the_ordinary_ones(tie_weights, jit_compile):
    plain = gpt2(tie_weights)
    compare(plain, NextTokenModel(plain, chunk_size=7), data(), jit_compile=jit_compile)


@pytest.mark.parametrize("chunk_size", [1, 44, 45, 1000])
def test_chunks_of_any_size(chunk_size):
    plain = gpt2()
    compare(plain, NextTokenModel(plain, chunk_size=chunk_size), data())


def test_padding_and_sample_weights():
    plain = gpt2()
    ours = NextTokenModel(plain, chunk_size=8)
    inputs, targets = data()
    inputs[1, 6:] = -1  # padded inputs: Keras's mask leaves their targets out, and so must we
    weights = np.linspace(0.5, 2, 5).astype("float32")
    # Keras cannot multiply weights of rows with a mask of positions; ours can.
    wide = np.repeat(weights[:, None], 9, axis=1)
    compare(plain, ours, (inputs, targets, weights), (inputs, targets, wide))
    padded = targets.copy()
    padded[1, 6:] = -1
    compare(plain, ours, (inputs, padded, wide), (inputs, targets, wide))
    padded[3, 2:] = -1
    ours.compile("sgd")
    logs = ours.evaluate(inputs, padded, verbose=0, return_dict=True)
    perplexity = Perplexity()
    perplexity.update_state(padded, plain(inputs))
    assert logs["perplexity"] == pytest.approx(float(perplexity.result()), rel=1e-5)
    nothing = ours.evaluate(inputs, np.full_like(targets, -1), verbose=0, return_dict=True)
    assert nothing["loss"] == 0


def test_metrics_are_those_of_the_logits():
    plain = gpt2()
    inputs, targets = data()
    targets[:, :3] = ops.convert_to_numpy(ops.argmax(plain(inputs), -1))[:, :3]  # some right ones
    plain.compile(
        "sgd", SPARSE, weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(), Perplexity()]
    )
    expected = plain.evaluate(inputs, targets, verbose=0, batch_size=2, return_dict=True)
    ours = NextTokenModel(plain, chunk_size=4)
    ours.compile("sgd")
    logs = ours.evaluate(inputs, targets, verbose=0, batch_size=2, return_dict=True)
    assert logs["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert logs["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert logs["accuracy"] == pytest.approx(expected["sparse_categorical_accuracy"])
    assert 0 < logs["accuracy"] < 1


def numpy_loss(logits, targets, label_smoothing, z_loss):
    log_total = np.log(np.exp(logits).sum(-1))
    log_probs = logits - log_total[..., None]
    picked = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    smoothed = (1 - label_smoothing) * picked + label_smoothing * log_probs.mean(-1)
    return (-smoothed + z_loss * log_total**2).mean()


def test_label_smoothing_and_z_loss():
    rng = np.random.default_rng(0)
    hidden, matrix = rng.normal(size=(2, 3, 5)), rng.normal(size=(7, 5))
    targets = rng.integers(0, 7, (2, 3))
    options = dict(label_smoothing=0.2, z_loss=0.03)

    def loss(hidden, matrix):
        hidden, matrix = ops.cast(hidden, "float32"), ops.cast(matrix, "float32")
        return chunked_loss(hidden, matrix, targets, chunk_size=4, **options)[0]

    expected = numpy_loss(hidden @ matrix.T, targets, **options)
    assert float(loss(hidden, matrix)) == pytest.approx(expected, rel=1e-6)

    # The gradient against differences of the numpy form, in one random direction each.
    along_hidden, along_matrix = rng.normal(size=hidden.shape), rng.normal(size=matrix.shape)
    step = 1e-5
    for toward in ((along_hidden, 0 * along_matrix), (0 * along_hidden, along_matrix)):
        up, down = (
            numpy_loss((hidden + s * toward[0]) @ (matrix + s * toward[1]).T, targets, **options)
            for s in (step, -step)
        )
        slope = sum(
            (a * b).sum() for a, b in zip(derivative(loss, hidden, matrix), toward, strict=True)
        )
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4)


def derivative(function, *arguments):
    arguments = [ops.convert_to_tensor(a, "float32") for a in arguments]
    if keras.backend.backend() == "jax":
        import jax

        return [np.asarray(g) for g in jax.grad(function, (0, 1))(*arguments)]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = function(*arguments)
    return [g.numpy() for g in tape.gradient(value, arguments)]


def test_ids_outside_the_vocabulary():
    model = NextTokenModel(gpt2())
    inputs, targets = data()
    targets[0, 0] = 311
    model.compile("sgd")
    assert math.isnan(model.evaluate(inputs, targets, verbose=0, return_dict=True)["loss"])
    inputs[0, 0] = 311
    with pytest.raises(ValueError, match="an id of 311"):
        model.fit(inputs, targets, verbose=0)


def test_training_equals_training_the_gpt2(tmp_path):
    x, y = data(8)
    histories = []
    for model in (
        gpt2(),
        NextTokenModel(gpt2(), chunk_size=16),
        NextTokenModel(gpt2(rematerialize=True), chunk_size=16),
    ):
        loss = SPARSE if isinstance(model, kg.GPT2) else None
        optimizer = keras.optimizers.AdamW(1e-3, gradient_accumulation_steps=2)
        model.compile(optimizer, **({"loss": loss} if loss else {}))
        histories.append(
            model.fit(x, y, batch_size=2, epochs=4, shuffle=False, verbose=0,
                      validation_data=(x, y)).history
        )  # fmt: skip
    for name in ("loss", "val_loss"):
        for history in histories[1:]:
            np.testing.assert_allclose(histories[0][name], history[name], rtol=1e-5)
    assert histories[1]["val_perplexity"][-1] < histories[1]["val_perplexity"][0]


def test_saves_and_loads_with_the_optimizer(tmp_path):
    x, y = data(4)
    model = NextTokenModel(gpt2(), chunk_size=16)
    model.compile(keras.optimizers.AdamW(1e-2))
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "training.keras")
    loaded = keras.saving.load_model(tmp_path / "training.keras")
    assert loaded.chunk_size == 16
    one, other = (m.fit(x, y, verbose=0, shuffle=False).history["loss"] for m in (model, loaded))
    assert one == other
    for a, b in zip(model.gpt2.get_weights(), loaded.gpt2.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_is_of_training_alone():
    x, y = data()
    without, dropped = NextTokenModel(gpt2()), NextTokenModel(gpt2(dropout=0.5))
    for model in (without, dropped):
        model.compile(keras.optimizers.SGD(0.0))
    first, second = (dropped.train_on_batch(x, y, return_dict=True)["loss"] for _ in range(2))
    loss = without.train_on_batch(x, y, return_dict=True)["loss"]
    assert len({float(first), float(second), float(loss)}) == 3
    assert dropped.evaluate(x, y, verbose=0)[0] == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns(dtype):
    model = NextTokenModel(gpt2(dtype=dtype), chunk_size=16)
    model.compile(keras.optimizers.AdamW(1e-2))
    assert ("LossScale" in type(model.optimizer).__name__) == (dtype == "mixed_float16")
    x, y = data(8)
    losses = model.fit(x, y, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: NextTokenModel(m, chunk_size=0), "chunk_size=0"),
        (lambda m: NextTokenModel(m, label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda m: NextTokenModel(m, z_loss=-1.0), "z_loss=-1.0"),
        (lambda m: NextTokenModel(m).compile("sgd", loss="mse"), "loss=mse"),
        (lambda m: NextTokenModel(m).compile("sgd", metrics=["mse"]), "has its own"),
        (lambda m: m.quantize("int8") or NextTokenModel(m), "Received: int8 weights"),
    ],
)
def test_rules(call, words):
    with pytest.raises(ValueError, match=words):
        call(gpt2())


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_frozen_layers_stay_as_they_are(tie_weights, jit_compile):
    plain = gpt2(tie_weights)
    for name in ("token_embedding", "feed_forward_0", "final_norm"):
        plain.get_layer(name).trainable = False
    frozen = plain.non_trainable_weights
    before = [ops.convert_to_numpy(w) for w in frozen]
    compare(plain, NextTokenModel(plain, chunk_size=7), data(), jit_compile=jit_compile)
    for weight, value in zip(frozen, before, strict=True):
        if "seed_generator" not in weight.path:
            np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
