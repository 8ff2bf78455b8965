"""What the computation runs on."""

from __future__ import annotations

import keras


def on_cpu() -> bool:
    """Whether Keras's first device is a processor, not a GPU or TPU."""
    return keras.distribution.list_devices()[0].startswith("cpu")
