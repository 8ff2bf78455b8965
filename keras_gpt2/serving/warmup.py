"""Requests that a server answers before it takes others, and that tell whether it answers right.

TensorFlow Serving reads `assets.extra/tf_serving_warmup_requests` of a version while it loads it:
a TFRecord file of PredictionLog messages. Its messages are written here by their numbers on the
wire (tensorflow_serving/apis/prediction_log.proto, predict.proto, model.proto), so that the
package tensorflow-serving-api need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from keras_gpt2.generation import Sampling
from keras_gpt2.serving.signatures import BUCKETS, SHORTEST

PROMPT = "Once upon a time"
NAME = "assets.extra/tf_serving_warmup_requests"


class Record(NamedTuple):
    """A request and, where it was asked, its answer."""

    signature: str
    inputs: dict[str, Any]  # name -> tensor
    outputs: dict[str, Any]  # name -> tensor, or none


def example_records(version: Path, limit: int, defaults: Sampling) -> list[Record]:
    """Asks the SavedModel in `version` for an answer of every signature.

    `serving_default` is `generate` with these defaults, tensors `(1,)`, and asked so: its own graph
    would have to be optimized once more, which takes as long as all the rest.
    """
    signatures = tf.saved_model.load(str(version)).signatures

    def ask(signature: str, **inputs: Any) -> Record:
        return Record(signature, inputs, signatures[signature](**inputs))

    prompt = tf.constant([PROMPT])
    drawn = Sampling(*(tf.constant([value]) for value in (min(16, limit), 0.8, 0, 0.95, 1)))
    text = ask("generate", prompt=prompt, **defaults._asdict()).outputs["text"]
    tokenized = ask("tokenize", text=prompt)
    token_ids = tokenized.outputs["token_ids"]
    return [
        Record("serving_default", {"prompt": prompt}, {"text": text}),
        ask("generate", prompt=prompt, **drawn._asdict()),
        ask("score", text=prompt),
        ask("logits", token_ids=token_ids[:, :2]),
        tokenized,
        ask("detokenize", token_ids=token_ids),
    ]


def bucket_records(sequence_length: int, max_batch_size: int) -> list[Record]:
    """A request, not asked, for each of the shapes that an XLA export compiles."""
    rows = [b for b in BUCKETS if b <= max_batch_size]
    widths = [b for b in BUCKETS if SHORTEST <= b < sequence_length] + [sequence_length]
    return [
        Record(
            "generate",
            dict(
                # One token or two for each " a": more than the next smaller width in any case,
                # and of more than fit the last are kept.
                prompt=tf.constant(
                    [" a" * (width // 2 if width < sequence_length else width)] * number
                ),
                max_new_tokens=tf.fill([number], 0),
                temperature=tf.zeros([number]),
                top_k=tf.zeros([number], tf.int32),
                top_p=tf.ones([number]),
                seed=tf.zeros([number], tf.int32),
            ),
            {},
        )
        for number in rows
        for width in widths
    ]


def write_records(version: Path, model_name: str, records: Iterable[Record]) -> None:
    """Writes the warm-up requests of the SavedModel in `version`."""
    path = version / NAME
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            log = _message("PredictionLog")
            for message, tensors in (
                (log.predict_log.request, record.inputs),
                (log.predict_log.response, record.outputs),
            ):
                for key, tensor in tensors.items():
                    proto = tf.make_tensor_proto(tf.convert_to_tensor(tensor).numpy())
                    message.tensors[key].CopyFrom(proto)
            spec = log.predict_log.request.model_spec
            spec.name, spec.signature_name = model_name, record.signature
            writer.write(log.SerializeToString(deterministic=True))


def read_records(version: Path) -> Iterator[Record]:
    """The requests that `write_records` wrote, tensors as numpy arrays."""
    for data in tf.data.TFRecordDataset(str(version / NAME)).as_numpy_iterator():
        log = _message("PredictionLog")
        log.ParseFromString(data)
        request, response = log.predict_log.request, log.predict_log.response
        tensors = [
            {key: tf.make_ndarray(value) for key, value in message.tensors.items()}
            for message in (request, response)
        ]
        yield Record(request.model_spec.signature_name, *tensors)


def _message(name: str) -> Any:
    return _classes()[f"keras_gpt2.{name}"]()


@cache
def _classes() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tensorflow.core.framework import tensor_pb2

    tensor = tensor_pb2.TensorProto.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_gpt2/prediction_log.proto", package="keras_gpt2", syntax="proto3"
    )
    file.dependency.append(tensor.file.name)

    def add(parent: Any, name: str, fields: dict[str, tuple[int, str]]) -> Any:
        message = parent.add(name=name)
        for field, (number, kind) in fields.items():
            label = 3 if kind.endswith("Entry") else 1  # repeated, optional
            if kind == "string":
                message.field.add(name=field, number=number, label=label, type=9)
            else:
                type_name = kind if "." in kind else f"keras_gpt2.{kind}"
                message.field.add(
                    name=field, number=number, label=label, type=11, type_name=f".{type_name}"
                )
        return message

    def add_with_tensors(name: str, tensors: int, spec: int) -> None:
        entry = f"keras_gpt2.{name}.TensorsEntry"
        fields = {"tensors": (tensors, entry), "model_spec": (spec, "ModelSpec")}
        message = add(file.message_type, name, fields)
        pair = {"key": (1, "string"), "value": (2, tensor.full_name)}
        add(message.nested_type, "TensorsEntry", pair).options.map_entry = True

    messages = file.message_type
    add(messages, "ModelSpec", {"name": (1, "string"), "signature_name": (3, "string")})
    add_with_tensors("PredictRequest", tensors=2, spec=1)
    add_with_tensors("PredictResponse", tensors=1, spec=2)
    exchange = {"request": (1, "PredictRequest"), "response": (2, "PredictResponse")}
    add(messages, "PredictLog", exchange)
    add(messages, "PredictionLog", {"predict_log": (6, "PredictLog")})
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name], pool)
