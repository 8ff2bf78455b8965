import os
import random
import signal
import threading

import numpy as np
import pytest
from stand_ins import BytePairStandIn, ByteTokenizer

from keras_gpt2.data import WindowDataset, text_files
from keras_gpt2.data.token_cache import cached_token_ids, default_cache_dir


@pytest.fixture
def paths(tmp_path):
    texts = ["one two\r\nthree\n\nfour ", "", "five é"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


def joined(paths, separator):
    ids = []
    for number, path in enumerate(paths):
        ids += ([separator] if number and separator is not None else []) + list(path.read_bytes())
    return ids


@pytest.mark.parametrize("end_of_text_id", [256, 0, None])
def test_ids_and_separators(paths, tmp_path, end_of_text_id):
    tokenizer = ByteTokenizer(end_of_text_id=end_of_text_id)
    ids = cached_token_ids(paths, tokenizer, tmp_path / "cache")
    assert ids[:].tolist() == joined(paths, end_of_text_id)


def test_a_long_file_in_many_blocks_equals_encoding_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1001)
    monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 100)
    rng = random.Random(3)
    words = ["the", "of", "été", "42", "(", "it's", "你好", "\n", "\n\n", "\r\n", "  ", "\t"]
    text = " ".join(rng.choice(words) for _ in range(20_000))
    tokenizer = BytePairStandIn(text)
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    ids = cached_token_ids([path], tokenizer, tmp_path)
    assert ids[:].tolist() == tokenizer.encode_batch([text])[0]


@pytest.mark.parametrize("size, dtype", [(257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_file_is_a_plain_memory_mapped_npy(paths, tmp_path, size, dtype):
    ids = cached_token_ids(paths, ByteTokenizer(size), tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    (shard,) = ids.shards
    assert isinstance(shard.base, np.memmap) and not shard.flags.writeable
    plain = np.load(file)
    assert plain.dtype == np.dtype(dtype) and plain.tolist() == joined(paths, 256)


def test_written_once_and_keyed_by_bytes_order_and_tokenizer(paths, tmp_path):
    cache = tmp_path / "cache"
    tokenizer = ByteTokenizer()

    def encodes(paths, tokenizer):
        before = tokenizer.calls
        ids = cached_token_ids(paths, tokenizer, cache)
        assert ids[:].tolist() == joined(paths, 256)
        return tokenizer.calls > before

    assert encodes(paths, tokenizer)
    assert not encodes(paths, tokenizer)
    copy = tmp_path / "another name"
    copy.write_bytes(paths[0].read_bytes())
    assert not encodes([copy, *paths[1:]], tokenizer)
    assert encodes(paths[::-1], tokenizer)
    assert encodes(paths, ByteTokenizer(fingerprint="01"))
    # The same bytes, divided in another way among as many files.
    paths[0].write_bytes(b"one two\r\nthree\n\n")
    paths[1].write_bytes(b"four ")
    assert encodes(paths, tokenizer)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"PK\x03\x04 not an array"),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
        lambda file: file.write_bytes(b"\0" * file.stat().st_size),
        lambda file: np.save(file, np.zeros(5, np.int64)),
        lambda file: np.save(file, np.zeros((5, 1), np.uint16)),
    ],
)
def test_a_damaged_file_is_written_again(paths, tmp_path, damage):
    tokenizer, cache = ByteTokenizer(), tmp_path / "cache"
    cached_token_ids(paths, tokenizer, cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    damage(file)
    assert cached_token_ids(paths, tokenizer, cache)[:].tolist() == joined(paths, 256)
    assert file.read_bytes() == whole


def test_a_run_that_breaks_off_leaves_nothing(paths, tmp_path):
    class Interrupted(ByteTokenizer):
        def encode_batch(self, texts):
            if self.calls == 1:
                raise KeyboardInterrupt
            return super().encode_batch(texts)

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        cached_token_ids(paths, Interrupted(), cache)
    assert list(cache.iterdir()) == []
    assert cached_token_ids(paths, ByteTokenizer(), cache)[:].tolist() == joined(paths, 256)


@pytest.fixture
def long_paths(tmp_path, monkeypatch):
    """Files of 10 shards: several in a file and several files in one, two of them empty."""
    monkeypatch.setattr(text_files, "SHARD_BYTES", 97)
    rng = random.Random(5)
    paths = []
    for number, words in enumerate([0, 53, 7, 0, 5, 101, 3]):
        text = " ".join(rng.choice(["one", "zwölf", "十 二", "3\n", "(a)"]) for _ in range(words))
        paths.append(tmp_path / f"long{number}.txt")
        paths[-1].write_bytes(text.encode())
    return paths


@pytest.mark.parametrize("end_of_text", [True, False])
def test_shards_hold_the_ids_of_the_whole(long_paths, tmp_path, monkeypatch, end_of_text):
    tokenizer = BytePairStandIn("".join(path.read_text() for path in long_paths), 300)
    if not end_of_text:
        tokenizer.end_of_text_id = None
    sharded = cached_token_ids(long_paths, tokenizer, tmp_path / "sharded")
    monkeypatch.setattr(text_files, "SHARD_BYTES", 1 << 20)
    whole = cached_token_ids(long_paths, tokenizer, tmp_path / "whole")
    assert len(sharded.shards) == 10 and len(whole.shards) == 1
    assert len(list((tmp_path / "sharded").iterdir())) == 10
    assert sharded[:].tolist() == whole[:].tolist()
    for shuffle in [True, False]:
        found, expected = (WindowDataset(ids, 11, 3, shuffle) for ids in (sharded, whole[:]))
        for found.epoch in range(3):
            expected.epoch = found.epoch
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_killed_run_goes_on_after_its_last_whole_shard(long_paths, tmp_path):
    class Killed(ByteTokenizer):
        def encode_batch(self, texts):
            if self.calls == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_batch(texts)

    cache = tmp_path / "cache"
    process = os.fork()
    if process == 0:
        cached_token_ids(long_paths, Killed(), cache)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    names = sorted(path.suffix for path in cache.iterdir())
    assert names[-1] == ".tmp" and set(names[:-1]) == {".npy"}
    first, second = ByteTokenizer(), ByteTokenizer()
    ids = cached_token_ids(long_paths, first, cache)
    assert ids[:].tolist() == joined(long_paths, 256)
    cached_token_ids(long_paths, second, tmp_path / "other")
    assert second.calls - first.calls == 5 - 1  # what the shard that broke off had is done again


@pytest.mark.parametrize("damage", [os.remove, lambda file: os.truncate(file, 150)])
def test_one_shard_is_written_again(long_paths, tmp_path, damage):
    cache = tmp_path / "cache"
    cached_token_ids(long_paths, ByteTokenizer(), cache)
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    damaged = sorted(files)[3]
    damage(damaged)
    again = ByteTokenizer()
    assert cached_token_ids(long_paths, again, cache)[:].tolist() == joined(long_paths, 256)
    changed = {path for path in files if path.stat().st_mtime_ns != files[path]}
    assert changed == {damaged} and 0 < again.calls < 4


def test_two_at_once_both_succeed(paths, tmp_path):
    barrier = threading.Barrier(2, timeout=10)

    class Together(ByteTokenizer):
        def encode_batch(self, texts):
            barrier.wait()
            return super().encode_batch(texts)

    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(cached_token_ids(paths, Together(), tmp_path / "cache"))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ids[:].tolist() for ids in results] == [joined(paths, 256)] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_that_changes_meanwhile_is_not_cached(paths, tmp_path):
    class Appending(ByteTokenizer):
        def encode_batch(self, texts):
            with open(paths[-1], "a") as file:
                file.write("more")
            return super().encode_batch(texts)

    with pytest.raises(RuntimeError, match=f"Received: {paths[-1]}"):
        cached_token_ids(paths, Appending(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("ids", [[0, 257], [-1]])
def test_ids_outside_the_vocabulary(paths, tmp_path, ids):
    tokenizer = ByteTokenizer()
    tokenizer.encode_batch = lambda texts: [ids for _ in texts]
    with pytest.raises(ValueError, match=f"ids from {ids[0]} to {ids[-1]}, vocabulary_size=257"):
        cached_token_ids(paths, tokenizer, tmp_path)


def test_empty_files_alone(paths, tmp_path):
    with pytest.raises(ValueError, match="only empty files"):
        cached_token_ids([paths[1]], ByteTokenizer(), tmp_path / "cache")


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):  # a directory: root may read everything else
        cached_token_ids([tmp_path], ByteTokenizer(), tmp_path / "cache")


def test_silent_without_a_terminal(paths, tmp_path, capfd):
    cached_token_ids(paths, ByteTokenizer(), tmp_path, progress=True)
    assert capfd.readouterr() == ("", "")


def test_default_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "keras_gpt2"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "keras_gpt2"
