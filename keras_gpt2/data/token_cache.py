"""Token ids of text files, written once to disk in shards and memory-mapped from there."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from keras_gpt2.data.sharded_ids import ShardedIds
from keras_gpt2.data.text_files import Part, decode_utf8, plan_shards, read_blocks, split_text

FORMAT_VERSION = 1  # part of every key: raise it when the same text would give another file


class Tokenizer(Protocol):
    """What this package asks of a tokenizer; `keras_gpt2.BytePairTokenizer` has it.

    It splits text as GPT-2 does before it merges bytes. Special tokens that it may find in the
    text begin with no letter, digit or `_`, and take in no whitespace.
    """

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def end_of_text_id(self) -> int | None: ...

    @property
    def fingerprint(self) -> str:
        """A string that differs between tokenizers that encode differently."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


def default_cache_dir() -> Path:
    """Returns `keras_gpt2` under `$XDG_CACHE_HOME`, or else under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_gpt2"


def cached_token_ids(
    paths: Sequence[Path], tokenizer: Tokenizer, cache_dir: Path, progress: bool = True
) -> ShardedIds:
    """Returns the token ids of the files in order, memory-mapped from files in `cache_dir`.

    The ids of each file equal those of its whole text encoded at once; `end_of_text_id`, where
    the tokenizer has one, stands between two files. Each shard of the text (`plan_shards`) has
    a plain `.npy`, named after the bytes of its parts and the tokenizer's fingerprint: another
    text, order or tokenizer never meets it. It appears whole or not at all; one that is missing
    or damaged is written again, so that a run that broke off goes on after its last whole shard.

    Args:
        paths: files with UTF-8 text.
        tokenizer: a `Tokenizer`.
        cache_dir: directory, made if it does not exist.
        progress: shows a progress bar on a terminal.

    Returns:
        `ShardedIds`, one array a shard: uint16 for up to 65536 token ids, else uint32; read-only.

    Raises:
        OSError: a file cannot be read.
        ValueError: text that is not UTF-8, no text at all, or ids outside the vocabulary.
        RuntimeError: a file changed while it was read.
    """
    dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<u4")
    if not any(path.stat().st_size for path in paths):
        raise ValueError("files must hold text. Received: only empty files.")
    identity = [FORMAT_VERSION, tokenizer.fingerprint, tokenizer.end_of_text_id, dtype.str]
    shards, missing = [], {}
    for parts in plan_shards(paths):
        digests = [_digest(part) for part in parts]
        name = hashlib.sha256(repr([*identity, *digests]).encode()).hexdigest()
        shards.append(cache_dir / f"{name}.npy")
        if _open_whole(shards[-1], dtype) is None:
            missing[shards[-1]] = parts, digests
    bar = tqdm(
        desc="Tokenizing",
        total=sum(part.num_bytes for parts, _ in missing.values() for part in parts),
        unit="B",
        unit_scale=True,
        disable=None if progress and missing else True,  # None: silent unless on a terminal
    )
    with bar:
        for path, (parts, digests) in missing.items():
            cache_dir.mkdir(parents=True, exist_ok=True)
            # A name of its own, then a rename: no killed run nor one beside us is in the way.
            handle, temporary = tempfile.mkstemp(dir=cache_dir, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    _write_npy(file, _encode(parts, digests, tokenizer, bar), dtype)
                os.replace(temporary, path)
            finally:
                Path(temporary).unlink(missing_ok=True)
    return ShardedIds([np.lib.format.open_memmap(path, mode="r") for path in shards])


def _digest(part: Part) -> str:
    digest = hashlib.sha256()
    for block in read_blocks(part):
        digest.update(block)
    return digest.hexdigest()


def _open_whole(path: Path, dtype: np.dtype[Any]) -> np.ndarray | None:
    try:
        ids = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):  # absent, cut short, or not a .npy file
        return None
    whole = ids.offset + ids.nbytes == path.stat().st_size
    return ids if whole and ids.ndim == 1 and ids.dtype == dtype else None


def _write_npy(file: BinaryIO, chunks: Iterator[np.ndarray], dtype: np.dtype[Any]) -> None:
    def write_header(length: int) -> int:
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
        )
        return file.tell()

    # numpy pads the header so that the first axis may grow without moving the data.
    start, length = write_header(0), 0
    for chunk in chunks:
        file.write(chunk.astype(dtype).tobytes())
        length += len(chunk)
    if write_header(length) != start:
        raise RuntimeError("numpy wrote .npy headers of two lengths.")


def _encode(
    parts: Sequence[Part], digests: Sequence[str], tokenizer: Tokenizer, bar: Any
) -> Iterator[np.ndarray]:
    for number, part in enumerate(parts):
        if number > 0 and tokenizer.end_of_text_id is not None:
            yield np.array([tokenizer.end_of_text_id])
        digest = hashlib.sha256()
        for pieces in split_text(decode_utf8(_watch(read_blocks(part), digest, bar), part)):
            ids = [np.array(row, np.int64) for row in tokenizer.encode_batch(pieces)]
            yield _checked(np.concatenate(ids), tokenizer.vocabulary_size)
        if digest.hexdigest() != digests[number]:
            raise RuntimeError(f"Files must not change while read. Received: {part.path}.")


def _watch(blocks: Iterator[bytes], digest: Any, bar: Any) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block
        bar.update(len(block))


def _checked(ids: np.ndarray, vocabulary_size: int) -> np.ndarray:
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary_size:
        raise ValueError(
            "A tokenizer's ids must lie in [0, vocabulary_size). Received: "
            f"ids from {ids.min()} to {ids.max()}, vocabulary_size={vocabulary_size}."
        )
    return ids
