"""What sampling adds to a token's time: tokens per second of each filter against greedy, in turn.

    PYTHONPATH=. python benchmarks/sampling.py

GPT-2 124M with random weights, one row, the 31 tokens after the first. Its logits are nearly equal,
which is the most work for the filters, and at temperature 0.1 as uneven as a trained model's. In a
graph, under XLA, and under XLA with int8 weights. About 6 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import keras_gpt2 as kg
from keras_gpt2.generation import generate_ids

NEW = 32
FILTERS = {"": {}, "top_k": {"top_k": 40}, "top_p": {"top_p": 0.9}}
FILTERS["both"] = FILTERS["top_k"] | FILTERS["top_p"]
CASES = {"greedy": {"temperature": 0.0}} | {
    f"{temperature} {name}".strip(): {"temperature": temperature, **filters}
    for temperature in (1.0, 0.1)
    for name, filters in FILTERS.items()
}


def measure(model: kg.GPT2, program: str, new: int, **parameters: float) -> float:
    prompt = np.arange(8)[None]
    start = time.perf_counter()
    generate_ids(model, prompt, new, jit_compile=program != "graph", **parameters)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", nargs="+", default=["graph", "XLA", "int8"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    model = kg.GPT2.from_preset("gpt2", load_weights=False)
    for program in options.programs:  # int8 is the last: it changes the model
        if program == "int8":
            model.narrow("int8")
        seconds: dict[str, list[float]] = {case: [] for case in CASES}
        for number in range(options.rounds + 1):
            first = measure(model, program, 1, temperature=0)  # the prompt is taken off
            for case, parameters in CASES.items():
                rest = measure(model, program, NEW, seed=number, **parameters) - first
                seconds[case].append(rest / (NEW - 1))
        for case, (_, *measured) in seconds.items():
            median = statistics.median(measured)
            added = statistics.median(np.subtract(measured, seconds["greedy"][1:]))
            print(
                f"{program:6}{case:10}{1 / median:7.1f} tok/s{1e3 * median:7.2f} ms"
                f"{1e3 * added:+7.2f} ms{1 + added / (median - added):7.3f} of greedy's time",
                flush=True,
            )


if __name__ == "__main__":
    main()
