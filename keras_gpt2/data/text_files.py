"""Finding text files, reading them in constant memory and cutting them where no token is cut."""

import codecs
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

StrPath = str | os.PathLike[str]

BLOCK_BYTES = 1 << 20
PIECE_CHARACTERS = 1 << 14
SHARD_BYTES = 1 << 28

# In GPT-2's pattern whitespace only begins a token or fills one, and a run of whitespace leaves
# its last character to the word that follows, or alone before it. So a token always ends before
# a blank or newline that touches a word, and each side, read alone, splits as it did in the whole:
# no alternative looks back, and what whitespace the left side ends with is still one token.
# (Not so after a newline: in "a\n\nb" the two newlines are two tokens, at the end of a text one.)
# A word character, not any visible one: a special token such as <|endoftext|> ends the text for
# the look-ahead, so the whitespace before it stays together.
_CUT = re.compile(r"[ \n](?=\w)")
_MAYBE_CUT = re.compile(rb"[ \n](\w|[\xc2-\xf4][\x80-\xbf]{1,3})")  # the same in UTF-8, and more


def find_files(files: StrPath | Sequence[StrPath]) -> list[Path]:
    """Lists the regular files that paths, directories and glob patterns stand for.

    Args:
        files: one path or a list. A directory stands for all files below it whose path holds no
            hidden part, sorted; what does not exist is read as a glob pattern (`**` recurses).

    Returns:
        The paths, in the order of `files`; a file named twice comes twice.

    Raises:
        FileNotFoundError: an entry, or the whole list, stands for no file.

    >>> find_files("no/such/*.txt")
    Traceback (most recent call last):
    FileNotFoundError: files must name existing files. Received: files='no/such/*.txt'.
    """
    entries = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not entries:
        raise FileNotFoundError(f"files must name existing files. Received: files={files!r}.")
    return [path for entry in entries for path in _expand(entry)]


def _expand(entry: StrPath) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [
            below
            for below in path.rglob("*")
            if not any(part.startswith(".") for part in below.relative_to(path).parts)
        ]
    else:
        found = [Path(match) for match in glob.glob(os.fspath(entry), recursive=True)]
    regular = sorted(below for below in found if below.is_file())
    if not regular:
        raise FileNotFoundError(
            f"files must name existing files. Received: files={os.fspath(entry)!r}."
        )
    return regular


class Part(NamedTuple):
    """Bytes `start` to `stop` of a file; `stop` None is its end, also if that moves."""

    path: Path
    start: int = 0
    stop: int | None = None

    @property
    def num_bytes(self) -> int:
        return (self.path.stat().st_size if self.stop is None else self.stop) - self.start


def plan_shards(paths: Iterable[Path]) -> Iterator[list[Part]]:
    """Yields the files in lists of parts, each of little more than `SHARD_BYTES` together.

    A list ends only inside a file, where no token is cut, or after all files; a stretch without
    such a place stays in one part however long it is.
    """
    shard: list[Part] = []
    room = SHARD_BYTES
    for path in paths:
        start, size = 0, path.stat().st_size
        while size - start > room and (cut := _find_cut(path, start + max(room, 0))) is not None:
            yield [*shard, Part(path, start, cut)]
            shard, room, start = [], SHARD_BYTES, cut
        shard.append(Part(path, start, None))
        room -= size - start
    yield shard


def _find_cut(path: Path, start: int) -> int | None:
    """The first byte from `start` on where `_CUT` matches, None if there is none."""
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(BLOCK_BYTES):
            for found in _MAYBE_CUT.finditer(block):
                if re.match(r"\w", found[1].decode("utf-8", "replace")):
                    return file.tell() - len(block) + found.start()
            if len(block) == BLOCK_BYTES:
                file.seek(-5, os.SEEK_CUR)  # a blank and a character may lie across the border
    return None


def read_blocks(part: Part) -> Iterator[bytes]:
    """Yields the bytes of a part, at most `BLOCK_BYTES` at a time."""
    with open(part.path, "rb") as file:
        place = file.seek(part.start)
        while part.stop is None or place < part.stop:
            rest = BLOCK_BYTES if part.stop is None else part.stop - place
            block = file.read(min(rest, BLOCK_BYTES))
            if not block:
                break
            yield block
            place += len(block)


def decode_utf8(blocks: Iterable[bytes], part: Part) -> Iterator[str]:
    """Yields the text of each block; a character that two blocks share comes with the second.

    Line endings and a byte order mark stay in the text: encoding it again gives the same bytes.

    Raises:
        ValueError: bytes that are not UTF-8; the message names the file and the byte offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = part.start
    for block in chain(blocks, [b""]):
        held_back = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Text files must be UTF-8 ({error.reason}). Received: {part.path}, "
                f"byte 0x{error.object[error.start]:02x} at offset "
                f"{offset - held_back + error.start}."
            ) from error
        offset += len(block)
        yield text


def split_text(blocks: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of pieces whose token ids, put together, are those of the whole text.

    The pieces join to the text. They are cut only where GPT-2's pre-tokenization cuts whatever
    stands around, a little after every `PIECE_CHARACTERS`; a stretch without such a place stays
    in one piece however long it is: exactness comes before memory.

    >>> "".join(piece for pieces in split_text(["a b", "c\\n\\nd"]) for piece in pieces)
    'a bc\\n\\nd'
    """
    rest = ""
    for block in blocks:
        # Of what is left over only the last character can have become a place to cut.
        search_from = max(PIECE_CHARACTERS, len(rest) - 1)
        text, start, pieces = rest + block, 0, []
        while cut := _CUT.search(text, search_from):
            pieces.append(text[start : cut.start()])
            start = cut.start()
            search_from = start + PIECE_CHARACTERS
        rest = text[start:]
        if pieces:
            yield pieces
    if rest:
        yield [rest]
