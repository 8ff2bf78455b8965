"""Commands and their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_gpt2.cli import commands

DESCRIPTION = """\
GPT-2 on your own text: train a model, let it write, and export it for TensorFlow Serving.

  keras-gpt2 quickstart                           the whole path on a built-in text, in 2 minutes
  keras-gpt2 train --text book.txt --output runs/book
  keras-gpt2 resume runs/book                     after an interruption
  keras-gpt2 generate runs/book --prompt "Once upon"
  keras-gpt2 export runs/book saved_models/book
  keras-gpt2 query saved_models/book --prompt "Once upon"
  keras-gpt2 serve saved_models/book              with tensorflow_model_server or docker
  keras-gpt2 convert runs/book book-hf --to hugging-face
"""

_MODEL = "directory of a run or of foreign weights, gpt2 ... gpt2-xl, or a Hugging Face hub id"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 failed (one line on stderr says why), 2 wrong usage, 130 stopped
        with Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(f"keras-gpt2: {_one_line(error)} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return (
        words
        if isinstance(error, (ValueError, OSError, RuntimeError)) and words
        else (f"{type(error).__name__}: {words}")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-gpt2",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {more}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return command

    quickstart = add(
        "quickstart",
        "the whole path on a built-in text",
        "Trains a tokenizer and a small GPT-2 on the Python language reference (it comes with "
        "Python), exports the model, loads the export in a new process that knows TensorFlow "
        "only, and prints what it writes. Takes about 2 minutes on 2 cores.",
    )
    quickstart.add_argument("--text", nargs="+", help="your own text files instead")
    quickstart.add_argument("--prompt", help="what the export continues at the end")
    quickstart.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="directory of the run"
    )
    quickstart.add_argument(
        "--saved-model",
        type=Path,
        default=Path("saved_models/quickstart"),
        help="directory the export goes to",
    )
    quickstart.add_argument("--epochs", type=int, default=4, help="passes over the text")

    train = add(
        "train",
        "train a tokenizer and a model on text files",
        "Writes model.keras (the best so far), vocab.json, merges.txt, history.csv, and "
        "checkpoints/ for `resume`.",
    )
    train.add_argument("--text", nargs="+", required=True, help="UTF-8 files, directories or globs")
    train.add_argument("--output", type=Path, required=True, help="new directory for the run")
    train.add_argument(
        "--tokenizer", type=Path, help="directory with vocab.json and merges.txt to use as it is"
    )
    train.add_argument(
        "--vocabulary-size", type=int, default=2048, help="tokens to train (without --tokenizer)"
    )
    train.add_argument(
        "--preset",
        help="gpt2, gpt2-medium, gpt2-large or gpt2-xl: sizes, with random weights; the four "
        "sizes below are then taken from it",
    )
    train.add_argument("--num-layers", type=int, default=4, help="blocks")
    train.add_argument("--num-heads", type=int, default=4, help="attention heads")
    train.add_argument("--hidden-dim", type=int, default=128, help="width")
    train.add_argument("--sequence-length", type=int, default=128, help="tokens the model can see")
    train.add_argument("--dropout", type=float, default=0.1, help="share dropped in training")
    train.add_argument("--batch-size", type=int, default=16, help="sequences in one step")
    train.add_argument("--epochs", type=int, default=8, help="passes over the text")
    train.add_argument("--learning-rate", type=float, default=2e-3, help="the largest")
    train.add_argument(
        "--validation-fraction", type=float, default=0.1, help="share of the text kept aside"
    )
    train.add_argument(
        "--dtype", default="float32", help="float32, mixed_bfloat16 or mixed_float16"
    )
    train.add_argument("--devices", type=int, default=1, help="each takes its share of every batch")
    train.add_argument("--seed", type=int, default=0, help="of weights, order and dropout")
    train.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=300.0,
        help="least time between two checkpoints, from which `resume` goes on",
    )
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs")

    resume = add(
        "resume",
        "go on with a training run that was stopped or killed",
        "It ends as it would have without the interruption.",
    )
    resume.add_argument("output", type=Path, help="directory of the run")

    generate = add("generate", "continue a prompt with a trained model")
    generate.add_argument("model", help=_MODEL)
    _add_sampling(generate, temperature=0.8)
    generate.add_argument("--stop", nargs="+", help="texts that end the completion")

    evaluate = add(
        "evaluate",
        "perplexity and bits per byte of a text",
        "Every token after the first is predicted once.",
    )
    evaluate.add_argument("model", help=_MODEL)
    evaluate.add_argument("--text", nargs="+", required=True, help="UTF-8 files")
    evaluate.add_argument(
        "--stride", type=int, help="tokens between windows; fewer give more context (default: all)"
    )
    evaluate.add_argument("--batch-size", type=int, default=8, help="windows at a time")

    export = add(
        "export",
        "write a SavedModel for TensorFlow Serving",
        "The next free version number below the directory is taken.",
    )
    export.add_argument("model", help=_MODEL)
    export.add_argument("directory", type=Path, help="for example saved_models/NAME")
    _add_sampling(export, temperature=0.0, prompts=False)
    export.set_defaults(max_new_tokens=None)
    export.add_argument(
        "--weights",
        choices=["bfloat16", "int8"],
        help="store matrices so, half or a quarter of the size",
    )
    export.add_argument(
        "--max-new-tokens-limit",
        type=int,
        help="most tokens that a request may ask for (default: what fits in 15 s here)",
    )
    export.add_argument(
        "--xla", action="store_true", help="decode under XLA, which the server must be allowed"
    )

    inspect = add(
        "inspect",
        "show what an export says of itself, and check it",
        "Loads it and asks it again what it was asked when it was exported.",
    )
    inspect.add_argument("directory", type=Path, help="saved_models/NAME, or a version in it")

    convert = add(
        "convert",
        "turn a model's directory into another library's layout",
        "Reads a run of `train`, or GPT-2 weights as Hugging Face, OpenAI or KerasHub store them.",
    )
    convert.add_argument("model", help=_MODEL)
    convert.add_argument("output", type=Path, help="new directory")
    convert.add_argument(
        "--to", choices=["hugging-face", "keras"], required=True, help="layout to write"
    )

    query = add("query", "ask an export, on disk or behind a server")
    query.add_argument(
        "target",
        help="saved_models/NAME, http://localhost:8501/v1/models/NAME or "
        "grpc://localhost:8500/v1/models/NAME; a server's also with /versions/N or /labels/LABEL",
    )
    _add_sampling(query, temperature=0.8)
    query.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a server")

    serve = add(
        "serve",
        "start TensorFlow Serving on a model's exports",
        "Runs tensorflow_model_server if it is on the PATH, else docker. Requests are merged into "
        "batches if the last version has a batching_params.pbtxt.",
    )
    serve.add_argument("directory", type=Path, help="saved_models/NAME")
    serve.add_argument("--name", help="the model's name in addresses (default: the directory's)")
    serve.add_argument("--rest-port", type=int, default=8501, help="for REST and monitoring")
    serve.add_argument("--port", type=int, default=8500, help="for gRPC")
    serve.add_argument(
        "--timeout", type=float, default=30.0, help="most seconds for a REST request"
    )
    serve.add_argument(
        "--no-batching", dest="batching", action="store_false", help="answer one by one"
    )
    serve.add_argument("--xla", action="store_true", help="allow exports that were made for XLA")
    return parser


def _add_sampling(
    command: argparse.ArgumentParser, temperature: float, prompts: bool = True
) -> None:
    if prompts:
        command.add_argument(
            "--prompt", nargs="+", required=True, help="one or more texts to continue"
        )
    command.add_argument("--max-new-tokens", type=int, default=64, help="most tokens to add")
    command.add_argument(
        "--temperature", type=float, default=temperature, help="0 takes the likeliest token"
    )
    command.add_argument("--top-k", type=int, default=0, help="among the k likeliest; 0 is off")
    command.add_argument(
        "--top-p", type=float, default=1.0, help="among the likeliest with this share; 1 is off"
    )
    command.add_argument("--seed", type=int, default=0, help="another one, another text")
