"""What is tried again, how often, and what is not."""

import threading

import pytest
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from keras_gpt2.serving.client import Client
from tests.serving.stand_in_server import HttpServer, JsonHandler

MODEL = "/v1/models/small"


class Script(JsonHandler):
    """Answers as `server.script` says: a status with a body, "hang" or "reset"."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, body))
        step = self.server.script.pop(0) if self.server.script else (200, b'{"outputs": []}')
        if step == "hang":
            self.server.released.wait(30)
            step = "reset"
        if step == "reset":
            self.close_connection = True
            return
        self.reply(*step)


@pytest.fixture
def server():
    with HttpServer(Script) as server:
        server.released = threading.Event()
        yield server
        server.released.set()


def ask(server, script, **options):
    """One question, its metadata known; how many requests it took, and the answer."""
    server.script, server.seen[:] = list(script), []
    options = {"retries": 3, "backoff": 0.001, "timeout": 20, **options}
    client = Client(server.url, "small", **options)
    client._connection._outputs = {"tokenize": {"text": object}}
    try:
        return len(server.seen), client.predict("tokenize", {"text": ["a"]})
    finally:
        client.close()


LATER = [(status, b'{"error": "later"}') for status in (429, 502, 503)]


@pytest.mark.parametrize("trouble", [*LATER, "reset"])
def test_what_passes_is_tried_again(server, trouble):
    _, answer = ask(server, [trouble, trouble])
    assert answer["text"].tolist() == [] and len(server.seen) == 3
    assert len({body for _, body in server.seen}) == 1, "the same request each time"


@pytest.mark.parametrize("trouble", [*LATER, "reset"])
def test_but_not_for_ever(server, trouble):
    words = "reset|aborted|No answer" if trouble == "reset" else f"answered {trouble[0]}: later"
    with pytest.raises(ConnectionError, match=words):
        ask(server, [trouble] * 9)
    assert len(server.seen) == 4
    with pytest.raises(ConnectionError):
        ask(server, [trouble] * 9, retries=0)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "status, error", [(400, RuntimeError), (404, RuntimeError), (500, RuntimeError),
                      (504, TimeoutError)],
)  # fmt: skip
def test_what_stays_is_not(server, status, error):
    message = "x" * 3000 + " Ä's end"
    content = f'{{"error": "{message}"}}'.encode()
    with pytest.raises(error) as caught:
        ask(server, [(status, content)])
    assert str(caught.value) == f"The server answered {status}: {message}"
    assert len(server.seen) == 1


def test_an_error_that_is_no_json_is_shown_as_it_is(server):
    # The server escapes its words like C, which JSON does not read.
    for content in (rb"""{ "error": "it\'s \303\204" }""", b"<h1>Bad gateway</h1>", b"[1]"):
        with pytest.raises(RuntimeError) as caught:
            ask(server, [(400, content)])
        assert str(caught.value) == f"The server answered 400: {content.decode()}"


def test_a_timeout_is_not_tried_again(server):
    with pytest.raises(TimeoutError, match="within 0.2 s"):
        ask(server, ["hang"], timeout=0.2)
    assert len(server.seen) == 1


def test_metadata_is_tried_again_too(server):
    server.script = [LATER[2], (400, b'{"error": "no"}')]
    with pytest.raises(RuntimeError, match="400: no"):
        Client(server.url, "small", backoff=0.001).tokenize("a")
    assert [path for path, _ in server.seen] == [MODEL + "/metadata"] * 2


def test_a_refused_connection_is_tried_again_and_a_slow_one_not():
    session = Client("http://127.0.0.1:9", "small", retries=2)._connection._session
    policy = session.get_adapter("http://127.0.0.1:9").max_retries
    left = policy.increment("POST", "/", error=NewConnectionError(None, "refused"))
    assert (policy.total, left.total) == (2, 1)
    with pytest.raises(ConnectTimeoutError):
        policy.increment("POST", "/", error=ConnectTimeoutError(None, "too slow"))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there(scheme):
    if scheme == "grpc":
        pytest.importorskip("tensorflow_serving")
    client = Client(f"{scheme}://127.0.0.1:9", "small", backoff=0.001)
    with pytest.raises(ConnectionError, match=f"No answer from {scheme}://127.0.0.1:9"):
        client.tokenize("a")


class TestGrpc:
    @pytest.fixture
    def server(self):
        pytest.importorskip("tensorflow_serving")
        from tests.serving.stand_in_server import GrpcServer

        with GrpcServer() as server:
            yield server

    def ask(self, server, *codes, **options):
        import grpc

        server.trouble = [grpc.StatusCode[code] for code in codes]
        client = Client(server.url, "small", **{"backoff": 0.001, "timeout": 20, **options})
        client._connection._signatures = {}
        server.seen.clear()
        try:
            # A large one, which gRPC keeps for another try only if told so.
            client.predict("tokenize", {"text": ["a" * 400_000]})
        finally:
            client.close()

    @pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
    def test_what_passes_is_tried_again(self, server, code):
        with pytest.raises(RuntimeError, match="INTERNAL: not now"):
            self.ask(server, code, code, "INTERNAL")
        assert len(server.seen) == 3
        with pytest.raises(ConnectionError, match=f"{code}: not now"):
            self.ask(server, *[code] * 9)
        assert len(server.seen) == 4
        with pytest.raises(ConnectionError, match=f"{code}: not now"):
            self.ask(server, *[code] * 9, retries=0)
        assert len(server.seen) == 1
        with pytest.raises(ConnectionError, match=f"{code}: not now"):
            self.ask(server, *[code] * 9, retries=9)
        assert len(server.seen) == 5

    @pytest.mark.parametrize(
        "code, error",
        [
            ("INVALID_ARGUMENT", RuntimeError),
            ("NOT_FOUND", RuntimeError),
            ("INTERNAL", RuntimeError),
            ("DEADLINE_EXCEEDED", TimeoutError),
        ],
    )
    def test_what_stays_is_not(self, server, code, error):
        with pytest.raises(error, match="not now"):
            self.ask(server, code)
        assert len(server.seen) == 1

    def test_a_timeout_is_not_tried_again(self, server, monkeypatch):
        released = threading.Event()
        monkeypatch.setattr(server, "_find", lambda spec: released.wait(30))
        with pytest.raises(TimeoutError, match="within 0.3 s"):
            self.ask(server, timeout=0.3)
        released.set()
        assert len(server.seen) == 1
