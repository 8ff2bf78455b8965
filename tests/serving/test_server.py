"""The clients against a real TensorFlow Serving, where there is one.

With tensorflow_model_server on the PATH it is started here, with and without batching. Any other
server is used if it serves the small export:

    python -m tests.serving.small_export saved_models/small
    keras-gpt2 serve saved_models/small
    TF_SERVING_URL=http://localhost:8501 TF_SERVING_GRPC=grpc://localhost:8500 \\
        pytest tests/serving/test_server.py
"""

import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest
import requests

import keras_gpt2 as kg
from keras_gpt2.serving.client import connect
from keras_gpt2.serving.server import BINARY, METRICS_PATH, server_command

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

from tests.serving.asking import AskingTests
from tests.serving.small_export import small_export

BATCHING = "max_batch_size { value: 16 } batch_timeout_micros { value: 2000 }"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved_models") / "small"
    parameters = small_export(directory) / "batching_params.pbtxt"
    if not parameters.exists():
        parameters.write_text(BATCHING)
    return directory


@pytest.fixture(scope="module")
def on_disk(directory):
    return kg.serving.SavedModelClient(directory)


@pytest.fixture(scope="module", params=["given", "one by one", "batching"])
def addresses(request, tmp_path_factory):
    """What to add /v1/models/small to, for REST and gRPC."""
    if request.param == "given":
        if "TF_SERVING_URL" not in os.environ:
            pytest.skip("TF_SERVING_URL does not name a server of tests/serving/small_export.py")
        yield {name: os.environ.get(f"TF_SERVING_{name}") for name in ("URL", "GRPC")}
        return
    if not shutil.which(BINARY):
        pytest.skip(f"{BINARY} is not on the PATH")
    rest, grpc = free_ports()
    command = server_command(
        request.getfixturevalue("directory"),
        rest_port=rest,
        port=grpc,
        batching=request.param == "batching",
    )
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        try:
            wait_for(f"http://localhost:{rest}/v1/models/small", server, log)
            yield {"URL": f"http://localhost:{rest}", "GRPC": f"grpc://localhost:{grpc}"}
        finally:
            server.kill()


def free_ports():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("", 0))
        other.bind(("", 0))
        return one.getsockname()[1], other.getsockname()[1]


def wait_for(url, server, log, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            if '"AVAILABLE"' in requests.get(url, timeout=5).text:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{server.args} is not ready: {log.read_text(errors='replace')}")


@pytest.fixture(scope="module", params=["URL", "GRPC"])
def client(request, addresses):
    if not addresses[request.param]:
        pytest.skip(f"TF_SERVING_{request.param} is not set")
    if request.param == "GRPC":
        pytest.importorskip("tensorflow_serving")
    with connect(f"{addresses[request.param].rstrip('/')}/v1/models/small") as client:
        yield client


class TestRealServer(AskingTests):
    def test_at_the_same_time_as_alone(self, client, on_disk):
        def ask(seed):
            parameters = dict(max_new_tokens=seed % 8, temperature=seed % 3 / 2, seed=seed)
            return client.generate([f"The king {seed}"] * (1 + seed % 2), **parameters)

        with ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(ask, range(48)))
        for seed, together in enumerate(texts):
            assert together == ask(seed)

    def test_a_refusal_shows_the_servers_words(self, client):
        with pytest.raises(RuntimeError, match="answered (400|[A-Z_]+): .*nothing"):
            client.predict("nothing", {"prompt": ["a"]})

    def test_the_plain_request(self, addresses, on_disk):
        url = addresses["URL"].rstrip("/")
        body = '{"instances": ["Once upon", {"b64": "/w=="}]}'
        answer = requests.post(f"{url}/v1/models/small:predict", data=body, timeout=60)
        texts = on_disk.predict("serving_default", {"prompt": ["Once upon", b"\xff"]})["text"]
        assert answer.json() == {"predictions": texts.tolist()}

    def test_prometheus_can_read(self, addresses):
        url = addresses["URL"].rstrip("/") + METRICS_PATH
        assert "tensorflow" in requests.get(url, timeout=60).text
