"""What to do while `fit` runs: Keras's own callbacks, set up for a run's directory."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_gpt2.training.checkpoint import checkpoint_paths, to_numpy


def callbacks(
    directory: str | Path, tensorboard: bool = False, resume: bool = False
) -> list[keras.callbacks.Callback]:
    """Callbacks that keep the best model and the numbers of every epoch in `directory`.

    Args:
        directory: of the run; gets `model.keras` (lowest validation loss so far, or training
            loss where there is no validation; of a `NextTokenModel` its GPT2) and `history.csv`.
        tensorboard: bool; also writes `tensorboard/` (needs the package tensorboard).
        resume: bool; goes on with the files that are there instead of beginning new ones.

    Returns:
        A list for `fit(callbacks=...)`. A run whose loss is NaN or infinite ends with a
        FloatingPointError.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.

    Example:
        >>> model.fit(train, callbacks=callbacks("runs/tales"))  # doctest: +SKIP
    """
    directory = Path(directory)
    history = directory / "history.csv"
    rows = read_history(history) if resume else []
    chosen = [
        _StopAtNaN(directory),
        _BestModel(directory / "model.keras", min(map(_loss, rows), default=float("inf"))),
        keras.callbacks.CSVLogger(str(history), append=resume),
    ]
    if tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            # Keras would find out at the end of the first epoch.
            raise ModuleNotFoundError(
                "TensorBoard logs need the package tensorboard: "
                'pip install "keras_gpt2[tensorboard]".'
            )
        chosen.append(keras.callbacks.TensorBoard(str(directory / "tensorboard")))
    return chosen


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a history.csv, those that are whole; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _loss(logs: Mapping[str, Any]) -> float:
    """What tells the best model: the validation loss, or the training loss where there is none."""
    return float(logs.get("val_loss") or logs.get("loss", "inf"))


class _StopAtNaN(keras.callbacks.Callback):
    """Ends the run with an error that says where it was still well."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if math.isfinite(loss):
            return
        good = next(iter(checkpoint_paths(self.directory / "checkpoints")), None)
        step = int(to_numpy(self.model.optimizer.iterations))
        raise FloatingPointError(
            f"The loss became {loss} at step {step}: a lower "
            f"learning rate may help. The last good checkpoint: {good or 'none'}."
        )


class _BestModel(keras.callbacks.Callback):
    """Keras's ModelCheckpoint writes in place; this one never leaves half a file."""

    def __init__(self, path: Path, lowest: float) -> None:
        super().__init__()
        self.path = path
        self.lowest = lowest

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        loss = _loss(logs or {})
        if loss < self.lowest:
            self.lowest = loss
            save_model(getattr(self.model, "gpt2", self.model), self.path)


def save_model(model: keras.Model, path: str | Path) -> None:
    """Saves `model` as `path` (.keras), which is either replaced whole or left as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    model.save(partial)
    partial.replace(path)
