"""A run's directory: model.keras, vocab.json, merges.txt, history.csv, curves.png."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

import keras_gpt2 as kg


def load_run(name: str | Path) -> tuple[kg.GPT2, kg.BytePairTokenizer]:
    """The model and the tokenizer of a run, of another library's directory, or of the hub."""
    directory = kg.checkpoints.find(name)
    return kg.GPT2.from_preset(directory), kg.BytePairTokenizer.from_directory(directory)


def save_run(model: Any, tokenizer: kg.BytePairTokenizer | None, directory: Path) -> None:
    """Writes what `load_run` reads, and never over a model that is there."""
    require_no_model(directory)
    kg.training.save_model(model, directory / "model.keras")
    if tokenizer is not None:
        tokenizer.save(directory)


def require_no_model(directory: Path) -> None:
    """Raises FileExistsError if `directory` holds a model already."""
    if (directory / "model.keras").exists():
        raise FileExistsError(
            f"The output must not hold a model already: {directory / 'model.keras'} would be lost. "
            "Name another directory or move that one."
        )


def train_run(
    files: Sequence[str],
    output: Path,
    sizes: dict[str, Any],
    tokenizer: Path | None = None,
    vocabulary_size: int = 2048,
    dropout: float = 0.1,
    batch_size: int = 16,
    epochs: int = 8,
    learning_rate: float = 2e-3,
    validation_fraction: float = 0.1,
    dtype: str = "float32",
    seed: int = 0,
    tensorboard: bool = False,
) -> tuple[Any, kg.BytePairTokenizer]:
    """Trains into `output`; the best model is on disk after every epoch.

    Returns:
        The best model and the tokenizer.
    """
    require_no_model(output)
    if epochs < 1:
        raise ValueError(f"--epochs must be at least 1. Received: {epochs}.")
    keras.utils.set_random_seed(seed)

    if tokenizer is None:
        paths = kg.data.find_files(files)
        print(f"Training a tokenizer of {vocabulary_size} tokens on {len(paths)} file(s)")
        bpe = kg.BytePairTokenizer.train(paths, vocabulary_size)
    else:
        bpe = kg.BytePairTokenizer.from_directory(tokenizer)
    training, validation = kg.data.text_datasets(
        list(files), bpe, sizes["sequence_length"], batch_size, validation_fraction, seed
    )
    num_validation = validation.num_tokens if validation is not None else 0
    print(f"{training.num_tokens} tokens for training, {num_validation} for validation")

    model = kg.GPT2(bpe.vocabulary_size, **sizes, dropout=dropout, dtype=dtype)
    print(f"A model of {model.count_params() / 1e6:.2f} million weights\n")
    total_steps = epochs * len(training)
    model.compile(
        kg.training.adamw(
            model, learning_rate, total_steps, warmup_steps=min(100, total_steps // 10)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[kg.training.Perplexity()],
        jit_compile=True,  # Keras's "auto" leaves XLA off on CPUs, where it pays too
    )
    bpe.save(output)
    start = time.monotonic()
    try:
        model.fit(
            training,
            validation_data=validation,
            epochs=epochs,
            shuffle=False,  # the dataset shuffles; Keras would shuffle its batches again
            callbacks=kg.training.callbacks(output, tensorboard),
        )
    except KeyboardInterrupt:
        if not (output / "model.keras").exists():
            kg.training.save_model(model, output / "model.keras")
        print(f"\nStopped; the best model so far is {output / 'model.keras'}")
        raise
    if not (output / "model.keras").exists():
        raise RuntimeError("The loss was not a number from the first epoch on: no model was kept.")
    print(f"\nTrained in {time.monotonic() - start:.0f} s; the best model is in {output}")

    model, bpe = load_run(output)
    if validation is not None:
        unigram = kg.data.unigram_perplexity(
            training.token_ids, validation.token_ids, bpe.vocabulary_size
        )
        score = kg.training.score_tokens(model, validation.token_ids, sizes["sequence_length"])
        print(f"Validation perplexity {score.perplexity:.1f}; of a unigram model {unigram:.1f}")
        if draw_curves(output, unigram):
            print(f"Curves: {output / 'curves.png'}")
    return model, bpe


def draw_curves(output: Path, unigram: float) -> bool:
    """Draws history.csv as curves.png; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    with open(output / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows]
    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
    for key, label in (("perplexity", "training"), ("val_perplexity", "validation")):
        axes.plot(epochs, [float(row[key]) for row in rows], marker="o", label=label)
    axes.axhline(unigram, color="gray", linestyle="--", label="unigram model (validation)")
    axes.set(xlabel="epoch", ylabel="perplexity", yscale="log", title="Perplexity, lower is better")
    axes.legend()
    figure.savefig(output / "curves.png", dpi=120)
    return True
