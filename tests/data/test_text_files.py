import os
import random
import re

import pytest
from stand_ins import BytePairStandIn

from keras_gpt2.data import text_files
from keras_gpt2.data.text_files import (
    Part,
    decode_utf8,
    find_files,
    plan_shards,
    read_blocks,
    split_text,
)

# Whitespace of every kind and length, with some that Python and Rust see differently (\x1c,
# \u200b), contractions, letters, numbers and signs of several scripts, a special token.
BLANKS = " |  |   |\n|\n\n|\n\n\n|\r\n|\r\n\r\n|\t|\x1c|\x0b|\x85|\xa0|\u2028|\u3000".split("|")
VISIBLE = (
    "a b cd 'll 's don't I'm 1 23 x9 _ __a . ,, !? < <| <|endoftext|> é ß 你好 「 ١٢ Ⅷ ² 🙂 "
    "e\u0301 \u200b \x00 \ufeff"
).split(" ")


def fuzzed_text(rng, length):
    return "".join(rng.choice(rng.choice([BLANKS[:4], BLANKS, VISIBLE])) for _ in range(length))


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(1)
    runs = ["".join(rng.choices(BLANKS, k=3)) for _ in range(2000)]
    return BytePairStandIn(fuzzed_text(rng, 20_000) + ".".join(runs))


def random_blocks(rng, text):
    while text:
        size = rng.randint(0, 12)
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("piece_characters", [1, 5])
def test_ids_of_the_pieces_are_those_of_the_whole(tokenizer, monkeypatch, piece_characters):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", piece_characters)
    rng = random.Random(2)
    texts = [fuzzed_text(rng, rng.randint(0, 60)) for _ in range(3000)]
    split = [sum(split_text(random_blocks(rng, text)), []) for text in texts]
    assert ["".join(pieces) for pieces in split] == texts
    assert sum(map(len, split)) > 3 * len(texts)
    whole = tokenizer.encode_batch(texts)
    for text, pieces, ids in zip(texts, split, whole, strict=True):
        assert sum(tokenizer.encode_batch(pieces), []) == ids, (text, pieces)


@pytest.mark.parametrize("separator", [" ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\n    "])
def test_every_usual_layout_has_places_to_cut(monkeypatch, separator):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 10)
    pieces = sum(split_text([separator.join(["word", "1", "你好"] * 100)]), [])
    assert max(map(len, pieces)) < 25


def test_a_text_without_a_place_to_cut_stays_whole(monkeypatch):
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 10)
    assert list(split_text(["-" * 50, "\n\n", "-" * 50])) == [["-" * 50 + "\n\n" + "-" * 50]]


def test_pieces_are_of_the_intended_size():
    pieces = sum(split_text(["some words " * 10_000] * 3), [])
    assert "".join(pieces) == "some words " * 30_000
    assert all(text_files.PIECE_CHARACTERS <= len(piece) < 17_000 for piece in pieces[:-1])


def test_bytes_survive_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 3)  # most characters lie across two blocks
    data = "\ufeffé\r\n你好\n🙂\r\x00 e\u0301".encode()
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert "".join(decode_utf8(read_blocks(Part(path)), Part(path))).encode() == data


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    "data, byte, offset",
    [
        (b"abcdef\xffgh", "ff", 6),
        ("é你🙂".encode() + b"\xe4\xbdxyz", "e4", 9),  # a character broken off, then text
        ("é你🙂".encode() + b"ab\xf0\x9f\x98", "f0", 11),  # broken off by the end of the file
    ],
)
def test_the_offset_of_a_bad_byte(tmp_path, monkeypatch, block_bytes, data, byte, offset):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    place = f"{re.escape(str(path))}, byte 0x{byte} at offset {offset}\\."
    with pytest.raises(ValueError, match=place):
        list(decode_utf8(read_blocks(Part(path)), Part(path)))


def read(part):
    return b"".join(read_blocks(part))


def test_a_bad_byte_behind_the_start_of_a_part(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"one two\xff")
    part = Part(path, 3, 8)
    with pytest.raises(ValueError, match="byte 0xff at offset 7"):
        list(decode_utf8(read_blocks(part), part))


@pytest.mark.parametrize("block_bytes", [6, 7, 100])
def test_shards_are_cut_where_no_token_is(tokenizer, tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(text_files, "SHARD_BYTES", 13)
    rng = random.Random(4)
    texts = [fuzzed_text(rng, rng.randint(0, 60)) for _ in range(500)]
    path = tmp_path / "text"
    lengths = []
    for text in texts:
        path.write_bytes(text.encode())
        parts = [read(part).decode() for shard in plan_shards([path]) for part in shard]
        assert "".join(parts) == text
        assert all(len(part.encode()) >= 13 for part in parts[:-1])
        whole, *split = tokenizer.encode_batch([text, *parts])
        assert sum(split, []) == whole, parts
        # As early as may be: no place to cut between 13 bytes and the end.
        for part in parts:
            after = len(part.encode()[:13].decode(errors="replace").rstrip("\ufffd"))
            assert not re.search(r"[ \n](?=\w)", part[after + 1 :]), part
        lengths.append(len(parts))
    assert max(lengths) > 4


def test_a_shard_takes_small_files_and_begins_inside_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "SHARD_BYTES", 10)
    paths = [tmp_path / name for name in "abcd"]
    for path, text in zip(paths, ["", "one two", "1 34 67 901 345", " x"], strict=True):
        path.write_text(text)
    a, b, c, d = paths
    assert list(plan_shards(paths)) == [
        [Part(a), Part(b), Part(c, 0, 4)],
        [Part(c, 4), Part(d, 0, 0)],
        [Part(d)],
    ]
    assert [read(part) for shard in plan_shards(paths) for part in shard] == [
        b"", b"one two", b"1 34", b" 67 901 345", b"", b" x"
    ]  # fmt: skip
    assert Part(c, 4).num_bytes == 11 and Part(c, 4, 9).num_bytes == 5


@pytest.fixture
def tree(tmp_path):
    for name in ["b.txt", "a/z.txt", "a/.hidden", ".git/x.txt", "a.md", "c/d/e.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    "entries, found",
    [
        ("", ["a/z.txt", "a.md", "b.txt", "c/d/e.txt"]),
        ("b.txt", ["b.txt"]),
        ("*", ["a.md", "b.txt"]),
        ("**/*.txt", ["a/z.txt", "b.txt", "c/d/e.txt"]),
        (["c", "a/.hidden", "*.txt", "b.txt"], ["c/d/e.txt", "a/.hidden", "b.txt", "b.txt"]),
    ],
)
def test_files_found(tree, entries, found):
    if isinstance(entries, str):
        assert find_files(tree / entries) == [tree / name for name in found]
        entries = [entries]
    assert find_files([str(tree / entry) for entry in entries]) == [tree / name for name in found]


def test_a_name_with_glob_characters_is_a_name_first(tmp_path):
    for name in ["[1].txt", "1.txt"]:
        (tmp_path / name).write_text(name)
    assert find_files(tmp_path / "[1].txt") == [tmp_path / "[1].txt"]


@pytest.mark.parametrize("entry", ["none.txt", "*.none", "empty", "pipe"])
def test_nothing_found(tree, entry):
    name = re.escape(str(tree / entry))
    with pytest.raises(FileNotFoundError, match=f"Received: files='{name}'"):
        find_files([tree / "b.txt", tree / entry])


def test_no_entry_at_all():
    with pytest.raises(FileNotFoundError, match=r"files=\[\]"):
        find_files([])
