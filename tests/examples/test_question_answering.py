"""examples/question_answering.py: answers are read from the prompt, not known by heart."""

import random

import numpy as np
import pytest

from examples import question_answering as qa


@pytest.fixture(scope="module")
def results():
    return qa.main(["--quick"])


def test_exact_match(results):
    # By name or verb alone at most half; 0.9 measured, 1.0 after the whole training.
    assert results["exact_match"] > 0.7


def test_facts_are_new(results):
    trained = {frozenset(facts) for facts, _, _ in results["training"]}
    assert len(results["test"]) > 500
    assert not any(frozenset(facts) in trained for facts, _, _ in results["test"])


def test_questions_need_name_and_verb():
    rng = random.Random(3)
    for _ in range(50):
        facts, question, answer = qa.draw(rng, 10)
        verb, name = question.rstrip("?").split()[3:]
        told = [fact.split()[1:3] for fact in facts]
        past = qa.VERBS[verb]
        assert told.count([past, name]) == 1
        assert answer == facts[told.index([past, name])]
        assert any(p == past and n != name for p, n in told)
        assert any(p != past and n == name for p, n in told)
        assert 3 <= len(facts) <= 5


def test_only_answers_count():
    tokenizer = qa.Words("Did they? They did. No")
    ids, targets = qa.questions([(["No."], "Did they?", "They did.")], tokenizer)
    assert ids.shape == targets.shape == (1, qa.LENGTH)
    assert tokenizer.decode(ids[0, :8]) == "No. Did they? They did."
    np.testing.assert_array_equal(np.flatnonzero(targets[0] >= 0), [4, 5, 6])
    assert tokenizer.decode(targets[0, 4:7]) == "They did."


def test_copying_counts_from_the_second_round():
    ids, targets = qa.copying(5, 30)
    for row, target in zip(ids, targets, strict=True):
        period = row[1:].tolist().index(row[0]) + 1
        assert 6 <= period <= 12 and len(set(row[:period])) == period
        np.testing.assert_array_equal(row[period:], row[:-period])
        np.testing.assert_array_equal(target[: period - 1], -1)
        np.testing.assert_array_equal(target[period - 1 : -1], row[period:])
