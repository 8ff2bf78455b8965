"""examples/worked_attention.py: numbers that can be checked on paper."""

import numpy as np
import pytest

from examples import worked_attention


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    results = worked_attention.main(["--quick", "--output", str(pictures)])
    assert (pictures / "gradients_by_depth.png").stat().st_size > 0
    return results


@pytest.mark.parametrize(
    "convention, scores, first_weights, sums",
    [
        ("x W", [[2, 0], [1, 1]], [0.8808, 0.1192], [[0.8808, 0.1192, 0.8808], [0.5, 0.5, 0.5]]),
        ("W x", [[2, 1], [1, 1]], [0.7311, 0.2689], [[0.7311, 0.2689, 1], [0.5, 0.5, 1]]),
    ],
)
def test_attention(results, convention, scores, first_weights, sums):
    found = results["attention"][convention]
    assert found["scores"].tolist() == scores
    np.testing.assert_allclose(found["weights"], [first_weights, [0.5, 0.5]], atol=5e-5)
    np.testing.assert_allclose(found["sums"], sums, atol=5e-5)


def test_gradients(results):
    norms = results["norms"]
    assert max(norms["article"][2]) < 1e-3 and max(norms["article"][24]) < 1e-30
    for form in ("post", "pre"):
        assert 0.1 < min(norms[form][24]) < max(norms[form][24]) < 10
    # Only GPT-2's form gives the last block less where there are more of them.
    assert norms["pre"][24][-1] < 0.7 * norms["pre"][2][-1]
    assert norms["post"][24][-1] > norms["post"][2][-1]
