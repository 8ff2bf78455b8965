"""Checkpoints in the layout of OpenAI's release: hparams.json and a TensorFlow checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_gpt2.models.checkpoints.files import listing, read_json, read_sizes
from keras_gpt2.models.checkpoints.variables import Tensor, build, check_names, rows
from keras_gpt2.models.gpt2 import GPT2

_SIZES = {
    "n_vocab": "vocabulary_size",
    "n_ctx": "sequence_length",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "hidden_dim",
}
_KINDS = {"embeddings": "", "kernel": "/w", "bias": "/b", "gamma": "/g", "beta": "/b"}


def load_openai(directory: str | os.PathLike, load_weights: bool = True) -> GPT2:
    """The GPT2 that computes what OpenAI's `src/model.py` computes from the same files.

    Needs TensorFlow, whatever Keras's backend.

    Args:
        directory: holds `hparams.json` and the checkpoint that the file `checkpoint` names, or
            `model.ckpt`.
        load_weights: bool; False reads `hparams.json` alone and gives random weights.

    Returns:
        A GPT2 with dropout 0.1 (the release says nothing of dropout).

    Raises:
        ValueError: if a file is damaged: not whole, a tensor missing, unknown, of another shape,
            or not finite.
        FileNotFoundError: if `hparams.json` or the checkpoint is missing.

    Example:
        >>> load_openai("models/124M")  # doctest: +SKIP
        <GPT2 name=gpt2, built=True>
    """
    directory = Path(directory)
    hparams_file = directory / "hparams.json"
    arguments = read_sizes(read_json(hparams_file), _SIZES, str(hparams_file))
    if not load_weights:
        return GPT2(**arguments)
    names = {
        row.path: f"model/{row.openai}{_KINDS[row.kind]}" for row in rows(arguments["num_layers"])
    }
    tensors = _tensors(directory)
    check_names(names, tensors, str(directory))
    return build(arguments, names, tensors)


def _tensors(directory: Path) -> dict[str, Tensor]:
    import tensorflow as tf

    prefix = tf.train.latest_checkpoint(str(directory)) or str(directory / "model.ckpt")
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(
            "There must be a TensorFlow checkpoint: model.ckpt.index and model.ckpt.data-*. "
            f"Received: {directory} with {listing(directory)}."
        )

    def tensor(name: str, shape: list[int]) -> Tensor:
        # Kernels are those of a convolution over one position: (1, in, out).
        kernel = name.endswith("/w") and shape[:1] == [1]

        def read() -> np.ndarray:
            try:
                value = reader.get_tensor(name)
            except Exception as error:  # OpError, RuntimeError or IndexError
                raise ValueError(
                    f"Tensor {name!r} must be readable. Received: {prefix}, {error}."
                ) from error
            return value[0] if kernel else value

        return Tensor(read, prefix)

    try:
        reader = tf.train.load_checkpoint(prefix)
    except Exception as error:
        raise ValueError(
            f"A TensorFlow checkpoint must be whole. Received: {prefix}, {error}."
        ) from error
    return {name: tensor(name, s) for name, s in reader.get_variable_to_shape_map().items()}
