"""What to do while `fit` runs: Keras's own callbacks, set up for a run's directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import keras


def callbacks(directory: str | Path, tensorboard: bool = False) -> list[keras.callbacks.Callback]:
    """Callbacks that keep the best model and the numbers of every epoch in `directory`.

    Args:
        directory: of the run; gets `model.keras` (lowest validation loss so far, or training
            loss where there is no validation) and `history.csv`.
        tensorboard: bool; also writes `tensorboard/` (needs the package tensorboard).

    Returns:
        A list for `fit(callbacks=...)`. It also stops a run whose loss is NaN or infinite.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.

    Example:
        >>> model.fit(train, callbacks=callbacks("runs/tales"))  # doctest: +SKIP
    """
    directory = Path(directory)
    chosen = [
        _BestModel(directory / "model.keras"),
        keras.callbacks.CSVLogger(str(directory / "history.csv")),
        keras.callbacks.TerminateOnNaN(),
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


class _BestModel(keras.callbacks.Callback):
    """Keras's ModelCheckpoint writes in place; this one never leaves half a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.lowest = float("inf")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = logs or {}
        loss = logs.get("val_loss", logs.get("loss", float("inf")))
        if loss < self.lowest:
            self.lowest = loss
            save_model(self.model, self.path)


def save_model(model: keras.Model, path: str | Path) -> None:
    """Saves `model` as `path` (.keras), which is either replaced whole or left as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    model.save(partial)
    partial.replace(path)
