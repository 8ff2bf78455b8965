"""Fine-tuning few numbers: Keras's LoRA on a GPT2's products, and the way back to plain kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_gpt2.layers import Dense

TARGETS = ("query_key_value", "output_projection", "expand", "project")


def enable_lora(model: Any, rank: int, targets: Sequence[str] = TARGETS) -> int:
    """See `GPT2.enable_lora`."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1. Received: rank={rank}.")
    if model.weights_type != "float":
        raise ValueError(
            "LoRA must be enabled before the weights are made narrow. "
            f"Received: {model.weights_type} weights."
        )
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, Dense)]
    names = {layer.name for layer in layers}
    if isinstance(targets, str) or not targets or not set(targets) <= names:
        raise ValueError(
            f"targets must be some of the model's products, {', '.join(sorted(names))}. "
            f"Received: targets={targets!r}."
        )
    if any(layer.lora_enabled for layer in layers):
        raise ValueError(
            "LoRA must be merged before it is enabled anew. Received: a model that has it."
        )
    for weight in model.weights:
        weight.trainable = False
    for layer in layers:
        if layer.name in targets:
            layer.enable_lora(rank)
    model.train_function = model.test_function = model.predict_function = None
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def merge_lora(model: Any) -> None:
    """See `GPT2.merge_lora`."""
    for layer in _with_lora(model):
        layer.merge_lora()
    for layer in model._flatten_layers():
        for weight in layer._trainable_variables:
            weight.trainable = layer.trainable
    model.train_function = model.test_function = model.predict_function = None


def without_lora(model: Any) -> Any:
    """The model itself, or, where LoRA is enabled, a copy in which it is merged."""
    layers = list(_with_lora(model))
    if not layers:
        return model
    merged = {id(layer._kernel): layer.merged_kernel() for layer in layers}
    added = {id(w) for layer in layers for w in (layer.lora_kernel_a, layer.lora_kernel_b)}
    copy = model.from_config(model.get_config())
    copy.set_weights(
        [
            keras.ops.convert_to_numpy(merged.get(id(weight), weight))
            for weight in model.weights
            if id(weight) not in added
        ]
    )
    return copy


def _with_lora(model: Any) -> Iterator[Dense]:
    for layer in model._flatten_layers():
        if isinstance(layer, Dense) and layer.lora_enabled:
            yield layer
