"""One program that trains, as a process that is asked over its standard input.

    python benchmarks/trainers.py NAME DIRECTORY ROWS LENGTH

`train.py` starts these and asks them for one step at a time. DIRECTORY holds GPT-2 in Hugging
Face's layout, from which each program takes its weights. A request is the number of the step, which
stands for the batch; the answer has the loss before the step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from programs import serve

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
# GPT-3's optimizer, the one of nanoGPT and of kg.training.adamw, at a constant rate.
RATE, BETAS, EPSILON, DECAY, CLIP = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
Step = Callable[[np.ndarray, np.ndarray], float]


def adamw() -> Any:
    import keras

    return keras.optimizers.AdamW(
        RATE, weight_decay=DECAY, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=EPSILON,
        global_clipnorm=CLIP,
    )  # fmt: skip


def keras_step(model: Any, inputs: Callable[[np.ndarray], Any] = lambda x: x) -> Step:
    def step(x: np.ndarray, y: np.ndarray) -> float:
        model.reset_metrics()
        return float(model.train_on_batch(inputs(x), y, return_dict=True)["loss"])

    return step


def ours(directory: Path, jit_compile: bool, rematerialize: bool = False) -> Step:
    import keras_gpt2 as kg

    model = kg.GPT2.from_preset(directory)
    for block in model.attention_blocks + model.feed_forward_blocks:
        block.rematerialize = rematerialize  # as GPT2(rematerialize=True) does
    model = kg.training.NextTokenModel(model)
    model.compile(adamw(), jit_compile=jit_compile)
    return keras_step(model)


def keras_hub(directory: Path, jit_compile: bool) -> Step:
    import keras
    import keras_hub as hub

    import keras_gpt2 as kg

    backbone = kg.checkpoints.to_keras_nlp(kg.GPT2.from_preset(directory))
    model = hub.models.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=adamw(), loss=loss, weighted_metrics=[], jit_compile=jit_compile)
    return keras_step(model, lambda x: {"token_ids": x, "padding_mask": np.ones_like(x)})


def transformers(directory: Path) -> Step:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY
    )

    def step(x: np.ndarray, y: np.ndarray) -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(torch.tensor(x).long(), use_cache=False).logits
        targets = torch.tensor(y).long().view(-1)
        loss = torch.nn.functional.cross_entropy(logits.view(len(targets), -1), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


TRAINERS: dict[str, Callable[[Path], Step]] = {
    "keras_gpt2 graph": lambda d: ours(d, False),
    "keras_gpt2 XLA": lambda d: ours(d, True),
    "keras_gpt2 XLA rematerialized": lambda d: ours(d, True, rematerialize=True),
    "KerasHub graph": lambda d: keras_hub(d, False),
    "KerasHub XLA": lambda d: keras_hub(d, True),
    "transformers": transformers,
}


def main() -> None:
    name, directory, rows, length = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])

    def make() -> Callable[[int], dict[str, Any]]:
        step = TRAINERS[name](directory)

        def run(number: int) -> dict[str, Any]:
            ids = np.random.default_rng(number).integers(0, 50257, (rows, length + 1), "int32")
            return {"loss": step(ids[:, :-1], ids[:, 1:])}

        return run

    serve(make)


if __name__ == "__main__":
    main()
