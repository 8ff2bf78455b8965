"""Clients against stand-ins that keep TensorFlow Serving's rules, backed by a small export."""

import ast
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_gpt2 as kg
from keras_gpt2.serving.client import connect

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

from tests.serving.asking import AskingTests
from tests.serving.small_export import small_export
from tests.serving.stand_in_server import Export, GrpcServer, HttpServer


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    version = small_export(tmp_path_factory.mktemp("saved_models") / "small")
    return kg.serving.SavedModelClient(version)


@pytest.fixture(scope="module")
def rest(on_disk):
    with HttpServer(export=Export(on_disk, "my model")) as server:
        yield server


@pytest.fixture(scope="module")
def grpc_server(on_disk):
    pytest.importorskip("tensorflow_serving")
    with GrpcServer(Export(on_disk, "my model")) as server:
        yield server


@pytest.fixture(scope="module", params=["rest", "grpc_server"])
def server(request):
    return request.getfixturevalue(request.param)


class TestBehindAServer(AskingTests):
    @pytest.fixture(scope="class")
    def client(self, server):
        with kg.serving.Client(server.url, "my model") as client:
            yield client


class TestOnDisk(AskingTests):
    @pytest.fixture
    def client(self, on_disk):
        return on_disk


def test_every_input_is_sent_once_per_row(rest):
    client = kg.serving.Client(rest.url + "/", "my model")
    client.generate(["a", "ä"], max_new_tokens=[3, 4], seed=5)
    path, body = rest.seen[-1]
    assert path == "/v1/models/my%20model:predict"
    assert json.loads(body) == {
        "signature_name": "generate",
        "inputs": {
            "prompt": ["a", "ä"],
            "max_new_tokens": [3, 4],
            "temperature": [1.0, 1.0],
            "top_k": [0, 0],
            "top_p": [1.0, 1.0],
            "seed": [5, 5],
        },
    }


def test_on_the_wire_texts_that_json_can_not_carry_are_base64(rest):
    client = kg.serving.Client(rest.url, "my model")
    client.tokenize(["plain ä", "a\0b", b"\xc3", "\ud800", b"bytes"])
    assert json.loads(rest.seen[-1][1])["inputs"]["text"] == [
        "plain ä", {"b64": "YQBi"}, {"b64": "ww=="}, {"b64": "7aCA"}, "bytes",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="nan"):
        client.generate("a", 5, temperature=np.nan, top_p=float("inf"))
    assert b'"temperature": [NaN], "top_k": [0], "top_p": [Infinity]' in rest.seen[-1][1]


def test_one_connection_and_one_look_at_the_metadata(rest):
    before, seen = rest.connections, len(rest.seen)
    with kg.serving.Client(rest.url, "my model") as client:
        assert len(rest.seen) == seen, "nothing is asked before the first question"
        for _ in range(4):
            client.tokenize("a")
    assert rest.connections == before + 1
    assert [path.rpartition("/")[2] for path, _ in rest.seen[seen:]] == [
        "metadata", *["my%20model:predict"] * 4,
    ]  # fmt: skip


@pytest.mark.parametrize("version", [None, 1, "stable"])
def test_versions_and_labels(server, version):
    client = kg.serving.Client(server.url, "my model", version)
    assert client.tokenize("") == [[]]


@pytest.mark.parametrize("name, version", [("other", None), ("my model", 7), ("my model", "1")])
def test_a_model_that_is_not_there(server, name, version):
    client = kg.serving.Client(server.url, name, version)
    with pytest.raises(RuntimeError, match=r"answered (404|NOT_FOUND): Servable not found"):
        client.generate("a")


def test_a_model_that_is_none_of_ours(server, on_disk, monkeypatch):
    signatures = dict(server.export.signatures)
    del signatures["score"], signatures["generate"]
    monkeypatch.setattr(server.export, "signatures", signatures)
    client = kg.serving.Client(server.url, "my model")
    with pytest.raises(ValueError, match="without generate, score"):
        client.tokenize("a")
    monkeypatch.undo()
    assert client.tokenize("a") == on_disk.tokenize("a"), "it is looked at again"


def test_a_directory_that_is_none_of_ours(tmp_path):
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "3"))
    with pytest.raises(ValueError, match=r"Received: .*3, without serving_default, generate"):
        kg.serving.SavedModelClient(tmp_path)


def test_answers_of_many_megabytes(grpc_server, on_disk):
    rows = [[i % 311 for i in range(start, start + 23)] for start in range(160)]
    logits = kg.serving.Client(grpc_server.url, "my model").logits(rows)
    assert sum(row.nbytes for row in logits) > 4.5e6
    np.testing.assert_allclose(logits[159], on_disk.logits(rows[159:])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(seed=[1, 2, 3]), "seed must be one value, .* the 2 prompts. Received: 3 values"),
        (dict(seed=np.arange(3)), "Received: 3 values"),
        (dict(max_new_tokens=3.0), "max_new_tokens must be an integer .* max_new_tokens=3.0"),
        (dict(seed=2**31), "seed must be an integer of 32 bits. Received: seed=2147483648"),
        (dict(temperature=None), "temperature must be a number. Received: temperature=None"),
    ],
)
def test_parameters_of_a_wrong_kind_never_leave(arguments, words):
    client = kg.serving.Client("http://127.0.0.1:9", "small")
    with pytest.raises(ValueError, match=words):
        client.generate(["a", "b"], **arguments)


def test_addresses(server):
    path = "/v1/models/my%20model"
    for more in ("", "/", ":predict", "/versions/1", "/labels/stable"):
        assert connect(server.url + path + more).tokenize("") == [[]]
    for bad in ("", "/v1/models/", "/v1/models/a/b", "/v1/models/a/versions/b", "/v1/models/a/b/c"):
        with pytest.raises(ValueError, match="must look like .*/v1/models/NAME"):
            connect(server.url + bad)
    with pytest.raises(ValueError, match="must look like .* Received: localhost:8501"):
        kg.serving.Client("localhost:8501", "small")


def test_without_the_extra_grpc(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    monkeypatch.delitem(sys.modules, "keras_gpt2.serving.grpc", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "keras_gpt2\[grpc\]"'):
        kg.serving.Client("grpc://127.0.0.1:9", "small")


def test_rest_needs_no_tensorflow_and_libraries_come_late():
    directory = Path(kg.serving.__file__).parent
    for name in ("base_client", "client", "rest", "saved_model"):
        tree = ast.parse((directory / f"{name}.py").read_text())
        early = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        modules = {getattr(n, "module", None) or n.names[0].name for n in early}
        assert "tensorflow" not in modules
        if name != "rest":
            assert not {"requests", "grpc", "keras_gpt2.serving.rest"} & modules


def test_query(server, on_disk, capsys):
    from keras_gpt2.cli import main

    target = f"{server.url}/v1/models/my%20model/labels/stable"
    code = main(["query", target, "--prompt", "The king", "Ä", "--max-new-tokens", "5"])
    texts = on_disk.generate(["The king", "Ä"], max_new_tokens=5, temperature=0.8)
    assert code == 0 and capsys.readouterr().out == f"The king{texts[0]}\n---\nÄ{texts[1]}\n"
    assert main(["query", f"{server.url}/v1/models/other", "--prompt", "a"]) == 1
    assert "Servable not found" in capsys.readouterr().err
