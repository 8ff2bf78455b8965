"""Windows of token ids as a dataset for `fit`."""

from typing import Any

import keras
import numpy as np

from keras_gpt2.data.allocation import keep_freed_memory
from keras_gpt2.data.sharded_ids import ShardedIds


class WindowDataset(keras.utils.PyDataset):
    """Batches of windows of `sequence_length` token ids, and the same windows one id later.

    Window k of an epoch is `token_ids[offset + k * sequence_length :][: sequence_length + 1]`:
    all but its last id are inputs, all but its first are targets, so no target comes twice.

    With `shuffle`, (seed, epoch) alone choose the offset in [0, sequence_length) and the order;
    every epoch has as many batches, and windows that fill no batch are left out. Without, the
    offset is 0, the order that of the text, and the last batch may be short.

    `epoch` goes up after each whole pass of `fit` or `evaluate`. To go on from elsewhere set it,
    before `fit` or in a callback's `on_epoch_begin`. Call `fit` with `shuffle=False`: its default
    also permutes the batches, by Python's global `random`, which `seed` cannot repeat.

    Args:
        token_ids: integers, shape (N,), an array or `ShardedIds`, maybe memory-mapped; N at least
            `(batch_size + 1) * sequence_length` with `shuffle`, else `sequence_length + 1`.
        sequence_length, batch_size: int, at least 1.
        shuffle: bool.
        seed: int, at least 0.

    Raises:
        ValueError: an argument out of range, or `token_ids` too short.

    >>> inputs, targets = WindowDataset(np.arange(7), sequence_length=3, batch_size=2)[0]
    >>> inputs.tolist(), targets.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """

    def __init__(
        self,
        token_ids: np.ndarray | ShardedIds,
        sequence_length: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in [
            ("sequence_length", sequence_length, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ]:
            if value < least:
                raise ValueError(f"{name} must be at least {least}. Received: {name}={value}.")
        self.token_ids = token_ids
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed

        # Shuffled, one window is given up, so that the rest fit at every offset.
        needed = (batch_size + 1) * sequence_length if shuffle else sequence_length + 1
        if len(token_ids) < needed:
            rule = "(batch_size + 1) * sequence_length" if shuffle else "sequence_length + 1"
            raise ValueError(
                f"{'Training' if shuffle else 'Validation'} needs at least {rule} = {needed} "
                "token ids: shorten sequence_length, lower batch_size, change "
                f"validation_fraction or give more text. Received: {len(token_ids)} token ids, "
                f"sequence_length={sequence_length}, batch_size={batch_size}."
            )
        self.num_tokens = len(token_ids)
        slack = sequence_length if shuffle else 1
        self.num_windows = (self.num_tokens - slack) // sequence_length
        self.epoch = 0

    @property
    def epoch(self) -> int:
        """The epoch that `self[i]` belongs to, from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._offset = 0
        # The smallest integers that will do: this is all that grows with the text.
        self._order = np.arange(self.num_windows, dtype=np.min_scalar_type(self.num_windows))
        if self.shuffle:
            generator = np.random.default_rng((self.seed, epoch))
            self._offset = int(generator.integers(self.sequence_length))
            generator.shuffle(self._order)
        self._epoch = epoch
        self._unseen: np.ndarray | None = None  # batches of a begun pass nobody asked for yet

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return (self.num_windows + (0 if self.shuffle else self.batch_size - 1)) // self.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns batch `index` of this epoch: inputs and targets.

        Both int32 (batch_size, sequence_length); the last of a dataset that is not shuffled may
        have fewer rows.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in [0, {len(self)}). Received: index={index}.")
        if self._unseen is not None:
            self._unseen[index] = False
        keep_freed_memory()
        order = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = self._rows(self._offset + self.sequence_length * order.astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    def _rows(self, starts: np.ndarray) -> np.ndarray:
        """The windows at these places, int32 (batch_size, sequence_length + 1)."""
        rows = np.empty((len(starts), self.sequence_length + 1), np.int32)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = self.token_ids[start : start + self.sequence_length + 1]
        return rows

    def as_tf_dataset(self) -> Any:
        """The same batches as a `tf.data.Dataset`, which takes less time on TensorFlow.

        A pass of it is an epoch, and the next one follows. Keras reads a `PyDataset` through a
        generator that tf.data tunes; the end of `fit` then waits for the tuner, which sleeps for up
        to as long as `fit` has taken, at most a minute.
        """
        import tensorflow as tf

        def read(index: Any) -> tuple[np.ndarray, np.ndarray]:
            if index == 0:
                self.on_epoch_end()
                self.on_epoch_begin()
            return self[int(index)]

        def batch(index: Any) -> tuple[Any, ...]:
            tensors = tf.numpy_function(read, [index], [tf.int32, tf.int32])
            rows = self.batch_size if self.shuffle else None
            return tuple(tf.ensure_shape(x, [rows, self.sequence_length]) for x in tensors)

        options = tf.data.Options()
        options.autotune.enabled = False
        return tf.data.Dataset.range(len(self)).map(batch).prefetch(2).with_options(options)

    def on_epoch_begin(self) -> None:
        """Called by Keras before a pass, or a part of one (`steps_per_epoch`)."""
        if self._unseen is None:
            self._unseen = np.ones(len(self), bool)

    def on_epoch_end(self) -> None:
        """Called by Keras after a pass: goes on to the next epoch if the pass was whole.

        Keras also calls it at the start of `fit`, after no pass or (on JAX) after a look at the
        first batch, and after every part when `steps_per_epoch` cuts a pass in parts. (That look
        is a whole pass where there is one batch: such a dataset begins with epoch 1 on JAX.)
        """
        if self._unseen is not None and not self._unseen.any():
            self.epoch += 1
