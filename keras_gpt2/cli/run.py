"""A run's directory: run.json, model.keras, vocab.json, merges.txt, history.csv, checkpoints/."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_gpt2 as kg

RUN = "run.json"  # the options of the run


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


def description(directory: str | Path) -> str:
    """What a run was trained on, in words; empty if `directory` is none."""
    if not (Path(directory) / RUN).exists():
        return ""
    files = _read_options(Path(directory))["files"]
    if None in files.values():
        return ""
    lines = [f"- `{Path(name).name}`, sha256 `{digest}`" for name, digest in files.items()]
    shown = [*lines[:10], f"- and {len(lines) - 10} more"] if len(lines) > 10 else lines
    return "\n".join(["Trained on:", "", *shown])


def _read_options(output: Path) -> dict[str, Any]:
    """The options of the run in `output`; `files` is text -> sha256, None where it was not kept."""
    options = json.loads((output / RUN).read_text(encoding="utf-8"))
    if isinstance(options["files"], list):  # written before texts had their hashes there
        options["files"] = dict.fromkeys(options["files"])
    return options


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def train_run(
    files: Sequence[str],
    output: Path,
    sizes: dict[str, Any],
    tokenizer: Path | None = None,
    vocabulary_size: int = 2048,
    **options: Any,
) -> tuple[Any, kg.BytePairTokenizer]:
    """Begins a run in `output` and trains it to its end; see `continue_run` for its options.

    Returns:
        The best model and the tokenizer.
    """
    require_no_model(output)
    if (output / RUN).exists():
        raise FileExistsError(
            f"The output must not hold a run already: {output / RUN}. Go on with it by "
            f"`keras-gpt2 resume {output}`, or name another directory."
        )
    if options.get("epochs", 1) < 1:
        raise ValueError(f"--epochs must be at least 1. Received: {options['epochs']}.")
    paths = kg.data.find_files(files)
    if tokenizer is None:
        print(f"Training a tokenizer of {vocabulary_size} tokens on {len(paths)} file(s)")
        bpe = kg.BytePairTokenizer.train(paths, vocabulary_size)
    else:
        bpe = kg.BytePairTokenizer.from_directory(tokenizer)
    model = build(bpe, sizes, **options)  # before anything is written: arguments may be wrong
    datasets = load_data(paths, bpe, sizes, **options)
    bpe.save(output)
    options = {
        "files": {str(path.resolve()): _sha256(path) for path in paths},
        "sizes": sizes,
        **options,
    }
    write_whole(output / RUN, json.dumps(options, indent=1))
    return finish_run(output, bpe, model, datasets, **options)


def continue_run(output: Path) -> tuple[Any, kg.BytePairTokenizer]:
    """Trains a run that was stopped, or killed, to its end, as if it had not been.

    Returns:
        The best model and the tokenizer.
    """
    if not (output / RUN).exists():
        raise FileNotFoundError(
            f"A run to go on with must hold {RUN}, which `keras-gpt2 train` writes. "
            f"Received: {output}."
        )
    options = _read_options(output)
    for path, digest in options["files"].items():
        if digest is not None and _sha256(Path(path)) != digest:
            raise ValueError(
                f"A run goes on with the texts that it began with. Received: {path}, changed."
            )
    bpe = kg.BytePairTokenizer.from_directory(output)
    model = build(bpe, **options)
    datasets = load_data(paths=list(options["files"]), bpe=bpe, **options)
    return finish_run(output, bpe, model, datasets, **options)


def build(
    bpe: kg.BytePairTokenizer,
    sizes: dict[str, Any],
    dropout: float = 0.1,
    dtype: str = "float32",
    seed: int = 0,
    devices: int = 1,
    batch_size: int = 16,
    **_: Any,
) -> kg.GPT2:
    if devices > 1 and batch_size % devices:
        raise ValueError(
            "--batch-size must be a multiple of --devices. "
            f"Received: --batch-size {batch_size} --devices {devices}."
        )
    if devices > 1 and dtype == "mixed_float16" and keras.backend.backend() == "tensorflow":
        # Keras looks for overflow on the first device only: one on another would end in NaN.
        raise ValueError(
            "--dtype must not be mixed_float16 on several devices with TensorFlow: take "
            f"mixed_bfloat16, or KERAS_BACKEND=jax. Received: --dtype {dtype} --devices {devices}."
        )
    keras.utils.set_random_seed(seed)
    with kg.training.on_devices(devices):
        return kg.GPT2(bpe.vocabulary_size, **sizes, dropout=dropout, dtype=dtype)


def load_data(
    paths: Sequence[str | Path],
    bpe: kg.BytePairTokenizer,
    sizes: dict[str, Any],
    batch_size: int = 16,
    validation_fraction: float = 0.1,
    seed: int = 0,
    **_: Any,
) -> tuple[kg.data.WindowDataset, kg.data.WindowDataset | None]:
    return kg.data.text_datasets(
        paths, bpe, sizes["sequence_length"], batch_size, validation_fraction, seed
    )


def finish_run(
    output: Path,
    bpe: kg.BytePairTokenizer,
    gpt2: kg.GPT2,
    datasets: tuple[kg.data.WindowDataset, kg.data.WindowDataset | None],
    epochs: int = 8,
    learning_rate: float = 2e-3,
    checkpoint_seconds: float = 300.0,
    tensorboard: bool = False,
    devices: int = 1,
    **_: Any,
) -> tuple[Any, kg.BytePairTokenizer]:
    """Trains from the last checkpoint in `output`, or from the start if there is none."""
    training, validation = datasets
    num_validation = validation.num_tokens if validation is not None else 0
    print(f"{training.num_tokens} tokens for training, {num_validation} for validation")
    print(f"A model of {gpt2.count_params() / 1e6:.2f} million weights\n")
    total_steps = epochs * len(training)
    start = time.monotonic()
    with kg.training.on_devices(devices):
        model = kg.training.NextTokenModel(gpt2)
        model.compile(
            kg.training.adamw(
                gpt2, learning_rate, total_steps, warmup_steps=min(100, total_steps // 10)
            ),
            # "auto" leaves XLA off on CPUs, where it pays too, but also where it cannot be:
            # TensorFlow has no XLA over several devices.
            jit_compile=True if devices == 1 else "auto",
        )
        try:
            kg.training.fit_resumable(
                model,
                training,
                output,
                epochs,
                _EqualShares(validation, devices) if validation and devices > 1 else validation,
                checkpoint_seconds,
                tensorboard,
            )
        except KeyboardInterrupt:
            print(f"\nStopped. Go on with: keras-gpt2 resume {output}")
            if not (output / "model.keras").exists():
                kg.training.save_model(gpt2, output / "model.keras")
            print(f"The best model so far is {output / 'model.keras'}")
            raise
    if not (output / "model.keras").exists():
        raise RuntimeError("The loss was not a number from the first epoch on: no model was kept.")
    print(f"\nTrained in {time.monotonic() - start:.0f} s; the best model is in {output}")

    best, bpe = load_run(output)
    if validation is not None:
        unigram = kg.data.unigram_perplexity(
            training.token_ids, validation.token_ids, bpe.vocabulary_size
        )
        score = kg.training.score_tokens(best, validation.token_ids, gpt2.sequence_length)
        print(f"Validation perplexity {score.perplexity:.1f}; of a unigram model {unigram:.1f}")
        if draw_curves(output, unigram):
            print(f"Curves: {output / 'curves.png'}")
    return best, bpe


class _EqualShares(keras.utils.PyDataset):
    """A dataset whose batches have rows of padding until `devices` divide them; JAX needs that."""

    def __init__(self, dataset: kg.data.WindowDataset, devices: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.devices = devices

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        batch = self.dataset[index]
        padding = ((0, -len(batch[0]) % self.devices), (0, 0))
        return tuple(np.pad(ids, padding, constant_values=-1) for ids in batch)


def write_whole(path: Path, content: str) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


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
