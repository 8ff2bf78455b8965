"""A model split over eight virtual devices: the numbers of one device."""

import os
import subprocess
import sys

import keras
import pytest

import keras_gpt2 as kg

TRAIN = """
import json, sys
import keras, numpy as np
import keras_gpt2 as kg

split = sys.argv[1] == "split"
if split:
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])
    layouts = kg.GPT2.layout_map(mesh)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts))
keras.utils.set_random_seed(3)
gpt2 = kg.GPT2(31, 12, num_layers=2, num_heads=4, hidden_dim=16, dropout=0.0)
model = kg.training.NextTokenModel(gpt2, chunk_size=16)
model.compile(keras.optimizers.AdamW(1e-2))
ids = np.random.default_rng(0).integers(0, 31, (8, 13)).astype("int32")
losses = model.fit(ids[:, :-1], ids[:, 1:], batch_size=4, epochs=3, verbose=0).history["loss"]
parts = {w.path: str(w.value.sharding.shard_shape(w.shape)) for w in gpt2.weights}
print(json.dumps([losses, parts]))
"""


def run(mode):
    import json

    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    answer = subprocess.run(
        [sys.executable, "-c", TRAIN, mode], env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_a_split_model_trains_as_a_whole_one():
    pytest.importorskip("jax")
    (losses, parts), (expected, _) = run("split"), run("whole")
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    assert parts["token_embedding/embeddings"] == "(31, 4)"
    for i in range(2):
        attention, feed_forward = f"attention_{i}/attention", f"feed_forward_{i}/feed_forward"
        assert parts[f"{attention}/query_key_value/kernel"] == "(16, 12)"
        assert parts[f"{attention}/query_key_value/bias"] == "(12,)"
        assert parts[f"{attention}/output_projection/kernel"] == "(4, 16)"
        assert parts[f"{feed_forward}/expand/kernel"] == "(16, 16)"
        assert parts[f"{feed_forward}/project/kernel"] == "(16, 16)"
        assert parts[f"attention_{i}/norm/gamma"] == "(16,)"


def test_the_axis_must_be_of_the_mesh():
    device = keras.distribution.list_devices()[:1]
    mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "model"], device)
    assert kg.GPT2.layout_map(mesh)["feed_forward_0/feed_forward/expand/bias"].axes == ("model",)
    with pytest.raises(ValueError, match="batch, model. Received: axis='rows'"):
        kg.GPT2.layout_map(mesh, "rows")
