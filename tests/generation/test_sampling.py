"""The distribution of chosen tokens, row by row."""

import keras
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


def distribution(logits, temperature, top_k, top_p):
    """The probabilities of all tokens, by sorting them; the oracle."""
    order = np.argsort(-logits, kind="stable")
    p = softmax(np.float64(logits[order]) / temperature)
    p[top_k or len(p) :] = 0
    before = np.cumsum(p) - p
    if top_p < 1:
        p[before >= top_p * p.sum()] = 0
    return (p / p.sum())[np.argsort(order)]


def inputs(logits, temperature, top_k, top_p):
    """`sample`'s, one row for each temperature."""
    rows = len(temperature)
    return (
        ops.convert_to_tensor(np.tile(np.float32(logits), (rows, 1))),
        ops.convert_to_tensor(np.float32(temperature)),
        ops.convert_to_tensor(np.int32(top_k)),
        ops.convert_to_tensor(np.float32(top_p)),
        random_bits(ops.arange(rows, dtype="int32"), ops.zeros((rows,), "int32")),
    )


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, rows=N):
    """Frequencies of the tokens in `rows` draws."""
    columns = (np.full(rows, value) for value in (temperature, top_k, top_p))
    return np.bincount(numpy(sample(*inputs(logits, *columns))), minlength=len(logits)) / rows


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


SETTINGS = [
    (temperature, top_k, top_p)
    for temperature in (0.3, 1.0, 7.0)
    for top_k in (0, 1, 2, 5, 11, 40, 100, 101, 113, 2**31 - 1)
    for top_p in (1e-38, 0.1, 0.5, 0.97, 1.0)
]


def assert_drawn_from(p, ids):
    counts = np.bincount(ids, minlength=len(p))
    assert not counts[p == 0].any()
    # How many of the draws are among the likeliest token, the likeliest two, ...
    likeliest = np.argsort(-p)
    error = np.cumsum(counts[likeliest] - len(ids) * p[likeliest])
    assert np.abs(error).max() < 2.5 * len(ids) ** 0.5  # 5 standard deviations


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_every_row_is_drawn_from_the_oracles_distribution(ties):
    logits = np.random.default_rng(0).normal(0, 2, 101).astype("float32")
    logits = np.round(logits) if ties else logits
    logits[[3, 17]] = -np.inf
    ids = sample(*inputs(logits, *np.repeat(SETTINGS, 300, axis=0).T))
    for setting, some in zip(SETTINGS, numpy(ids).reshape(-1, 300), strict=True):
        assert_drawn_from(distribution(logits, *setting), some)


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (0, 0.6), (300, 1.0), (40, 0.5), (3000, 0.9)])
def test_a_long_vocabulary(top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 2, 20011).astype("float32")
    ids = numpy(sample(*inputs(logits, *np.repeat([[1.0, top_k, top_p]], 400, axis=0).T)))
    assert_drawn_from(distribution(logits, 1.0, top_k, top_p), ids)


def compiled(jit_compile, size):
    """`sample`, compiled for any number of rows and `size` tokens."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(sample) if jit_compile else sample
    import tensorflow as tf

    columns = ("float32", "int32", "float32", "uint32")
    specs = [tf.TensorSpec([None, size]), *(tf.TensorSpec([None], dtype) for dtype in columns)]
    return tf.function(sample, specs, jit_compile=jit_compile)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_and_alone_a_row_gets_the_same_token(jit_compile):
    arguments = inputs(np.random.default_rng(0).normal(0, 2, 1009), *np.transpose(SETTINGS))
    run = compiled(jit_compile, 1009)
    together = numpy(sample(*arguments))
    np.testing.assert_array_equal(numpy(run(*arguments)), together)
    for i, token in enumerate(together):
        assert numpy(run(*(argument[i : i + 1] for argument in arguments)))[0] == token


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_row_without_numbers_ends_and_harms_no_other(jit_compile):
    good = np.random.default_rng(0).normal(size=23).astype("float32")
    rows = [np.where(np.arange(23) % 5 == 2, bad, good) for bad in (np.nan, np.inf, -np.inf)]
    rows += [np.full(23, np.nan), np.full(23, -np.inf), good]
    logits = ops.convert_to_tensor(np.stack(rows).astype("float32"))
    run = compiled(jit_compile, 23)
    for top_k, top_p in ((0, 1), (0, 0.5), (3, 1), (3, 0.5)):
        _, *columns = inputs(good, np.ones(6), np.full(6, top_k), np.full(6, top_p))
        ids = numpy(run(logits, *columns))
        assert ((ids >= 0) & (ids < 23)).all()
        assert ids[5] == numpy(sample(logits[5:], *(column[5:] for column in columns)))[0]


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
