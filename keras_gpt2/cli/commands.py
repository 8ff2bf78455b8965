"""What each command does, in terms of the public API."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import keras_gpt2 as kg
from keras_gpt2.cli import quickstart as _quickstart
from keras_gpt2.cli.run import continue_run, description, load_run, save_run, train_run


def quickstart(options: argparse.Namespace) -> None:
    _quickstart.quickstart(options)


def train(options: argparse.Namespace) -> None:
    if options.preset:
        if options.preset not in kg.PRESETS:
            raise ValueError(
                f"--preset must be one of {', '.join(kg.PRESETS)}. Received: {options.preset}."
            )
        sizes = dict(kg.PRESETS[options.preset])
        sizes.pop("vocabulary_size")
    else:
        names = ("num_layers", "num_heads", "hidden_dim", "sequence_length")
        sizes = {name: getattr(options, name) for name in names}
    train_run(
        options.text,
        options.output,
        sizes,
        tokenizer=options.tokenizer,
        vocabulary_size=options.vocabulary_size,
        dropout=options.dropout,
        batch_size=options.batch_size,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        validation_fraction=options.validation_fraction,
        dtype=options.dtype,
        devices=options.devices,
        seed=options.seed,
        checkpoint_seconds=options.checkpoint_seconds,
        tensorboard=options.tensorboard,
    )
    print(f"\nNext: keras-gpt2 generate {options.output} --prompt 'Once upon'")


def resume(options: argparse.Namespace) -> None:
    continue_run(options.output)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    return {name: getattr(options, name) for name in names}


def generate(options: argparse.Namespace) -> None:
    model, tokenizer = load_run(options.model)
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        if len(options.prompt) == 1:
            prompt = options.prompt[0]
            pieces = kg.stream(model, tokenizer, prompt, **_sampling(options), stop=options.stop)
            print(prompt, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
        else:
            texts = kg.generate(
                model, tokenizer, options.prompt, **_sampling(options), stop=options.stop
            )
            _print_texts(options.prompt, texts)


def evaluate(options: argparse.Namespace) -> None:
    model, tokenizer = load_run(options.model)
    texts = [Path(name).read_bytes().decode("utf-8") for name in options.text]
    token_ids = [i for ids in tokenizer.encode_batch(texts) for i in ids]
    score = kg.training.score_tokens(
        model, token_ids, model.sequence_length, options.stride, options.batch_size
    )
    num_bytes = sum(len(text.encode()) for text in texts)
    bits = score.nats_per_token * score.num_tokens / math.log(2) / num_bytes
    print(f"tokens           {score.num_tokens}")
    print(f"perplexity       {score.perplexity:.3f}")
    print(f"nats per token   {score.nats_per_token:.4f}")
    print(f"bits per byte    {bits:.4f}")


def export(options: argparse.Namespace) -> None:
    model, tokenizer = load_run(options.model)
    version = kg.serving.export(
        model,
        tokenizer,
        options.directory,
        **_sampling(options),
        weights=options.weights,
        jit_compile=options.xla,
        max_new_tokens_limit=options.max_new_tokens_limit,
        description=description(options.model),
    )
    print(f"Wrote {version}; its README.md says how to serve and ask it.")
    print(f"Next: keras-gpt2 query {options.directory} --prompt 'Once upon'")


def query(options: argparse.Namespace) -> None:
    from keras_gpt2.serving.client import connect

    if "://" in options.target:
        client: Any = connect(options.target, options.timeout)
    else:
        client = kg.serving.SavedModelClient(options.target)
    _print_texts(options.prompt, client.generate(options.prompt, **_sampling(options)))


def inspect(options: argparse.Namespace) -> None:
    from keras_gpt2.serving.inspection import check_export
    from keras_gpt2.serving.saved_model import last_version

    version = last_version(options.directory)
    print((version / "README.md").read_text(encoding="utf-8"))
    print(f"Checking {version}")
    for line in check_export(version):
        print(f"- {line}")


def serve(options: argparse.Namespace) -> None:
    from keras_gpt2.serving.server import METRICS_PATH, model_directory, server_command

    command = server_command(
        options.directory,
        options.name,
        options.rest_port,
        options.port,
        options.timeout,
        batching=options.batching,
        xla=options.xla,
    )
    name = options.name or model_directory(options.directory).name
    url = f"http://localhost:{options.rest_port}"
    print(f"+ {shlex.join(command)}\n")
    print("When it says that it exports the REST API, ask it:\n")
    print(f"""  curl -d '{{"instances": ["Once upon"]}}' {url}/v1/models/{name}:predict""")
    print(f"  keras-gpt2 query {url}/v1/models/{name} --prompt 'Once upon'\n")
    print(f"Prometheus reads {url}{METRICS_PATH}\n", flush=True)
    # Takes this process's place, so that signals and the exit code are the server's own.
    os.execvp(command[0], command)


def convert(options: argparse.Namespace) -> None:
    directory = kg.checkpoints.find(options.model)
    model = kg.GPT2.from_preset(directory)
    try:
        tokenizer = kg.BytePairTokenizer.from_directory(directory)
    except FileNotFoundError:
        tokenizer = None
    if options.to == "hugging-face":
        kg.checkpoints.save_hugging_face(model, options.output, tokenizer)
    else:
        save_run(model, tokenizer, options.output)
    print(
        f"Wrote {options.output}" + ("" if tokenizer else ", without a tokenizer: none was found")
    )


def _print_texts(prompts: list[str], texts: list[str]) -> None:
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if number:
            print("---")
        print(prompt + text)


def _print_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"keras-gpt2: {message}", file=sys.stderr)
