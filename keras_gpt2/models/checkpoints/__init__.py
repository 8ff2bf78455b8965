"""Weights of other programs: the only place that knows their names and layouts."""

from __future__ import annotations

import os
from pathlib import Path

import keras

from keras_gpt2.models.checkpoints.files import listing, read_json
from keras_gpt2.models.checkpoints.hugging_face import (
    download,
    load_hugging_face,
    save_hugging_face,
)
from keras_gpt2.models.checkpoints.keras_nlp import (
    keras_nlp_vocabulary,
    load_keras_nlp,
    to_keras_nlp,
)
from keras_gpt2.models.checkpoints.openai import load_openai
from keras_gpt2.models.gpt2 import GPT2

__all__ = [
    "find",
    "keras_nlp_vocabulary",
    "load",
    "load_hugging_face",
    "load_keras_nlp",
    "load_openai",
    "save_hugging_face",
    "to_keras_nlp",
]

_PUBLISHED = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
_TOKENIZER_FILES = ("vocab.json", "merges.txt")


def find(name: str | os.PathLike) -> Path:
    """The directory of a model and its tokenizer: `name` itself, or one that the hub's cache holds.

    Both `GPT2.from_preset` and `BytePairTokenizer.from_directory` read it.

    Args:
        name: a directory, a published size (`"gpt2"` to `"gpt2-xl"`), or a name on the Hugging
            Face hub; what the cache does not hold is downloaded.

    Raises:
        OSError: if it is neither a directory nor in the cache nor within reach.

    Example:
        >>> directory = find("gpt2-medium")  # doctest: +SKIP
        >>> tokenizer = keras_gpt2.BytePairTokenizer.from_directory(directory)  # doctest: +SKIP
    """
    if Path(name).is_dir():
        return Path(name)
    return download(_PUBLISHED.get(str(name), str(name)), *_TOKENIZER_FILES)


def load(preset: str | Path, load_weights: bool = True) -> GPT2:
    """The GPT2 of a published size, or of a directory in any layout known here.

    | the directory holds | it is |
    | --- | --- |
    | `model.keras` | what `GPT2.save` wrote |
    | `hparams.json` | OpenAI's release: `load_openai` |
    | `config.json` with `registered_name` | a KerasHub preset: `load_keras_nlp` |
    | `config.json` without | transformers': `load_hugging_face` |

    The first row that fits counts.

    Args:
        preset: `"gpt2"`, `"gpt2-medium"`, `"gpt2-large"`, `"gpt2-xl"` (from the Hugging Face hub
            or its cache), or a directory.
        load_weights: bool; False gives the same sizes with random weights.

    Raises:
        ValueError: if it is neither, or the directory has none of the layouts.
    """
    if preset in _PUBLISHED:
        return load_hugging_face(_PUBLISHED[str(preset)], load_weights)
    directory = Path(preset)
    if not directory.is_dir():
        raise ValueError(
            f"preset must be one of {', '.join(_PUBLISHED)}, or a directory. "
            f"Received: preset={str(preset)!r}."
        )
    if (directory / "model.keras").is_file():
        return _load_own(directory / "model.keras", load_weights)
    if (directory / "hparams.json").is_file():
        return load_openai(directory, load_weights)
    if (directory / "config.json").is_file():
        if "registered_name" in read_json(directory / "config.json"):
            return load_keras_nlp(str(directory), load_weights)
        return load_hugging_face(directory, load_weights)
    raise ValueError(
        "A model's directory must hold model.keras, hparams.json (OpenAI) or config.json "
        f"(Hugging Face, KerasHub). Received: {directory} with {listing(directory)}."
    )


def _load_own(path: Path, load_weights: bool) -> GPT2:
    model = keras.saving.load_model(path, compile=False)
    if not isinstance(model, GPT2):
        raise ValueError(f"{path.name} must hold a GPT2. Received: a {type(model).__name__}.")
    return model if load_weights else GPT2.from_config(model.get_config())
