"""Guesses: what is found, and that checking them never changes a text."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.generation import Decoded, Forbidden, RepetitionPenalty, Sampling, decode
from keras_gpt2.generation.compiled import compiled
from keras_gpt2.generation.drafts import look_up, may_guess, new_balance, update_balance
from tests.generation.test_decoding import VOCABULARY, assert_same, sampling, tensors


def guessed(rows, end, count):
    drafts, found = look_up(ops.array(rows, "int32"), end, count)
    return ops.convert_to_numpy(drafts).tolist(), ops.convert_to_numpy(found).tolist()


def test_the_last_earlier_place_counts_and_each_row_has_its_own():
    rows = [
        [1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3, -1, -1],
        [-1, 4, 1, 2, 3, 70, 80, 90, 9, 1, 2, 3, -1],
    ]
    assert guessed(rows[:1], 11, 3) == ([[60, 1, 2]], [True])
    assert guessed(rows[1:], 12, 3) == ([[70, 80, 90]], [True])


def test_more_equal_tokens_count_before_the_place():
    row = [9, 1, 2, 50, 8, 1, 2, 60, 9, 1, 2, -1]
    assert guessed([row], 11, 2) == ([[50, 8]], [True])
    assert guessed([[7] + row[1:]], 11, 2) == ([[60, 9]], [True])


def test_a_short_period_goes_on():
    assert guessed([[7, 5, 6, 5, 6, 5, 6, -1]], 7, 5) == ([[5, 6, 5, 6, 5]], [True])
    assert guessed([[8, 8, 8, 8, -1, -1]], 4, 3) == ([[8, 8, 8]], [True])


@pytest.mark.parametrize(
    "row, end", [([1, 2, 3, 4, 5], 5), ([-1, -1, 1], 3), ([1, 2], 2), ([-1, 1, 3, 1, -1], 4)]
)
def test_nothing_is_found_where_nothing_is(row, end):
    assert guessed([row], end, 2)[1] == [False]


def test_wrong_guesses_cost_little_and_right_ones_are_not_held_back():
    balance, wrong = new_balance(), 0
    for _ in range(1000):
        guess = bool(may_guess(balance))
        wrong += guess
        balance = update_balance(balance, guess, 1)
    # A wrong guess costs 0.7 of a token's time, or 1: 3% of the time is lost, or less than 5%.
    assert 20 < wrong < 50
    for _ in range(100):
        balance = update_balance(balance, True, 8)
    assert may_guess(balance)


def _run(model, ids, *rest):
    *parameters, num_steps, in_place, rules, num_draft_tokens = rest
    sampled = Sampling(*parameters)
    return tuple(
        decode(model, ids, sampled, num_steps, VOCABULARY, in_place, rules, num_draft_tokens)
    )


MODES = ["plain", "XLA"] + ["in place"] * (keras.backend.backend() == "tensorflow")


@pytest.fixture
def repeating(gpt2):
    """A model that pays little heed to what came before its last token, and so falls into loops."""
    gpt2.position_embedding.embeddings.assign(0 * gpt2.position_embedding.embeddings)
    for block in gpt2.attention_blocks:
        kernel = block.layer.output_projection.kernel
        kernel.assign(0.1 * kernel)
    return gpt2


@pytest.mark.parametrize(
    "mode, rows, rules",
    [(mode, rows, ()) for mode in MODES for rows in (1, 3)]
    + [("plain", 3, (RepetitionPenalty(1.3), Forbidden((7,))))],
)
def test_the_text_is_the_one_without_drafts(repeating, monkeypatch, mode, rows, rules):
    checked = []
    given = repeating.call_with_cache

    def call_with_cache(*args, every=False):
        checked.append(every)
        return given(*args, every=every)

    monkeypatch.setattr(repeating, "call_with_cache", call_with_cache)
    ids = np.tile(np.arange(9).reshape(3, 3) + 5, (1, 3)).astype("int32")[:rows]
    ids[0, :2] = -1
    for temperature in (np.zeros(rows, "float32"), sampling(rows).temperature):
        inputs = tensors((ids, *sampling(rows)._replace(temperature=temperature)))
        static = 11, mode == "in place", rules
        run = [compiled(repeating, _run, mode == "XLA", *static, drafts) for drafts in (0, 2)]
        assert_same(Decoded(*run[1](*inputs)), Decoded(*run[0](*inputs)))
    assert any(checked)


class Counting:
    """A model that repeats a period of tokens and counts how often it is run."""

    def __init__(self, period):
        self.period, self.calls = period, 0

    def extend_cache(self, cache, places, owned=False):
        return cache

    def call_with_cache(self, token_ids, cache=(), position=None, mask=None, every=False):
        self.calls += 1
        logits = ops.one_hot((token_ids + 1) % self.period, 311)
        return (logits if every else logits[:, -1]), cache


def test_fewer_passes_where_text_repeats():
    ids = ops.array([[0, 1, 2, 3, 4, 0, 1, 2]], "int32")
    parameters = Sampling(*(ops.array([v]) for v in (40, 0.0, 0, 1.0, 0)))
    counts = []
    for drafts in (0, 7):
        model = Counting(5)
        decoded = decode(model, ids, parameters, 40, VOCABULARY, num_draft_tokens=drafts)
        assert ops.convert_to_numpy(decoded.token_ids)[0].tolist() == [
            (3 + i) % 5 for i in range(40)
        ]
        counts.append(model.calls)
    assert counts[0] == 40 and counts[1] <= 12


def test_generate_with_drafts(gpt2, tokenizer):
    prompts = ["to be to be", "a b a b a b"]
    for temperature in (0, 1.0):
        plain = kg.generate(gpt2, tokenizer, prompts, 9, temperature=temperature)
        drafted = kg.generate(
            gpt2, tokenizer, prompts, 9, temperature=temperature, num_draft_tokens=3
        )
        assert drafted == plain
    with pytest.raises(ValueError, match="num_draft_tokens must be at least 0. Received"):
        kg.generate(gpt2, tokenizer, prompts, 9, num_draft_tokens=-1)
