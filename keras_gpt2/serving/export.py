"""Writing a version that TensorFlow Serving can load."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_gpt2.generation import Sampling
from keras_gpt2.models.lora import without_lora
from keras_gpt2.serving import batching
from keras_gpt2.serving.limits import REST_SECONDS, measure_speed
from keras_gpt2.serving.readme import write_readme
from keras_gpt2.serving.signatures import ServedGPT2
from keras_gpt2.serving.warmup import bucket_records, example_records, write_records


def export(
    model: Any,
    tokenizer: Any,
    directory: str | os.PathLike,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    max_new_tokens_limit: int | None = None,
    weights: str | None = None,
    num_draft_tokens: int = 0,
    jit_compile: bool = False,
    description: str = "",
) -> Path:
    """Writes model, tokenizer and decoding as one SavedModel, `directory/<next version>`.

    The version holds everything, its own README.md and warm-up requests too: it needs neither
    keras_gpt2 nor Keras nor TF Text, and no XLA unless asked for. It is written beside its place
    and renamed when whole, so a server that watches the directory never sees half of it.

    Args:
        model: a `keras_gpt2.GPT2`.
        tokenizer: a `keras_gpt2.BytePairTokenizer` of at most the model's vocabulary.
        directory: the model's directory for the server, for example `saved_models/NAME`.
        max_new_tokens: int, the most tokens `serving_default` adds; 64, or the limit if that is
            less, if None.
        temperature: float, of `serving_default`; 0 takes the likeliest token.
        top_k: int, of `serving_default`; 0 is off.
        top_p: float, of `serving_default`; 1 is off.
        seed: int, of `serving_default`.
        max_new_tokens_limit: int, the most that a request to `generate` may ask for; None: what
            fits in 15 s here for one prompt, measured, and at least 64, as far as there is room.
        weights: `"int8"` or `"bfloat16"` stores the matrices so, a quarter or half of the size on
            disk and in memory; a server without XLA is slower with them. None: as the model has
            them.
        num_draft_tokens: int >= 0, how many tokens to guess from the text so far and check in one
            pass: the same text, sooner where it repeats itself; 0 is off, see `generate`.
        jit_compile: bool; True decodes under XLA, which is faster and needs a server started with
            `--xla_cpu_compilation_enabled=true`.
        description: str, a paragraph for README.md, for example what the model was trained on.

    Returns:
        The path of the new version.

    Raises:
        ValueError: if a parameter breaks its rule, or the tokenizer does not fit the model.
        RuntimeError: if Keras does not run on TensorFlow.

    Example:
        >>> export(model, tokenizer, "saved_models/tales")  # doctest: +SKIP
        PosixPath('saved_models/tales/1')
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "A SavedModel can be written on Keras's TensorFlow backend only. "
            f"Received: backend={keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow and "
            "load the model again."
        )
    longest = model.sequence_length - 1
    if longest < 1:
        raise ValueError(
            "A model must have a sequence_length of at least 2 to write text. "
            f"Received: sequence_length={model.sequence_length}."
        )
    limit = longest if max_new_tokens_limit is None else max_new_tokens_limit
    if not 1 <= limit <= longest:
        raise ValueError(
            f"max_new_tokens_limit must be from 1 to {longest}. "
            f"Received: max_new_tokens_limit={limit}."
        )
    if num_draft_tokens < 0:
        raise ValueError(
            f"num_draft_tokens must be at least 0. Received: num_draft_tokens={num_draft_tokens}."
        )
    model = without_lora(model)
    if weights not in (None, model.weights_type):
        copy = model.from_config(model.get_config())
        copy.set_weights(model.get_weights())
        copy.narrow(weights)
        model = copy
    if max_new_tokens is None:
        max_new_tokens = min(64, limit)
    defaults = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    kernels = {key: tf.Variable(copy) for key, copy in model.kernels_by_rows().items()}
    with model.reading_by_rows(kernels):
        served = ServedGPT2(
            model, kernels, tokenizer, defaults, limit, num_draft_tokens, jit_compile
        )
        speed = measure_speed(served, model.sequence_length)
        if max_new_tokens_limit is None:
            served.limit = max(speed.limit(model.sequence_length), max_new_tokens)
        _warn_if_slow(served.limit, speed.seconds(served.limit, model.sequence_length))

        directory = Path(directory).absolute()  # its name is the model's
        directory.mkdir(parents=True, exist_ok=True)
        # A server takes integer names only, so this one is invisible to it.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory))
        try:
            tokenizer_files = partial / "tokenizer"
            tokenizer.save(tokenizer_files)
            served.assets = [
                tf.saved_model.Asset(str(path)) for path in sorted(tokenizer_files.iterdir())
            ]
            version = partial / "version"
            tf.saved_model.save(served, str(version), signatures=served.signatures())
            (version / batching.NAME).write_text(batching.PARAMETERS)
            records = example_records(version, served.limit, served.defaults)
            if jit_compile:
                records += bucket_records(model.sequence_length, batching.MAX_BATCH_SIZE)
            write_records(version, directory.name, records)
            write_readme(
                version,
                directory.name,
                model,
                tokenizer,
                defaults,
                served.limit,
                speed,
                jit_compile,
                description,
                records,
            )
            return _publish(version, directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _warn_if_slow(limit: int, seconds: float) -> None:
    if seconds > REST_SECONDS:
        warnings.warn(
            f"A request for {limit} new tokens took {seconds:.0f} s here, and REST allows "
            f"{REST_SECONDS:.0f} s: start the server with a larger --rest_api_timeout_in_ms, or "
            "export with a smaller max_new_tokens_limit.",
            stacklevel=3,
        )


def _publish(version: Path, directory: Path) -> Path:
    """Renames `version` to the next free number; of two exports at once, both get one."""
    number = max(
        (int(p.name) for p in directory.iterdir() if re.fullmatch(r"\d+", p.name)), default=0
    )
    while True:
        number += 1
        target = directory / str(number)
        try:
            # Fails where another export has put its files meanwhile.
            os.rename(version, target)
        except OSError:
            if not target.exists():
                raise
        else:
            return target
