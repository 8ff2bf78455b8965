"""How a server that merges requests into batches should do so."""

from __future__ import annotations

from keras_gpt2.serving.signatures import BUCKETS

NAME = "batching_params.pbtxt"
MAX_BATCH_SIZE = 16


def batching_parameters(jit_compile: bool) -> str:
    """The text of a BatchingParameters message for TensorFlow Serving.

    `benchmarks/serving.py` measures what the values are worth.

    Args:
        jit_compile: bool; batches are then filled up to few sizes, each compiled once.
    """
    lines = [
        f"max_batch_size {{ value: {MAX_BATCH_SIZE} }}",
        "# Short beside a text's seconds, and enough for the answered of one batch to ask again.",
        "batch_timeout_micros { value: 5000 }",
        "num_batch_threads { value: 2 }",
        "# Of more than these a server says that it is busy; a client then tries again.",
        "max_enqueued_batches { value: 100 }",
    ]
    if jit_compile:
        lines += [f"allowed_batch_sizes: {b}" for b in BUCKETS if b <= MAX_BATCH_SIZE]
    return "\n".join(lines) + "\n"
