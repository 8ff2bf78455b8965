"""What the C library does with freed memory while a dataset is read."""

import ctypes
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 << 20  # the largest that malloc comes to by itself


def keep_freed_memory() -> None:
    """Undoes what TensorFlow's generator dataset, through which Keras reads a `PyDataset`, does.

    It fixes malloc's thresholds at 128 kB: from then on every larger array is mapped anew and
    cleared page by page, in all of the process. That was a fifth of the work of a small model's
    training step. Here they are set to what malloc itself would come to after a while. Does
    nothing where the C library has no `mallopt`.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


@cache
def _mallopt() -> Any:
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return None
