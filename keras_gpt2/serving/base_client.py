"""What every client can be asked, over one abstract `predict`."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

Texts = str | bytes | Sequence[str | bytes]
Rows = Sequence[Sequence[int]]

# The signatures of every export, in the order in which a missing one is named.
SIGNATURES = ("serving_default", "generate", "score", "logits", "tokenize", "detokenize")


class TextScore(NamedTuple):
    """How likely a model finds a text, from its second token on."""

    log_prob: float  # natural log, the sum over the tokens
    num_tokens: int
    perplexity: float


class BaseClient(ABC):
    """Asks an exported model; a subclass says where it is, in `predict`.

    A text is a str or bytes, with or without a list around it; bytes that are not UTF-8 count as
    U+FFFD. The answer is a list with one element for each text.
    """

    @abstractmethod
    def predict(self, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Any signature: all its inputs by name, all its outputs by name.

        An input is a list or array with an element for each row, as an output is; texts come back
        as an array of str objects.
        """

    def generate(
        self,
        prompts: Texts,
        max_new_tokens: int | Sequence[int] = 64,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """The completions of prompts, as `keras_gpt2.generate` gives them.

        Each parameter is one value for all prompts, or one for each.

        Raises:
            ConnectionError, TimeoutError, RuntimeError: see `Client`.
            ValueError: with the prompt's number, if a parameter breaks its rule.
        """
        prompts = _texts(prompts)
        # All inputs always: REST fills in no defaults, and a batching server no missing rows.
        inputs = {
            "prompt": prompts,
            "max_new_tokens": _column("max_new_tokens", max_new_tokens, len(prompts), _int32),
            "temperature": _column("temperature", temperature, len(prompts), float),
            "top_k": _column("top_k", top_k, len(prompts), _int32),
            "top_p": _column("top_p", top_p, len(prompts), float),
            "seed": _column("seed", seed, len(prompts), _int32),
        }
        if not prompts:
            return []
        outputs = self.predict("generate", inputs)
        for row, reason in enumerate(outputs["finish_reason"]):
            if reason.startswith("invalid: "):
                raise ValueError(f"{reason.removeprefix('invalid: ')} (prompt {row})")
        return outputs["text"].tolist()

    def score(self, texts: Texts) -> list[TextScore]:
        """How likely each text is: every token after the first given all before it."""
        texts = _texts(texts)
        if not texts:
            return []
        outputs = self.predict("score", {"text": texts})
        columns = [outputs[name].tolist() for name in TextScore._fields]
        return [TextScore(*row) for row in zip(*columns, strict=True)]

    def logits(self, token_ids: Rows) -> list[np.ndarray]:
        """Rows of ids, of any lengths -> for each a float32 array (length, vocabulary)."""
        if not len(token_ids):
            return []
        logits = self.predict("logits", {"token_ids": _padded(token_ids)})["logits"]
        return [row[: len(ids)] for ids, row in zip(token_ids, logits, strict=True)]

    def tokenize(self, texts: Texts) -> list[list[int]]:
        """Each text's token ids."""
        texts = _texts(texts)
        if not texts:
            return []
        outputs = self.predict("tokenize", {"text": texts})
        rows = zip(outputs["token_ids"].tolist(), outputs["num_tokens"], strict=True)
        return [ids[:length] for ids, length in rows]

    def detokenize(self, token_ids: Rows) -> list[str]:
        """Rows of ids, of any lengths -> the text of each."""
        if not len(token_ids):
            return []
        return self.predict("detokenize", {"token_ids": _padded(token_ids)})["text"].tolist()


def check_signatures(found: Collection[str], where: str) -> None:
    """Refuses a model that `keras_gpt2.serving.export` has not written."""
    missing = [name for name in SIGNATURES if name not in found]
    if missing:
        raise ValueError(
            f"An export of keras_gpt2 has the signatures {', '.join(SIGNATURES)}. "
            f"Received: {where}, without {', '.join(missing)}."
        )


def as_bytes(text: str | bytes) -> bytes:
    """UTF-8, and of what a command line could not decode, the bytes it was given."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def decoded(name: str, array: np.ndarray) -> np.ndarray:
    """An output with its bytes as str, as REST has them, but for one called `..._bytes`."""
    if array.dtype != object or name.endswith("_bytes"):
        return array
    return np.vectorize(bytes.decode, otypes=[object])(array)


def _texts(texts: Texts) -> list[str | bytes]:
    return [texts] if isinstance(texts, (str, bytes)) else list(texts)


def _int32(value: Any) -> int:
    number = operator.index(value)  # refuses 3.0, as a server does
    if not -(2**31) <= number < 2**31:
        raise ValueError
    return number


def _column(name: str, value: Any, rows: int, kind: Any) -> list:
    """A parameter once per row, as plain numbers."""
    values = list(value) if isinstance(value, (Sequence, np.ndarray)) else [value] * rows
    if len(values) != rows:
        raise ValueError(
            f"{name} must be one value, or one for each of the {rows} prompts. "
            f"Received: {len(values)} values."
        )
    try:
        return [kind(v) for v in values]
    except (TypeError, ValueError):
        words = "a number" if kind is float else "an integer of 32 bits"
        raise ValueError(f"{name} must be {words}. Received: {name}={value!r}.") from None


def _padded(token_ids: Rows) -> list[list[int]]:
    """Rows of one length, at least 1, with -1 behind the shorter ones."""
    width = max(1, *(len(ids) for ids in token_ids))
    return [[operator.index(i) for i in ids] + [-1] * (width - len(ids)) for ids in token_ids]
