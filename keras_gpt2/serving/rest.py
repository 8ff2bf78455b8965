"""A connection to TensorFlow Serving's REST interface."""

from __future__ import annotations

import base64
import json
from functools import cached_property
from typing import Any
from urllib.parse import quote

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError
from urllib3.exceptions import TimeoutError as Urllib3Timeout
from urllib3.util.retry import Retry

from keras_gpt2.serving.base_client import as_bytes, check_signatures

UNAVAILABLE = (429, 502, 503)
DTYPES = {"DT_FLOAT": np.float32, "DT_INT32": np.int32, "DT_STRING": object}


class RestConnection:
    """`predict` of one model over HTTP; arguments as in `Client`."""

    def __init__(
        self,
        url: str,
        name: str,
        version: int | str | None,
        timeout: float,
        retries: int,
        backoff: float,
    ) -> None:
        self.url = f"{url.rstrip('/')}/v1/models/{quote(name, safe='')}"
        if version is not None:
            kind = "versions" if isinstance(version, int) else "labels"
            self.url += f"/{kind}/{quote(str(version), safe='')}"
        self.timeout = timeout
        policy = _Retry(
            total=retries,
            other=0,
            status_forcelist=UNAVAILABLE,
            allowed_methods=None,  # a prediction changes nothing, though it is a POST
            backoff_factor=backoff,
            raise_on_status=False,  # the last answer has the server's words
        )
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=policy, pool_maxsize=64))

    @cached_property
    def _outputs(self) -> dict[str, dict[str, Any]]:
        """Signature -> the name of each output -> its dtype."""
        answer = json.loads(self._request("GET", "/metadata"))
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        check_signatures(signatures, self.url)
        return {
            name: {key: DTYPES.get(info["dtype"]) for key, info in about.get("outputs", {}).items()}
            for name, about in signatures.items()
        }

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        dtypes = self._outputs.get(signature, {})
        columns = {name: _encoded(column) for name, column in inputs.items()}
        # The standard json: it writes and reads NaN and Infinity, as the server does.
        body = json.dumps({"signature_name": signature, "inputs": columns})
        outputs = json.loads(self._request("POST", ":predict", body.encode()))["outputs"]
        if len(dtypes) == 1:  # then the server leaves the name out
            outputs = dict.fromkeys(dtypes, outputs)
        return {
            name: np.array(_bytes(column) if name.endswith("_bytes") else column, dtypes[name])
            for name, column in outputs.items()
        }

    def close(self) -> None:
        self._session.close()

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        url = self.url + path
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._session.request(
                method, url, data=body, headers=headers, timeout=self.timeout
            )
        except (requests.Timeout, Urllib3Timeout):
            raise TimeoutError(f"No answer from {url} within {self.timeout} s.") from None
        except requests.RequestException as error:
            raise ConnectionError(f"No answer from {url}: {error}") from None
        if answer.status_code == 200:
            return answer.content
        message = f"The server answered {answer.status_code}: {_error(answer.content)}"
        if answer.status_code in UNAVAILABLE:
            raise ConnectionError(message)
        raise (TimeoutError if answer.status_code == 504 else RuntimeError)(message)


class _Retry(Retry):
    """urllib3's rules, but for timeouts: after one the server may still be at work."""

    def increment(
        self, method: Any = None, url: Any = None, response: Any = None, error: Any = None,
        _pool: Any = None, _stacktrace: Any = None,
    ) -> Any:  # fmt: skip
        # A refused connection counts as a timeout to connect there.
        if isinstance(error, Urllib3Timeout) and not isinstance(error, NewConnectionError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


def _error(content: bytes) -> str:
    """The server's words; all of the answer where it is not the JSON that a server gives."""
    try:
        return json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return content.decode("utf-8", "replace").strip()


def _encoded(value: Any) -> Any:
    """Nested lists with texts as JSON can carry them."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_encoded(element) for element in value]
    if not isinstance(value, (str, bytes)):
        return value
    raw = as_bytes(value)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {"b64": base64.b64encode(raw).decode()} if "\0" in text else text


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(element) for element in value]
    return base64.b64decode(value["b64"])
