"""examples/lstm_baseline.py: both models learn, and which learns faster."""

import numpy as np
import pytest

from examples import lstm_baseline


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    results = lstm_baseline.main(["--quick", "--output", str(pictures)])
    assert (pictures / "lstm_baseline.png").stat().st_size > 0
    return results


def test_no_more_parameters(results):
    parameters = results["parameters"]
    assert parameters["LSTM"] == 1024 * 256 + 4 * 512 * (256 + 512 + 1) + 513 * 1024
    assert 0.75 * parameters["LSTM"] < parameters["GPT-2"] <= parameters["LSTM"]


def test_both_learn(results):
    """Both get below the tokens' frequencies, GPT-2 in fewer steps."""
    lstm, gpt2 = (np.array(results["same steps"][name]) for name in ("LSTM", "GPT-2"))
    assert lstm[:, 0].tolist() == gpt2[:, 0].tolist() == [14, 28]
    for curve in (lstm, gpt2):
        assert np.all(np.diff(curve[:, 1]) > 0)
        assert curve[-1, 2] < min(curve[0, 2], results["unigram_perplexity"])
    assert gpt2[-1, 2] < lstm[-1, 2]


def test_speed():
    """The first step compiles and is not counted."""
    speed = lstm_baseline.tokens_per_second([(3, 0.5, 300.0), (11, 2.0, 200.0)])
    assert speed == 10 * 32 * 64 / 2.0
