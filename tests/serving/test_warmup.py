"""What a version carries for the server: warm-up requests, batching parameters, a limit of time."""

import re
import shutil

import keras
import numpy as np
import pytest

import keras_gpt2 as kg

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from keras_gpt2.serving import inspection
from keras_gpt2.serving.limits import Speed
from keras_gpt2.serving.signatures import BUCKETS, SHORTEST
from keras_gpt2.serving.warmup import NAME, Record, bucket_records, read_records, write_records
from tests.serving.session import Session


@pytest.fixture(scope="module")
def version(tokenizer, tmp_path_factory):
    model = kg.GPT2(311, 19, num_layers=1, num_heads=2, hidden_dim=6)
    directory = tmp_path_factory.mktemp("saved_models") / "tales"
    return kg.serving.export(model, tokenizer, directory, description="Trained on Tales.")


def test_a_server_reads_the_warmup_requests(version):
    log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    session = Session(version)
    asked = set()
    for data in tf.data.TFRecordDataset(str(version / NAME)).as_numpy_iterator():
        request = log.PredictionLog.FromString(data).predict_log.request
        assert request.model_spec.name == "tales"
        name = request.model_spec.signature_name
        assert set(request.inputs) == set(session.signatures[name].inputs), "REST has no defaults"
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert all(value.ndim >= 1 for value in inputs.values()), "scalars fail with batching"
        session.run(name, inputs)
        asked.add(name)
    assert asked == {"serving_default", "generate", "score", "logits", "tokenize", "detokenize"}


def test_records_are_read_as_they_were_written(tmp_path):
    record = Record(
        "generate",
        {"prompt": tf.constant([b"\xff\0", b""]), "seed": tf.constant([-1, 2])},
        {"log_prob": tf.constant([np.nan, -1.5])},
    )
    write_records(tmp_path, "name", [record, Record("score", {"text": tf.constant(["a"])}, {})])
    first, second = read_records(tmp_path)
    assert first.inputs["prompt"].tolist() == [b"\xff\0", b""]
    assert first.inputs["seed"].dtype == np.int32 and first.inputs["seed"].tolist() == [-1, 2]
    np.testing.assert_array_equal(first.outputs["log_prob"], np.float32([np.nan, -1.5]))
    assert (second.signature, second.outputs) == ("score", {})


def test_every_shape_of_an_xla_export_is_warmed_up():
    records = bucket_records(sequence_length=70, max_batch_size=16)
    # " a" is one token or two.
    for tokens in (1, 2):
        shapes = []
        for record in records:
            prompts = record.inputs["prompt"].numpy()
            length = min(tokens * len(prompts[0]) // 2, 70)
            bucket = min(b for b in (*BUCKETS, 70) if b >= max(length, SHORTEST) or b == 70)
            shapes.append((len(prompts), bucket))
        assert shapes == [(rows, width) for rows in (1, 4, 16) for width in (16, 64, 70)]


def test_batching_parameters_are_what_a_server_reads(version):
    lines = (version / "batching_params.pbtxt").read_text().splitlines()
    values = dict(re.fullmatch(r"(\w+) { value: (\d+) }", x).groups() for x in lines if x[0] != "#")
    assert values == {
        "max_batch_size": "16",
        "batch_timeout_micros": "5000",
        "num_batch_threads": "2",
        "max_enqueued_batches": "8",
    }


def test_the_limit_keeps_a_request_within_15_seconds(version):
    assert Speed(prompt=1.4, token=0.031).limit(1024) == 458
    assert Speed(prompt=1.4, token=0.031).seconds(458, 1024) <= 15
    assert Speed(prompt=1.4, token=0.031).seconds(459, 1024) > 15
    assert Speed(prompt=0.0, token=0.0).limit(1024) == 1023
    assert Speed(prompt=20.0, token=0.4).limit(1024) == 64, "some room is left to ask for"
    assert Speed(prompt=20.0, token=0.4).limit(9) == 8
    assert "max_new_tokens is at most 18" in (version / "README.md").read_text()


def test_a_version_is_checked(version, tmp_path):
    assert "Trained on Tales." in (version / "README.md").read_text()
    lines = inspection.check_export(version)
    assert "detokenize" in lines[0] and "MatMul" in lines[-1]

    changed = tmp_path / "2"
    shutil.copytree(version, changed)
    data = next((changed / "variables").glob("*.data*"))
    content = bytearray(data.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    data.write_bytes(content)
    with pytest.raises(inspection.ExportError, match="cannot be loaded|must answer as it did"):
        inspection.check_export(changed)
    (changed / "saved_model.pb").unlink()
    with pytest.raises(inspection.ExportError, match="cannot be loaded"):
        inspection.check_export(changed)
