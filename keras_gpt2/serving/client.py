"""Asking a model behind a server."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from keras_gpt2.serving.base_client import BaseClient


class Client(BaseClient):
    """Asks a model that TensorFlow Serving serves, over REST or gRPC.

    The first question also asks for the model's signatures: what is no export of ours is refused.
    Tried again, after growing waits, are a refused or broken connection and the answers that mean
    "later" (429, 502, 503; RESOURCE_EXHAUSTED, UNAVAILABLE), never a bad request nor a timeout.

    Args:
        url: the server's address, `"http://localhost:8501"` (or https) for REST,
            `"grpc://localhost:8500"` for gRPC, which needs `keras_gpt2[grpc]`.
        name: the model's name there.
        version: int, a version, or str, a version's label; None is the latest.
        timeout: seconds to wait for an answer; over gRPC with all that is tried again.
        retries: int >= 0, how often to try again; over gRPC 4 times at most.
        backoff: seconds that scale the waits, each twice the one before; over gRPC 0.01 at least.

    Raises:
        ValueError: for another kind of address; on a question, if a signature is missing.
        ModuleNotFoundError: if gRPC is asked for and not installed.
        ConnectionError: on a question, if no server answers or it says that it can not now.
        TimeoutError: on a question, if the answer takes too long, here or there.
        RuntimeError: on a question, with the server's status and words, if it refuses.

    Example:
        >>> client = Client("http://localhost:8501", "tales")  # doctest: +SKIP
        >>> client.generate(["Once upon"], max_new_tokens=8)  # doctest: +SKIP
        [' a time there was']
    """

    def __init__(
        self,
        url: str,
        name: str,
        version: int | str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.25,
    ) -> None:
        # Imported here, so that a user of one kind does not wait for the other's libraries.
        self._connection: Any
        scheme = urlsplit(url).scheme
        if scheme in ("http", "https"):
            from keras_gpt2.serving.rest import RestConnection

            self._connection = RestConnection(url, name, version, timeout, retries, backoff)
        elif scheme == "grpc":
            from keras_gpt2.serving.grpc import GrpcConnection

            self._connection = GrpcConnection(url, name, version, timeout, retries, backoff)
        else:
            raise ValueError(
                "A server's address must look like http://localhost:8501 or "
                f"grpc://localhost:8500. Received: {url}."
            )

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        return self._connection.predict(signature, inputs)

    def close(self) -> None:
        """Closes the connections; also at the end of a `with` block."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def connect(address: str, timeout: float = 60.0) -> Client:
    """The client for `http://HOST:PORT/v1/models/NAME`, also with `/versions/N` or `/labels/LABEL`.

    A gRPC server's address has the same form, with `grpc://`.
    """
    url, _, path = address.removesuffix(":predict").rstrip("/").partition("/v1/models/")
    name, *rest = (unquote(part) for part in path.split("/"))
    version: int | str | None = None
    match rest:
        case []:
            pass
        case ["versions", number] if number.isdecimal():
            version = int(number)
        case ["labels", label]:
            version = label
        case _:
            name = ""
    if not name:
        raise ValueError(
            "A server's target must look like http://localhost:8501/v1/models/NAME or "
            "grpc://localhost:8500/v1/models/NAME, perhaps with /versions/N or /labels/LABEL. "
            f"Received: {address}."
        )
    return Client(url, name, version, timeout)
