"""The input pipeline: how fast text becomes token ids, how fast windows come, and in what memory.

    PYTHONPATH=. python benchmarks/data.py --megabytes 2000

A text is generated, words drawn by Zipf's law in lines of 12 (a tenth of it, written ten times),
and a tokenizer of 4096 tokens is trained on its beginning. Three things are measured:

- Memory: two processes read the tenth and all of it by `kg.data.text_datasets`, and draw
  windows in random order, 16 rows of 128. Printed is the peak of their own memory (RssAnon, asked
  for every 20 ms) and above what they had before; and the peak of all (VmHWM), which counts pages
  of the mapped token ids that the system may take back.
- Tokenization: sections of the text are given in turn to us (reading, hashing and writing
  included) and to `tokenizers`, the same pieces, in one batch and in batches as large as ours;
  printed is our share of the faster one's speed, from medians over the sections. 2 threads.
- Windows: their tokens a second, and how many times what a model of quickstart's size trains on.

2000 MB take 10 minutes on 2 free cores, and 4 GB of disk; 200 MB 2 minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = os.environ.setdefault("RAYON_NUM_THREADS", "2")

import numpy as np  # noqa: E402
from programs import Program, serve  # noqa: E402

MEGABYTE = 1_000_000
ROWS, LENGTH = 16, 128
NUM_WORDS, LINE = 50_000, 12


def generate(path: Path, megabytes: int) -> None:
    """Lines of words, each million bytes drawn with the next seed."""
    letters = np.array(list("etaoinshrdlucmfwypvb"))
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(letters, 1 + i % 9)) for i in range(NUM_WORDS)]
    limits = np.cumsum(1 / np.arange(1, NUM_WORDS + 1))
    with open(path, "w", encoding="utf-8") as file:
        for seed in range(megabytes):
            drawn = np.random.default_rng(seed).random(20_000 * LINE) * limits[-1]
            names = [words[i] for i in np.searchsorted(limits, drawn).tolist()]
            lines = [" ".join(names[i : i + LINE]) for i in range(0, len(names), LINE)]
            text = "\n".join(lines)
            assert len(text) >= MEGABYTE
            file.write(text[: MEGABYTE - 1] + "\n")


class OwnMemory(threading.Thread):
    """Notes the most memory of this process that is no file's, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = self.now()
        self.start()

    @staticmethod
    def now() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    def run(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.02)


def make_reader(tokenizer_directory: str) -> Callable[[Any], dict[str, Any]]:
    """A process that reads one text, and then draws windows."""
    import keras_gpt2 as kg

    tokenizer = kg.BytePairTokenizer.from_directory(tokenizer_directory)
    tokenizer.encode("warm up")
    kg.data.WindowDataset(np.arange(100), 7, 2)  # loads what is loaded late
    memory = OwnMemory()

    def read(request: dict[str, str]) -> dict[str, Any]:
        train, _ = kg.data.text_datasets(
            request["text"], tokenizer, LENGTH, ROWS, 0.0, cache_dir=request["cache"]
        )
        number = min(2000, len(train))
        start = time.perf_counter()
        for i in range(number):
            train[i]
        return {
            "drawn": number * ROWS * LENGTH / (time.perf_counter() - start),
            "tokens": train.num_tokens,
            "shards": len(list(Path(request["cache"]).iterdir())),
            "before": memory.before,
            "own": memory.most,
        }

    return read


def compare(section: Path, tokenizer: Any) -> np.ndarray:
    """Seconds of ours and of `tokenizers` in batches and in one, by the clock and by the CPU."""
    import keras_gpt2 as kg
    from keras_gpt2.data.text_files import Part, decode_utf8, read_blocks, split_text

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=section.parent) as cache:
            kg.data.text_datasets(section, tokenizer, LENGTH, ROWS, 0.0, cache_dir=cache)

    def library(work: list[list[str]]) -> None:
        for pieces in work:
            tokenizer._tokenizer.encode_batch_fast(pieces)

    part = Part(section)
    batches = list(split_text(decode_utf8(read_blocks(part), part)))
    one = [[piece for pieces in batches for piece in pieces]]
    seconds = []
    for run in (ours, lambda: library(batches), lambda: library(one)):
        clock, cpu = time.perf_counter(), time.process_time()
        run()
        seconds.append((time.perf_counter() - clock, time.process_time() - cpu))
    return np.array(seconds)


def consumed() -> float:
    """Tokens a second that a model of quickstart's size trains on, under XLA."""
    import keras_gpt2 as kg

    gpt2 = kg.GPT2(2048, LENGTH, num_layers=4, num_heads=4, hidden_dim=128, dropout=0.0)
    model = kg.training.NextTokenModel(gpt2)
    model.compile("adamw", jit_compile=True)
    ids = np.random.default_rng(0).integers(0, 2048, (ROWS, LENGTH + 1))
    seconds = []
    for _ in range(31):
        start = time.perf_counter()
        model.train_on_batch(ids[:, :-1], ids[:, 1:])
        seconds.append(time.perf_counter() - start)
    return ROWS * LENGTH / statistics.median(seconds)


def main() -> None:
    if sys.argv[1:2] == ["read"]:
        return serve(lambda: make_reader(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=2000, help="of text")
    parser.add_argument("--sections", type=int, default=9, help="of 10 MB, for the comparison")
    parser.add_argument("--directory", type=Path, help="for the files; default: a temporary one")
    options = parser.parse_args()

    import keras_gpt2 as kg

    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        directory = Path(scratch)
        text, section = directory / "text", directory / "section"
        generate(text, options.megabytes // 10)
        with open(text, encoding="utf-8") as file:
            tokenizer = kg.BytePairTokenizer.train_from_iterator([file.read(5 * MEGABYTE)], 4096)
        tokenizer.save(directory / "tokenizer")
        kg.data.WindowDataset(np.arange(100), 7, 2)  # loads what is loaded late

        with open(text, "rb") as file:
            seconds = []
            for _ in range(min(options.sections, max(1, options.megabytes // 100))):
                section.write_bytes(file.read(10 * MEGABYTE))
                seconds.append(compare(section, tokenizer))
        ours, *library = np.median(seconds, axis=0)
        share, of_cpu = np.min(library, axis=0) / ours
        print(
            f"10 MB in {ours[0]:.2f} s: {share:.2f} of the speed of tokenizers, "
            f"{of_cpu:.2f} by CPU time; {len(seconds)} sections, {THREADS} threads",
            flush=True,
        )

        for megabytes in (options.megabytes // 10, options.megabytes):
            if megabytes == options.megabytes:
                tenth = text.rename(directory / "tenth")
                with open(text, "wb") as file:
                    for _ in range(10):
                        with open(tenth, "rb") as part:
                            shutil.copyfileobj(part, file)
                tenth.unlink()
            with tempfile.TemporaryDirectory(dir=directory) as cache:
                reader = Program(
                    "data.py", "read", str(directory / "tokenizer"), python=sys.executable
                )
                found = reader.ask({"text": str(text), "cache": cache})
                reader.close()
            if not found:
                raise SystemExit(f"The reader gave no answer: {reader.missing}.")
            print(
                f"{megabytes} MB, {found['tokens']:,} tokens in {found['shards']} shards, "
                f"{found['seconds']:.0f} s: own memory at most {found['own']:.0f} MB, "
                f"{found['own'] - found['before']:.0f} above the start; with mapped files "
                f"{found['peak']:.0f} MB; windows {found['drawn']:,.0f} tokens/s",
                flush=True,
            )
    rate = consumed()
    print(
        f"training takes {rate:,.0f} tokens/s: windows come {found['drawn'] / rate:.0f} x as fast"
    )


if __name__ == "__main__":
    main()
