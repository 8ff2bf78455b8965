"""examples/subclassing.py: one's own layers learn, decode with a cache, and are served."""

import math

import numpy as np
import pytest

from examples import subclassing


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return subclassing.main(["--quick", "--output", str(tmp_path_factory.mktemp("output"))])


def test_learns(results):
    assert results["perplexity"] < 0.8 * results["unigram_perplexity"]


def test_same_text_without_cache_and_served(results):
    assert results["cache_is_exact"]
    assert results["served_is_same"]


def test_classes_survive_saving(results):
    assert results["reloaded_classes"] == (
        subclassing.LinearBiasAttention,
        subclassing.RootMeanSquareBlock,
    )


def test_own_mathematics_is_used():
    """With zero scores, weights fall by exp(slope) from place to place, slopes 2^-4 and 2^-8."""
    attention = subclassing.LinearBiasAttention(2)
    attention.build((None, 3, 4))
    zeros = np.zeros((1, 2, 3, 2), "float32")
    _, weights = attention.attend(zeros, zeros, zeros, mask=np.tril(np.ones((3, 3), bool)))
    for head, slope in enumerate((2**-4, 2**-8)):
        last = np.array(weights)[0, head, 2]
        np.testing.assert_allclose(last[1:] / last[:-1], math.exp(slope), rtol=1e-5)
    norm = subclassing.RootMeanSquare(epsilon=0.0)
    np.testing.assert_allclose(
        norm(np.array([[3.0, 4.0]], "float32")), [[3 / 12.5**0.5, 4 / 12.5**0.5]]
    )
