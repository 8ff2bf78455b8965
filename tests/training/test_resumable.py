"""A run that is interrupted anywhere, and its checkpoints damaged, ends as one that is not."""

import errno
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.training import NextTokenModel, adamw, fit_resumable
from keras_gpt2.training import checkpoint as module
from keras_gpt2.training.callbacks import read_history
from keras_gpt2.training.checkpoint import Position, checkpoint_paths

EPOCHS, STEPS = 3, 5


class Killed(Exception):
    pass


class Killer(keras.callbacks.Callback):
    """Ends the process's fit at a step, as a signal would: nothing of it is cleaned up."""

    def __init__(self, step=math.inf, rate=None):
        super().__init__()
        self.step = step

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise Killed


def start(learning_rate=1e-2):
    """Model and data as a new process makes them."""
    keras.utils.set_random_seed(5)
    ids = np.random.default_rng(0).integers(0, 31, 60)
    training = kg.data.WindowDataset(ids[:45], 4, 2, shuffle=True, seed=3)
    assert len(training) == STEPS
    gpt2 = kg.GPT2(31, 4, num_layers=1, num_heads=1, hidden_dim=4, dropout=0.2)
    model = NextTokenModel(gpt2, chunk_size=5)
    model.compile(adamw(gpt2, learning_rate, total_steps=EPOCHS * STEPS, warmup_steps=2))
    return model, training, kg.data.WindowDataset(ids[45:], 4, 2)


def run(directory, step=math.inf, seconds=0.0, **kwargs):
    model, training, validation = start(**kwargs)
    killer = Killer(step)
    keras_fit = model.fit

    def fit(*arguments, callbacks=(), **more):
        return keras_fit(*arguments, callbacks=[*callbacks, killer], **more)

    model.fit = fit
    fit_resumable(
        model, training, directory, EPOCHS, validation, checkpoint_seconds=seconds, verbose=0
    )
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return run(directory), read_history(directory / "history.csv"), directory


def same(model, directory, whole):
    for a, b in zip(model.variables, whole[0].variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    rows = read_history(directory / "history.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(EPOCHS))
    for row, expected in zip(rows, whole[1], strict=True):
        for key in expected:
            assert float(row[key]) == pytest.approx(float(expected[key]), rel=1e-6), key


@pytest.mark.parametrize("seconds", [0.0, 1e9])  # after every step, and after epochs only
def test_killed_three_times(tmp_path, whole, seconds):
    for step in (3, 8, 14):
        with pytest.raises(Killed):
            run(tmp_path, step, seconds)
    same(run(tmp_path, seconds=seconds), tmp_path, whole)
    best, expected = (
        keras.saving.load_model(place / "model.keras") for place in (tmp_path, whole[2])
    )
    for a, b in zip(best.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    same(run(tmp_path, seconds=seconds), tmp_path, whole)  # a run that has ended stays as it is


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, whole, damage, capsys):
    with pytest.raises(Killed):
        run(tmp_path, 8)
    last, before = checkpoint_paths(tmp_path / "checkpoints")
    content = bytearray(last.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    last.write_bytes(content[: {"cut": len(content) // 2, "flip": None, "empty": 0}[damage]])
    same(run(tmp_path), tmp_path, whole)
    assert f"Passing over {last}" in capsys.readouterr().err
    assert before != last


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, whole, capsys, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, 6)
    before = [path.read_bytes() for path in checkpoint_paths(tmp_path / "checkpoints")]

    def full(model, position, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_variables", full)
        with pytest.raises(Killed):
            run(tmp_path, 8)
    message = capsys.readouterr().err
    assert "step 7 could not be written" in message and "No space left" in message
    assert before == [path.read_bytes() for path in checkpoint_paths(tmp_path / "checkpoints")]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    same(run(tmp_path), tmp_path, whole)


def test_nan_ends_the_run_and_names_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss became nan at step \d.*0000000001.zip"):
        run(tmp_path, learning_rate=1e38)
    paths = checkpoint_paths(tmp_path / "checkpoints")
    model, *_ = start()
    assert module.read_checkpoint(model, paths[0].parent) == Position(0, 1)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, 2)
    model, *_ = start()
    model.compile("sgd")
    with pytest.raises(ValueError, match="model and optimizer that go on"):
        module.read_checkpoint(model, tmp_path / "checkpoints")
    assert module.read_checkpoint(model, tmp_path / "nowhere") is None
