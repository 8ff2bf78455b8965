"""Asking a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt2.serving.base_client import BaseClient, as_bytes, check_signatures, decoded


class SavedModelClient(BaseClient):
    """`Client`'s face over an exported version on disk, loaded with TensorFlow alone.

    Args:
        directory: a version (`saved_models/NAME/1`) or a model's directory, whose last version
            is taken.

    Raises:
        FileNotFoundError: if there is no SavedModel.
        ValueError: if it is none of ours.

    Example:
        >>> SavedModelClient("saved_models/tales").tokenize("Once upon")  # doctest: +SKIP
        [[7454, 2402]]
    """

    def __init__(self, directory: str | Path) -> None:
        import tensorflow as tf

        self.version = last_version(Path(directory))
        self._loaded = tf.saved_model.load(str(self.version))
        check_signatures(self._loaded.signatures, str(self.version))

    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        if signature not in self._loaded.signatures:
            raise ValueError(
                f"signature must be one of {', '.join(self._loaded.signatures)}. "
                f"Received: {signature}."
            )
        function = self._loaded.signatures[signature]
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise ValueError(
                f"The inputs of {signature} must be {', '.join(specs)}. "
                f"Received: {', '.join(inputs)}."
            )
        tensors = {}
        for name, column in inputs.items():
            if specs[name].dtype == tf.string:
                column = [as_bytes(text) for text in column]
            tensors[name] = tf.constant(column, specs[name].dtype)
        outputs = function(**tensors)
        return {name: decoded(name, value.numpy()) for name, value in outputs.items()}


def last_version(directory: Path) -> Path:
    """The directory itself if it holds a SavedModel, else its subdirectory of largest number."""
    if (directory / "saved_model.pb").exists():
        return directory
    versions = [p for p in directory.glob("*/saved_model.pb") if p.parent.name.isdigit()]
    if not versions:
        raise FileNotFoundError(
            "An export is a directory with saved_model.pb, or one that holds numbered versions. "
            f"Received: {directory}."
        )
    return max(versions, key=lambda p: int(p.parent.name)).parent
