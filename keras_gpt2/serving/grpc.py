"""A connection to TensorFlow Serving's gRPC interface."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tensorflow as tf

from keras_gpt2.serving.base_client import as_bytes, check_signatures, decoded

try:
    import grpc
    from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2
    from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Asking over gRPC needs tensorflow-serving-api: "
        f'pip install "keras_gpt2[grpc]". Received: {error}.'
    ) from None


class GrpcConnection:
    """`predict` of one model over gRPC; arguments as in `Client`."""

    def __init__(
        self,
        url: str,
        name: str,
        version: int | str | None,
        timeout: float,
        retries: int,
        backoff: float,
    ) -> None:
        self.address = urlsplit(url).netloc
        self.timeout = timeout
        if isinstance(version, int):
            self._spec = model_pb2.ModelSpec(name=name)
            self._spec.version.value = version
        else:
            self._spec = model_pb2.ModelSpec(name=name, version_label=version)
        self._channel = grpc.insecure_channel(self.address, _options(retries, backoff))
        self._stub = PredictionServiceStub(self._channel)

    @cached_property
    def _signatures(self) -> Any:
        """Signature name -> SignatureDef."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        answer = self._ask(self._stub.GetModelMetadata, request)
        found = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        check_signatures(found.signature_def, f"{self._spec.name} at grpc://{self.address}")
        return found.signature_def

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        # Without its dtype a list [1] would go as integers where floats are wanted. Of what the
        # model does not have, the server says so.
        known = self._signatures[signature].inputs if signature in self._signatures else {}
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, column in inputs.items():
            dtype = known[name].dtype if name in known else None
            request.inputs[name].CopyFrom(tf.make_tensor_proto(_encoded(column), dtype))
        outputs = self._ask(self._stub.Predict, request).outputs
        return {name: decoded(name, tf.make_ndarray(tensor)) for name, tensor in outputs.items()}

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            code, words = error.code(), error.details()
        where = f"grpc://{self.address}"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise TimeoutError(f"No answer from {where} within {self.timeout} s: {words}")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            raise ConnectionError(f"No answer from {where}: {code.name}: {words}")
        raise RuntimeError(f"The server answered {code.name}: {words}")


def _options(retries: int, backoff: float) -> list[tuple[str, Any]]:
    # gRPC sometimes never ends a call whose wait is a millisecond (grpc issue 41036).
    milliseconds = max(round(1000 * backoff), 10)
    options: list[tuple[str, Any]] = [
        # 4 MB else, which the logits of a few rows exceed.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A second else, in which tries fail without a look at the server.
        ("grpc.initial_reconnect_backoff_ms", milliseconds),
        ("grpc.min_reconnect_backoff_ms", milliseconds),
        ("grpc.enable_retries", int(retries > 0)),
        # 256 KB else; what is larger is not kept for another try.
        ("grpc.per_rpc_retry_buffer_size", 2**28),
    ]
    if retries > 0:
        policy = {
            "maxAttempts": min(retries + 1, 5),  # more count as 5 in gRPC
            "initialBackoff": f"{milliseconds / 1000}s",
            "maxBackoff": "60s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
        service = {"service": "tensorflow.serving.PredictionService"}
        config = {"methodConfig": [{"name": [service], "retryPolicy": policy}]}
        options.append(("grpc.service_config", json.dumps(config)))
    return options


def _encoded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_encoded(element) for element in value]
    return as_bytes(value) if isinstance(value, str) else value
