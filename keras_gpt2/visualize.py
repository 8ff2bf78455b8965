"""Looking at attention: who reads from whom, in every layer and head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


def attention_weights(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """The weights with which each attention layer of a model averages its values.

    Args:
        model: a `keras_gpt2.GPT2`, or any functional model with attention layers of
            `keras_gpt2.layers` in it, bare or in a `ResidualBlock`.
        inputs: what the model is called with; token ids `(B, T)` for a GPT2. Negative ids are
            padding.

    Returns:
        For each layer, in the order of the model, float32 `(B, H, T, S)`: in row b and head h,
        what position t takes from position s. The sum over s is 1.

    Raises:
        ValueError: if the model has no attention layer.

    Example:
        >>> from keras_gpt2 import GPT2
        >>> model = GPT2(11, sequence_length=5, num_layers=2, num_heads=3, hidden_dim=6)
        >>> [w.shape for w in attention_weights(model, keras.ops.array([[4, 7, 1, 2]]))]
        [(1, 3, 4, 4), (1, 3, 4, 4)]
    """
    layers = [layer for layer in model.layers if _is_attention(layer)]
    if not layers:
        raise ValueError(
            "model must be a functional model with attention layers. Received: the layers "
            f"{', '.join(layer.name for layer in model.layers) or 'none'}."
        )
    # One pass gives what every layer reads, a mask maybe too; the layer then tells its weights.
    read = [keras.tree.flatten(layer.input) for layer in layers]
    weights = []
    for layer, (x, *mask) in zip(layers, keras.Model(model.input, read)(inputs), strict=True):
        given = {"mask": mask[0]} if mask else {}
        weights.append(keras.ops.convert_to_numpy(layer(x, **given, return_weights=True)[-1]))
    return weights


def _is_attention(layer: keras.layers.Layer) -> bool:
    inner = layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
    return "return_weights" in inspect.signature(inner.call).parameters


def plot_attention(
    weights: Sequence[np.ndarray], labels: Sequence[str] | None = None, row: int = 0
) -> Any:
    """A picture of attention weights: a row of panels for each layer, a column for each head.

    In a panel, the line of a position shows where it looks: white is 0, black is 1.

    Args:
        weights: what `attention_weights` returns.
        labels: names of the T positions, for example the tokens; none if None.
        row: int, which of the B rows to draw.

    Returns:
        A `matplotlib.figure.Figure`; `figure.savefig("attention.png")` writes it.

    Raises:
        ValueError: if there are more or fewer labels than positions.
        ModuleNotFoundError: without matplotlib (the extra `plot`).

    Example:
        >>> figure = plot_attention([np.eye(3)[None, None]], ["A", "B", "C"])
        >>> [axes.get_title() for axes in figure.axes]
        ['layer 0, head 0']
    """
    positions = weights[0].shape[-1]
    if labels is not None and len(labels) != positions:
        raise ValueError(
            "labels must have one entry for each position. "
            f"Received: {len(labels)} labels, {positions} positions."
        )
    heads = max(layer.shape[1] for layer in weights)
    side = max(1.8, 0.17 * positions)  # inches, so that labels can be read
    figure = _figure(heads * side, len(weights) * (side + 0.3))
    grid = figure.subplots(len(weights), heads, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    names = [] if labels is None else list(labels)
    for i, layer in enumerate(weights):
        for head in range(layer.shape[1]):
            axes = grid[i, head]
            axes.set_axis_on()
            axes.imshow(layer[row, head], cmap="Greys", vmin=0, vmax=1)
            axes.set_title(f"layer {i}, head {head}", fontsize=8)
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            lines = names if head == 0 else []
            axes.set_yticks(range(len(lines)), lines, fontsize=7)
    return figure


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Pictures need matplotlib: pip install "keras_gpt2[plot]".', name=error.name
        ) from error
    return Figure((width, height), layout="constrained")
