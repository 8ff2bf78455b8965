"""Our variables and their names elsewhere, and the one way from foreign tensors to a GPT2."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_gpt2.layers import CausalSelfAttention, FeedForward, ResidualBlock
from keras_gpt2.models.gpt2 import GPT2

_EMBEDDING = ("embeddings",)
_DENSE = ("kernel", "bias")
_NORM = ("gamma", "beta")

# Our layer; its name in OpenAI's code, which Hugging Face kept; KerasHub's layer, or the three that
# stand side by side in ours; the variables, called alike here and in KerasHub.
_LAYERS = (
    ("token_embedding", "wte", "token_embedding", _EMBEDDING),
    ("position_embedding", "wpe", "position_embedding", _EMBEDDING),
    ("attention_{i}/norm", "{h}/ln_1", "{t}/self_attention_layer_norm", _NORM),
    (
        "attention_{i}/attention/query_key_value",
        "{h}/attn/c_attn",
        "{t}/self_attention/query {t}/self_attention/key {t}/self_attention/value",
        _DENSE,
    ),
    (
        "attention_{i}/attention/output_projection",
        "{h}/attn/c_proj",
        "{t}/self_attention/attention_output",
        _DENSE,
    ),
    ("feed_forward_{i}/norm", "{h}/ln_2", "{t}/feedforward_layer_norm", _NORM),
    (
        "feed_forward_{i}/feed_forward/expand",
        "{h}/mlp/c_fc",
        "{t}/feedforward_intermediate_dense",
        _DENSE,
    ),
    (
        "feed_forward_{i}/feed_forward/project",
        "{h}/mlp/c_proj",
        "{t}/feedforward_output_dense",
        _DENSE,
    ),
    ("final_norm", "ln_f", "layer_norm", _NORM),
)


class Row(NamedTuple):
    """One variable: its path in GPT2, the names of its layer elsewhere, and its own last name."""

    path: str
    openai: str  # model/h0/attn/c_attn without the "model/"
    hugging_face: str  # h.0.attn.c_attn
    keras_nlp: tuple[str, ...]  # variables, whose columns stand side by side in ours
    kind: str  # "embeddings", "kernel", "bias", "gamma" or "beta"


def rows(num_layers: int) -> Iterator[Row]:
    """The variables of a GPT2 with that many blocks and a tied output matrix."""
    for ours, original, keras_nlp, kinds in _LAYERS:
        for i in range(num_layers if "{" in ours else 1):
            for kind in kinds:
                yield Row(
                    f"{ours.format(i=i)}/{kind}",
                    original.format(h=f"h{i}"),
                    original.format(h=f"h/{i}").replace("/", "."),
                    tuple(
                        f"{layer}/{kind}"
                        for layer in keras_nlp.format(t=f"transformer_layer_{i}").split()
                    ),
                    kind,
                )


class Tensor(NamedTuple):
    """A tensor that is read when it is needed; `place` says in errors where it comes from."""

    read: Callable[[], np.ndarray]
    place: str


def by_path(model: keras.Model) -> dict[str, Any]:
    """The variables of a GPT2 or GPT2Backbone by path, without the name scope it was made in."""
    scope = max(model.weights[0].path.find("token_embedding/"), 0)
    return {variable.path[scope:]: variable for variable in model.weights}


def check_names(names: Mapping[str, str], tensors: Mapping[str, Any], place: str) -> None:
    """Raises ValueError unless `tensors` are exactly those named in `names` (path -> name)."""
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise ValueError(
            f"Every tensor of the model must be there. Received: {place} without {_first(missing)}."
        )
    expected = set(names.values())
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise ValueError(
            "There must be no tensor that the model has no place for. "
            f"Received: {place} with {_first(extra)}."
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    value = tensor.read()
    if value.shape != shape:
        raise ValueError(
            f"Tensor {name!r} must have the shape {shape}. "
            f"Received: shape={value.shape} in {tensor.place}."
        )
    if not np.isfinite(value).all():
        raise ValueError(
            f"Tensor {name!r} must be finite. Received: NaN or infinity in {tensor.place}."
        )
    return value


def build(
    arguments: Mapping[str, Any], names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> GPT2:
    """`GPT2(**arguments)` whose variable at each path of `names` holds the tensor of that name.

    Tensors are read one after the other, each when its variable is created: no random values are
    drawn and nothing is held twice.

    Raises:
        ValueError: if a tensor has another shape than its variable, or is not finite.
    """
    errors: list[Exception] = []
    seen = set()

    def initialize(name: str, shape: Any, dtype: Any = None) -> Any:
        seen.add(name)
        # An error here would leave Keras with a list of variables that it never creates and
        # stumbles over at the next model: it waits until all are there.
        if not errors:
            try:
                value = _checked(name, tensors[name], tuple(shape))
                return ops.convert_to_tensor(value, dtype)
            except Exception as error:
                errors.append(error)
        return ops.zeros(shape, dtype)

    # Inside this scope Keras only takes note of variables; it creates them at the end.
    with keras.StatelessScope():
        model = GPT2(**arguments)
        variables = {names[path]: variable for path, variable in by_path(model).items()}
        for name, variable in variables.items():
            variable._initializer = functools.partial(initialize, name)
    for name, variable in variables.items():
        if name not in seen:  # by a Keras that creates variables at once
            variable.assign(initialize(name, variable.shape, variable.dtype))
    if errors:
        raise errors[0]
    return model


def values(model: GPT2, names: Mapping[str, str], format_name: str) -> dict[str, Any]:
    """The model's variables under their names in `names` (path -> name).

    Raises:
        ValueError: if layers of a class of its own, or other variables than GPT-2's, give the
            model another meaning than the format can hold.
    """
    for argument, standard in (
        ("attention_class", CausalSelfAttention),
        ("block_class", ResidualBlock),
    ):
        given = getattr(model, argument)
        if given is not standard:
            raise ValueError(
                f"A model for {format_name} must have the {argument} {standard.__name__}. "
                f"Received: {argument}={given.__name__}."
            )
    variables = by_path(model)
    check_names({path: path for path in names}, variables, f"a model for {format_name}")
    return {name: variables[path] for path, name in names.items()}


def activation_name(model: GPT2) -> str:
    """The name of the model's activation, which may have been given as a function."""

    def function(activation: Any) -> Any:
        return FeedForward(1, activation).activation

    for name in ("gelu_tanh", "gelu", "relu"):
        if function(name) is function(model.activation):
            return name
    return str(model.activation)
