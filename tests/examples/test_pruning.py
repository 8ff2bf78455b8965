"""examples/pruning.py: importance is known beforehand, and small weights matter little."""

import numpy as np
import pytest

import keras_gpt2 as kg
from examples import pruning


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    results = pruning.main(["--quick", "--output", str(pictures)])
    assert (pictures / "pruning.png").stat().st_size > 0
    return results


def test_order_of_heads(results):
    """With half of the heads gone, and on the way: importance was measured on another text."""
    (shares, least), (_, most), (_, random) = results["heads"].values()
    middle = (shares > 0) & (shares < 1)
    assert shares[0] == 0 and shares[-1] == 1
    for found in (least, most, random):
        np.testing.assert_allclose(found[[0, -1]], least[[0, -1]], rtol=1e-4)
    assert np.all(least[middle] <= most[middle])
    assert least[middle].mean() < random[middle].mean() < most[middle].mean()


def test_share_of_weights(results):
    for shares, found in results["weights"].values():
        perplexity = dict(zip(shares.round(1), found / found[0], strict=True))
        assert perplexity[0.3] < 1.03
        assert perplexity[0.9] > 1.3


@pytest.fixture
def small():
    model = kg.GPT2(11, pruning.LENGTH, num_layers=3, num_heads=4, hidden_dim=64)
    model.compile(
        loss="sparse_categorical_crossentropy", weighted_metrics=[kg.training.Perplexity()]
    )
    return model


def test_zeroed_head_says_nothing(small):
    """A head without its rows is a head whose values are zero; afterwards all is as before."""
    seen = []
    layer = small.attention_blocks[1].layer
    data = kg.data.WindowDataset(np.arange(200) % 11, 7, 5)
    before = small.get_weights()
    evaluate = small.evaluate

    def spy(*args, **kwargs):
        values = np.random.default_rng(0).normal(size=(2, 4, 7, 16)).astype("float32")
        zeroed = values.copy()
        zeroed[:, 2] = 0
        seen.append((np.array(layer.merge(values)), np.array(layer.merge(zeroed))))
        return evaluate(*args, **kwargs)

    small.evaluate = spy
    pruning.without_heads(small, [(0, 1), (1, 2)], data)
    (first, first_zeroed), (second, second_zeroed) = seen
    assert np.abs(first - first_zeroed).max() > 1e-3  # the other layer's head is out
    np.testing.assert_allclose(second, second_zeroed, atol=1e-6)
    for old, new in zip(before, small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
