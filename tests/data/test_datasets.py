import keras
import numpy as np
import pytest
from stand_ins import ByteTokenizer

import keras_gpt2.data
from keras_gpt2.data import text_datasets, unigram_perplexity


class CodePointTokenizer(ByteTokenizer):
    def encode_batch(self, texts):
        return [[ord(character) for character in text] for text in texts]


@pytest.fixture
def make(tmp_path):
    def make(num_tokens=101, sequence_length=7, batch_size=2, **kwargs):
        path = tmp_path / "text.txt"
        path.write_bytes("".join(map(chr, range(num_tokens))).encode())  # id i at place i
        tokenizer = CodePointTokenizer()
        return text_datasets(
            path, tokenizer, sequence_length, batch_size, cache_dir=tmp_path, **kwargs
        )

    return make


def test_public_names():
    assert keras_gpt2.data.__all__ == [
        "WindowDataset",
        "find_files",
        "text_datasets",
        "unigram_perplexity",
    ]


def test_no_token_is_in_both_splits(make):
    train, validation = make(validation_fraction=0.2)
    assert train.token_ids[:].tolist() == list(range(81))
    assert validation.token_ids[:].tolist() == list(range(81, 101))
    assert np.shares_memory(train.token_ids.shards[0], np.asarray(train.token_ids[3:5]))
    trained = set()
    for train.epoch in range(50):
        for batch in train:
            trained.update(np.concatenate(batch).ravel().tolist())
    validated = {i for batch in validation for i in np.concatenate(batch).ravel().tolist()}
    assert validated == set(range(81, 96))  # two windows and the last target
    assert trained == set(range(77))  # 77 = 81 // 7 * 7


def test_seed_and_defaults(make):
    (train, validation), (same, _), (other, _) = make(250), make(250, seed=0), make(250, seed=1)
    assert (train.num_tokens, validation.num_tokens) == (225, 25)
    assert train.shuffle and not validation.shuffle
    np.testing.assert_array_equal(train[0][0], same[0][0])
    assert not np.array_equal(train[0][0], other[0][0])


def test_no_validation(make):
    train, validation = make(validation_fraction=0)
    assert validation is None and train.num_tokens == 101


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"validation_fraction": 0.01}, "Validation needs at least .* = 8 .* Received: 1 token"),
        ({"validation_fraction": 0.001}, "Validation needs at least .* = 8 .* Received: 0 token"),
        ({"validation_fraction": 0.95}, "Training needs at least .* = 21 .* Received: 5 token"),
        ({"validation_fraction": 1.0}, r"must lie in \[0, 1\). .* validation_fraction=1.0"),
        ({"validation_fraction": -0.1}, r"must lie in \[0, 1\). .* validation_fraction=-0.1"),
        ({"sequence_length": 0}, "sequence_length=0"),
    ],
)
def test_what_is_refused(make, kwargs, words):
    with pytest.raises(ValueError, match=words):
        make(**kwargs)


def test_fit_and_evaluate(make):
    train, validation = make(250)
    model = keras.Sequential([keras.layers.Embedding(257, 257)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.5), loss)
    history = model.fit(train, validation_data=validation, epochs=9, verbose=0).history
    assert history["loss"][-1] < 1 < history["loss"][0]
    # Each id comes once: knowing the training half says nothing about the other.
    assert history["val_loss"][-1] > 5


def test_unigram_perplexity_by_hand():
    train, validation = np.array([0, 0, 1], np.uint16), np.array([0, 2], np.uint16)
    assert unigram_perplexity(train, validation, 4) == pytest.approx((3 / 7 * 1 / 7) ** -0.5)
    assert unigram_perplexity(train[:0], validation, 4) == pytest.approx(4)


def test_unigram_perplexity_in_chunks(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 11, 1000)
    whole = unigram_perplexity(ids[:700], ids[700:], 11)
    monkeypatch.setattr("keras_gpt2.data.unigram.CHUNK_IDS", 13)
    assert unigram_perplexity(ids[:700], ids[700:], 11) == pytest.approx(whole)


def test_unigram_perplexity_refuses():
    with pytest.raises(ValueError, match="id 4, vocabulary_size=4"):
        unigram_perplexity(np.array([0, 4]), np.array([0]), 4)
    with pytest.raises(ValueError, match="must not be empty"):
        unigram_perplexity(np.array([0]), np.array([]), 4)
