import doctest
import itertools
import os
import random
import subprocess
import sys
import unicodedata

import pytest

tf = pytest.importorskip("tensorflow")

from keras_gpt2.text import graph_tokenizer as graph_tokenizer_module  # noqa: E402
from keras_gpt2.text.graph_tokenizer import GraphTokenizer  # noqa: E402
from keras_gpt2.text.tokenizer import BytePairTokenizer  # noqa: E402

BYTES = BytePairTokenizer.train_from_iterator([], 257)
BATCH = 20000


@pytest.fixture(scope="module")
def gpt2_graph(gpt2_tokenizer):
    return GraphTokenizer(gpt2_tokenizer)


def as_text(text):
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def assert_equal_ids(graph, tokenizer, texts):
    expected = tokenizer.encode_batch([as_text(text) for text in texts])
    ids = graph.encode(tf.constant(texts, tf.string)).to_list()
    for text, one, other in zip(texts, ids, expected, strict=True):
        assert one == other, text


def in_batches(iterator):
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def test_every_short_string_of_the_pattern(gpt2_graph, gpt2_tokenizer):
    for length in range(1, 6):
        texts = map("".join, itertools.product("asle' \n1!", repeat=length))
        for batch in in_batches(texts):
            assert_equal_ids(gpt2_graph, gpt2_tokenizer, batch)


@pytest.mark.slow
@pytest.mark.parametrize("length", [6, 7])
def test_every_longer_string_of_the_pattern(gpt2_graph, gpt2_tokenizer, length):
    texts = map("".join, itertools.product("asle' \n1!", repeat=length))
    for batch in in_batches(texts):
        assert_equal_ids(gpt2_graph, gpt2_tokenizer, batch)


def test_fuzz(gpt2_graph, gpt2_tokenizer, fuzz_texts):
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, fuzz_texts(20000, seed=1))


@pytest.mark.slow
def test_fuzz_a_million(gpt2_graph, gpt2_tokenizer, fuzz_texts):
    for seed in range(50):
        texts = fuzz_texts(BATCH, seed=1000 + seed)
        assert_equal_ids(gpt2_graph, gpt2_tokenizer, texts)
        ids = gpt2_graph.encode(texts)
        decoded = [text.decode() for text in gpt2_graph.decode(ids).numpy()]
        assert decoded == [as_text(text) for text in texts]


def test_whitespace(gpt2_graph, gpt2_tokenizer, whitespace):
    contexts = ["{0}", "{0}{0}", "{0}a", "{0}{0}a", " {0}a", "{0} a", "a{0}", "{0}'s", "{0}!1{0}"]
    texts = [context.format(space) for space in whitespace for context in contexts]
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, texts)


def test_every_assigned_character(gpt2_graph, gpt2_tokenizer):
    unassigned = {"Cn", "Co", "Cs"}
    characters = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in unassigned]
    texts = [
        "".join(f"a{c}1{c}" for c in characters[i : i + 100])
        for i in range(0, len(characters), 100)
    ]
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, texts)


def test_invalid_utf8_is_replaced_as_python_does(gpt2_graph, gpt2_tokenizer):
    # One byte of each class that the rules of UTF-8 tell apart.
    leads = b"\x41\x80\x90\xa0\xbf\xc1\xc2\xdf\xe0\xe1\xed\xef\xf0\xf1\xf4\xf5\xff"
    texts = [bytes(t) for n in (1, 2, 3) for t in itertools.product(leads, repeat=n)]
    texts += [b"\xf0\x90\x80" + bytes([c]) for c in leads] + [b"a\xf0\x9f\x98"]
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, texts)


def test_rows_do_not_mix(gpt2_graph, gpt2_tokenizer):
    texts = ["", "don", "'t", "", " ", " a", "\n", "\n", "x\0y\0", "a" * 100, "", "b" * 65, "s"]
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, texts)
    for batch in texts, [""], ["", ""], []:
        ids = gpt2_graph.encode(tf.constant(batch, tf.string))
        assert ids.shape.as_list() == [len(batch), None]
        assert ids.dtype == tf.int32
        assert gpt2_graph.decode(ids).numpy().tolist() == [text.encode() for text in batch]


LONG = {
    "random letters": "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=10000)),
    "two letters": "".join(random.Random(2).choices("ab", k=10000)),
    "one letter": "a" * 10000,
    "period 3": "abc" * 3334,
    "dashes after a shift": "!!!" + "-" * 10000,
    "spaces": " " * 10000 + "x",
    "periods and letters": "".join(
        "".join(random.Random(n).choices("etaoin", k=50)) + "xyz" * 40 + "ha" * 50
        for n in range(40)
    ),
    "Han": "".join(map(chr, random.Random(3).choices(range(0x4E00, 0x9FFF), k=3000))),
}


@pytest.mark.parametrize("name", LONG)
def test_long_words(gpt2_graph, gpt2_tokenizer, name):
    text = LONG[name]
    ids = gpt2_graph.encode([text]).to_list()
    assert ids == [gpt2_tokenizer.encode(text)]


def test_long_words_together(gpt2_graph, gpt2_tokenizer):
    # Cut anywhere, so that windows start at every phase.
    rng = random.Random(4)
    texts = [text[i : i + rng.randrange(3000)] for text in LONG.values() for i in range(12)]
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, texts + ["short", ""])


def test_a_megabyte(gpt2_graph, gpt2_tokenizer):
    text = "".join(random.Random(5).choices(["the ", "cat's\n", "antelope ", "1234 "], k=200000))
    assert_equal_ids(gpt2_graph, gpt2_tokenizer, [text, "a", text[::-1][:100000]])


def random_tokenizer(seed):
    """Merges in an order that no training gives: a part may be merged before it is made."""
    rng = random.Random(seed)
    tokens, merges = list("abc"), {}
    for _ in range(40):
        pair = rng.choice(tokens), rng.choice(tokens)
        if len("".join(pair)) <= 12:
            merges[pair] = None
            tokens.append("".join(pair))
    order = list(merges)
    rng.shuffle(order)
    vocabulary = BYTES.vocabulary
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    return BytePairTokenizer(vocabulary, order)


@pytest.mark.parametrize("seed", range(5))
def test_merges_in_any_order(seed):
    tokenizer = random_tokenizer(seed)
    rng = random.Random(seed)
    texts = ["".join(rng.choices("abc", k=rng.randrange(1, 40))) for _ in range(2000)]
    texts += ["".join(rng.choices("abc", k=500)) for _ in range(20)] + ["abcab" * 60]
    assert_equal_ids(GraphTokenizer(tokenizer), tokenizer, texts)


def test_trained_and_byte_vocabularies(fuzz_texts):
    texts = fuzz_texts(1000, seed=2)
    trained = BytePairTokenizer.train_from_iterator(map(as_text, texts), 1500)
    for tokenizer in trained, BYTES:
        assert_equal_ids(GraphTokenizer(tokenizer), tokenizer, fuzz_texts(1000, seed=3))


def test_short_words_beside_the_last_digit():
    # Characters from U+01FE share a digit in the table of short words.
    texts = ["\u01fd \u01fe \u01ff \u0200 \u4eba\u01fe " * 9]
    trained = BytePairTokenizer.train_from_iterator(texts, 290)
    graph = GraphTokenizer(trained)
    characters = [*map(chr, range(0x1F0, 0x210)), "\u4eba", "\0", "\0\0"]
    assert_equal_ids(graph, trained, characters + [" " + c for c in characters] + texts)


def test_decode(gpt2_graph, gpt2_tokenizer):
    rng = random.Random(0)
    rows = [rng.choices(range(50257), k=7) for _ in range(3000)]
    expected = [gpt2_tokenizer.decode(row).encode() for row in rows]
    assert gpt2_graph.decode(tf.constant(rows, tf.int32)).numpy().tolist() == expected
    # Ids that are no token are left out, wherever they stand.
    rows = [row[:n % 8] + [-1, 50257, 2**31 - 1, -(2**31)] + row[n % 8:]
            for n, row in enumerate(rows)]  # fmt: skip
    assert gpt2_graph.decode(tf.constant(rows, tf.int32)).numpy().tolist() == expected


def test_decode_shapes(gpt2_graph):
    ragged = tf.ragged.constant([[64], [], [50256, 64, 65]], tf.int32)
    assert gpt2_graph.decode(ragged).numpy().tolist() == [b"a", b"", b"<|endoftext|>ab"]
    assert gpt2_graph.decode(tf.zeros([2, 0], tf.int32)).numpy().tolist() == [b"", b""]
    assert gpt2_graph.decode(tf.zeros([0, 3], tf.int32)).numpy().tolist() == []


def test_inside_a_function_of_unknown_shape(gpt2_graph):
    @tf.function(input_signature=[tf.TensorSpec(None, tf.string)])
    def round_trip(texts):
        return gpt2_graph.decode(gpt2_graph.encode(tf.reshape(texts, [-1])))

    assert round_trip([["a\n\nb"], ["\xe9"]]).numpy().tolist() == [b"a\n\nb", b"\xc3\xa9"]


FRESH_PROCESS = """
import sys
import tensorflow as tf
module = tf.saved_model.load(sys.argv[1])
texts = [bytes.fromhex(line) for line in open(sys.argv[2])]
ids = module.encode(tf.constant(texts))
print(ids.to_list())
print(module.decode_padded(ids.to_tensor(-1)).numpy().tolist() ==
      [text.decode("utf-8", "replace").encode() for text in texts])
print({"keras_gpt2", "tokenizers", "tensorflow_text"} & set(sys.modules))
"""


def test_saved_model_in_a_fresh_process(gpt2_graph, gpt2_tokenizer, fuzz_texts, tmp_path):
    tf.saved_model.save(gpt2_graph, str(tmp_path / "model"))
    size = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*") if file.is_file())
    assert size < 5_000_000
    texts = fuzz_texts(300, seed=4)
    (tmp_path / "texts").write_text("\n".join(text.hex() for text in texts))
    run = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, tmp_path / "model", tmp_path / "texts"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert run.returncode == 0, run.stderr
    ids, same, foreign = run.stdout.splitlines()
    assert eval(ids) == gpt2_tokenizer.encode_batch([as_text(text) for text in texts])
    assert same == "True"
    assert foreign == "set()"


def test_only_core_operations_without_state(gpt2_graph):
    allowed_state = {"LookupTableFindV2"}
    function = gpt2_graph.encode.get_concrete_function()
    definition = function.graph.as_graph_def()
    nodes = list(definition.node) + [n for f in definition.library.function for n in f.node_def]
    operations = {node.op for node in nodes}
    assert not {op for op in operations if "PyFunc" in op or "Variable" in op or ">" in op}
    assert {op for op in operations if "Lookup" in op} <= allowed_state


def test_examples_run():
    results = doctest.testmod(graph_tokenizer_module)
    assert results.attempted and not results.failed
