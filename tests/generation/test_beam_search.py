"""Beam search against trying every text; rows of their own lengths; rules; the end of text."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2 import GPT2
from keras_gpt2.generation import Decoded, Forbidden, Vocabulary, beam_search
from keras_gpt2.generation.compiled import compiled
from tests.conftest import random_weights
from tests.generation.test_decoding import tensors

SIZE = 5  # tokens of the small vocabulary


@pytest.fixture
def small():
    return random_weights(GPT2(SIZE, 11, num_layers=1, num_heads=2, hidden_dim=6), scale=0.6)


PROMPTS = np.array([[3, 1, 0, 2], [-1, -1, 4, 1], [-1, 2, 2, 0]], "int32")
LENGTHS = np.array([3, 2, 0], "int32")


def best_of_all(model, prompt, length, end_id, penalty):
    """The text of the highest log-probability / n ** penalty, by looking at each."""
    prompt = prompt[prompt >= 0]
    best = (-np.inf, ())
    for text in itertools.product(range(SIZE), repeat=length):
        text = text[: text.index(end_id) + 1] if end_id in text else text
        logits = ops.convert_to_numpy(model(np.array([[*prompt, *text]])))[0].astype("float64")
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        start = len(prompt) - 1
        total = sum(log_probs[start + i, token] for i, token in enumerate(text))
        best = max(best, (total / len(text) ** penalty, text))
    return best


def _run(model, ids, lengths, *static):
    beams, penalty, vocabulary, in_place, rules = static
    return tuple(beam_search(model, ids, lengths, beams, penalty, 4, vocabulary, in_place, rules))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_with_beams_for_all_texts_the_best_is_found(small, penalty):
    ids, lengths = ops.array(PROMPTS), ops.array(LENGTHS)
    found = beam_search(small, ids, lengths, SIZE**2, penalty, 4, Vocabulary(SIZE, 4))
    token_ids, counts = map(ops.convert_to_numpy, (found.token_ids, found.num_tokens))
    for i in range(2):
        value, text = best_of_all(small, PROMPTS[i], LENGTHS[i], 4, penalty)
        assert tuple(token_ids[i][: counts[i]]) == text
        log_prob = ops.convert_to_numpy(found.log_prob)[i]
        assert log_prob / counts[i] ** penalty == pytest.approx(value, abs=1e-4)
        assert ops.convert_to_numpy(found.ended)[i] == (4 in text)
    assert counts[2] == 0 and (token_ids[2] == -1).all()


MODES = ["XLA", "graph"] + ["in place"] * (keras.backend.backend() == "tensorflow")


@pytest.mark.parametrize("mode", MODES)
def test_compiled_equals_eager(small, mode):
    rules = (Forbidden((2,)),)
    static = 3, 1.0, Vocabulary(SIZE, 4), mode == "in place", rules
    run = compiled(small, _run, mode == "XLA", *static)
    found = Decoded(*run(*tensors((PROMPTS, LENGTHS))))
    plain = Decoded(*_run(small, ops.array(PROMPTS), ops.array(LENGTHS), *static))
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-4)
    assert (ops.convert_to_numpy(plain.token_ids) != 2).all()


def test_a_row_is_the_same_alone_and_in_company(small):
    vocabulary = Vocabulary(SIZE, -1)
    together = beam_search(small, ops.array(PROMPTS), ops.array(LENGTHS), 3, 1.0, 4, vocabulary)
    for i in range(3):
        one = ops.array(PROMPTS[i : i + 1]), ops.array(LENGTHS[i : i + 1])
        alone = beam_search(small, *one, 3, 1.0, 4, vocabulary)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(alone.token_ids)[0], ops.convert_to_numpy(together.token_ids)[i]
        )
    assert not ops.convert_to_numpy(together.ended).any()


def test_beams_find_a_likelier_text_than_greedy(gpt2, tokenizer):
    prompts = ["The king", "a function"]
    greedy = kg.generate(gpt2, tokenizer, prompts, 9, temperature=0, details=True)
    beams = kg.generate(gpt2, tokenizer, prompts, 9, num_beams=6, length_penalty=0, details=True)
    for one, other in zip(beams, greedy, strict=True):
        assert sum(one.log_probs) >= sum(other.log_probs) - 1e-4


def test_details_are_those_of_the_text(gpt2, tokenizer):
    [text] = kg.generate(gpt2, tokenizer, "The king", 9, seed=3)
    [whole] = kg.generate(gpt2, tokenizer, "The king", 9, seed=3, details=True)
    assert whole.text == text and whole.finish_reason == "length"
    assert tokenizer.decode(whole.token_ids) == text
    assert len(whole.token_ids) == len(whole.log_probs) == 9 and max(whole.log_probs) < 0
    [cut] = kg.generate(gpt2, tokenizer, "The king", 9, seed=3, stop=text[2], details=True)
    assert cut.text == text[: text.index(text[2])] and cut.finish_reason == "stop"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_beams=0), "num_beams must be at least 1. Received: num_beams=0"),
        (dict(num_beams=2, temperature=0.5), "must be left out where num_beams is more than 1"),
        (dict(num_beams=2, top_k=3), "must be left out where num_beams is more than 1"),
        (dict(num_beams=2, num_draft_tokens=3), "Beam search takes no drafts"),
        (dict(num_beams=2, length_penalty=-1.0), "length_penalty must be at least 0"),
    ],
)
def test_errors(gpt2, tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        kg.generate(gpt2, tokenizer, "The king", 5, **arguments)
