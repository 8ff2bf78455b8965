"""Train one model in several processes, each with its share of every batch.

    python examples/two_processes.py localhost:1234 0 &
    python examples/two_processes.py localhost:1234 1

Half a minute on 2 cores. Both print the same losses, and so does one process alone: run it without
arguments. It is the JAX backend with `keras.distribution.DataParallel`; on several machines name
the first one's address instead of localhost.
"""

import json
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

import keras_gpt2 as kg

BATCH = 8


def main(address: str = "", process: int = 0, processes: int = 2) -> None:
    if address:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # GPUs need no such line
        keras.distribution.initialize(address, processes, process)
        # Keras shards a tf.data.Dataset by itself; of everything else a process gives its own rows.
        parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(parallel)
    else:
        processes = 1
    keras.utils.set_random_seed(0)  # the same first weights everywhere

    ids = np.tile(np.arange(31), 50)  # 0 1 2 ... 30 0 1 2 ...
    ids = ids[: 64 * 17].reshape(64, 17).astype("int32")
    share = BATCH // processes
    rows = np.arange(64).reshape(-1, BATCH)[:, process * share : (process + 1) * share].ravel()

    gpt2 = kg.GPT2(31, sequence_length=16, num_layers=2, num_heads=2, hidden_dim=32, dropout=0.0)
    model = kg.training.NextTokenModel(gpt2)
    model.compile(kg.training.adamw(gpt2, 1e-2, total_steps=32, warmup_steps=4))
    logs = model.fit(
        ids[rows, :-1], ids[rows, 1:], batch_size=share, epochs=4, shuffle=False, verbose=0
    )
    print(json.dumps(logs.history["loss"]))


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit("usage: python examples/two_processes.py [ADDRESS:PORT PROCESS]")
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
