import keras
import numpy as np
import pytest

from keras_gpt2.models import GPT2
from keras_gpt2.models.checkpoints import keras_nlp_vocabulary, load_keras_nlp, to_keras_nlp
from keras_gpt2.text import BytePairTokenizer

keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")


@pytest.fixture(scope="module")
def backbone():
    """A GPT2Backbone in which every variable is random, biases and norms too."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=101,
        num_layers=2,
        num_heads=3,
        hidden_dim=21,
        intermediate_dim=37,
        dropout=0.2,
        max_sequence_length=29,
    )
    random = np.random.default_rng(0)
    for variable in backbone.weights:
        variable.assign(random.normal(variable.path.endswith("gamma"), 0.3, variable.shape))
    return backbone


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(1).integers(0, 101, (3, 13)).astype("int32")


def _logits(backbone, token_ids):
    hidden = backbone({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})
    return np.asarray(backbone.token_embedding(hidden, reverse=True))


def test_logits_equal_kerashubs(backbone, token_ids):
    model = load_keras_nlp(backbone)
    assert (model.intermediate_dim, model.dropout, model.sequence_length) == (37, 0.2, 29)
    expected = _logits(backbone, token_ids)
    assert expected.std() > 0.5
    np.testing.assert_allclose(np.asarray(model(token_ids)), expected, rtol=0, atol=1e-4)


def test_causal_lm_and_way_back(backbone, token_ids, assert_same_weights):
    model = load_keras_nlp(keras_hub.models.GPT2CausalLM(backbone=backbone))
    back = to_keras_nlp(model)
    assert_same_weights(back, backbone)
    assert_same_weights(load_keras_nlp(back), model)


def test_kerashub_computes_what_transformers_computed(tied, fixtures):
    results = np.load(fixtures / "tied" / "results.npz")
    logits = _logits(to_keras_nlp(tied), results["token_ids"])
    np.testing.assert_allclose(logits, results["logits"], rtol=0, atol=1e-4)


def test_preset_directory(backbone, tmp_path, assert_same_weights):
    backbone.save_to_preset(str(tmp_path))
    loaded = load_keras_nlp(str(tmp_path))
    assert_same_weights(loaded, load_keras_nlp(backbone))
    assert_same_weights(GPT2.from_preset(tmp_path), loaded)
    random = GPT2.from_preset(tmp_path, load_weights=False)
    assert random.intermediate_dim == 37
    assert not np.array_equal(
        np.asarray(random.token_embedding.embeddings), np.asarray(loaded.token_embedding.embeddings)
    )


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Received: Sequential"):
        load_keras_nlp(keras.Sequential())


def test_lora_is_refused(backbone):
    changed = backbone.__class__.from_config(backbone.get_config())
    changed.transformer_layers[0]._feedforward_output_dense.enable_lora(2)
    with pytest.raises(ValueError, match="no place for.*lora_kernel_a"):
        load_keras_nlp(changed)


@pytest.mark.parametrize(
    "arguments", [dict(activation="relu"), dict(epsilon=1e-3), dict(tie_weights=False)]
)
def test_what_kerashub_cannot_hold_is_refused(arguments):
    [(argument, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        to_keras_nlp(GPT2(7, 3, 1, 1, 2, **arguments))


def test_vocabulary(backbone, tmp_path):
    ours = BytePairTokenizer.train_from_iterator(["low lower lowest, slow and slower"], 271)
    theirs = keras_hub.models.GPT2Tokenizer(
        ours.vocabulary, [" ".join(pair) for pair in ours.merges]
    )
    causal_lm = keras_hub.models.GPT2CausalLM(
        backbone=backbone,
        preprocessor=keras_hub.models.GPT2CausalLMPreprocessor(theirs, sequence_length=8),
    )
    for owner in (theirs, causal_lm, causal_lm.preprocessor):
        assert BytePairTokenizer(*keras_nlp_vocabulary(owner)) == ours
    causal_lm.save_to_preset(str(tmp_path))
    assert BytePairTokenizer.from_directory(tmp_path) == ours
    with pytest.raises(TypeError, match="Received: GPT2Backbone"):
        keras_nlp_vocabulary(backbone)
