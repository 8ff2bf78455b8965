"""Text in, text out."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_gpt2 as kg
from keras_gpt2.generation import Sampling, Vocabulary, decode_recomputing
from keras_gpt2.generation import compiled as compiled_module

PROMPTS = ["The king", "", "A function definition", "Ärger 漢"]


def by_hand(model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed):
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
    parameters = Sampling(
        ops.array([max_new_tokens], "int32"),
        ops.array([temperature], "float32"),
        ops.array([top_k], "int32"),
        ops.array([top_p], "float32"),
        ops.array([seed], "int32"),
    )
    vocabulary = Vocabulary(tokenizer.vocabulary_size, tokenizer.end_of_text_id)
    decoded = decode_recomputing(
        model, ops.array([ids], "int32"), parameters, max_new_tokens, vocabulary
    )
    new = ops.convert_to_numpy(decoded.token_ids)[0]
    return tokenizer.decode([int(i) for i in new if i >= 0 and i != vocabulary.end_id])


@pytest.mark.parametrize(
    "parameters",
    [
        dict(temperature=0.0, top_k=0, top_p=1.0, seed=0),
        dict(temperature=1.0, top_k=0, top_p=1.0, seed=3),
        dict(temperature=0.9, top_k=40, top_p=0.9, seed=-7),
    ],
)
def test_equals_the_oracle_for_prompts_of_different_length(gpt2, tokenizer, parameters):
    graph = dict(parameters, jit_compile=False)
    texts = kg.generate(gpt2, tokenizer, PROMPTS, max_new_tokens=7, **graph)
    assert texts == [by_hand(gpt2, tokenizer, p, 7, **parameters) for p in PROMPTS]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        pieces = list(kg.stream(gpt2, tokenizer, prompt, max_new_tokens=7, **graph))
        assert "".join(pieces) == text


def test_xla_writes_the_same_text(gpt2, tokenizer):
    parameters = dict(max_new_tokens=7, temperature=0.9, top_k=40, top_p=0.9, seed=2)
    one, other = (
        kg.generate(gpt2, tokenizer, PROMPTS, **parameters, jit_compile=jit)
        for jit in (True, False)
    )
    assert one == other


def test_parameters_per_row_and_their_broadcast(gpt2, tokenizer):
    seeds = [5, 6, 7]
    texts = kg.generate(gpt2, tokenizer, ["The"] * 3, max_new_tokens=[3, 9, 6], seed=seeds)
    for text, n, seed in zip(texts, (3, 9, 6), seeds, strict=True):
        assert [text] == kg.generate(gpt2, tokenizer, "The", max_new_tokens=n, seed=seed)
    assert len(set(texts)) == 3
    assert kg.generate(gpt2, tokenizer, ["The"], max_new_tokens=0) == [""]
    assert kg.generate(gpt2, tokenizer, []) == []


def test_stop_strings(gpt2, tokenizer):
    (text,) = kg.generate(gpt2, tokenizer, "The king", max_new_tokens=12, seed=2)
    stop = [text[5:8], "never to be found"]
    cut = text[: text.index(text[5:8])]
    assert kg.generate(gpt2, tokenizer, "The king", 12, seed=2, stop=stop) == [cut]
    assert "".join(kg.stream(gpt2, tokenizer, "The king", 12, seed=2, stop=stop)) == cut


def test_compiles_once_for_a_bucket(gpt2, tokenizer):
    traces = 0
    inner = gpt2.call_with_cache

    def counted(*args):
        nonlocal traces
        traces += 1
        return inner(*args)

    object.__setattr__(gpt2, "call_with_cache", counted)
    kg.generate(gpt2, tokenizer, ["The king", "A"], max_new_tokens=9)
    first = traces
    kg.generate(gpt2, tokenizer, ["A function", "long live"], 12, temperature=0.3, top_k=5, seed=9)
    assert first > 0 and traces == first
    list(kg.stream(gpt2, tokenizer, "The king", max_new_tokens=9))
    list(kg.stream(gpt2, tokenizer, "A function", 12, temperature=0.3, top_k=5, seed=9))
    assert traces == first + 2, "one for the prompt, one for all later tokens"


def test_a_long_prompt_keeps_its_end(gpt2, tokenizer):
    long = "The king is dead, long live the king! " * 5
    ids = tokenizer.encode(long)
    with pytest.warns(UserWarning, match=f"{len(ids)} tokens, and 16 fit"):
        (text,) = kg.generate(gpt2, tokenizer, long, max_new_tokens=7, temperature=0)
    end = tokenizer.decode(ids[-16:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer.encode(end) == ids[-16:]
        assert kg.generate(gpt2, tokenizer, end, max_new_tokens=7, temperature=0) == [text]


def test_compiled_functions_do_not_keep_a_model_alive(tokenizer):
    import gc
    import weakref

    model = kg.GPT2(311, 23, num_layers=1, num_heads=1, hidden_dim=4)
    kg.generate(model, tokenizer, "The", max_new_tokens=2, jit_compile=False)
    assert model in compiled_module._compiled
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(temperature=-1.0), "temperature must be a number >= 0. Received: temperature=-1.0"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(top_k=-1), "top_k=-1"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\]. Received: top_p=0.0"),
        (dict(top_p=[0.5, 2.0]), "top_p="),
        (dict(max_new_tokens=23), "from 0 to 22. Received: max_new_tokens=23"),
        (dict(max_new_tokens=2.5), "max_new_tokens=2.5"),
        (dict(seed=2**40), "seed must be an integer of 32 bits"),
        (dict(seed=[1, 2, 3]), "each of the 2 prompts. Received: 3 values"),
        (dict(stop=["x", ""]), "stop"),
    ],
)
def test_bad_parameters(gpt2, tokenizer, arguments, words):
    with pytest.raises(ValueError, match=words):
        kg.generate(gpt2, tokenizer, ["a", "b"], **{"max_new_tokens": 2, **arguments})


def test_bad_tokenizer(tokenizer):
    small = kg.GPT2(310, 23, num_layers=1, num_heads=1, hidden_dim=4)
    with pytest.raises(ValueError, match="a tokenizer of 311, model.vocabulary_size=310"):
        kg.generate(small, tokenizer, "The")


def test_low_precision_decodes(gpt2, tokenizer):
    low = kg.GPT2.from_config({**gpt2.get_config(), "dtype": "mixed_bfloat16"})
    low.set_weights(gpt2.get_weights())
    (text,) = kg.generate(low, tokenizer, "The king", max_new_tokens=5, temperature=0)
    logits = ops.convert_to_numpy(low(np.array([tokenizer.encode("The king")])))
    assert text.startswith(tokenizer.decode([int(logits[0, -1].argmax())]))


def test_token_ids_instead_of_texts(gpt2, tokenizer):
    prompt = tokenizer.encode("The king")
    arguments = dict(max_new_tokens=9, temperature=0.8, seed=3)
    (text,) = kg.generate(gpt2, tokenizer, "The king", **arguments)
    end_id = tokenizer.end_of_text_id
    for jit_compile in (True, False):
        ids = kg.generation.generate_ids(
            gpt2, [prompt], end_id=end_id, jit_compile=jit_compile, **arguments
        )
        assert ids.shape == (1, 9)
        assert tokenizer.decode([i for i in ids[0] if i >= 0 and i != end_id]) == text
    with pytest.raises(ValueError, match="Received: 20 [+] 9, sequence_length=23"):
        kg.generation.generate_ids(gpt2, np.zeros((1, 20)), 9)
