"""The fast loop equals the slow oracle; no row knows of another."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt2 import GPT2
from keras_gpt2.generation import Decoded, Sampling, Vocabulary, decode, decode_recomputing
from keras_gpt2.generation.compiled import compiled
from tests.conftest import random_weights

VOCABULARY = Vocabulary(311, 310)


def numpy(x):
    return ops.convert_to_numpy(x)


def prompts(lengths=(7, 4, 1, 6, 5), width=7, seed=0):
    ids = np.random.default_rng(seed).integers(0, 310, (len(lengths), width)).astype("int32")
    for row, length in zip(ids, lengths, strict=True):
        row[: width - length] = -1
    return ids


def sampling(rows=5):
    return Sampling(
        np.int32([11, 11, 5, 0, 9])[:rows],
        np.float32([0, 1, 0.7, 1, 1.3])[:rows],
        np.int32([0, 0, 20, 0, 0])[:rows],
        np.float32([1, 1, 0.9, 1, 0.8])[:rows],
        np.int32([1, 2, 3, 4, -5])[:rows],
    )


def assert_same(one, other):
    for a, b in zip(one[:2] + one[3:], other[:2] + other[3:], strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    np.testing.assert_allclose(numpy(one.log_prob), numpy(other.log_prob), atol=1e-4)


def tensors(values):
    return [ops.convert_to_tensor(v) for v in values]


def test_cached_equals_recomputed(gpt2):
    ids, parameters = ops.convert_to_tensor(prompts()), Sampling(*tensors(sampling()))
    slow = decode_recomputing(gpt2, ids, parameters, 11, VOCABULARY)
    assert_same(decode(gpt2, ids, parameters, 11, VOCABULARY), slow)
    assert numpy(slow.num_tokens).tolist() == [11, 11, 5, 0, 9]
    assert (numpy(slow.token_ids)[2] >= 0).tolist() == [True] * 5 + [False] * 6


def _run(model, ids, *rest):
    *parameters, num_steps, vocabulary = rest
    return tuple(decode(model, ids, Sampling(*parameters), num_steps, vocabulary))


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_compiled_equals_recomputed(gpt2, rows, jit_compile):
    run = compiled(gpt2, _run, jit_compile, 11, VOCABULARY, rows=rows)
    inputs = tensors((prompts()[:rows], *sampling(rows)))
    slow = decode_recomputing(gpt2, inputs[0], Sampling(*inputs[1:]), 11, VOCABULARY)
    assert_same(Decoded(*run(*inputs)), slow)
    assert compiled(gpt2, _run, jit_compile, 11, VOCABULARY).func is run.func


def _run_in_place(model, ids, *rest):
    *parameters, num_steps, vocabulary = rest
    return tuple(decode(model, ids, Sampling(*parameters), num_steps, vocabulary, in_place=True))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow graphs only")
def test_a_cache_written_in_place_gives_the_same(gpt2):
    run = compiled(gpt2, _run_in_place, False, 11, VOCABULARY)
    inputs = tensors((prompts(), *sampling()))
    slow = decode_recomputing(gpt2, inputs[0], Sampling(*inputs[1:]), 11, VOCABULARY)
    for _ in range(2):  # the first call must leave nothing behind for the second
        assert_same(Decoded(*run(*inputs)), slow)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_decoding_equals_recomputing_with_narrow_weights(weights, rows, jit_compile):
    model = random_weights(GPT2(311, 23, num_layers=2, num_heads=2, hidden_dim=32), scale=0.2)
    model.narrow(weights)
    inputs = tensors((prompts()[:rows], *sampling(rows)))
    slow = decode_recomputing(model, inputs[0], Sampling(*inputs[1:]), 11, VOCABULARY)
    assert_same(Decoded(*compiled(model, _run, jit_compile, 11, VOCABULARY)(*inputs)), slow)


def test_a_changed_model_is_compiled_anew(gpt2):
    run = compiled(gpt2, _run, False, 3, VOCABULARY)
    gpt2.attention_blocks[0].layer.query_key_value.enable_lora(2)
    assert compiled(gpt2, _run, False, 3, VOCABULARY).func is not run.func


def test_greedy_takes_the_likeliest_token_each_time(gpt2):
    ids = prompts((7,))
    parameters = Sampling(*(ops.array([v]) for v in (9, 0.0, 0, 1.0, 0)))
    new = numpy(decode(gpt2, ops.convert_to_tensor(ids), parameters, 9, VOCABULARY).token_ids)
    text = ids
    for token in new[0]:
        assert numpy(gpt2(text))[0, -1].argmax() == token
        text = np.concatenate([text, [[token]]], axis=1)


def test_a_row_is_the_same_alone_and_in_company(gpt2):
    ids, parameters = prompts(), sampling()
    together = decode(
        gpt2, ops.convert_to_tensor(ids), Sampling(*tensors(parameters)), 11, VOCABULARY
    )
    for i in range(5):
        alone = decode(
            gpt2,
            ops.convert_to_tensor(ids[i : i + 1]),
            Sampling(*tensors(p[i : i + 1] for p in parameters)),
            11,
            VOCABULARY,
        )
        np.testing.assert_array_equal(numpy(alone.token_ids)[0], numpy(together.token_ids)[i])


def test_end_of_text_ends_a_row_and_is_counted(gpt2):
    ids, parameters = ops.convert_to_tensor(prompts()), Sampling(*tensors(sampling()))
    free = numpy(decode(gpt2, ids, parameters, 11, Vocabulary(311, -1)).token_ids)
    end = int(free[1, 4])
    ended = decode(gpt2, ids, parameters, 11, Vocabulary(311, end))
    first = free[1].tolist().index(end)
    expected = np.where(np.arange(11) <= first, free[1], -1)
    np.testing.assert_array_equal(numpy(ended.token_ids)[1], expected)
    assert numpy(ended.ended)[1] and numpy(ended.num_tokens)[1] == first + 1


def test_tokens_beyond_the_tokenizer_are_never_chosen(gpt2):
    ids, parameters = ops.convert_to_tensor(prompts()), Sampling(*tensors(sampling()))
    few = numpy(decode(gpt2, ids, parameters, 11, Vocabulary(13, -1)).token_ids)
    assert few.max() < 13


def test_log_prob_is_the_models_own(gpt2):
    ids = prompts((7,))
    parameters = Sampling(*(ops.array([v]) for v in (4, 2.0, 3, 1.0, 0)))
    decoded = decode(gpt2, ops.convert_to_tensor(ids), parameters, 4, VOCABULARY)
    text = np.concatenate([ids, numpy(decoded.token_ids)], axis=1)
    logits = numpy(gpt2(text))[0].astype("float64")
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(log_probs[6 + i, text[0, 7 + i]] for i in range(4))
    assert numpy(decoded.log_prob)[0] == pytest.approx(expected, abs=1e-4)
