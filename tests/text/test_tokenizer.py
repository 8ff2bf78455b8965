import doctest
import json
import os
import subprocess
import sys
import unicodedata

import pytest

from keras_gpt2.text import tokenizer as tokenizer_module
from keras_gpt2.text.tokenizer import BytePairTokenizer

BYTES = BytePairTokenizer.train_from_iterator([], 257)


def reference_encoder(vocabulary, merges):
    """The published algorithm, one pair at a time, on Python's `regex`."""
    import regex

    pattern = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    visible = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xA0, 0xAD)]
    names = {b: chr(b) for b in visible}
    names |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in visible)}
    ranks = {pair: rank for rank, pair in enumerate(merges)}

    def encode(text):
        ids = []
        for word in pattern.findall(text):
            parts = [names[byte] for byte in word.encode()]
            while True:
                pairs = [ranks.get(pair, len(ranks)) for pair in zip(parts, parts[1:])]  # noqa: B905
                if not pairs or min(pairs) == len(ranks):
                    break
                at = pairs.index(min(pairs))
                parts[at : at + 2] = ["".join(parts[at : at + 2])]
            ids += [vocabulary[part] for part in parts]
        return ids

    return encode


def test_known_answers(gpt2_tokenizer):
    assert gpt2_tokenizer.encode("a\n\nb") == [64, 198, 198, 65]
    assert gpt2_tokenizer.encode("Hello world") == [15496, 995]
    assert gpt2_tokenizer.encode("") == []
    assert gpt2_tokenizer.vocabulary_size == 50257
    assert gpt2_tokenizer.end_of_text_id == 50256


def test_agrees_with_the_published_algorithm(gpt2_tokenizer, fuzz_texts):
    encode = reference_encoder(gpt2_tokenizer.vocabulary, gpt2_tokenizer.merges)
    # Unicode tables of different age disagree on code points that were not assigned.
    texts = [
        "".join(c for c in text.decode("utf-8", "replace") if unicodedata.category(c) != "Cn")
        for text in fuzz_texts(4000, seed=5)
    ]
    assert gpt2_tokenizer.encode_batch(texts) == [encode(text) for text in texts]


def test_decode_inverts_encode(gpt2_tokenizer, fuzz_texts, whitespace):
    texts = [text.decode("utf-8", "replace") for text in fuzz_texts(2000, seed=6)] + whitespace
    for tokenizer in gpt2_tokenizer, BYTES:
        decoded = [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)]
        assert decoded == texts


def test_bytes_as_tokens():
    assert BYTES.vocabulary_size == 257
    assert BYTES.merges == []
    text = "a\0\u00e9 \U0001f600"
    assert [BYTES.tokens_as_bytes()[i] for i in BYTES.encode(text)] == [
        bytes([byte]) for byte in text.encode()
    ]


def test_end_of_text_is_text_unless_allowed(gpt2_tokenizer):
    text = "a<|endoftext|><|endoftext|>b"
    assert gpt2_tokenizer.encode(text, allow_special=True) == [64, 50256, 50256, 65]
    assert 50256 not in gpt2_tokenizer.encode(text)
    assert gpt2_tokenizer.decode([64, 50256]) == "a<|endoftext|>"
    vocabulary = {token: i for token, i in BYTES.vocabulary.items() if i < 256}
    plain = BytePairTokenizer(vocabulary, [])
    assert plain.end_of_text_id is None
    with pytest.raises(ValueError, match="allow_special needs"):
        plain.encode("a", allow_special=True)


def test_decode_replaces_what_is_not_utf8():
    ids = [BYTES.tokens_as_bytes().index(bytes([byte])) for byte in b"\xe2\x82a\xff"]
    assert BYTES.decode(ids) == "\ufffda\ufffd"


@pytest.mark.parametrize("wrong", [-1, 257])
def test_decode_names_the_id_that_is_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"id={wrong}, vocabulary_size=257"):
        BYTES.decode([0, wrong])


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match=r"surrogates.*'\\udc80' at position 2"):
        BYTES.encode("ab\udc80")


def test_training(tmp_path):
    text = "the cat sat on the mat\r\n\r\n" * 50 + "<|endoftext|>" + "the hat\n" * 10
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    trained = BytePairTokenizer.train(file, 270)
    assert trained.vocabulary_size == 270
    assert trained.end_of_text_id == 269
    assert trained == BytePairTokenizer.train_from_iterator([text], 270)
    # "at" (160 times) is the most frequent pair, then "th" or "he" (110 each).
    assert trained.merges[0] == ("a", "t")
    assert trained.decode(trained.encode(text)) == text
    assert len(trained.encode(text)) < len(BYTES.encode(text)) / 2
    # The separator teaches nothing, and a text too small stops short of the size.
    assert BytePairTokenizer.train_from_iterator(["<|endoftext|>" * 9], 999) == BYTES
    with pytest.raises(ValueError, match=r"at least 257.*vocabulary_size=256"):
        BytePairTokenizer.train([file], 256)
    file.write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"must be UTF-8.*text\.txt"):
        BytePairTokenizer.train([file], 257)


def test_save_and_load(tmp_path, gpt2_tokenizer):
    gpt2_tokenizer.save(tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["merges.txt", "vocab.json"]
    loaded = BytePairTokenizer.from_directory(tmp_path / "new")
    assert loaded == gpt2_tokenizer
    assert hash(loaded) == hash(gpt2_tokenizer)
    assert loaded != BYTES
    assert loaded.fingerprint == gpt2_tokenizer.fingerprint != BYTES.fingerprint
    BYTES.save(tmp_path / "new")
    assert BytePairTokenizer.from_directory(tmp_path / "new") == BYTES


def test_a_crash_leaves_the_old_files(tmp_path, monkeypatch):
    BYTES.save(tmp_path)

    def crash(*_):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk gone"):
        BytePairTokenizer.train_from_iterator(["aa aa"], 258).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["merges.txt", "vocab.json"]
    assert BytePairTokenizer.from_directory(tmp_path) == BYTES


def test_transformers_reads_the_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained = BytePairTokenizer.train_from_iterator(["the cat sat on the mat"], 265)
    trained.save(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    text = "the cat's  hat\n\n"
    assert theirs(text)["input_ids"] == trained.encode(text)


def without(token):
    return {t: i for i, t in enumerate(t for t in BYTES.vocabulary if t != token)}


@pytest.mark.parametrize(
    "vocabulary, merges, message",
    [
        ([], [], "must map tokens to ids. Received: type=list"),
        (BYTES.vocabulary | {"ab": 258}, [], r"ids 0\.\.n-1.*n=258, token='ab', id=258"),
        (BYTES.vocabulary | {"ab": 3}, [], r"ids 0\.\.n-1.*token='ab', id=3"),
        (BYTES.vocabulary | {"ab": "x"}, [], r"ids 0\.\.n-1.*token='ab', id='x'"),
        (BYTES.vocabulary | {"": 257}, [], r"not empty.*token='', id=257"),
        (without("a"), [], "256 bytes.*0x61"),
        (BYTES.vocabulary | {"a b": 257}, [], "printable byte alphabet.*token='a b'"),
        (BYTES.vocabulary, ["a b"], "merge='a b', index=0, missing token='ab'"),
        (BYTES.vocabulary | {"ab": 257}, ["a b", ("a", "b")], r"occur once.*index=1"),
        (BYTES.vocabulary, ["a"], "must be a pair.*merge='a', index=0"),
    ],
)
def test_bad_vocabularies(vocabulary, merges, message):
    with pytest.raises(ValueError, match=message):
        BytePairTokenizer(vocabulary, merges)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold vocab.json and .*Received: directory"):
        BytePairTokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="must be UTF-8 JSON"):
        BytePairTokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(ValueError, match="256 bytes.*Read from: .*vocab.json"):
        BytePairTokenizer.from_directory(tmp_path)


def test_importing_is_cheap():
    command = (
        "import sys; import keras_gpt2.text.tokenizer; "
        "sys.exit('tokenizers' in sys.modules or 'tensorflow' in sys.modules)"
    )
    # The parent package has its own test.
    stub = "import sys, types; p = types.ModuleType('keras_gpt2'); "
    stub += "p.__path__ = ['keras_gpt2']; sys.modules['keras_gpt2'] = p; "
    assert subprocess.run([sys.executable, "-c", stub + command]).returncode == 0


def test_examples_run():
    results = doctest.testmod(tokenizer_module)
    assert results.attempted and not results.failed


def test_the_ids_of_bytes():
    tokenizer = BytePairTokenizer.of_bytes()
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text_id, tokenizer.merges) == (257, 256, [])
    text = "a\0\u00e9 \U0001f600"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.encode("a<|endoftext|>", allow_special=True) == [97, 256]
