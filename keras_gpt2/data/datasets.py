"""From text files to a training and a validation dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from keras_gpt2.data.bpe_dropout import DropoutTokenizer, DropoutWindowDataset
from keras_gpt2.data.text_files import StrPath, find_files
from keras_gpt2.data.token_cache import Tokenizer, cached_token_ids, default_cache_dir
from keras_gpt2.data.windows import WindowDataset


def text_datasets(
    files: StrPath | Sequence[StrPath],
    tokenizer: Tokenizer,
    sequence_length: int,
    batch_size: int,
    validation_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: StrPath | None = None,
    progress: bool = True,
    bpe_dropout: float = 0.0,
) -> tuple[WindowDataset, WindowDataset | None]:
    """Tokenizes text files once, and splits the ids into training and validation windows.

    The last `round(validation_fraction * N)` of all N token ids are validation; no window holds
    ids of both. Memory stays constant but for 4 bytes a window: the ids lie in cache files, found
    again by the bytes of the text and the tokenizer's fingerprint. A run that broke off leaves
    those that are whole.

    Args:
        files: path, directory (all files below, sorted, hidden ones skipped), glob pattern, or a
            list of these; UTF-8, kept byte for byte (line endings and byte order marks too).
            The tokenizer's `end_of_text_id`, if it has one, comes between two files.
        tokenizer: a `keras_gpt2.BytePairTokenizer`, or what `token_cache.Tokenizer` describes.
        sequence_length, batch_size, seed: see `WindowDataset`.
        validation_fraction: float in [0, 1).
        cache_dir: directory; None is `keras_gpt2` under `$XDG_CACHE_HOME` or `~/.cache`.
        progress: shows a progress bar while tokenizing, on a terminal.
        bpe_dropout: float in [0, 1), share of the merges left out, drawn anew whenever a training
            window is read; see `DropoutWindowDataset`. 0.1 is usual, against overfitting.

    Returns:
        `(train, validation)`, both `WindowDataset`: one shuffled anew every epoch, one fixed.
        `validation` is None when `validation_fraction` is 0.

    Raises:
        OSError: no file found (FileNotFoundError), or one that cannot be read.
        ValueError: text that is not UTF-8, too little text, or an argument out of range.

    >>> import tempfile
    >>> from keras_gpt2.text.tokenizer import BytePairTokenizer
    >>> tokenizer = BytePairTokenizer.train([__file__], vocabulary_size=300)
    >>> train, validation = text_datasets(__file__, tokenizer, 16, 4, cache_dir=tempfile.mkdtemp())
    >>> train[0][0].shape, validation[0][1].shape
    ((4, 16), (4, 16))
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            "validation_fraction must lie in [0, 1). "
            f"Received: validation_fraction={validation_fraction}."
        )
    if not 0 <= bpe_dropout < 1:
        raise ValueError(f"bpe_dropout must lie in [0, 1). Received: bpe_dropout={bpe_dropout}.")
    directory = default_cache_dir() if cache_dir is None else Path(cache_dir)
    ids = cached_token_ids(find_files(files), tokenizer, directory, progress)
    split = len(ids) - round(validation_fraction * len(ids))
    train_ids, validation_ids = ids.split(split)
    training = (train_ids, sequence_length, batch_size, True, seed)
    if bpe_dropout:
        train: WindowDataset = DropoutWindowDataset(
            *training, tokenizer=cast(DropoutTokenizer, tokenizer), bpe_dropout=bpe_dropout
        )
    else:
        train = WindowDataset(*training)
    if validation_fraction == 0:
        return train, None
    return train, WindowDataset(validation_ids, sequence_length, batch_size)
