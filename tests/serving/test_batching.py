"""Requests of strangers in one batch: what each gets is what it gets alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.batcher import Batcher
from tests.serving.conftest import assert_same_answer, generate_rows, request


def test_a_row_gets_its_text_in_200_random_batches(small):
    rng = np.random.default_rng(0)
    rows = generate_rows(rng, 61)
    alone = [small.run("generate", {k: v[i : i + 1] for k, v in rows.items()}) for i in range(61)]
    alone = {name: np.concatenate([answer[name] for answer in alone]) for name in alone[0]}
    reasons = b" ".join(alone["finish_reason"])
    for name in (b"max_new_tokens=", b"temperature=", b"top_k=", b"top_p=", b"length"):
        assert name in reasons, "the rows break every rule and keep them all"
    for _ in range(200):
        chosen = rng.integers(0, 61, rng.integers(1, 14))
        answer = small.run("generate", {k: v[chosen] for k, v in rows.items()})
        assert_same_answer(answer, {name: values[chosen] for name, values in alone.items()})


def test_2000_requests_of_16_threads(small):
    rng = np.random.default_rng(1)
    requests = [request(rng, rng.integers(1, 4)) for _ in range(127)]
    assert len({signature for signature, _ in requests}) == 6
    alone = [small.run(*request) for request in requests]

    def ask(i):
        assert_same_answer(batcher.run(*requests[i]), alone[i])

    options = dict(max_batch_size=8, batch_timeout=0.002, max_enqueued_batches=100)
    with Batcher(small.run, **options) as batcher, ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, rng.integers(0, 127, 2000)))
    assert len(batcher.batch_sizes) < 1500, "requests were merged"


def test_batches_filled_to_allowed_sizes(small):
    requests = [generate_rows(np.random.default_rng(i), 1) for i in range(7)]
    alone = [small.run("generate", rows) for rows in requests]
    # A full batch is the only one that runs before the hour is over.
    options = dict(max_batch_size=7, batch_timeout=3600, allowed_batch_sizes=[2, 7])
    with Batcher(small.run, **options) as batcher, ThreadPoolExecutor(7) as threads:
        for answer, expected in zip(
            threads.map(lambda rows: batcher.run("generate", rows), requests), alone, strict=True
        ):
            assert_same_answer(answer, expected)
    assert batcher.batch_sizes == [7]
    with Batcher(small.run, max_batch_size=11, allowed_batch_sizes=[5, 11]) as batcher:
        assert_same_answer(batcher.run("generate", requests[0]), alone[0])


def numbers(*values):
    return {"x": np.array(values)}


def together(batcher, *requests):
    """Answers, or errors, of requests that are asked at the same time."""

    def ask(inputs):
        try:
            return batcher.run("s", inputs)["y"].tolist()
        except tf.errors.OpError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(ask, requests))


def test_batcher_concatenates_and_splits():
    seen = []

    def run(signature, inputs):
        seen.append(sorted(inputs["x"].tolist()))
        return {"y": inputs["x"] + 1}

    with Batcher(run, max_batch_size=6, batch_timeout=3600) as batcher:
        answers = together(batcher, numbers(1), numbers(2, 3), numbers(4, 5, 6))
    assert answers == [[2], [3, 4], [5, 6, 7]]
    assert seen == [[1, 2, 3, 4, 5, 6]]


def test_batcher_fills_with_copies_of_a_row():
    seen = []

    def run(signature, inputs):
        seen.append(inputs["x"].tolist())
        return {"y": inputs["x"]}

    with Batcher(run, max_batch_size=5, allowed_batch_sizes=[1, 5]) as batcher:
        assert together(batcher, numbers(7, 8)) == [[7, 8]]
    assert seen == [[7, 8, 7, 7, 7]]
    with pytest.raises(ValueError, match="must match max_batch_size"):
        Batcher(run, max_batch_size=5, allowed_batch_sizes=[1, 4])


def test_batcher_refuses_what_the_server_refuses():
    with Batcher(lambda _, inputs: {"y": inputs["x"]}, max_batch_size=2) as batcher:
        with pytest.raises(tf.errors.InvalidArgumentError, match="Task size 3 is larger"):
            batcher.run("s", numbers(1, 2, 3))
        with pytest.raises(tf.errors.InvalidArgumentError, match="equal 0th-dimension size"):
            batcher.run("s", {"x": np.zeros(2), "z": np.zeros(1)})
        with pytest.raises(tf.errors.InvalidArgumentError, match="at least one dimension"):
            batcher.run("s", {"x": np.array(1)})
        assert batcher.run("s", numbers(1, 2))["y"].tolist() == [1, 2]
    with Batcher(lambda _, inputs: {"y": np.zeros(3)}) as batcher:
        with pytest.raises(tf.errors.FailedPreconditionError, match="0th dimension does not equal"):
            batcher.run("s", numbers(1, 2))


def test_one_failure_is_that_of_all_who_were_merged():
    def run(signature, inputs):
        if (inputs["x"] < 0).any():
            raise tf.errors.InvalidArgumentError(None, None, "below zero")
        return {"y": inputs["x"]}

    with Batcher(run, max_batch_size=2, batch_timeout=3600) as batcher:
        for answer in together(batcher, numbers(1), numbers(-1)):
            assert "below zero" in str(answer)
        assert together(batcher, numbers(1), numbers(2)) == [[1], [2]]
        for answer in together(batcher, {"x": np.zeros((1, 2))}, {"x": np.zeros((1, 3))}):
            assert "padding is turned off" in str(answer)


def test_rows_of_no_request_wait_for_another():
    with Batcher(lambda _, inputs: {"y": inputs["x"]}) as batcher, ThreadPoolExecutor(1) as thread:
        nothing = thread.submit(batcher.run, "s", {"x": np.zeros((0,))})
        with pytest.raises(TimeoutError):
            nothing.result(timeout=0.2)
        while not nothing.done():
            assert batcher.run("s", numbers(5))["y"].tolist() == [5]
        assert nothing.result()["y"].tolist() == []


def test_a_full_queue_is_unavailable():
    running, refused = threading.Event(), threading.Event()

    def run(signature, inputs):
        running.set()
        assert refused.wait(60)
        return {"y": inputs["x"]}

    def ask(value):
        try:
            return batcher.run("s", numbers(value))["y"].tolist()
        except tf.errors.UnavailableError as error:
            refused.set()
            return str(error)

    options = dict(max_batch_size=1, num_batch_threads=1, max_enqueued_batches=1)
    with Batcher(run, **options) as batcher, ThreadPoolExecutor(3) as threads:
        first = threads.submit(ask, 1)
        assert running.wait(60)
        answers = [future.result() for future in [threads.submit(ask, 2), threads.submit(ask, 3)]]
    assert first.result() == [1]
    assert sum("queue to which this task was submitted is full" in str(a) for a in answers) == 1
