"""Several devices, and several processes, train as one device does."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_gpt2.training import on_devices

ROOT = Path(__file__).parent.parent.parent

TWO = """
import sys, keras
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""

CLI = TWO + "from keras_gpt2.cli import main; sys.exit(main(sys.argv[1:]))"

FIT = (
    TWO
    + """
import json, numpy as np
import keras_gpt2 as kg
from tests.conftest import random_weights

ids = np.random.default_rng(0).integers(0, 31, (9, 8)).astype("int32")
inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()

class Batches(keras.utils.PyDataset):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows
    def __len__(self):
        return -(-self.rows // 4)
    def __getitem__(self, i):
        # Copies: TensorFlow may work in place in what it is given.
        return tuple(x[: self.rows][4 * i :][:4].copy() for x in (inputs, targets))

def fit(devices, wrap, data):
    with kg.training.on_devices(devices):
        gpt2 = random_weights(kg.GPT2(31, 7, num_layers=1, num_heads=2, hidden_dim=6, dropout=0))
        model = wrap(gpt2)
        # The gradients' norm is above 0.3, so that all are clipped.
        plain = dict(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[kg.training.Perplexity()],
        )
        optimizer = kg.training.adamw(gpt2, 1e-2, 20, 2, clip_norm=0.3)
        model.compile(optimizer, **(plain if model is gpt2 else {}))
        return model.fit(data, epochs=2, shuffle=False, verbose=0, validation_data=data).history

answer = {"plain": [fit(n, lambda gpt2: gpt2, Batches(8)) for n in (1, 2)]}
inputs[0, 2:], targets[4, 1:] = -1, -1  # one device has far fewer targets than the other
wrap = lambda gpt2: kg.training.NextTokenModel(gpt2, chunk_size=5)
rows = 9 if keras.backend.backend() == "tensorflow" else 8  # 1 row: a device gets none
answer["chunked"] = [fit(n, wrap, Batches(rows)) for n in (1, 2)]
print(json.dumps(answer))
"""
)


def python(code, *arguments, backend="tensorflow", **environment):
    environment = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", **environment}
    environment.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    return subprocess.Popen(
        [sys.executable, *(["-c"] if "\n" in code else []), code, *map(str, arguments)],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_devices_fit_as_one(backend):
    pytest.importorskip(backend)
    answer = json.loads(output(python(FIT, backend=backend)).splitlines()[-1])
    for name, (one, two) in answer.items():
        assert one["loss"][-1] < one["loss"][0]
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=1e-5), (name, key)


def rows(directory):
    with open(directory / "history.csv", newline="") as file:
        return [{key: float(x) for key, x in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_command_trains_on_two_devices_and_resumes(tmp_path, backend):
    pytest.importorskip(backend)
    text = tmp_path / "text.txt"
    text.write_text("The king is dead, long live the king! " * 60)

    def run(*command):
        output(python(CLI, *command, backend=backend, XDG_CACHE_HOME=str(tmp_path)))

    def train(devices):
        directory = tmp_path / str(devices)
        run(
            "train", "--text", text, "--output", directory, "--devices", devices, "--epochs", 2,
            "--num-layers", 1, "--num-heads", 2, "--hidden-dim", 8, "--dropout", 0,
            "--sequence-length", 13, "--batch-size", 6, "--vocabulary-size", 270,
            "--checkpoint-seconds", 0,
        )  # fmt: skip
        return rows(directory)

    one, two = train(1), train(2)
    assert len(two) == 2
    for row, expected in zip(two, one, strict=True):
        for key in set(row) - {"val_loss"}:  # a mean over rows, some of them padding
            assert row[key] == pytest.approx(expected[key], rel=1e-5), key
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-2)

    directory = tmp_path / "2"
    newest = max((directory / "checkpoints").glob("*.zip"))
    newest.unlink()  # what is left is of the middle of the second epoch
    run("resume", directory)
    assert newest.exists()
    for row, expected in zip(rows(directory), two, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    shutil.rmtree(directory)


def test_two_processes_train_as_one():
    pytest.importorskip("jax")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = str(ROOT / "examples" / "two_processes.py")
    started = [python(script, address, i, backend="jax", XLA_FLAGS="") for i in range(2)]
    alone = output(python(script, backend="jax", XLA_FLAGS=""))
    both = [output(process) for process in started]
    expected, *losses = (json.loads(out.splitlines()[-1]) for out in (alone, *both))
    assert expected[-1] < expected[0]
    for other in losses:
        assert other == pytest.approx(expected, rel=1e-5)


def test_there_must_be_so_many():
    with on_devices(1):
        pass
    for wrong in (0, 99):
        with pytest.raises(ValueError, match=f"there are, 1. Received: devices={wrong}"):
            on_devices(wrong)


def test_devices_divide_the_batch(capsys, tmp_path):
    from keras_gpt2.cli import main

    (tmp_path / "text.txt").write_text("The king is dead, long live the king! " * 60)
    command = ["train", "--text", str(tmp_path / "text.txt"), "--output", str(tmp_path / "run")]
    assert main([*command, "--batch-size", "5", "--devices", "2"]) == 1
    assert "--batch-size must be a multiple of --devices. Received" in capsys.readouterr().err
    assert main([*command, "--batch-size", "6", "--devices", "2"]) == 1
    assert "Received: devices=2" in capsys.readouterr().err
    if keras.backend.backend() == "tensorflow":
        assert main([*command, "--dtype", "mixed_float16", "--devices", "2"]) == 1
        assert "take mixed_bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
