"""Programs that are measured in turn: each in a process of its own, asked over standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Program:
    """A script's process, asked with lines of JSON; `missing` says why there are no answers."""

    def __init__(self, script: str, name: str, *arguments: str, python: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.missing = self._answer().get("missing")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"missing": "the process ended"}

    def ask(self, request: Any) -> dict[str, Any]:
        """The answer, or an empty one if there is none any more."""
        if self.missing:
            return {}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._answer()
        self.missing = answer.get("missing")
        return {} if self.missing else answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(make: Callable[[], Callable[[Any], dict[str, Any]]]) -> None:
    """Answers requests with what the function that `make` returns says, its time and the peak."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=out, flush=True)

    try:
        run = make()
    except ImportError as error:
        return answer({"missing": str(error)})
    answer({})
    for line in sys.stdin:
        start = time.perf_counter()
        content = run(json.loads(line))
        seconds = time.perf_counter() - start
        answer({**content, "seconds": seconds, "peak": peak_memory()})


def peak_memory() -> float:
    """The most memory of this process, or the most since `forget_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
