"""What the computation runs on, and what compiles it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras

_xla: ContextVar[bool] = ContextVar("for_xla", default=False)


def on_cpu() -> bool:
    """Whether Keras's first device is a processor, not a GPU or TPU."""
    return keras.distribution.list_devices()[0].startswith("cpu")


@contextmanager
def for_xla() -> Iterator[None]:
    """Within, in this thread, products are formed as XLA's compiler for processors does them best.

    For graphs that it compiles only: TensorFlow's own products of parts are slower than of wholes.
    """
    token = _xla.set(on_cpu())
    try:
        yield
    finally:
        _xla.reset(token)


def xla_on_cpu() -> bool:
    """Whether this is within `for_xla`, on a processor."""
    return _xla.get()
