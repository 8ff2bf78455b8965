"""Safetensors files through their library, one tensor in memory at a time when reading."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from keras import ops
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_gpt2.models.checkpoints.variables import Tensor

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, none of them read yet; when they are, they become float32.

    Raises:
        ValueError: if the file is not whole; when a tensor is read, if it is of another type than
            float32, float16 or bfloat16.
    """
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise ValueError(
            f"A safetensors file must be whole and its header true. Received: {path} of "
            f"{path.stat().st_size} bytes{_culprit(path)}, {error}."
        ) from error
    return {name: Tensor(functools.partial(_read, path, name), str(path)) for name in names}


def _read(path: Path, name: str) -> np.ndarray:
    # Opened for each tensor: the library maps the file, and what was read stays mapped until the
    # file is closed, so that a model would be in memory twice.
    with safe_open(path, "np") as file:
        dtype = file.get_slice(name).get_dtype()
        if dtype not in _BYTES:
            raise ValueError(
                f"Tensor {name!r} must be of type {', '.join(_BYTES)}. "
                f"Received: dtype={dtype} in {path}."
            )
        return file.get_tensor(name).astype("float32", copy=False)


def _culprit(path: Path) -> str:
    """Names the first tensor with false or missing bytes, if the header can be read at all."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(start - 8))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                size = math.prod(entry["shape"]) * _BYTES.get(entry["dtype"], 1)
                if start + last > path.stat().st_size or first < 0 or last - first != size:
                    return f" with tensor {name!r} damaged"
        except Exception:
            return ""
    return ""


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes tensors as float32, marked as PyTorch's, which transformers insists on."""
    arrays = {
        name: np.ascontiguousarray(ops.convert_to_numpy(tensor), "float32")
        for name, tensor in tensors.items()
    }
    save_file(arrays, path, {"format": "pt"})
