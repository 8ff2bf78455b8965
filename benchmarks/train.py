"""Tokens per second and memory of training: ours and the peers that are installed, in turn.

    PYTHONPATH=. python benchmarks/train.py --python PEERS/bin/python

GPT-2 124M, float32, the same random weights and batches, AdamW with clipping, no dropout; rows of a
batch times its tokens are a case. Each program is a process of its own for each case (trainers.py),
and each makes one step after the other has: what else runs on the machine meets all of them.
Printed are the median speed, its ratio to the best peer's, its share of the limit (six floating
point operations per weight and token and those of attention, over what a float32 product of large
matrices reaches between the rounds), the peak memory, the first step with its compilation,
and the loss after the last step, which must be the same for all.

torch and transformers can live in another environment, which --python names. All programs of a case
are in memory together: about 28 GB, or less with --only, which takes names or their starts. Each
case takes about 6 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from programs import Program
from trainers import THREADS, TRAINERS

CASES = {"4x256": (4, 256), "1x1024": (1, 1024), "4x1024": (4, 1024)}
WEIGHTS, LAYERS, WIDTH = 124_439_808, 12, 768


def matmul_speed() -> float:
    """Floating point operations in a second of a float32 product, the best of five."""
    a = np.ones((2048, 2048), "float32")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def prepare(directory: Path) -> None:
    """GPT-2 124M with random weights and no dropout, in Hugging Face's layout."""
    if (directory / "config.json").exists():
        return
    code = """
import sys
import keras_gpt2 as kg
model = kg.GPT2.from_preset("gpt2", load_weights=False, dropout=0.0)
kg.checkpoints.save_hugging_face(model, sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)


def run_case(case: str, names: list[str], directory: Path, python: str, rounds: int) -> None:
    rows, length = CASES[case]
    programs: list[Program] = []
    seconds: dict[str, list[float]] = {}
    last: dict[str, dict] = {}
    for name in names:
        where = python if name == "transformers" else sys.executable
        program = Program("trainers.py", name, str(directory), str(rows), str(length), python=where)
        if program.missing:
            print(f"{name}: left out, {program.missing}", flush=True)
        else:
            programs.append(program)
    speeds = []
    for number in range(rounds + 1):
        speeds.append(matmul_speed())
        for program in programs:
            answer = program.ask(number)
            if answer:
                seconds.setdefault(program.name, []).append(answer["seconds"])
                last[program.name] = answer
        print(f"{case}: round {number} of {rounds}", file=sys.stderr, flush=True)

    attention = 12 * LAYERS * WIDTH * length / 2  # what a query may see: half of all on average
    limit = statistics.median(speeds) / (6 * WEIGHTS + attention)
    print(f"\n{case}: products reach {statistics.median(speeds) / 1e9:.0f} GFLOP/s")
    print(f"{'':32}{'tok/s':>8}{'ratio':>7}{'of limit':>10}{'peak MB':>9}{'first':>8}{'loss':>10}")
    alive = [program.name for program in programs if not program.missing]
    rates = {name: rows * length / statistics.median(seconds[name][1:]) for name in alive}
    peers = [rate for name, rate in rates.items() if not name.startswith("keras_gpt2")]
    for program in programs:
        if program.missing:
            print(f"{program.name:32}{program.missing}")
            continue
        rate, answer = rates[program.name], last[program.name]
        ratio = f"{rate / max(peers):7.2f}" if peers else f"{'':7}"
        print(
            f"{program.name:32}{rate:8.1f}{ratio}{rate / limit:10.2f}{answer['peak']:9.0f}"
            f"{seconds[program.name][0]:7.1f}s{answer['loss']:10.5f}"
        )
    for program in programs:
        program.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="Python that has the peers")
    parser.add_argument("--only", nargs="+", default=list(TRAINERS), help="names, or their starts")
    parser.add_argument("--cases", nargs="+", default=["4x256", "1x1024"], choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="keeps the weights here")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp())
    os.environ.update(
        OMP_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="-1",
        PYTHONPATH=str(Path(__file__).parents[1]),
    )  # fmt: skip
    prepare(directory)
    names = [name for name in TRAINERS if any(name.startswith(start) for start in options.only)]
    for case in options.cases:
        run_case(case, names, directory, options.python, options.rounds)


if __name__ == "__main__":
    main()
