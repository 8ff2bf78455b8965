"""The same windows of text, written with other tokens each time they are seen."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from keras_gpt2.data.token_cache import Tokenizer
from keras_gpt2.data.windows import WindowDataset

MARGIN = 8  # ids behind a window: some of its text may be left out at the ends


class DropoutTokenizer(Tokenizer, Protocol):
    """What BPE dropout asks of a tokenizer beyond `Tokenizer`."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def encode_batch(self, texts: list[str], dropout: float = 0.0) -> list[list[int]]: ...


class DropoutWindowDataset(WindowDataset):
    """`WindowDataset`, each window's text tokenized anew with BPE dropout when it is asked for.

    A merge that could be made is left out with probability `bpe_dropout`, so a text has many
    tokenizations, mostly of more tokens; what then exceeds the window is cut off. Where a window
    begins or ends inside a character, the rest of that character is left out. A window that would
    be too short (rare) keeps its tokens.

    The library `tokenizers` draws, and takes no seed: `seed` repeats the order of the windows,
    not their tokens.

    Args:
        token_ids, sequence_length, batch_size, shuffle, seed: see `WindowDataset`.
        tokenizer: that `token_ids` come from.
        bpe_dropout: float in (0, 1).

    Source: Provilkov et al. 2020, "BPE-Dropout: Simple and Effective Subword Regularization",
    section 3, which takes 0.1.
    """

    def __init__(
        self, *args: Any, tokenizer: DropoutTokenizer, bpe_dropout: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer = tokenizer
        self.bpe_dropout = bpe_dropout

    def _rows(self, starts: np.ndarray) -> np.ndarray:
        rows = super()._rows(starts)
        width = rows.shape[1]
        parts, owners = [], []  # texts between ends of text, and the rows they belong to
        for number, start in enumerate(starts):
            for part in self._split(self.token_ids[start : start + width + MARGIN]):
                parts.append(self.tokenizer.decode(part.tolist()).strip("\ufffd"))
                owners.append(number)
        drawn: list[list[int]] = [[] for _ in starts]
        begun = set()
        encoded = self.tokenizer.encode_batch(parts, dropout=self.bpe_dropout)
        for number, ids in zip(owners, encoded, strict=True):
            if number in begun:  # only a tokenizer that has this id makes several parts
                drawn[number].append(self.tokenizer.end_of_text_id)  # type: ignore[arg-type]
            begun.add(number)
            drawn[number] += ids
        for row, ids in zip(rows, drawn, strict=True):
            if len(ids) >= width:
                row[:] = ids[:width]
        return rows

    def _split(self, ids: np.ndarray) -> list[np.ndarray]:
        end = self.tokenizer.end_of_text_id
        if end is None:
            return [ids]
        places = np.flatnonzero(ids == end)
        starts, ends = [0, *(places + 1)], [*places, len(ids)]
        return [ids[start:stop] for start, stop in zip(starts, ends, strict=True)]
