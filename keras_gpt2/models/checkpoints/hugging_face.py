"""Checkpoints in the layout of Hugging Face's transformers: config.json and model.safetensors."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_gpt2.models.checkpoints.files import listing, read_json, read_sizes
from keras_gpt2.models.checkpoints.safetensors_file import read_safetensors, write_safetensors
from keras_gpt2.models.checkpoints.variables import (
    Tensor,
    activation_name,
    build,
    check_names,
    rows,
    values,
)
from keras_gpt2.models.gpt2 import GPT2

_SIZES = {
    "vocab_size": "vocabulary_size",
    "n_positions": "sequence_length",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "hidden_dim",
}
# The first name of each of ours is the one that is written.
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
# What would change the results: the only values that GPT2 computes. (reorder_and_upcast_attn asks
# for the softmax in float32, which is what GPT2 does anyway.)
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
_HEAD = "lm_head.weight"  # (V, D), ours is (D, V)
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # old files keep the causal mask as a tensor
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_END_OF_TEXT = "<|endoftext|>"


def load_hugging_face(directory_or_hub_id: str | os.PathLike, load_weights: bool = True) -> GPT2:
    """The GPT2 that computes what transformers computes from the same files.

    Args:
        directory_or_hub_id: a directory with `config.json` and `model.safetensors` (or its shards
            and `model.safetensors.index.json`), or a model's name on the Hugging Face hub, which is
            downloaded or found in the hub's cache.
        load_weights: bool; False reads `config.json` alone and gives random weights.

    Returns:
        A GPT2. Float16 and bfloat16 files become variables of the dtype policy's type, float32
        by default. Its `dropout` is `resid_pdrop`; if `embd_pdrop` or `attn_pdrop` differ, a
        warning says so (they matter in training only).

    Raises:
        ValueError: if the configuration asks for what GPT2 does not compute, or a file is damaged:
            not whole, a tensor missing, unknown, of another shape, or not finite.
        FileNotFoundError: if there is no safetensors file. Pickled `.bin` files are never opened.
        OSError: if the hub cannot be reached and its cache does not hold the model.

    Example:
        >>> load_hugging_face("openai-community/gpt2")  # doctest: +SKIP
        <GPT2 name=gpt2, built=True>
    """
    directory = Path(directory_or_hub_id)
    if not directory.is_dir():
        directory = download(str(directory_or_hub_id), load_weights=load_weights)
    config_file = directory / "config.json"
    config = read_json(config_file)
    arguments = _arguments(config, str(config_file))
    if not load_weights:
        return GPT2(**arguments)
    tied = arguments["tie_weights"]
    names = _names(arguments["num_layers"], tied)
    tensors = _tensors(directory)
    if tied:
        _drop_equal_head(tensors)
    elif _HEAD in tensors:
        read, place = tensors[_HEAD]
        tensors[_HEAD] = Tensor(lambda: read().T, place)
    check_names(names, tensors, str(directory))
    return build(arguments, names, tensors)


def save_hugging_face(model: GPT2, directory: str | os.PathLike, tokenizer: Any = None) -> Path:
    """Writes a directory that transformers' `AutoModelForCausalLM` and `AutoTokenizer` open.

    The files are written beside it and get their place in one step: a crash leaves no directory
    that is written in part.

    Args:
        model: a GPT2 without layer classes of its own.
        directory: a path where nothing is yet, or an empty directory.
        tokenizer: a `BytePairTokenizer`, or any object with `save(directory)`, which writes
            `vocab.json` and `merges.txt`, and a dict `vocabulary`. Without it the configuration
            names no end-of-text id.

    Returns:
        The directory.

    Raises:
        ValueError: if the format cannot hold the model, or the tokenizer has more tokens than it.
        FileExistsError: if the directory holds something.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(
            f"directory must be new or empty. Received: directory={str(directory)!r}."
        )
    names = _names(model.num_layers, model.tie_weights)
    variables = values(model, names, "transformers")
    config = _config(model)
    vocabulary = {} if tokenizer is None else tokenizer.vocabulary
    if len(vocabulary) > model.vocabulary_size:
        raise ValueError(
            "The tokenizer must have at most the model's vocabulary_size tokens. "
            f"Received: {len(vocabulary)} tokens, vocabulary_size={model.vocabulary_size}."
        )
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), vocabulary.get(_END_OF_TEXT))
    tensors = {f"transformer.{name}": variable for name, variable in variables.items()}
    if not model.tie_weights:
        tensors[_HEAD] = ops.transpose(tensors.pop(f"transformer.{_HEAD}"))

    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        _write_json(partial / "config.json", config | special)
        _write_json(partial / "generation_config.json", special)
        if tokenizer is not None:
            tokenizer.save(partial)
            token = _END_OF_TEXT if _END_OF_TEXT in vocabulary else None
            tokenizer_config = {
                "tokenizer_class": "GPT2Tokenizer",
                "model_max_length": model.sequence_length,
                "add_prefix_space": False,
                **dict.fromkeys(("bos_token", "eos_token", "unk_token"), token),
            }
            _write_json(partial / "tokenizer_config.json", tokenizer_config)
        write_safetensors(partial / _WEIGHTS, tensors)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def _names(num_layers: int, tied: bool) -> dict[str, str]:
    """Path -> name, without the `transformer.` that a model with a head puts before all others."""
    names = {
        row.path: f"{row.hugging_face}.{'bias' if row.kind in ('beta', 'bias') else 'weight'}"
        for row in rows(num_layers)
    }
    return names if tied else names | {"token_embedding/reverse_embeddings": _HEAD}


def _tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of one file or all shards by their names without `transformer.`."""
    if (directory / _WEIGHTS).is_file():
        shards = [_WEIGHTS]
    elif (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map", {})
        shards = sorted(set(weight_map.values()))
    else:
        advice = (
            " A pytorch_model.bin can run any code when it is opened: save the model again with "
            "save_pretrained(directory, safe_serialization=True)."
        )
        raise FileNotFoundError(
            f"The weights must be in {_WEIGHTS}, or in shards named by {_INDEX}. "
            f"Received: {directory} with {listing(directory)}."
            + advice
            * any(directory.glob("pytorch_model*"))
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard or not (directory / shard).is_file():
            first = min(name for name, file in weight_map.items() if file == shard)
            raise FileNotFoundError(
                f"Each shard of {_INDEX} must be a file beside it. "
                f"Received: {directory} without {shard!r}, which should hold {first!r}."
            )
        for full_name, tensor in read_safetensors(directory / shard).items():
            name = full_name.removeprefix("transformer.")
            if name in tensors:
                raise ValueError(
                    f"Tensor {name!r} must be there once. "
                    f"Received: it in {tensors[name].place} and as {full_name!r} in {tensor.place}."
                )
            if not _MASK.fullmatch(name):
                tensors[name] = tensor
    return tensors


def _drop_equal_head(tensors: dict[str, Tensor]) -> None:
    """Some files hold the tied matrix twice; two that differ are no tied matrix."""
    head, embedding = tensors.pop(_HEAD, None), tensors.get("wte.weight")
    if head and embedding and not np.array_equal(head.read(), embedding.read()):
        raise ValueError(
            f"Tensor {_HEAD!r} must equal 'wte.weight' where tie_word_embeddings is true. "
            f"Received: another one in {head.place}."
        )


def _arguments(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """transformers' configuration as arguments of GPT2."""
    for field, only in _FIXED.items():
        if config.get(field, only) != only:
            raise ValueError(
                f"{field} must be {json.dumps(only)} (GPT2 computes nothing else). "
                f"Received: {field}={json.dumps(config[field])} in {place}."
            )
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"activation_function must be one of {', '.join(_ACTIVATIONS)}. "
            f"Received: activation_function={json.dumps(activation)} in {place}."
        )
    rates = {field: config.get(field, 0.1) for field in _DROPOUTS}
    if len(set(rates.values())) > 1:
        warnings.warn(
            f"GPT2 has one dropout rate, resid_pdrop is taken. Received: {rates} in {place}.",
            stacklevel=3,
        )
    return {
        **read_sizes(config, _SIZES, place),
        "intermediate_dim": config.get("n_inner"),
        "dropout": rates["resid_pdrop"],
        "activation": _ACTIVATIONS[activation],
        "epsilon": config.get("layer_norm_epsilon", 1e-5),
        "tie_weights": config.get("tie_word_embeddings", True),
    }


def _config(model: GPT2) -> dict[str, Any]:
    """GPT2's arguments as transformers' configuration."""
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    activation = activation_name(model)
    if activation not in names:
        raise ValueError(
            f"The activation of a model for transformers must be one of {', '.join(names)}. "
            f"Received: activation={activation}."
        )
    standard_width = model.intermediate_dim == 4 * model.hidden_dim
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{field: getattr(model, ours) for field, ours in _SIZES.items()},
        "n_inner": None if standard_width else model.intermediate_dim,
        "activation_function": names[activation],
        **dict.fromkeys(_DROPOUTS, model.dropout),
        "layer_norm_epsilon": model.epsilon,
        "tie_word_embeddings": model.tie_weights,
        "dtype": "float32",
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def download(hub_id: str, *extra: str, load_weights: bool = True) -> Path:
    """The directory of a model in the hub's cache, fetched if it is not there yet.

    Args:
        hub_id: `"openai-community/gpt2"`, for example.
        *extra: names of files wanted beside config.json and the weights, if there are any.
        load_weights: bool; False leaves the weights out.

    Raises:
        FileNotFoundError: if that can be no model's name.
        OSError: if the hub cannot be reached and its cache does not hold the model.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub_id) or hub_id.startswith("."):
        raise FileNotFoundError(
            f"There must be a directory, or a model on the hub. Received: {hub_id!r}."
        )
    from huggingface_hub import snapshot_download

    weights = [_INDEX, "model*.safetensors"] if load_weights else []
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["config.json", *weights, *extra]))
    except Exception as error:  # its own errors, the HTTP library's, the operating system's
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{hub_id!r} is no directory here, and as a model it must be in the Hugging Face cache "
            "or within reach: download its config.json and model.safetensors where there is a "
            f"network, and give their directory. Received: {type(error).__name__}: {reason}"
        ) from None
