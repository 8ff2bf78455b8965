"""examples/attention_maps.py: the heads do what the picture is said to show."""

import numpy as np

from examples import attention_maps


def test_heads(tmp_path):
    results = attention_maps.main(["--quick", "--output", str(tmp_path)])
    assert (tmp_path / "attention_maps.png").stat().st_size > 0
    assert results["accuracy"] > 0.9
    assert results["previous"][0].max() > 0.35  # 0.24 if spread evenly
    assert results["induction"][1].max() > 0.7
    assert results["induction"][0].max() < 0.3  # one layer alone cannot


def test_repetitions():
    ids, targets, period = attention_maps.repetitions(5, seed=3)
    for row, target, p in zip(ids, targets, period, strict=True):
        assert len(set(row[:p])) == p
        np.testing.assert_array_equal(row[p:], row[:-p])
        np.testing.assert_array_equal(target[: p - 1], -1)
        np.testing.assert_array_equal(target[p - 1 : -1], row[p:])


def test_scores():
    """A head that looks at one place only scores 1 for it and 0 for others."""
    ids, _, period = attention_maps.repetitions(5, seed=3)
    weights = np.zeros((5, 2, 32, 32))
    for row, p in enumerate(period):
        for t in range(1, 32):
            weights[row, 0, t, t - 1] = 1
            weights[row, 1, t, max(t - p + 1, 0)] = 1
    scores = attention_maps.head_scores([weights], ids, period)
    np.testing.assert_allclose(scores["previous"][0, 0], 1)
    np.testing.assert_allclose(scores["induction"][0], [0, 1])
