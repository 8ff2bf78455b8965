"""An exported version in the loader and session that TensorFlow Serving has."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf


class Session:
    """A version loaded as a server does; `signatures` is signature name -> SignatureDef."""

    def __init__(self, version: str | os.PathLike) -> None:
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(version))
        self.signatures = loaded.signature_def

    def run(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Exactly the signature's inputs by their names -> its outputs by theirs."""
        definition = self.signatures[signature]
        assert set(inputs) == set(definition.inputs), "a server would refuse this"
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: info.name for name, info in definition.outputs.items()}
        return self._session.run(fetches, feeds)
