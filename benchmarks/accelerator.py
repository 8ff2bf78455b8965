"""The training step on a GPU: ours and KerasHub's on the JAX backend, transformers on torch.

    PYTHONPATH=. python benchmarks/accelerator.py --rows 8

GPT-2 124M, random weights, AdamW with clipping, no dropout, batches of `--rows` times 1024 random
tokens. Each program is a process of its own, one after the other, for what their compilers try out
fills the device; it makes `--steps` steps `--rounds` times. Printed are the median of tokens per
second, the ratio to the best peer's, the share of what a product of large bfloat16 (or float32)
matrices reaches (six floating point operations per weight and token and those of attention), the
peak of the device's memory, the time of the first step with its compilation, and the loss of the
last round: all see the same batches. Needs jax with a GPU; TensorFlow is not needed, and peers that
are not installed are left out. About 35 s for each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from programs import Program, serve
from train import LAYERS, WEIGHTS, WIDTH, prepare
from trainers import BETAS, CLIP, DECAY, EPSILON, RATE, adamw

LENGTH = 1024
Steps = Callable[[np.ndarray, np.ndarray], float]


def keras_steps(model: Any, rows: int, inputs: Callable[[np.ndarray], Any] = lambda x: x) -> Steps:
    def steps(x: np.ndarray, y: np.ndarray) -> float:
        fitted = model.fit(inputs(x), y, batch_size=rows, shuffle=False, verbose=0)
        return fitted.history["loss"][-1]

    return steps


def ours(directory: Path, rows: int, dtype: str, rematerialize: bool = False) -> Steps:
    import keras

    import keras_gpt2 as kg

    keras.config.set_dtype_policy(dtype)
    model = kg.GPT2.from_preset(directory)
    for block in model.attention_blocks + model.feed_forward_blocks:
        block.rematerialize = rematerialize  # as GPT2(rematerialize=True) does
    model = kg.training.NextTokenModel(model)
    model.compile(adamw())
    return keras_steps(model, rows)


def keras_hub(directory: Path, rows: int, dtype: str) -> Steps:
    import keras
    import keras_hub as hub

    import keras_gpt2 as kg

    keras.config.set_dtype_policy(dtype)
    backbone = kg.checkpoints.to_keras_nlp(kg.GPT2.from_preset(directory))
    model = hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model = keras.Model(model.inputs, model.outputs[0])  # its own `fit` needs TensorFlow or grain
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=adamw(), loss=loss, weighted_metrics=[])
    return keras_steps(model, rows, lambda x: {"token_ids": x, "padding_mask": np.ones_like(x)})


def transformers(directory: Path, rows: int, dtype: str) -> Steps:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_float32_matmul_precision("high")  # as JAX's default
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa")
    model = model.cuda().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True
    )
    half = torch.autocast("cuda", torch.bfloat16, enabled=dtype == "mixed_bfloat16")

    def steps(x: np.ndarray, y: np.ndarray) -> float:
        losses = []
        for begin in range(0, len(x), rows):
            batch = slice(begin, begin + rows)
            ids, targets = (torch.tensor(of[batch]).long().cuda() for of in (x, y))
            optimizer.zero_grad(set_to_none=True)
            with half:
                logits = model(ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()

    return steps


TRAINERS: dict[str, Callable[[Path, int, str], Steps]] = {
    "keras_gpt2": ours,
    "keras_gpt2 rematerialized": lambda *arguments: ours(*arguments, rematerialize=True),
    "KerasHub": keras_hub,
    "transformers": transformers,
}


def device_peak(name: str) -> float:
    """The most of the device's memory that the process has held, in MB."""
    if name == "transformers":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    import jax

    statistics_of_memory = jax.devices()[0].memory_stats() or {}  # a CPU has none
    return statistics_of_memory.get("peak_bytes_in_use", float("nan")) / 1e6


def products(dtype: str) -> float:
    """Floating point operations in a second of a product of large matrices, the best of five."""
    import jax

    half = dtype == "mixed_bfloat16"
    a = jax.random.normal(jax.random.key(0), (8192, 8192), "bfloat16" if half else "float32")
    multiply = jax.jit(lambda a: a @ a)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(10):
            out = multiply(a)
        out.block_until_ready()
        seconds.append((time.perf_counter() - start) / 10)
    return 2 * 8192**3 / min(seconds)


def run(name: str, options: argparse.Namespace) -> None:
    """The process of one program."""

    def make() -> Callable[[int], dict[str, Any]]:
        if name == "products":
            return lambda _: {"speed": products(options.dtype)}

        steps = TRAINERS[name](options.directory, options.rows, options.dtype)

        def answer(number: int, count: int = options.steps) -> dict[str, Any]:
            rng = np.random.default_rng(number)
            ids = rng.integers(0, 50257, (options.rows * count, LENGTH + 1), "int32")
            start = time.perf_counter()
            loss = steps(ids[:, :-1], ids[:, 1:])
            seconds = time.perf_counter() - start
            return {
                "loss": loss, "first": first, "seconds_of_steps": seconds,
                "device_peak": device_peak(name),
            }  # fmt: skip

        first = 0.0
        first = answer(0, 1)["seconds_of_steps"]
        return answer

    serve(make)


def compare(options: argparse.Namespace) -> None:
    def start(name: str) -> Program:
        arguments = ["--directory", str(options.directory), "--dtype", options.dtype]
        arguments += ["--rows", str(options.rows), "--steps", str(options.steps)]
        return Program("accelerator.py", name, *arguments, python=sys.executable)

    prepare(options.directory)
    names = [n for n in TRAINERS if any(n.startswith(start) for start in options.only)]
    speeds, answers, missing = [], {}, {}
    for name in names:
        limit = start("products")
        speeds.append(limit.ask(0)["speed"])
        limit.close()
        program = start(name)
        answers[name] = [program.ask(number) for number in range(1, options.rounds + 1)]
        missing[name] = program.missing
        program.close()

    speed = statistics.median(speeds)
    of_a_token = 6 * WEIGHTS + 12 * LAYERS * WIDTH * LENGTH / 2
    tokens = options.rows * LENGTH * options.steps
    rates = {
        name: tokens / statistics.median(a["seconds_of_steps"] for a in given)
        for name, given in answers.items()
        if all(given)
    }
    best = max((rate for name, rate in rates.items() if "keras_gpt2" not in name), default=0)
    print(f"{options.rows}x{LENGTH}, {options.dtype}: products reach {speed / 1e12:.0f} TFLOP/s")
    print(f"{'':28}{'tok/s':>10}{'ratio':>7}{'share':>7}{'peak MB':>9}{'first':>8}{'loss':>10}")
    for name in names:
        if name not in rates:
            print(f"{name:28}{missing[name]}")
            continue
        rate, last = rates[name], answers[name][-1]
        print(
            f"{name:28}{rate:10.0f}{rate / best if best else 1:7.2f}"
            f"{rate * of_a_token / speed:7.2f}{last['device_peak']:9.0f}{last['first']:7.1f}s"
            f"{last['loss']:10.5f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", help="the program that this process is; all if left out")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--dtype", default="mixed_bfloat16", choices=["mixed_bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=20, help="between two turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="names, or their starts")
    parser.add_argument("--directory", type=Path, help="keeps the weights here")
    options = parser.parse_args()
    options.directory = options.directory or Path(tempfile.mkdtemp())
    os.environ.update(
        KERAS_BACKEND="jax", XLA_PYTHON_CLIENT_PREALLOCATE="false", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    if options.name:
        run(options.name, options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
