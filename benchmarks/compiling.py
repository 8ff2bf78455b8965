"""What compiling takes of memory, beside weights and data: the peak of a process with small layers.

    PYTHONPATH=. python benchmarks/compiling.py

12 layers as in GPT-2 124M, but 96 wide, so that weights, gradients and activations are next to
nothing. A graph, the graph under XLA and a training step under XLA, each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from programs import peak_memory

PROGRAMS = ("graph", "XLA", "training")


def measure(program: str) -> None:
    import keras
    import numpy as np

    import keras_gpt2 as kg
    from keras_gpt2.generation import generate_ids

    model = kg.GPT2(500, 192, num_layers=12, num_heads=12, hidden_dim=96, dropout=0.0)
    ids = np.arange(64)[None]
    if program == "training":
        trainer = kg.training.NextTokenModel(model)
        trainer.compile(keras.optimizers.AdamW(global_clipnorm=1.0), jit_compile=True)
    before, start = peak_memory(), time.perf_counter()
    if program == "training":
        trainer.train_on_batch(ids, ids)
    else:
        generate_ids(model, ids, 128, temperature=0, jit_compile=program == "XLA")
    print(f"{program:10}{peak_memory() - before:6.0f} MB{time.perf_counter() - start:6.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", choices=PROGRAMS, help="only this, in this process")
    program = parser.parse_args().program
    if program:
        return measure(program)
    for name in PROGRAMS:
        subprocess.run([sys.executable, __file__, "--program", name], check=True)


if __name__ == "__main__":
    main()
