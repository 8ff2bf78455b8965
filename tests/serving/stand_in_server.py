"""An export behind REST and gRPC, by the rules of TensorFlow Serving that clients can see.

Written from json_tensor.cc, http_rest_api_util.cc and prediction_service.proto of the server.
"""

import base64
import json
import math
import re
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Export:
    """A SavedModelClient's version, with the label `stable`, its signatures from the proto."""

    def __init__(self, on_disk, name):
        self.name = name
        self.number = int(on_disk.version.name)
        proto = saved_model_pb2.SavedModel()
        proto.ParseFromString((on_disk.version / "saved_model.pb").read_bytes())
        self.signatures = {
            key: signature
            for key, signature in proto.meta_graphs[0].signature_def.items()
            if not key.startswith("__")
        }
        self._functions = on_disk._loaded.signatures  # loading takes seconds: share it

    def find(self, name, version=None, label=None):
        version = int(version or self.number)
        if name != self.name or version != self.number or label not in (None, "", "stable"):
            raise Refused(404, f"Servable not found for request: Specific({name}, {version})")

    def signature(self, name):
        name = name or "serving_default"
        if name not in self.signatures:
            raise Refused(400, f'Serving signature name: "{name}" not found in signature def')
        return name, self.signatures[name]

    def run(self, name, arrays):
        try:
            outputs = self._functions[name](**{k: tf.constant(v) for k, v in arrays.items()})
        except tf.errors.InvalidArgumentError as error:
            raise Refused(400, error.message) from None
        return {key: value.numpy() for key, value in outputs.items()}


# REST


def tensor(value, dtype):
    """A JSON value as an array; FillTensorProto's rules."""
    shape, inside = [], value
    while isinstance(inside, list):
        shape.append(len(inside))
        inside = inside[0] if inside else None
    flat = []

    def walk(item, level):
        if isinstance(item, list):
            if level >= len(shape):
                raise Refused(400, f"Encountered list at unexpected level: {level}")
            if len(item) != shape[level]:
                raise Refused(400, f"Encountered list at unexpected size: {len(item)}")
            for element in item:
                walk(element, level + 1)
        elif level != len(shape):
            raise Refused(400, f"JSON Value: {item} found at incorrect level: {level + 1}")
        else:
            flat.append(scalar(item, dtype))

    walk(value, 0)
    array = np.empty(len(flat), object if dtype == tf.string else dtype.as_numpy_dtype)
    array[:] = flat
    return array.reshape(shape)


def scalar(value, dtype):
    if dtype == tf.string:
        if isinstance(value, dict) and set(value) == {"b64"}:
            return base64.b64decode(value["b64"], validate=True)
        good = isinstance(value, str)
    elif dtype == tf.int32:
        good = type(value) is int and -(2**31) <= value < 2**31
    else:
        good = type(value) in (int, float)
        if good and math.isfinite(value) and abs(value) > 3.5e38:
            raise Refused(400, f"Cannot convert JSON value: {value} to float without loss")
    if not good:
        raise Refused(400, f"JSON Value: {value!r} is not of expected type: {dtype.name}")
    return value.encode() if isinstance(value, str) else value


def arrays_of(body, infos):
    dtypes = {name: tf.as_dtype(info.dtype) for name, info in infos.items()}
    if ("instances" in body) == ("inputs" in body):
        raise Refused(400, "Missing 'inputs' or 'instances' key")
    if "inputs" in body:
        columns = body["inputs"]
        if not isinstance(columns, dict) or set(columns) == {"b64"}:
            if len(infos) > 1:
                raise Refused(400, "inputs is a plain value/list, but expecting an object")
            columns = dict.fromkeys(infos, columns)
        for name in infos:
            if name not in columns:
                raise Refused(400, f"Missing named input: {name} in 'inputs' object.")
        return {name: tensor(columns[name], dtype) for name, dtype in dtypes.items()}
    rows = body["instances"]
    if not isinstance(rows, list) or not rows:
        raise Refused(400, "No values in 'instances' array")
    if not isinstance(rows[0], dict) or set(rows[0]) == {"b64"}:
        if len(infos) > 1:
            raise Refused(400, "instances is a plain list, but expecting list of objects")
        (name,) = infos
        rows = [{name: row} for row in rows]
    for number, row in enumerate(rows):
        if set(row) != set(infos):
            raise Refused(
                400,
                f"Failed to process element: {number} of 'instances' list. keys must be equal "
                f"to: {','.join(sorted(infos))}",
            )
    return {name: tensor([row[name] for row in rows], dtype) for name, dtype in dtypes.items()}


def json_values(name, array):
    """What an output becomes: the shortest decimal that is the same float32, bare NaN, b64."""

    def value(element):
        if isinstance(element, list):
            return [value(e) for e in element]
        if isinstance(element, bytes):
            if name.endswith("_bytes"):
                return {"b64": base64.b64encode(element).decode()}
            return element.decode()
        return float(str(np.float32(element))) if isinstance(element, float) else element

    return value(array.tolist())


def rest_predict(export, body):
    name, signature = export.signature(body.get("signature_name"))
    outputs = export.run(name, arrays_of(body, signature.inputs))
    values = {key: json_values(key, array) for key, array in outputs.items()}
    if "instances" in body:
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return {"predictions": [r[next(iter(r))] if len(r) == 1 else r for r in rows]}
    return {"outputs": values if len(values) > 1 else next(iter(values.values()))}


def rest_metadata(export):
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2

    table = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in export.signatures.items():
        table.signature_def[name].CopyFrom(signature)
    as_json = json_format.MessageToDict(table, preserving_proto_field_name=True)
    spec = {"name": export.name, "signature_name": "", "version": str(export.number)}
    return {"model_spec": spec, "metadata": {"signature_def": as_json}}


PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(:predict|/metadata)?", re.I
)


class JsonHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive, as the server does

    def setup(self):
        super().setup()
        self.server.connections += 1

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, body))
        try:
            status, content = 200, self.handle_json(body)
        except Refused as refusal:
            status, content = refusal.status, {"error": str(refusal)}
        self.reply(status, json.dumps(content, ensure_ascii=False).encode())

    def reply(self, status, content):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_json(self, body):
        export = self.server.export
        found = PATH.fullmatch(self.path)
        if not found or (found[4] == ":predict") != (self.command == "POST"):
            raise Refused(400, f"Malformed request: {self.command} {self.path}")
        export.find(unquote(found[1]), found[2], unquote(found[3] or ""))
        if found[4] == "/metadata":
            return rest_metadata(export)
        try:
            request = json.loads(body)
        except ValueError as error:
            raise Refused(400, f"JSON Parse error: {error}") from None
        return rest_predict(export, request)

    def log_message(self, *_):
        pass


class HttpServer(ThreadingHTTPServer):
    """Counts connections and keeps requests; a `with` block serves."""

    daemon_threads = True

    def __init__(self, handler=JsonHandler, export=None):
        super().__init__(("127.0.0.1", 0), handler)
        self.export = export
        self.seen = []
        self.connections = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


# gRPC


class GrpcServer:
    """The same export behind PredictionService; a `with` block serves.

    `trouble` is a list of status codes that the next calls end with.
    """

    def __init__(self, export=None):
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self.export = export
        self.trouble = []
        self.seen = []
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4),
            options=[("grpc.max_receive_message_length", 2**31 - 1), ("grpc.so_reuseport", 0)],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None)

    def Predict(self, request, context):
        from tensorflow_serving.apis import predict_pb2

        self._start(request, context)
        answer = predict_pb2.PredictResponse()
        try:
            self._find(request.model_spec)
            name, signature = self.export.signature(request.model_spec.signature_name)
            tensors = {**signature.defaults, **request.inputs}
            if set(tensors) != set(signature.inputs):
                raise Refused(400, "input size does not match signature")
            for key, info in signature.inputs.items():
                if tensors[key].dtype != info.dtype:
                    wanted = tf.as_dtype(info.dtype).name
                    raise Refused(400, f"Expects arg {key} to be {wanted} but other is provided")
            arrays = {key: tf.make_ndarray(value) for key, value in tensors.items()}
            for key, array in self.export.run(name, arrays).items():
                answer.outputs[key].CopyFrom(tf.make_tensor_proto(array))
        except Refused as refusal:
            self._refuse(context, refusal)
        return answer

    def GetModelMetadata(self, request, context):
        from tensorflow_serving.apis import get_model_metadata_pb2

        self._start(request, context)
        try:
            self._find(request.model_spec)
        except Refused as refusal:
            self._refuse(context, refusal)
        assert list(request.metadata_field) == ["signature_def"]
        table = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self.export.signatures.items():
            table.signature_def[name].CopyFrom(signature)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(table)
        return answer

    Classify = Regress = MultiInference = None

    def _start(self, request, context):
        self.seen.append(request)
        if self.trouble:
            context.abort(self.trouble.pop(0), "not now")

    def _find(self, spec):
        self.export.find(spec.name, spec.version.value, spec.version_label)

    def _refuse(self, context, refusal):
        import grpc

        codes = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}
        context.abort(codes[refusal.status], str(refusal))
