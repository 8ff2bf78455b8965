"""Safetensors files, read and written one tensor at a time.

The `safetensors` library maps a whole file into memory and writes from arrays that are all there at
once; with this module a model's weights are in memory once. Format: an 8-byte little-endian length,
a JSON header of that length (name -> dtype, shape, data_offsets), the tensors' bytes.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_gpt2.models.checkpoints.variables import Tensor

# NumPy has no bfloat16: it is the upper half of a float32.
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class _Entry(NamedTuple):
    """What the header says of a tensor; the bytes are counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, none of them read yet; when they are, they become float32.

    Raises:
        ValueError: if the file is not whole; when a tensor is read, if it is of another type than
            float32, float16 or bfloat16.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                "A safetensors file must begin with its header. "
                f"Received: {path} of {size} bytes, which ends before the first tensor."
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: _Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
            }
            end = 8 + length + max((entry.last for entry in tensors.values()), default=0)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "A safetensors header must describe each tensor in JSON. "
                f"Received: {path}, {error!r}."
            ) from error
    if end > size:
        name = max(tensors, key=lambda name: tensors[name].last)
        raise ValueError(
            f"Tensor {name!r} must lie within its file. "
            f"Received: {path} of {size} bytes, which should have {end}."
        )
    return {
        name: Tensor(functools.partial(_read, path, name, 8 + length, entry), str(path))
        for name, entry in tensors.items()
    }


def _read(path: Path, name: str, origin: int, entry: _Entry) -> np.ndarray:
    dtype, shape, first, last = entry
    if dtype not in _DTYPES:
        raise ValueError(
            f"Tensor {name!r} must be of type {', '.join(_DTYPES)}. "
            f"Received: dtype={dtype} in {path}."
        )
    count = math.prod(shape)
    if not 0 <= first <= last or last - first != count * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError(
            f"Tensor {name!r} must have as many bytes as its shape and type say. "
            f"Received: shape={shape}, dtype={dtype}, data_offsets={[first, last]} in {path}."
        )
    values = np.fromfile(path, _DTYPES[dtype], count, offset=origin + first).reshape(shape)
    if dtype == "BF16":
        values = values.astype("<u4")
        values <<= 16
        return values.view("<f4")
    return values.astype("<f4", copy=False)


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes tensors as float32, marked as PyTorch's, which transformers insists on."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the tensors start at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(ops.convert_to_numpy(tensor), "<f4").data)
