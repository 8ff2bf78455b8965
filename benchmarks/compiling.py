"""What compiling takes of memory, beside weights and data: the peak of a process with small layers.

    PYTHONPATH=. python benchmarks/compiling.py

12 layers as in GPT-2 124M, but 96 wide, so that weights, gradients and activations are next to
nothing. A graph, the graph under XLA and a training step under XLA, each in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from programs import Program, peak_memory, serve
from trainers import adamw


def make(program: str) -> Callable[[Any], dict[str, Any]]:
    import keras_gpt2 as kg
    from keras_gpt2.generation import generate_ids

    model = kg.GPT2(500, 192, num_layers=12, num_heads=12, hidden_dim=96, dropout=0.0)
    trainer = kg.training.NextTokenModel(model)
    trainer.compile(adamw(), jit_compile=True)
    ids = np.arange(64)[None]
    before = peak_memory()

    def run(_: Any) -> dict[str, Any]:
        if program == "training":
            trainer.train_on_batch(ids, ids)
        else:
            generate_ids(model, ids, 128, temperature=0, jit_compile=program == "XLA")
        return {"before": before}

    return run


def main() -> None:
    if len(sys.argv) > 1:  # one of the processes
        return serve(lambda: make(sys.argv[1]))
    for name in ("graph", "XLA", "training"):
        program = Program("compiling.py", name, python=sys.executable)
        answer = program.ask(None)
        program.close()
        more = answer["peak"] - answer["before"]
        print(f"{name:10}{more:6.0f} MB{answer['seconds']:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
