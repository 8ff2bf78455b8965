"""The fixtures' results are transformers'; each loader must give a model that computes the same."""

import keras
import numpy as np
import pytest

from keras_gpt2 import BytePairTokenizer


@pytest.fixture(scope="module", params=["loaded", "saved as .keras"])
def candidate(request, model, tmp_path_factory):
    if request.param == "loaded":
        return model
    path = tmp_path_factory.mktemp("own") / "model.keras"
    model.save(path)
    return keras.saving.load_model(path)


def test_logits(candidate, results):
    logits = np.asarray(candidate(results["token_ids"]))
    assert logits.std() > 0.5  # else the tolerance would say nothing
    np.testing.assert_allclose(logits, results["logits"], rtol=0, atol=1e-4)


def test_hidden_states(candidate, results):
    last = candidate.num_layers - 1
    names = ["embedding_dropout", *(f"feed_forward_{i}" for i in range(last)), "final_norm"]
    states = keras.Model(candidate.input, [candidate.get_layer(name).output for name in names])
    for name, ours, theirs in zip(
        names, states(results["token_ids"]), results["hidden"], strict=True
    ):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4, err_msg=name)


def test_loss(candidate, results):
    token_ids = results["token_ids"]
    logits = candidate(token_ids[:, :-1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(token_ids[:, 1:], logits)
    assert abs(float(loss) - float(results["loss"])) < 1e-5


def test_greedy_continuation(candidate, results):
    greedy = results["greedy"]
    assert greedy.shape[1] == candidate.sequence_length
    # The model is causal: one call gives the choice after every beginning, and where each choice
    # is the token that follows, choosing step by step gives the same text.
    choices = np.asarray(candidate(greedy)).argmax(-1)
    np.testing.assert_array_equal(choices[:, 4:-1], greedy[:, 5:])


def test_variables_are_float32(model):
    assert {variable.dtype for variable in model.weights} == {"float32"}


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")
def test_logits_of_the_export(model, results, tmp_path):
    import tensorflow as tf

    from keras_gpt2 import serving

    text_as_bytes = BytePairTokenizer.train_from_iterator([], 257)
    version = serving.export(model, text_as_bytes, tmp_path / "exported")
    exported = tf.saved_model.load(str(version)).signatures["logits"]

    def logits(token_ids):
        return exported(token_ids=tf.constant(token_ids))["logits"].numpy()

    token_ids = results["token_ids"]
    np.testing.assert_allclose(logits(token_ids), results["logits"], rtol=0, atol=1e-4)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = entropy(token_ids[:, 1:], logits(token_ids[:, :-1]))
    assert abs(float(loss) - float(results["loss"])) < 1e-5
    choices = logits(results["greedy"]).argmax(-1)
    np.testing.assert_array_equal(choices[:, 4:-1], results["greedy"][:, 5:])
