"""Looking at an exported version as a server would, and asking it again what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_gpt2.serving import batching
from keras_gpt2.serving.warmup import read_records


class ExportError(ValueError):
    """An exported version that is not what it was."""


def operations(version: Path) -> list[str]:
    """The kinds of operations in a SavedModel's graph, sorted.

    Args:
        version: directory with saved_model.pb.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((version / "saved_model.pb").read_bytes())
    found = set()
    for meta_graph in proto.meta_graphs:
        graph = meta_graph.graph_def
        found |= {node.op for node in graph.node}
        found |= {node.op for function in graph.library.function for node in function.node_def}
    return sorted(found)


def check_export(version: Path) -> list[str]:
    """Loads a version and asks it what its warm-up requests ask.

    Args:
        version: directory that `export` wrote, for example `saved_models/NAME/1`.

    Returns:
        What was found right, in words, a line each.

    Raises:
        ExportError: if a file is missing or damaged, or an answer differs from the one it gave
            when it was exported: in any text or count, or in a float by more than 0.1%.
    """
    try:
        loaded = tf.saved_model.load(str(version))
        records = list(read_records(version))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ExportError(f"{version} cannot be loaded: {error}") from error
    for name in ("assets/vocab.json", "assets/merges.txt", batching.NAME):
        if not (version / name).exists():
            raise ExportError(f"An export must hold {name}. Received: {version}, without it.")
    asked = [record for record in records if record.outputs]
    for record in asked:
        inputs = {name: tf.constant(value) for name, value in record.inputs.items()}
        try:
            answer = loaded.signatures[record.signature](**inputs)
        except (KeyError, tf.errors.OpError) as error:
            raise ExportError(f"{record.signature} cannot be asked: {error}") from error
        for name, expected in record.outputs.items():
            if not _alike(answer[name].numpy(), expected):
                raise ExportError(
                    f"{record.signature} must answer as it did when it was exported. "
                    f"Received: {name}={answer[name].numpy()!r}, then {expected!r}."
                )
    return [
        "All signatures answer as they did when exported: "
        + ", ".join(record.signature for record in asked),
        f"{len(records)} warm-up requests",
        f"Operations: {', '.join(operations(version))}",
    ]


def _alike(value: Any, expected: Any) -> bool:
    if value.shape != expected.shape:
        return False
    if value.dtype.kind == "f":
        return bool(np.allclose(value, expected, rtol=1e-3, atol=1e-4, equal_nan=True))
    return bool((value == expected).all())
