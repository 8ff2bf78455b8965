"""Models of KerasHub, which was called KerasNLP."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from keras import ops

from keras_gpt2.models.checkpoints.variables import (
    Row,
    Tensor,
    activation_name,
    build,
    by_path,
    check_names,
    rows,
    values,
)
from keras_gpt2.models.gpt2 import GPT2

_SIZES = {
    "vocabulary_size": "vocabulary_size",
    "max_sequence_length": "sequence_length",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "hidden_dim": "hidden_dim",
    "intermediate_dim": "intermediate_dim",
    "dropout": "dropout",
}
# What GPT2Backbone has no argument for.
_FIXED = {"activation": "gelu_tanh", "epsilon": 1e-5, "tie_weights": True}


def load_keras_nlp(model_or_preset: Any, load_weights: bool = True) -> GPT2:
    """The GPT2 that computes what a KerasHub GPT-2 computes.

    Args:
        model_or_preset: a `GPT2Backbone`, a `GPT2CausalLM`, or what
            `GPT2Backbone.from_preset` takes: a preset's name or its directory.
        load_weights: bool; False gives the same sizes with random weights.

    Raises:
        TypeError: if it is another model.
        ImportError: if neither keras_hub nor keras_nlp is installed.

    Example:
        >>> load_keras_nlp("gpt2_base_en")  # doctest: +SKIP
        <GPT2 name=gpt2, built=True>
    """
    backbone_class = _backbone_class()
    if isinstance(model_or_preset, str):
        backbone = backbone_class.from_preset(model_or_preset, load_weights=load_weights)
    else:
        backbone = getattr(model_or_preset, "backbone", model_or_preset)
    if not isinstance(backbone, backbone_class):
        raise TypeError(
            "A GPT2Backbone, a GPT2CausalLM or a preset is needed. "
            f"Received: {type(model_or_preset).__name__}."
        )
    arguments = {ours: getattr(backbone, theirs) for theirs, ours in _SIZES.items()}
    if not load_weights:
        return GPT2(**arguments)
    variables = by_path(backbone)
    place = f"the GPT2Backbone {backbone.name!r}"
    table = list(rows(backbone.num_layers))
    check_names({name: name for row in table for name in row.keras_nlp}, variables, place)

    def tensor(row: Row) -> Tensor:
        def read() -> np.ndarray:
            arrays = [ops.convert_to_numpy(variables[name]) for name in row.keras_nlp]
            # Heads have axes of their own there: (D, H, K) and (H, K, D), biases (H, K).
            if row.kind == "bias":
                arrays = [array.reshape(-1) for array in arrays]
            elif arrays[0].ndim == 3:
                arrays = [array.reshape(backbone.hidden_dim, -1) for array in arrays]
            return np.concatenate(arrays, axis=-1)

        return Tensor(read, place)

    return build(
        arguments, {row.path: row.path for row in table}, {row.path: tensor(row) for row in table}
    )


def to_keras_nlp(model: GPT2) -> Any:
    """The KerasHub `GPT2Backbone` with the same weights; `GPT2CausalLM` takes it as `backbone`.

    Its output is the hidden states after the last normalization;
    `backbone.token_embedding(hidden, reverse=True)` gives the model's logits.

    Raises:
        ValueError: if the model has layer classes of its own, or an activation, epsilon or output
            matrix that a `GPT2Backbone` cannot have.
        ImportError: if neither keras_hub nor keras_nlp is installed.
    """
    given = {
        "activation": activation_name(model),
        "epsilon": model.epsilon,
        "tie_weights": model.tie_weights,
    }
    for argument, only in _FIXED.items():
        if given[argument] != only:
            raise ValueError(
                f"A model for KerasHub must have the {argument} {only}. "
                f"Received: {argument}={given[argument]}."
            )
    table = list(rows(model.num_layers))
    ours = values(model, {row.path: row.path for row in table}, "KerasHub")
    backbone = _backbone_class()(**{theirs: getattr(model, our) for theirs, our in _SIZES.items()})
    theirs = by_path(backbone)
    for row in table:
        joined = ops.convert_to_numpy(ours[row.path])
        parts = np.split(joined, len(row.keras_nlp), axis=-1)
        for name, part in zip(row.keras_nlp, parts, strict=True):
            theirs[name].assign(part.reshape(theirs[name].shape))
    return backbone


def keras_nlp_vocabulary(model_or_tokenizer: Any) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges of a KerasHub tokenizer, for `BytePairTokenizer(*pair)`.

    Args:
        model_or_tokenizer: a `GPT2CausalLM` with a preprocessor, a preprocessor, or a
            `GPT2Tokenizer`.

    Raises:
        TypeError: if it has no vocabulary and merges.
    """
    owner = getattr(model_or_tokenizer, "preprocessor", model_or_tokenizer)
    tokenizer = getattr(owner, "tokenizer", owner)
    vocabulary, merges = (getattr(tokenizer, name, None) for name in ("vocabulary", "merges"))
    if not vocabulary or merges is None:
        raise TypeError(
            "A GPT2Tokenizer with a vocabulary and merges is needed, or a model that has one. "
            f"Received: {type(model_or_tokenizer).__name__}."
        )
    return dict(vocabulary), list(merges)


def _backbone_class() -> Any:
    for package in ("keras_hub", "keras_nlp"):
        try:
            return importlib.import_module(package).models.GPT2Backbone
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
    raise ImportError("KerasHub models need the package keras_hub: pip install keras-hub.")
