"""What TensorFlow Serving does with requests under --enable_batching, in this process.

Rules and words are those of the server: tensorflow/serving's batching_session.cc and
tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Tensors = dict[str, np.ndarray]


class Batcher:
    """Merges the requests of many threads, each signature's for itself.

    Args:
        run: (signature, tensors) -> tensors, for example `Session.run`.
        max_batch_size: int, rows.
        batch_timeout: float, seconds that a batch waits for more rows.
        num_batch_threads: int, how many batches run at the same time.
        max_enqueued_batches: int, how many batches of a signature may wait, the open one included.
        allowed_batch_sizes: ints, ascending, the last one max_batch_size; batches are filled up to
            one of them with copies of a row.
    """

    def __init__(
        self,
        run: Callable[[str, Tensors], Tensors],
        max_batch_size: int = 1000,
        batch_timeout: float = 0.0,
        num_batch_threads: int = 2,
        max_enqueued_batches: int = 10,
        allowed_batch_sizes: Sequence[int] = (),
    ) -> None:
        if allowed_batch_sizes and allowed_batch_sizes[-1] != max_batch_size:
            raise ValueError("Last entry in allowed_batch_sizes must match max_batch_size")
        self._run = run
        self._max_batch_size = max_batch_size
        self._batch_timeout = batch_timeout
        self._max_enqueued_batches = max_enqueued_batches
        self._allowed_batch_sizes = allowed_batch_sizes
        self._queues: dict[str, deque[_Batch]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.batch_sizes: list[int] = []  # rows of each batch that ran, without filling
        self._threads = [threading.Thread(target=self._work) for _ in range(num_batch_threads)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def run(self, signature: str, inputs: Tensors) -> Tensors:
        """What the signature answers to these rows; waits for it."""
        task = _Task(inputs)
        if task.rows > self._max_batch_size:
            raise _invalid(
                f"Task size {task.rows} is larger than maximum input batch size "
                f"{self._max_batch_size}"
            )
        with self._changed:
            queue = self._queues.setdefault(signature, deque([_Batch()]))
            if queue[-1].rows + task.rows > self._max_batch_size:
                if len(queue) >= self._max_enqueued_batches:
                    raise tf.errors.UnavailableError(
                        None,
                        None,
                        "The batch scheduling queue to which this task was submitted is full; "
                        f"currently {len(queue)} batches enqueued and max_enqueued_batches is "
                        f"{self._max_enqueued_batches}",
                    )
                queue.append(_Batch())
            queue[-1].add(task)
            self._changed.notify()
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.outputs

    def _work(self) -> None:
        while True:
            with self._changed:
                found = self._next_batch()
                while found is None:
                    if self._closed:
                        return
                    self._changed.wait(self._patience())
                    found = self._next_batch()
            signature, batch = found
            try:
                self._process(signature, batch.tasks)
            except Exception as error:
                # One failure is the failure of all that were merged.
                for task in batch.tasks:
                    task.error = error
            for task in batch.tasks:
                task.done.set()

    def _next_batch(self) -> tuple[str, _Batch] | None:
        for signature in list(self._queues):
            queue = self._queues[signature]
            if len(queue) == 1 and self._ready(queue[0]):
                queue.append(_Batch())
            if len(queue) > 1:
                self._queues[signature] = self._queues.pop(signature)  # the last to come next
                return signature, queue.popleft()
        return None

    def _ready(self, batch: _Batch) -> bool:
        """Whether an open batch may run; one without rows never does, whoever waits for it."""
        late = time.monotonic() >= batch.start + self._batch_timeout
        return batch.rows > 0 and (late or batch.rows >= self._max_batch_size)

    def _patience(self) -> float | None:
        """Seconds until the first open batch has waited long enough."""
        starts = [queue[-1].start for queue in self._queues.values() if queue[-1].rows]
        return max(min(starts) + self._batch_timeout - time.monotonic(), 0) if starts else None

    def _process(self, signature: str, tasks: list[_Task]) -> None:
        rows = sum(task.rows for task in tasks)
        filling = next((s for s in self._allowed_batch_sizes if s >= rows), rows) - rows
        self.batch_sizes.append(rows)
        merged = {}
        for name in tasks[0].inputs:
            tensors = [task.inputs[name] for task in tasks]
            if any(tensor.shape[1:] != tensors[0].shape[1:] for tensor in tensors):
                raise tf.errors.FailedPreconditionError(
                    None,
                    None,
                    f"Tensors with name '{name}' from different tasks have different shapes and "
                    "padding is turned off.",
                )
            merged[name] = np.concatenate([*tensors, *[tensors[-1][:1]] * filling])
        outputs = self._run(signature, merged)
        for tensor in outputs.values():
            if tensor.shape[:1] != (rows + filling,):
                raise tf.errors.FailedPreconditionError(
                    None,
                    None,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors",
                )
        first = 0
        for task in tasks:
            last = first + task.rows
            task.outputs = {name: tensor[first:last] for name, tensor in outputs.items()}
            first = last


class _Task:
    """One request."""

    def __init__(self, inputs: Tensors) -> None:
        if any(tensor.ndim == 0 for tensor in inputs.values()):
            raise _invalid("Batching Run() input tensors must have at least one dimension")
        sizes = {len(tensor) for tensor in inputs.values()}
        if len(sizes) != 1:
            raise _invalid("Batching Run() input tensors must have equal 0th-dimension size")
        self.inputs = inputs
        self.rows = sizes.pop()
        self.done = threading.Event()
        self.outputs: Tensors = {}
        self.error: Exception | None = None


class _Batch:
    """Requests that run together; `start` is when the first came."""

    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.rows = 0
        self.start = 0.0

    def add(self, task: _Task) -> None:
        if not self.tasks:
            self.start = time.monotonic()
        self.tasks.append(task)
        self.rows += task.rows


def _invalid(message: str) -> tf.errors.OpError:
    return tf.errors.InvalidArgumentError(None, None, message)
