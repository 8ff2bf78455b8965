"""The REST client against a server of this file that keeps TensorFlow Serving's JSON rules."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from keras_gpt2.serving.client import Client


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, body))
            columns = body["inputs"]
            if set(columns) != {
                "prompt", "max_new_tokens", "temperature", "top_k", "top_p", "seed"
            }:  # fmt: skip
                return self.answer(400, {"error": "Missing named input"})
            bad = [t < 0 for t in columns["temperature"]]
            self.answer(
                200,
                {
                    "outputs": {
                        "text": [p.upper() for p in columns["prompt"]],
                        "finish_reason": ["invalid: too cold" if b else "length" for b in bad],
                    }
                },
            )

        def answer(self, status, content):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()


def test_client_sends_every_input_once_per_row(server):
    client = Client(f"http://127.0.0.1:{server.server_port}/", "tales")
    assert client.generate(["a", "ä"], max_new_tokens=[3, 4], seed=5) == ["A", "Ä"]
    assert client.generate("b") == ["B"]
    assert client.generate([]) == []
    path, body = server.seen[0]
    assert path == "/v1/models/tales:predict"
    assert body["signature_name"] == "generate"
    assert body["inputs"] == {
        "prompt": ["a", "ä"],
        "max_new_tokens": [3, 4],
        "temperature": [1.0, 1.0],
        "top_k": [0, 0],
        "top_p": [1.0, 1.0],
        "seed": [5, 5],
    }


def test_client_tells_what_went_wrong(server):
    url = f"http://127.0.0.1:{server.server_port}"
    client = Client(url, "tales")
    with pytest.raises(ValueError, match=r"too cold \(prompt 1\)"):
        client.generate(["a", "b"], temperature=[1.0, -1.0])
    with pytest.raises(ValueError, match="seed must be one value.*2 prompts. Received: 3"):
        client.generate(["a", "b"], seed=[1, 2, 3])
    with pytest.raises(RuntimeError, match="400.*Missing named input"):
        client.predict("generate", {"prompt": ["a"]})
    with pytest.raises(ConnectionError, match="127.0.0.1:9/"):
        Client("http://127.0.0.1:9", "tales").generate("a")
