import keras
import numpy as np
import pytest

from keras_gpt2.models import GPT2
from keras_gpt2.models.checkpoints import load, load_keras_nlp, save_hugging_face, to_keras_nlp


@pytest.mark.parametrize("layout", ["tied", "openai", "own"])
def test_layouts(layout, fixtures, tied, tmp_path, assert_same_weights):
    directory = fixtures / layout
    if layout == "own":
        directory = tmp_path
        tied.save(directory / "model.keras")
    assert_same_weights(load(directory), tied)
    assert_same_weights(load(str(directory)), tied)
    random = load(directory, load_weights=False)
    assert random.get_config() == {**load(directory).get_config(), "name": random.name}
    assert abs(np.asarray(random.token_embedding.embeddings).std() - 0.02) < 0.002


def test_random_weights_need_no_weight_file(fixtures, tmp_path):
    for layout, file in (("untied_sharded", "config.json"), ("openai", "hparams.json")):
        directory = tmp_path / layout
        directory.mkdir()
        (directory / file).write_text((fixtures / layout / file).read_text())
        assert load(directory, load_weights=False).sequence_length in (17, 29)


def test_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="gpt2, gpt2-medium, .*preset='gpt3'"):
        load("gpt3")
    with pytest.raises(ValueError, match=r"model\.keras, hparams\.json .*with nothing"):
        load(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"config\.json.*with notes\.txt"):
        GPT2.from_preset(tmp_path)
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="must hold a GPT2. Received: a Sequential"):
        load(tmp_path)


def test_name_scopes_do_not_matter(fixtures, tied, tmp_path, assert_same_weights):
    with keras.name_scope("outer"):
        model = load(fixtures / "tied")
    assert model.weights[0].path.startswith("outer/")
    assert_same_weights(load(save_hugging_face(model, tmp_path / "saved")), tied)
    assert_same_weights(load_keras_nlp(to_keras_nlp(model)), tied)
