"""GPT-2's byte-level byte-pair encoding on the Rust library `tokenizers`."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"

# Our names first (Hugging Face's too), then those of OpenAI's release and of KerasHub's presets.
_FILE_NAMES = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt"),
)


class BytePairTokenizer:
    """Text to token ids and back with GPT-2's pattern, bytes and merges, without loss.

    A text is cut into words by GPT-2's regular expression, each word becomes its UTF-8 bytes, and
    the adjacent pair whose merge stands first in `merges` is joined (the leftmost one of equals)
    until no pair is in `merges`. Nothing is normalized or added: `decode(encode(text)) == text`.

    Args:
        vocabulary: Token to id. Tokens are written in GPT-2's printable alphabet, ids are
            0..n-1, and the 256 single bytes are among them. `<|endoftext|>` is optional.
        merges: Pairs `("a", "b")` or strings `"a b"`, most urgent first. Empty: bytes as tokens.

    Raises:
        ValueError: If ids have gaps, a byte is missing, or a merge uses unknown tokens.

    Example:

    >>> tokenizer = BytePairTokenizer.train_from_iterator(["low lower lowest"], 260)
    >>> tokenizer.vocabulary_size, tokenizer.end_of_text_id
    (260, 259)
    >>> tokenizer.decode(tokenizer.encode("lower the flag"))
    'lower the flag'

    Reference: Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2.
    """

    def __init__(
        self, vocabulary: dict[str, int], merges: Iterable[tuple[str, str]] | Iterable[str]
    ) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        self._tokens = _ordered_tokens(vocabulary)
        self._merges = _checked_merges(merges, vocabulary)
        self._bytes = [_token_bytes(token) for token in self._tokens]
        self._model = models.BPE(dict(vocabulary), self._merges)
        self._tokenizer = Tokenizer(self._model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._dropping: dict[float, Any] = {}
        self.vocabulary_size = len(self._tokens)
        self.end_of_text_id = vocabulary.get(END_OF_TEXT)

    @classmethod
    def of_bytes(cls) -> "BytePairTokenizer":
        """The tokenizer without merges: ids 0..255 are a text's bytes, 256 is `<|endoftext|>`.

        >>> BytePairTokenizer.of_bytes().encode("A b")
        [65, 32, 98]
        """
        return cls({**_alphabet(), END_OF_TEXT: 256}, [])

    @classmethod
    def train(
        cls, files: str | os.PathLike | Iterable[str | os.PathLike], vocabulary_size: int
    ) -> "BytePairTokenizer":
        """Learns the merges from UTF-8 text files; see `train_from_iterator`."""
        if isinstance(files, str | os.PathLike):
            files = [files]
        return cls.train_from_iterator(_file_parts(files), vocabulary_size)

    @classmethod
    def train_from_iterator(cls, texts: Iterable[str], vocabulary_size: int) -> "BytePairTokenizer":
        """Learns the merges that join the most frequent pair first.

        The ids are: the 256 bytes, the merges in order, and last `<|endoftext|>`, which separates
        documents where it occurs in a text. A text too small for the size gives fewer tokens.

        Args:
            texts: The training texts. Words never reach across two of them.
            vocabulary_size: Number of tokens to reach, at least 257.

        Raises:
            ValueError: If `vocabulary_size` is below 257.
        """
        if vocabulary_size < 257:
            raise ValueError(
                "vocabulary_size must be at least 257: 256 bytes and <|endoftext|>. "
                f"Received: vocabulary_size={vocabulary_size}."
            )
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(END_OF_TEXT, "removed"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size - 1,
            initial_alphabet=list(_alphabet()),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        learned = json.loads(learner.to_str())["model"]
        vocabulary = learned["vocab"]
        return cls(vocabulary | {END_OF_TEXT: len(vocabulary)}, map(tuple, learned["merges"]))

    @classmethod
    def from_directory(cls, directory: str | os.PathLike) -> "BytePairTokenizer":
        """Reads `vocab.json` and `merges.txt`, or the same as OpenAI or KerasHub name them.

        Raises:
            FileNotFoundError: If no pair of files is there.
            ValueError: If their content is not a tokenizer.
        """
        for names in _FILE_NAMES:
            vocabulary_file, merges_file = (Path(directory, name) for name in names)
            if vocabulary_file.is_file() and merges_file.is_file():
                break
        else:
            raise FileNotFoundError(
                "A tokenizer directory must hold vocab.json and merges.txt, or encoder.json and "
                f"vocab.bpe. Received: directory={os.fspath(directory)!r}."
            )
        try:
            vocabulary = json.loads(vocabulary_file.read_text(encoding="utf-8"))
            lines = merges_file.read_text(encoding="utf-8").split("\n")
        except ValueError as error:
            raise ValueError(
                f"{names[0]} must be UTF-8 JSON and {names[1]} UTF-8 text. "
                f"Received: directory={os.fspath(directory)!r}, {error}."
            ) from error
        if lines[0].startswith("#version"):
            del lines[0]
        try:
            return cls(vocabulary, [line for line in lines if line])
        except ValueError as error:
            raise ValueError(f"{error} Read from: {vocabulary_file}, {merges_file}.") from error

    def save(self, directory: str | os.PathLike) -> None:
        """Writes `vocab.json` and `merges.txt`, each whole or not at all."""
        os.makedirs(directory, exist_ok=True)
        vocabulary = json.dumps(self.vocabulary, ensure_ascii=False)
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        for name, content in zip(
            _FILE_NAMES[0], (vocabulary, "#version: 0.2\n" + merges), strict=True
        ):
            _write_whole(Path(directory, name), content)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: Any string that UTF-8 can hold.
            allow_special: Whether `<|endoftext|>` in the text becomes the one id of that name.
                By default it is text like any other.

        Raises:
            ValueError: If the text holds a lone surrogate, or `allow_special` is asked of a
                vocabulary without `<|endoftext|>`.
        """
        if not allow_special:
            return self.encode_batch([text])[0]
        if self.end_of_text_id is None:
            raise ValueError(
                "allow_special needs <|endoftext|> in the vocabulary. "
                f"Received: vocabulary_size={self.vocabulary_size}."
            )
        first, *rest = self.encode_batch(text.split(END_OF_TEXT))
        return first + [i for part in rest for i in (self.end_of_text_id, *part)]

    def encode_batch(self, texts: Sequence[str], dropout: float = 0.0) -> list[list[int]]:
        """Returns `encode(text)` of every text, computed in parallel.

        Args:
            texts: Strings that UTF-8 can hold.
            dropout: In [0, 1), the share of possible merges left out at random (BPE dropout): the
                ids mean the same text. They differ from call to call, and no seed repeats them.
        """
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    "A text must not hold lone surrogates. Received: "
                    f"{text[error.start]!a} at position {error.start}."
                ) from error
        tokenizer = self._with_dropout(dropout) if dropout else self._tokenizer
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]

    def _with_dropout(self, dropout: float) -> Any:
        from tokenizers import Tokenizer, models

        if not 0 < dropout < 1:
            raise ValueError(f"dropout must be in [0, 1). Received: dropout={dropout}.")
        if dropout not in self._dropping:
            model = models.BPE(self.vocabulary, self._merges, dropout=dropout)
            self._dropping = {dropout: Tokenizer(model)}
            self._dropping[dropout].pre_tokenizer = self._tokenizer.pre_tokenizer
        return self._dropping[dropout]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids; bytes that are not UTF-8 become U+FFFD.

        The end-of-text id gives `<|endoftext|>`.

        Raises:
            ValueError: If an id is not in 0..vocabulary_size-1.
        """
        pieces = []
        for i in ids:
            if not 0 <= i < self.vocabulary_size:
                raise ValueError(
                    "Token ids must be in 0..vocabulary_size-1. "
                    f"Received: id={i}, vocabulary_size={self.vocabulary_size}."
                )
            pieces.append(self._bytes[i])
        return b"".join(pieces).decode("utf-8", "replace")

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token to id, in the order of the ids."""
        return {token: i for i, token in enumerate(self._tokens)}

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs of tokens that are joined, most urgent first."""
        return list(self._merges)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary and merges, in hexadecimal digits."""
        content = json.dumps([self._tokens, self._merges], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def tokens_as_bytes(self) -> list[bytes]:
        """Returns the bytes that each token stands for, in the order of the ids."""
        return list(self._bytes)

    def whole_words(self) -> list[bool]:
        """Returns, per id, whether a word of exactly the token's bytes is encoded as that id."""
        from tokenizers import Tokenizer

        # Without a pre-tokenizer the whole input is one word.
        found = Tokenizer(self._model).encode_batch_fast(self._tokens)
        return [encoding.ids == [i] for i, encoding in enumerate(found)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BytePairTokenizer):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


@functools.cache
def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: Latin-1 where visible, else U+0100 onwards."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in sorted(visible)} | {
        chr(0x100 + position): byte for position, byte in enumerate(hidden)
    }


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(map(_alphabet().__getitem__, token))
    except KeyError as error:
        raise ValueError(
            "Tokens must be written in GPT-2's printable byte alphabet. "
            f"Received: token={token!a}, character={error}."
        ) from error


def _ordered_tokens(vocabulary: Any) -> list[str]:
    """Returns the tokens by id after checking that they are a byte-level vocabulary."""
    if not isinstance(vocabulary, dict):
        raise ValueError(
            f"vocabulary must map tokens to ids. Received: type={type(vocabulary).__name__}."
        )
    tokens = dict.fromkeys(range(len(vocabulary)), "")
    for token, i in vocabulary.items():
        if type(i) is not int or tokens.get(i) != "" or not token:
            raise ValueError(
                "Each of the ids 0..n-1 must have exactly one token, which is not empty. "
                f"Received: n={len(tokens)}, token={token!a}, id={i!r}."
            )
        tokens[i] = token
    for character, byte in _alphabet().items():
        if character not in vocabulary:
            raise ValueError(
                "vocabulary must hold the 256 bytes as tokens. "
                f"Received: none for byte 0x{byte:02x} ({character!a})."
            )
    return list(tokens.values())


def _checked_merges(
    merges: Iterable[tuple[str, str]] | Iterable[str], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    checked: dict[tuple[str, str], None] = {}
    for rank, merge in enumerate(merges):
        pair = tuple(merge.split(" ") if isinstance(merge, str) else merge)
        if len(pair) != 2 or pair in checked:
            raise ValueError(
                "Each merge must be a pair of tokens and occur once. "
                f"Received: merge={merge!a}, index={rank}."
            )
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise ValueError(
                    "The parts and the result of each merge must be in the vocabulary. "
                    f"Received: merge={merge!a}, index={rank}, missing token={token!a}."
                )
        checked[pair] = None
    return list(checked)


def _file_parts(files: Iterable[str | os.PathLike]) -> Iterator[str]:
    """Yields files in parts of whole lines, about 1 MiB each, with their line ends untouched."""
    for file in files:
        try:
            with open(file, encoding="utf-8", newline="") as stream:
                while part := stream.read(1 << 20):
                    yield part + stream.readline()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Training files must be UTF-8. Received: file={os.fspath(file)!r}, {error}."
            ) from error


def _write_whole(path: Path, content: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
