"""Rules on logits: what each does, and that the fast loop, the oracle and the stream agree."""

import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.generation import (
    Decoded,
    Forbidden,
    Forced,
    MinimumLength,
    RepetitionPenalty,
    Sampling,
    Vocabulary,
    decode,
    decode_recomputing,
    generate_ids,
)
from keras_gpt2.generation.compiled import compiled
from tests.generation.test_decoding import assert_same, prompts, sampling, tensors

LOGITS = np.array([[1.0, -2.0, 3.0, 0.0], [1.0, -2.0, 3.0, 0.0]], "float32")
TOKENS = np.array([[-1, 0, 1, -1], [2, 2, 3, -1]], "int32")


def applied(rule, step=0):
    return np.asarray(rule(ops.array(LOGITS), ops.array(TOKENS), step))


def test_repetition_penalty():
    expected = [[0.5, -4, 3, 0], [1, -2, 1.5, 0]]
    np.testing.assert_allclose(applied(RepetitionPenalty(2.0)), expected)
    expected[0] = LOGITS[0]
    np.testing.assert_allclose(applied(RepetitionPenalty((1.0, 2.0))), expected)


def test_minimum_length():
    rule = MinimumLength((3, 5), end_id=2)
    assert (applied(rule, 2)[:, 2] < -1e29).tolist() == [True, True]
    assert (applied(rule, 3)[:, 2] < -1e29).tolist() == [False, True]
    np.testing.assert_array_equal(applied(rule, 5), LOGITS)


def test_forbidden_and_forced():
    assert (applied(Forbidden((0, 2))) < -1e29).tolist() == [[True, False, True, False]] * 2
    rule = Forced((3, 1))
    assert applied(rule, 0).argmax(-1).tolist() == [3, 3]
    assert applied(rule, 1).argmax(-1).tolist() == [1, 1]
    np.testing.assert_array_equal(applied(rule, 2), LOGITS)


RULES = (RepetitionPenalty((1.5, 1.0, 2.0, 1.0, 0.7)), Forbidden((7, 9)), Forced((11, 13)))


def _run(model, ids, *rest):
    *parameters, num_steps, vocabulary, rules = rest
    return tuple(decode(model, ids, Sampling(*parameters), num_steps, vocabulary, rules=rules))


@pytest.mark.parametrize("jit_compile", [True, False])
def test_the_loop_applies_rules_as_the_oracle_does(gpt2, jit_compile):
    inputs, vocabulary = tensors((prompts(), *sampling())), Vocabulary(311, 310)
    slow = decode_recomputing(gpt2, inputs[0], Sampling(*inputs[1:]), 11, vocabulary, RULES)
    fast = Decoded(*compiled(gpt2, _run, jit_compile, 11, vocabulary, RULES)(*inputs))
    assert_same(fast, slow)
    ids = np.asarray(fast.token_ids)
    assert (ids[:3, :2] == [11, 13]).all() and not np.isin(ids, (7, 9)).any()


def test_a_rule_of_ones_own(gpt2):
    def never_twice_in_a_row(logits, tokens, step):
        # Before step 0 the last token is the prompt's; all prompts here are 5 tokens in 16 places.
        last = ops.take(tokens, 15 + step, axis=1)
        same = ops.arange(logits.shape[-1], dtype="int32")[None] == last[:, None]
        return ops.where(same, -1e30, logits)

    prompt = np.random.default_rng(0).integers(0, 311, (2, 5))
    ids = generate_ids(gpt2, prompt, 12, temperature=0, rules=[never_twice_in_a_row])
    assert (ids[:, 1:] != ids[:, :-1]).all() and (ids[:, 0] != prompt[:, -1]).all()


def test_stream_follows_the_same_rules(gpt2, tokenizer):
    arguments = dict(max_new_tokens=9, seed=3, rules=[RepetitionPenalty(5.0), Forced((40,))])
    text = "".join(kg.stream(gpt2, tokenizer, "The king", **arguments))
    assert [text] == kg.generate(gpt2, tokenizer, "The king", **arguments)
    assert text.startswith(tokenizer.decode([40]))
