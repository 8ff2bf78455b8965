"""examples/text_generation.py: what is drawn is what the rules leave of the distribution."""

import numpy as np
import pytest

from examples import text_generation


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    results = text_generation.main(["--quick", "--output", str(pictures)])
    assert (pictures / "next_token.png").stat().st_size > 0
    return results


@pytest.mark.parametrize("name", text_generation.RULES)
def test_draws_follow_the_distribution(results, name):
    expected, found = results["distributions"][name], results["frequencies"][name]
    assert np.all(found[expected == 0] == 0)  # nothing that a rule has taken out
    # 1000 draws: three standard deviations of a frequency, and a little for rare tokens.
    deviation = np.sqrt(expected * (1 - expected) / text_generation.DRAWS)
    assert np.all(np.abs(found - expected) < 4 * deviation + 0.005)


def test_how_many_are_left(results):
    left = {name: np.count_nonzero(p) for name, p in results["distributions"].items()}
    assert left["greedy"] == 1 and left["top-k 5"] == 5
    assert left["temperature 0.5"] == 1024 > left["top-p 0.7"] > 1
    top = {name: p.max() for name, p in results["distributions"].items()}
    assert top["temperature 0.5"] > top["temperature 1"] > top["temperature 1.5"]


def test_beam_search_finds_a_likelier_text(results):
    log_probs = results["log_probs"]
    assert log_probs["beam search, 4"] >= log_probs["greedy"] > log_probs["temperature 1"]


def test_distribution_by_hand():
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    shares = text_generation.distribution(logits, top_p=0.6)
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3, 0, 0])
    shares = text_generation.distribution(logits, temperature=0.5, top_k=2)
    np.testing.assert_allclose(shares, [0.8, 0.2, 0, 0])
