"""The whole state of a training run as one file, which is there whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

KEPT = 2  # the last one, and one to fall back on


class Position(NamedTuple):
    """Where a run is: so many whole epochs, and so many steps of the next one."""

    epoch: int
    step: int


def checkpoint_paths(directory: str | Path) -> list[Path]:
    """The checkpoints in `directory`, the newest first."""
    return sorted(Path(directory).glob("checkpoint-*.zip"), reverse=True)


def write_checkpoint(model: keras.Model, position: Position, directory: str | Path) -> Path | None:
    """Writes weights, optimizer, metrics and random states of a compiled model.

    The file gets its name after it is on the disk, and then those before the last two are removed.
    If it cannot be written a message goes to stderr and the ones there are stay.

    Args:
        model: compiled, its optimizer built.
        position: of the run.
        directory: made if it does not exist.

    Returns:
        The path, or None: it could not be written, or a weight is NaN or infinite.
    """
    directory = Path(directory)
    number = int(to_numpy(model.optimizer.iterations))
    path = directory / f"checkpoint-{number:010d}.zip"
    partial = directory / ".partial-checkpoint"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            finite = _write_variables(model, position, file)
            file.flush()
            os.fsync(file.fileno())
        if not finite:
            partial.unlink()
            return None
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        last = next(iter(checkpoint_paths(directory)), None)
        print(
            f"The checkpoint of step {number} could not be written: {error}. "
            f"The last one is {last}.",
            file=sys.stderr,
        )
        return None
    for old in checkpoint_paths(directory)[KEPT:]:
        old.unlink()
    return path


def read_checkpoint(model: keras.Model, directory: str | Path) -> Position | None:
    """Gives `model` the state of the newest whole checkpoint in `directory`.

    A damaged one is passed over, with a message on stderr.

    Args:
        model: compiled as the one that was written, its optimizer built.
        directory: where `write_checkpoint` wrote.

    Returns:
        The run's position, or None if there is no whole checkpoint.

    Raises:
        ValueError: if the checkpoint is of another model or optimizer.
    """
    for path in checkpoint_paths(directory):
        try:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # reads all of it, against the checksums
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            print(f"Passing over {path}: {error}.", file=sys.stderr)
            continue
        with zipfile.ZipFile(path) as archive:
            return _read_variables(model, archive, path)
    return None


def to_numpy(variable: Any) -> np.ndarray:
    """The value of a variable, by way of a tensor: several devices may hold one each."""
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))


def _variables(model: keras.Model) -> list[Any]:
    return [*model.variables, *model.metrics_variables, *model.optimizer.variables]


def _write_variables(model: keras.Model, position: Position, file: Any) -> bool:
    """False, and half a file, if a weight is not finite."""
    variables = _variables(model)
    weights = {id(weight) for weight in model.weights}
    shapes = [[list(v.shape), str(v.dtype)] for v in variables]
    with zipfile.ZipFile(file, "w") as archive:
        state = {"position": position, "shapes": shapes}
        archive.writestr("state.json", json.dumps(state))
        for i, variable in enumerate(variables):
            value = to_numpy(variable)
            is_float = keras.backend.is_float_dtype(variable.dtype)
            if id(variable) in weights and is_float and not np.isfinite(value).all():
                return False
            with archive.open(str(i), "w", force_zip64=True) as entry:
                entry.write(np.ascontiguousarray(value).data.cast("B"))
    return True


def _read_variables(model: keras.Model, archive: zipfile.ZipFile, path: Path) -> Position:
    state = json.loads(archive.read("state.json"))
    variables = _variables(model)
    shapes = [[list(v.shape), str(v.dtype)] for v in variables]
    if shapes != state["shapes"]:
        raise ValueError(
            "A checkpoint must be of the model and optimizer that go on. "
            f"Received: {path} with {len(state['shapes'])} variables, a model with {len(shapes)}, "
            "or with others."
        )
    for i, variable in enumerate(variables):
        like = to_numpy(variable)
        variable.assign(np.frombuffer(archive.read(str(i)), like.dtype).reshape(like.shape))
    return Position(*state["position"])
