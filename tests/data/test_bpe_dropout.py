"""BPE dropout: other tokens, the same text."""

import numpy as np
import pytest

from keras_gpt2 import BytePairTokenizer
from keras_gpt2.data import WindowDataset, text_datasets
from keras_gpt2.data.bpe_dropout import DropoutWindowDataset

TEXT = "The cat sat on the mat; der Bär aß süße Äpfel: 漢字. " * 60


@pytest.fixture(scope="module")
def trained():
    return BytePairTokenizer.train_from_iterator([TEXT], 330)


def windows(tokenizer, ids, dropout, **kwargs):
    return DropoutWindowDataset(
        np.array(ids, "uint16"), 16, 5, tokenizer=tokenizer, bpe_dropout=dropout, **kwargs
    )


def test_encoding_with_dropout_is_another_spelling(trained):
    plain, dropped = trained.encode(TEXT), trained.encode_batch([TEXT], dropout=0.3)[0]
    assert trained.decode(dropped) == TEXT
    assert len(dropped) > len(plain)
    assert dropped != trained.encode_batch([TEXT], dropout=0.3)[0]
    assert trained.encode(TEXT) == plain, "without dropout nothing is random"
    assert trained.fingerprint == BytePairTokenizer(trained.vocabulary, trained.merges).fingerprint
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"dropout={wrong}"):
            trained.encode_batch(["a"], dropout=wrong)


def test_windows_begin_with_the_same_text(trained):
    ids = trained.encode(TEXT)
    plain = WindowDataset(np.array(ids, "uint16"), 16, 5, shuffle=True, seed=3)
    dropped = windows(trained, ids, 0.4, shuffle=True, seed=3)
    assert len(plain) == len(dropped)
    changed = 0
    for (inputs, targets), (a, b) in zip(plain, dropped, strict=True):
        assert (a.dtype, a.shape, b.shape) == (np.int32, inputs.shape, targets.shape)
        np.testing.assert_array_equal(a[:, 1:], b[:, :-1])
        for row, other in zip(inputs, a, strict=True):
            text, new = (trained.decode(x.tolist()).strip("\ufffd") for x in (row, other))
            assert text.startswith(new) or new.startswith(text)
            changed += row.tolist() != other.tolist()
    assert changed > 0.9 * plain.num_windows // 5 * 5
    assert any((x[0] != y[0]).any() for x, y in zip(dropped, list(dropped), strict=True))


def test_ends_of_text_stay_and_a_short_window_keeps_its_tokens(trained):
    end = trained.end_of_text_id
    ids = (trained.encode("The mat") + [end, end]) * 20
    dropped = windows(trained, ids, 0.2)
    for inputs, _ in dropped:
        for row in inputs:
            text = trained.decode(row.tolist())
            assert "<|endoftext|><|endoftext|>" in text
            assert set(text.split("<|endoftext|>")[1:-1]) <= {"", "The mat"}
    letters = BytePairTokenizer.of_bytes()
    short = letters.encode("é" * 9)[1:]  # begins with half a letter, which leaves 16 ids
    np.testing.assert_array_equal(windows(letters, short, 0.2)[0][0][0], short[:16])


def test_only_the_training_windows_are_drawn(trained, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    arguments = (file, trained, 16, 5, 0.2, 0, tmp_path)
    train, validation = text_datasets(*arguments, bpe_dropout=0.3)
    plain, plain_validation = text_datasets(*arguments)
    assert type(plain) is type(validation) is WindowDataset
    assert isinstance(train, DropoutWindowDataset)
    np.testing.assert_array_equal(train.token_ids, plain.token_ids)
    np.testing.assert_array_equal(validation.token_ids, plain_validation.token_ids)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"bpe_dropout={wrong}"):
            text_datasets(*arguments, bpe_dropout=wrong)
