"""One small export, and requests to it."""

import keras
import numpy as np
import pytest

import keras_gpt2 as kg
from tests.conftest import random_weights

WORDS = ["The king", " is dead", " function", "Ärger", "\n\n", " 漢字", "x", " definition"]


@pytest.fixture(scope="session")
def small_version(tokenizer, tmp_path_factory):
    """1 layer, 2 heads of width 5, 23 positions, 311 tokens, at most 7 new ones."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a SavedModel needs the TensorFlow backend")
    model = random_weights(kg.GPT2(311, 23, num_layers=1, num_heads=2, hidden_dim=10))
    directory = tmp_path_factory.mktemp("served") / "small"
    return kg.serving.export(model, tokenizer, directory, max_new_tokens_limit=7)


@pytest.fixture(scope="session")
def small(small_version):
    from tests.serving.session import Session

    return Session(small_version)


def generate_rows(rng, rows, max_new_tokens=7):
    """Rows for `generate`; some are empty, too long, no UTF-8, or break a rule."""
    prompts = np.empty(rows, object)
    for row in range(rows):
        text = "".join(rng.choice(WORDS, rng.integers(0, 6))).encode()
        prompts[row] = [text, text + b"\xff\xc3", text * 20][rng.choice(3, p=[0.8, 0.1, 0.1])]
    columns = {
        "prompt": prompts,
        "max_new_tokens": rng.integers(0, max_new_tokens + 1, rows).astype("int32"),
        "temperature": rng.choice([0, 0.5, 1, 1.5], rows).astype("float32"),
        "top_k": rng.choice([0, 1, 5, 400], rows).astype("int32"),
        "top_p": rng.choice([0.3, 0.9, 1], rows).astype("float32"),
        "seed": rng.integers(-(2**31), 2**31, rows).astype("int32"),
    }
    bad = dict(max_new_tokens=2**30, temperature=np.nan, top_k=-1, top_p=0)
    for name, value in bad.items():
        columns[name][rng.random(rows) < 0.05] = value
    return columns


def request(rng, rows):
    """A signature and rows for it; half of the requests are for `generate`."""
    prompts = generate_rows(rng, rows)
    token_ids = rng.integers(-1, 311, (rows, 5)).astype("int32")
    kinds = [
        ("serving_default", {"prompt": prompts["prompt"]}),
        ("score", {"text": prompts["prompt"]}),
        ("tokenize", {"text": prompts["prompt"]}),
        ("detokenize", {"token_ids": token_ids}),
        ("logits", {"token_ids": token_ids}),
        *[("generate", prompts)] * 5,
    ]
    return kinds[rng.integers(len(kinds))]


def assert_same_answer(answer, expected):
    """Equal, numbers to rounding; columns that only pad the widest row may be missing."""
    assert set(answer) == set(expected)
    for name, values in expected.items():
        found = answer[name]
        if found.dtype == np.float32:
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4, err_msg=name)
            continue
        if name == "token_ids":
            width = max(found.shape[1], values.shape[1])
            found, values = (
                np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1)
                for ids in (found, values)
            )
        assert found.tolist() == values.tolist(), name
