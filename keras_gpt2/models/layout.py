"""Which axis of which weight lies on which devices, where a model is split over several."""

from __future__ import annotations

from typing import Any

import keras


def layout_map(device_mesh: Any, axis: str = "model") -> Any:
    """See `GPT2.layout_map`."""
    if axis not in device_mesh.axis_names:
        raise ValueError(
            f"axis must be one of the mesh's, {', '.join(device_mesh.axis_names)}. "
            f"Received: axis={axis!r}."
        )
    layouts = keras.distribution.LayoutMap(device_mesh)
    # Of a pair of products the first is split by outputs, the second by inputs: between the two
    # every device goes on with what it has.
    for name in ("query_key_value", "expand"):
        layouts[f".*/{name}/kernel"] = (None, axis)
        layouts[f".*/{name}/bias"] = (axis,)
    for name in ("output_projection", "project"):
        layouts[f".*/{name}/kernel"] = (axis, None)
    # Not by tokens: 50257 of them cannot be split.
    layouts["token_embedding/embeddings"] = (None, axis)
    layouts["token_embedding/reverse_embeddings"] = (axis, None)
    layouts["position_embedding/embeddings"] = (None, axis)
    return layouts
