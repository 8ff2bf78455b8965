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
        "# No request waits for others: those that come while a batch runs are the next one.",
        "batch_timeout_micros { value: 0 }",
        "num_batch_threads { value: 1 }",
        "# More than these wait nowhere and are told so (429); a client tries again.",
        "max_enqueued_batches { value: 64 }",
    ]
    if jit_compile:
        lines += [f"allowed_batch_sizes: {b}" for b in BUCKETS if b <= MAX_BATCH_SIZE]
    return "\n".join(lines) + "\n"
