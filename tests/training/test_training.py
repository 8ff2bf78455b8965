"""Perplexity, the optimizer's rule, callbacks, and scores of a text."""

import csv
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.training import Perplexity, adamw, callbacks, save_model, score_tokens
from tests import reference


def losses(model, ids):
    """Nats of each token but the first, by the numpy reference."""
    logits = reference.logits(model, ids[:-1])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_probs[np.arange(len(ids) - 1), ids[1:]]


def test_perplexity_is_that_of_all_tokens_together():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 7)).astype("float32")
    targets = rng.integers(0, 7, (3, 5))
    targets[1, 2:] = -1
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, np.maximum(targets, 0)[..., None], -1)[..., 0]
    metric = Perplexity()
    metric.update_state(targets[:1], logits[:1])
    metric.update_state(targets[1:], logits[1:])
    expected = np.exp(-picked[targets >= 0].mean())
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)
    assert type(metric).from_config(metric.get_config()).name == "perplexity"


def test_perplexity_in_fit_is_the_exponential_of_the_loss(gpt2):
    ids = np.random.default_rng(0).integers(0, 311, (2, 9))
    gpt2.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[Perplexity()],
    )
    logs = gpt2.evaluate(ids[:, :-1], ids[:, 1:], verbose=0, return_dict=True)
    assert logs["perplexity"] == pytest.approx(math.exp(logs["loss"]), rel=1e-4)


def test_only_kernels_are_decayed(gpt2):
    optimizer = adamw(gpt2, learning_rate=0.1, total_steps=10, warmup_steps=0, weight_decay=0.5)
    before = [ops.convert_to_numpy(w) for w in gpt2.trainable_weights]
    optimizer.build(gpt2.trainable_weights)
    optimizer.apply([ops.zeros_like(w) for w in gpt2.trainable_weights])
    for weight, old in zip(gpt2.trainable_weights, before, strict=True):
        share = 0.95 if weight.name == "kernel" else 1.0
        np.testing.assert_allclose(ops.convert_to_numpy(weight), share * old, rtol=1e-6)


def test_schedule_warms_up_and_follows_a_cosine(gpt2):
    rate = adamw(gpt2, 1.0, total_steps=110, warmup_steps=10)._learning_rate
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx(0.55)
    assert float(rate(110)) == float(rate(500)) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="total_steps=5, warmup_steps=5"):
        adamw(gpt2, total_steps=5, warmup_steps=5)


@pytest.mark.parametrize("stride", [None, 23, 7, 1])
@pytest.mark.parametrize("length", [2, 10, 24, 25, 100])
def test_score_counts_every_token_once(gpt2, stride, length):
    ids = np.random.default_rng(0).integers(0, 311, length)
    score = score_tokens(gpt2, ids, 23, stride, batch_size=3)
    assert score.num_tokens == length - 1
    # By hand: the tokens that no earlier window has scored.
    total, scored, start = 0.0, 1, 0
    while scored < length:
        window = ids[start : start + 24]
        total += losses(gpt2, window)[scored - start - 1 :].sum()
        scored = start + len(window)
        start += stride or 23
    assert score.nats_per_token == pytest.approx(total / (length - 1), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(total / (length - 1)), rel=1e-4)


def test_score_leaves_the_callers_compile_alone(gpt2):
    gpt2.compile("sgd", "mse")
    optimizer = gpt2.optimizer
    score_tokens(gpt2, np.arange(30), 23)
    assert gpt2.optimizer is optimizer and gpt2.loss == "mse"
    with pytest.raises(ValueError, match="stride=24"):
        score_tokens(gpt2, np.arange(30), 23, 24)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        score_tokens(gpt2, [5], 23)


def test_callbacks_keep_the_best_model_and_the_numbers(gpt2, tmp_path):
    ids = np.random.default_rng(0).integers(0, 311, (4, 9))
    x, y = ids[:, :-1], ids[:, 1:]
    gpt2.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 50.0])),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = gpt2.fit(
        x, y, epochs=3, batch_size=4, verbose=0, validation_data=(x, y),
        callbacks=callbacks(tmp_path),
    ).history  # fmt: skip
    best = min(history["val_loss"])
    assert best < history["val_loss"][-1] or math.isnan(history["val_loss"][-1])
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(best, rel=1e-5)
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["val_loss"]) == pytest.approx(history["val_loss"][0], rel=1e-4)
    assert not list(tmp_path.glob(".partial*"))


def test_tensorboard(gpt2, tmp_path):
    import importlib.util

    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ModuleNotFoundError, match=r"keras_gpt2\[tensorboard\]"):
            callbacks(tmp_path, tensorboard=True)
        return
    ids = np.random.default_rng(0).integers(0, 311, (2, 8))
    gpt2.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gpt2.fit(ids, ids, verbose=0, callbacks=callbacks(tmp_path, tensorboard=True))
    assert list((tmp_path / "tensorboard").rglob("events*"))


def test_a_failed_save_leaves_the_old_file(gpt2, tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    save_model(gpt2, path)
    before = path.read_bytes()

    def broken(self, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(kg.GPT2, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_model(gpt2, path)
    assert path.read_bytes() == before


def test_a_nan_loss_stops_the_run(gpt2, tmp_path):
    gpt2.compile(keras.optimizers.SGD(float("nan")), "sparse_categorical_crossentropy")
    ids = np.random.default_rng(0).integers(0, 311, (6, 8))
    with pytest.raises(FloatingPointError, match="loss became nan at step 2.*none"):
        gpt2.fit(ids, ids, batch_size=1, epochs=3, verbose=0, callbacks=callbacks(tmp_path))
    assert not (tmp_path / "model.keras").exists()
