"""How a server that merges requests into batches should do so: a version's batching_params.pbtxt.

`benchmarks/serving.py` measures what the values are worth. No `allowed_batch_sizes`: a graph gains
nothing from full batches, and an XLA export fills them up itself, with rows that want no tokens.
The queue is as long as REST's 30 seconds allow: at the 5.2 requests a second of that benchmark
(124M, 2 cores) eight full batches wait for 24.
"""

NAME = "batching_params.pbtxt"
MAX_BATCH_SIZE = 16
PARAMETERS = f"""\
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
# Short beside a text's seconds, and enough for the answered of one batch to ask again.
batch_timeout_micros {{ value: 5000 }}
num_batch_threads {{ value: 2 }}
# Of more than these a server says that it is busy, before they wait longer than REST allows.
max_enqueued_batches {{ value: 8 }}
"""
