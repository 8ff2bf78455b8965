"""LoRA: a trained model learns another text with few weights, and is exported as if it always had.

    python examples/fine_tuning.py --output runs/fine_tuning
    python examples/fine_tuning.py --output runs/fine_tuning --checkpoint DIRECTORY --text notes.txt

2 minutes on 2 cores without a checkpoint (`--quick` half a minute). Rank 8 trains 32,768 weights
beside 536,064 frozen ones. On held-out source code perplexity falls from 168.9 to 46.0; on the
language reference it rises from 33.7 to 63.0, which is what the model forgets. Merged and exported,
it gives the same greedy texts.

Without `--checkpoint` a small model is trained first, on Python's language reference, and kept in
OUTPUT/base. With it any directory goes: one of `keras-gpt2 train`, of Hugging Face, OpenAI or
KerasHub; give a large model fewer steps and a lower rate, for example `--steps 50
--learning-rate 1e-3`. The new text, unless `--text` names one, is the source code of modules of
Python; other modules are held out.

`model.enable_lora(rank)` freezes all weights and adds a product of two thin matrices to each
kernel, which alone are trained (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models"). `model.merge_lora()` adds them up: a plain GPT2, of the size and speed it had before.

Perplexity is measured on held-out text of both kinds: what was learnt, and what was forgotten.
"""

import argparse
import importlib
import inspect
import tempfile
from pathlib import Path
from pydoc_data.topics import topics  # Python's language reference, a text that everyone has

import keras
import numpy as np

import keras_gpt2 as kg

MODULES = ["argparse", "inspect", "ast", "doctest", "tarfile", "difflib"]  # to learn
OTHER_MODULES = ["textwrap", "shlex"]  # held out
PROMPTS = ["    def __init__(self", "    if not ", "The value of the"]
LENGTH = 64


def source_code(modules: list[str]) -> str:
    return "\n\n".join(inspect.getsource(importlib.import_module(name)) for name in modules)


def encode(tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode(text), "int32")


def train(model: kg.GPT2, token_ids: np.ndarray, steps: int, learning_rate: float) -> None:
    """Trains what is trainable, for `steps` batches of 16 windows."""
    data = kg.data.WindowDataset(token_ids, LENGTH, batch_size=16, shuffle=True)
    trainer = kg.training.NextTokenModel(model)
    optimizer = kg.training.adamw(model, learning_rate, steps, warmup_steps=steps // 20)
    trainer.compile(optimizer, jit_compile=steps > 200)  # compiling takes 10 s
    trainer.fit(
        data.as_tf_dataset().repeat(),
        epochs=5,
        steps_per_epoch=-(-steps // 5),
        shuffle=False,  # the data are, already
        verbose=2,
    )


def train_base(text: str, steps: int) -> tuple[kg.GPT2, kg.BytePairTokenizer]:
    tokenizer = kg.BytePairTokenizer.train_from_iterator([text], 1024)
    model = kg.GPT2(
        tokenizer.vocabulary_size,
        sequence_length=LENGTH,
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        dropout=0.0,
    )
    train(model, encode(tokenizer, text), steps, learning_rate=3e-3)
    return model, tokenizer


def show(when: str, perplexity: dict[str, float], texts: list[str]) -> None:
    new, old = perplexity["new"], perplexity["old"]
    print(f"--- {when}: perplexity of the new text {new:.1f}, of the old {old:.1f}")
    print(*(prompt + text for prompt, text in zip(PROMPTS, texts, strict=True)), sep="\n\n")


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, of both trainings")
    parser.add_argument("--checkpoint", help="directory of a model and its tokenizer")
    parser.add_argument("--text", type=Path, help="file to learn; its last tenth is held out")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of the fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="likewise")
    parser.add_argument("--output", type=Path, help="directory for the models")
    options = parser.parse_args(arguments)
    base_steps, steps = (100, 60) if options.quick else (1200, 800)
    steps = options.steps or steps
    output = options.output or Path(tempfile.mkdtemp())

    keras.utils.set_random_seed(0)
    old = "\n\n".join(topics[name] for name in sorted(topics))
    old, old_held_out = old[: len(old) * 9 // 10], old[len(old) * 9 // 10 :]
    if options.text:
        new = options.text.read_text(encoding="utf-8")
        new, new_held_out = new[: len(new) * 9 // 10], new[len(new) * 9 // 10 :]
    else:
        new, new_held_out = source_code(MODULES), source_code(OTHER_MODULES)

    if options.checkpoint:
        directory = kg.checkpoints.find(options.checkpoint)
        model = kg.GPT2.from_preset(directory)
        tokenizer = kg.BytePairTokenizer.from_directory(directory)
    else:
        model, tokenizer = train_base(old, base_steps)
        tokenizer.save(output / "base")
        model.save(output / "base" / "model.keras")

    held_out = {"old": encode(tokenizer, old_held_out), "new": encode(tokenizer, new_held_out)}

    def perplexity() -> dict[str, float]:
        scores = {k: kg.training.score_tokens(model, ids, LENGTH) for k, ids in held_out.items()}
        return {name: score.perplexity for name, score in scores.items()}

    def samples(temperature: float) -> list[str]:
        seeds = [1, 2, 3]
        return kg.generate(
            model, tokenizer, PROMPTS, 40, temperature, seed=seeds, jit_compile=False
        )

    results: dict = {"before": perplexity()}
    show("before", results["before"], samples(temperature=0.7))
    results["frozen"], results["trained"] = model.count_params(), model.enable_lora(options.rank)
    print(f"LoRA trains {results['trained']:,} weights beside {results['frozen']:,} frozen ones")
    train(model, encode(tokenizer, new), steps, options.learning_rate)
    results["after"] = perplexity()
    show("after", results["after"], samples(temperature=0.7))

    expected = samples(temperature=0)
    model.merge_lora()
    version = kg.serving.export(model, tokenizer, output / "export", max_new_tokens_limit=40)
    served = kg.serving.SavedModelClient(version).generate(PROMPTS, 40, temperature=0)
    results["served_is_same"] = served == expected
    print(f"greedy texts from {version} are the same: {results['served_is_same']}")
    return results


if __name__ == "__main__":
    main()
