"""LoRA: what is trained, what is not, and that nothing of it is lost on any way out."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_gpt2 as kg
from keras_gpt2.models.lora import without_lora
from tests.conftest import random_weights

TARGETS = ("query_key_value", "output_projection", "expand", "project")


def logits(model):
    ids = np.random.default_rng(1).integers(0, 311, (2, 7))
    return keras.ops.convert_to_numpy(model(ids))


def values(weights):
    return {w.path: keras.ops.convert_to_numpy(w) for w in weights}


def fine_tune(gpt2, epochs=3):
    model = kg.training.NextTokenModel(gpt2)
    model.compile(keras.optimizers.AdamW(1e-2))
    ids = np.random.default_rng(0).integers(0, 311, (4, 10))
    return model.fit(ids[:, :-1], ids[:, 1:], epochs=epochs, verbose=0).history["loss"]


def tuned(gpt2, rank=2, targets=TARGETS):
    count = gpt2.enable_lora(rank, targets)
    before = values(gpt2.non_trainable_weights)
    fine_tune(gpt2)
    for path, value in values(gpt2.non_trainable_weights).items():
        if "seed_generator" not in path:
            np.testing.assert_array_equal(value, before[path])
    return count


@pytest.mark.parametrize("targets", [TARGETS, ("query_key_value", "project")])
def test_only_the_targets_are_trained(gpt2, targets):
    sizes = dict(query_key_value=15 + 45, output_projection=30, expand=15 + 35, project=35 + 15)
    expected = logits(gpt2)
    count = gpt2.enable_lora(3, targets)
    assert count == 2 * 3 * sum(sizes[name] for name in targets)
    names = {w.path.split("/")[-2] for w in gpt2.trainable_weights}
    assert names == set(targets)
    assert {w.name for w in gpt2.trainable_weights} == {"lora_kernel_a", "lora_kernel_b"}
    np.testing.assert_allclose(logits(gpt2), expected, atol=1e-5)
    losses = fine_tune(gpt2, epochs=40)
    assert losses[-1] < losses[0] - 0.5


def test_merging_gives_a_plain_model_with_the_same_logits(gpt2):
    paths = [w.path for w in gpt2.trainable_weights]
    plain = logits(gpt2)
    tuned(gpt2)
    expected = logits(gpt2)
    assert np.abs(expected - plain).max() > 0.1
    gpt2.merge_lora()
    np.testing.assert_allclose(logits(gpt2), expected, atol=1e-4)
    assert [w.path for w in gpt2.trainable_weights] == paths
    gpt2.enable_lora(1)  # and once more
    gpt2.merge_lora()
    gpt2.narrow("int8")


def test_nothing_keeps_the_two_matrices_after_merging(gpt2):
    gpt2.enable_lora(1)
    layer = gpt2.attention_blocks[0].layer.query_key_value
    matrices = [weakref.ref(layer.lora_kernel_a), weakref.ref(layer.lora_kernel_b)]
    gpt2.merge_lora()
    gc.collect()
    assert [matrix() for matrix in matrices] == [None, None]


def test_a_layer_that_was_frozen_is_frozen_after_merging(gpt2):
    gpt2.get_layer("token_embedding").trainable = False
    gpt2.get_layer("attention_1").trainable = False
    paths = [w.path for w in gpt2.trainable_weights]
    gpt2.enable_lora(1)
    gpt2.merge_lora()
    assert [w.path for w in gpt2.trainable_weights] == paths


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_saving_merges(tmp_path, dtype):
    model = random_weights(
        kg.GPT2(311, 23, num_layers=1, num_heads=3, hidden_dim=15, dropout=0.0, dtype=dtype)
    )
    tuned(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    copy = without_lora(model)
    model.merge_lora()
    for other in (loaded, copy):
        for a, b in zip(model.weights, other.weights, strict=True):
            assert a.path == b.path
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    assert without_lora(model) is model


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are TensorFlow's")
@pytest.mark.parametrize("weights", [None, "bfloat16"])
def test_an_export_keeps_what_was_learnt(gpt2, tokenizer, tmp_path, weights):
    import tensorflow as tf

    tuned(gpt2)
    served = tf.saved_model.load(str(kg.serving.export(gpt2, tokenizer, tmp_path, weights=weights)))
    ids = np.random.default_rng(1).integers(0, 311, (2, 7)).astype("int32")
    answer = served.signatures["logits"](token_ids=tf.constant(ids))["logits"]
    np.testing.assert_allclose(answer, logits(gpt2), atol=1e-4 if weights is None else 0.2)
    assert gpt2.attention_blocks[0].layer.query_key_value.lora_enabled, "it is as it was"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.enable_lora(0), "rank=0"),
        (lambda m: m.enable_lora(2, ["query"]), r"expand, output.*targets=\['query'\]"),
        (lambda m: m.enable_lora(2, "expand"), "targets='expand'"),
        (lambda m: m.enable_lora(2, []), "targets="),
        (lambda m: m.enable_lora(2) and m.enable_lora(2), "merged before"),
        (lambda m: m.quantize("int8") or m.enable_lora(2), "Received: int8 weights"),
    ],
)
def test_rules(gpt2, call, words):
    with pytest.raises(ValueError, match=words):
        call(gpt2)
