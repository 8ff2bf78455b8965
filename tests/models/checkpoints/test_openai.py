import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_gpt2.models.checkpoints import load_openai


@pytest.fixture
def copied(fixtures, tmp_path):
    return shutil.copytree(fixtures / "openai", tmp_path / "copied")


def _rewrite(directory, change):
    """Writes the checkpoint of `directory` again, with its dict of tensors changed in place."""
    reader = tf.train.load_checkpoint(str(directory))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    change(tensors)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.Saver(
            [tf.compat.v1.get_variable(name, initializer=value) for name, value in tensors.items()]
        )
        session.run(tf.compat.v1.global_variables_initializer())
        saver.save(session, str(directory / "model.ckpt"), write_meta_graph=False)


def test_arguments(fixtures):
    model = load_openai(fixtures / "openai")
    assert (model.vocabulary_size, model.sequence_length) == (263, 29)
    assert (model.num_layers, model.num_heads, model.hidden_dim) == (2, 3, 21)
    assert (model.tie_weights, model.activation, model.dropout) == (True, "gelu_tanh", 0.1)


def test_without_the_file_checkpoint(copied, tied, assert_same_weights):
    (copied / "checkpoint").unlink()
    assert_same_weights(load_openai(copied), tied)


def test_the_file_checkpoint_names_another_step(copied, tied, assert_same_weights):
    for path in copied.glob("model.ckpt.*"):
        path.rename(str(path).replace("model.ckpt", "model-700"))
    (copied / "checkpoint").write_text('model_checkpoint_path: "model-700"\n')
    assert_same_weights(load_openai(copied), tied)


def _without(tensors):
    del tensors["model/h1/ln_2/b"]


def _extra(tensors):
    tensors["model/wte/Adam"] = tensors["model/wte"]


def _wrong_shape(tensors):
    tensors["model/h1/attn/c_attn/w"] = tensors["model/h1/attn/c_attn/w"][0, :, :62]


def _nan(tensors):
    tensors["model/wpe"][28, 20] = np.nan


@pytest.mark.parametrize(
    "change, message",
    [
        (_without, "copied without 'model/h1/ln_2/b'"),
        (_extra, "copied with 'model/wte/Adam'"),
        (_wrong_shape, r"'model/h1/attn/c_attn/w' must have the shape \(21, 63\).*\(21, 62\) in"),
        (_nan, "'model/wpe' must be finite.*model.ckpt"),
    ],
)
def test_damaged_tensors(copied, change, message):
    _rewrite(copied, change)
    with pytest.raises(ValueError, match=message):
        load_openai(copied)


def test_truncated_files(copied):
    data = copied / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="Tensor 'model/.*' must be readable.*model.ckpt"):
        load_openai(copied)
    index = copied / "model.ckpt.index"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint must be whole.*model.ckpt"):
        load_openai(copied)


def test_missing_files(copied):
    (copied / "model.ckpt.index").unlink()
    with pytest.raises(FileNotFoundError, match="TensorFlow checkpoint.*hparams.json"):
        load_openai(copied)
    hparams = copied / "hparams.json"
    content = json.loads(hparams.read_text())
    hparams.write_text(json.dumps(content | {"n_ctx": 29.5}))
    with pytest.raises(ValueError, match="n_ctx must be an int. Received: n_ctx=29.5 in .*hparams"):
        load_openai(copied)
    hparams.unlink()
    with pytest.raises(FileNotFoundError, match="must have a hparams.json"):
        load_openai(copied)
