"""`fit` that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import keras

from keras_gpt2.training.callbacks import callbacks, read_history
from keras_gpt2.training.checkpoint import Position, read_checkpoint, to_numpy, write_checkpoint


def fit_resumable(
    model: keras.Model,
    training: Any,
    directory: str | Path,
    epochs: int,
    validation: Any = None,
    checkpoint_seconds: float = 300.0,
    tensorboard: bool = False,
    **kwargs: Any,
) -> None:
    """`model.fit`, with all of its state in `directory`; called again it goes on from there.

    A run that is killed, at whatever moment and however often, and started again with the same
    arguments takes the same steps as one that is not: weights, optimizer, learning rate, the order
    of the data, dropout and the sums behind the metrics go on. What was done after the last
    checkpoint is done again.

    Args:
        model: compiled.
        training: a `kg.data.WindowDataset`, or another `keras.utils.PyDataset` whose batches
            follow from an attribute `epoch` that can be set.
        directory: gets `checkpoints/`, and what `callbacks` writes.
        epochs: int, passes in all.
        validation: dataset.
        checkpoint_seconds: float, least time between two checkpoints; there is one more after
            each epoch.
        tensorboard: bool, see `callbacks`.
        **kwargs: of `model.fit`.

    Raises:
        FloatingPointError: if the loss is NaN or infinite; it names the step and the last good
            checkpoint.
        ValueError: if the checkpoints are of another model.

    Example:
        >>> fit_resumable(model, train, "runs/tales", epochs=8)  # doctest: +SKIP
    """
    directory = Path(directory)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    position = read_checkpoint(model, directory / "checkpoints") or Position(0, 0)
    _forget_epochs(directory / "history.csv", position.epoch)
    keeper = _Checkpoints(directory / "checkpoints", checkpoint_seconds, training, position)
    arguments = dict(
        validation_data=_quickly_read(validation),
        shuffle=False,  # the dataset shuffles; Keras would shuffle its batches again
        **kwargs,
    )
    epoch = position.epoch
    if position.step:
        model.fit(
            _Rest(training, position.step),
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=[*callbacks(directory, tensorboard, resume=True), keeper],
            **arguments,
        )
        epoch += 1
    if epoch < epochs:
        model.fit(
            _quickly_read(training),
            initial_epoch=epoch,
            epochs=epochs,
            callbacks=[*callbacks(directory, tensorboard, resume=True), keeper],
            **arguments,
        )


def _quickly_read(dataset: Any) -> Any:
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return (
        dataset.as_tf_dataset() if on_tensorflow and hasattr(dataset, "as_tf_dataset") else dataset
    )


class _Rest(keras.utils.PyDataset):
    """The batches of a dataset's epoch from `first` on."""

    def __init__(self, dataset: Any, first: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.first = first

    def __len__(self) -> int:
        return len(self.dataset) - self.first

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.first + index]


class _Checkpoints(keras.callbacks.Callback):
    """Writes checkpoints; the last in the list, so that the others' files are never behind."""

    def __init__(self, directory: Path, seconds: float, training: Any, position: Position) -> None:
        super().__init__()
        self.directory = directory
        self.seconds = seconds
        self.training = training
        self.position = position
        self.written = time.monotonic()
        self.sums: list[Any] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        # Keras resets the metrics when an epoch begins, also one that is half done.
        if self.position.step:
            self.sums = [to_numpy(v) for v in self.model.metrics_variables]

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Here and not before `fit`, at whose start Keras may look at a whole short pass.
        self.training.epoch = epoch
        if self.position.step:
            for variable, value in zip(self.model.metrics_variables, self.sums, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.position = self.position._replace(step=self.position.step + 1)
        due = time.monotonic() - self.written >= self.seconds
        if due and self.position.step < len(self.training):
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.position = Position(epoch + 1, 0)
        self._write()

    def _write(self) -> None:
        write_checkpoint(self.model, self.position, self.directory)
        self.written = time.monotonic()


def _forget_epochs(path: Path, first: int) -> None:
    """Removes the rows of epochs from `first` on: they will be written again."""
    rows = [row for row in read_history(path) if int(row["epoch"]) < first]
    if not rows:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".partial-{path.name}")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
