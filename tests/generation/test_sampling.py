"""The distribution of chosen tokens, row by row."""

import numpy as np
import pytest
from keras import ops

from keras_gpt2.generation.sampling import _threefry, _uniform, random_bits, sample

N = 20_000


def numpy(x):
    return ops.convert_to_numpy(x)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, rows=N):
    """Frequencies of the tokens in `rows` draws."""
    bits = random_bits(ops.arange(rows, dtype="int32"), ops.zeros((rows,), "int32"))
    ids = sample(
        ops.convert_to_tensor(np.tile(np.float32(logits), (rows, 1))),
        ops.full((rows,), temperature, "float32"),
        ops.full((rows,), top_k, "int32"),
        ops.full((rows,), top_p, "float32"),
        bits,
    )
    return np.bincount(numpy(ids), minlength=len(logits)) / rows


def test_threefry_equals_the_published_vectors():
    # Random123, kat_vectors: threefry2x32 of 20 rounds. Ours has a key of one word.
    x, y = _threefry(ops.array([0]), ops.array([0]))
    assert (int(x[0]), int(y[0])) == (0x6B200159, 0x99BA4EFE)


def test_bits_are_uniform_and_depend_on_seed_and_step_alone():
    seeds = ops.arange(-50, 50, dtype="int32")[:, None]
    bits = numpy(random_bits(seeds, ops.arange(200, dtype="int32")[None]))
    counts = np.histogram(bits, 20, (0, 2**32))[0]
    assert np.abs(counts - 1000).max() < 160  # 5 standard deviations
    assert len(np.unique(bits)) > 19_990
    again = numpy(random_bits(ops.array([7]), ops.array([3])))
    assert again[0] == bits[57, 3]


def test_a_tokens_number_is_uniform_and_tells_nothing_of_others():
    bits = random_bits(ops.arange(500, dtype="int32"), ops.zeros((500,), "int32"))
    numbers = numpy(_uniform(bits, 211))
    assert numbers.min() > 0 and numbers.max() < 1
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert np.abs(counts - 5275).max() < 360  # 5 standard deviations
    for other in (numbers[:, 1:], numbers[1:], np.roll(numbers, 3)):  # of token, of seed
        here = numbers[: other.shape[0], : other.shape[1]]
        assert abs(np.corrcoef(here.ravel(), other.ravel())[0, 1]) < 0.016


def test_rounding_chooses_no_other_token():
    rng = np.random.default_rng(0)
    # As in a text: few likely tokens, and thousands whose shares add up.
    logits = -1.1 * np.log(1 + rng.permuted(np.tile(np.arange(20011), (300, 1)), axis=1))
    logits = logits.astype("float32")
    one = np.ones(300, "float32")
    bits = random_bits(ops.arange(300, dtype="int32"), ops.zeros((300,), "int32"))
    chosen = [
        numpy(sample(ops.array(some), ops.array(one), ops.array(0 * one, "int32"), one, bits))
        for some in (logits, logits + rng.normal(0, 1e-5, logits.shape).astype("float32"))
    ]
    np.testing.assert_array_equal(*chosen)


LOGITS = np.array([0.0, 2.0, 1.0, -1.0, 1.5, -30.0, 0.5])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature(temperature):
    np.testing.assert_allclose(draw(LOGITS, temperature), softmax(LOGITS / temperature), atol=0.015)


def test_top_k_keeps_exactly_k():
    expected = np.where(np.isin(np.arange(7), (1, 4, 2)), softmax(LOGITS), 0)
    np.testing.assert_allclose(draw(LOGITS, top_k=3), expected / expected.sum(), atol=0.015)
    assert (draw(np.zeros(7), top_k=3) > 0).sum() == 3, "ties do not widen the set"
    assert draw(LOGITS, top_k=1)[1] == 1
    np.testing.assert_array_equal(draw(LOGITS, top_k=100), draw(LOGITS, top_k=7))


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    p = np.sort(softmax(LOGITS))[::-1]
    for share, kept in ((p[0] - 0.01, 1), (p[0] + 0.01, 2), (p[:3].sum() + 0.001, 4)):
        expected = np.where(np.argsort(np.argsort(-LOGITS)) < kept, softmax(LOGITS), 0)
        np.testing.assert_allclose(draw(LOGITS, top_p=share), expected / expected.sum(), atol=0.015)


def test_top_p_counts_what_top_k_left():
    # Of the two likeliest the first has 62%: alone it reaches 0.6, in the whole it would not.
    assert draw(LOGITS, top_k=2, top_p=0.6)[1] == 1


def test_filters_off_leave_every_token():
    flat = draw(np.zeros(7), rows=2000)
    assert (flat > 0.1).all()


def test_each_row_has_its_own_parameters():
    rows = 6
    logits = np.random.default_rng(0).normal(size=(rows, 101)).astype("float32")
    parameters = (
        np.float32([0, 1, 2, 0.5, 1, 1e-30]),
        np.int32([0, 0, 5, 0, 1, 0]),
        np.float32([1, 1, 1, 0.5, 1, 1]),
        np.uint32([3, 2**32 - 1, 0, 5, 7, 11]),
    )
    together = numpy(sample(*map(ops.convert_to_tensor, (logits, *parameters))))
    for i in range(rows):
        one = [ops.convert_to_tensor(a[i : i + 1]) for a in (logits, *parameters)]
        assert numpy(sample(*one))[0] == together[i]
    for i in (0, 4, 5):
        assert together[i] == logits[i].argmax()
