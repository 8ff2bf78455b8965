"""Each layer alone: in models of every kind, in every dtype, saved and loaded."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt2 import layers
from tests import reference
from tests.conftest import random_weights

B, T, D, H = 2, 5, 14, 7

LAYERS = {
    "LayerNormalization": lambda **k: layers.LayerNormalization(**k),
    "PositionEmbedding": lambda **k: layers.PositionEmbedding(11, **k),
    "SelfAttention": lambda **k: layers.SelfAttention(H, dropout=0.1, **k),
    "CausalSelfAttention": lambda **k: layers.CausalSelfAttention(H, **k),
    "FeedForward": lambda **k: layers.FeedForward(13, dropout=0.1, **k),
    "ResidualBlock": lambda **k: layers.ResidualBlock(layers.FeedForward(13, **k), **k),
    "ResidualBlock of attention": lambda **k: layers.ResidualBlock(
        layers.CausalSelfAttention(H, **k), normalization="post", scale="rsqrt_dim", **k
    ),
}


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def test_sequential_functional_and_subclassed_models_agree(make):
    x = floats(B, T, D)
    layer = make()
    inputs = keras.Input((None, D))
    functional = keras.Model(inputs, layer(inputs))
    random_weights(functional)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def call(self, x):
            return self.inner(x)

    expected = numpy(layer(x))
    assert expected.shape == (B, T, D)
    np.testing.assert_allclose(numpy(functional(x)), expected, atol=1e-6)
    np.testing.assert_allclose(numpy(keras.Sequential([layer])(x)), expected, atol=1e-6)
    np.testing.assert_allclose(numpy(Subclassed()(x)), expected, atol=1e-6)


def test_keras_file_round_trip_is_exact(make, tmp_path):
    x = floats(B, T, D)
    inputs = keras.Input((None, D))
    model = random_weights(keras.Model(inputs, make()(inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))
    config = make().get_config()
    assert type(make()).from_config(config).get_config() == config


@pytest.mark.parametrize("jit_compile", [True, False])
def test_training_moves_every_weight(make, jit_compile):
    inputs = keras.Input((T, D))
    model = random_weights(keras.Model(inputs, make()(inputs)))
    before = [numpy(w) for w in model.trainable_weights]
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(floats(B, T, D), floats(B, T, D, seed=1), verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(numpy(weight) - old).max() > 0, weight.path


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_low_and_stores_high(make, dtype):
    x = floats(B, T, D)
    low, high = make(dtype=dtype), make()
    low(x), high(x)
    for a, b in zip(low.weights, random_weights(high).weights, strict=True):
        assert a.dtype == "float32"
        a.assign(b)
    y = low(x)
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    np.testing.assert_allclose(numpy(y), numpy(high(x)), atol=0.15, rtol=0.05)


def test_low_precision_keeps_statistics_and_softmax_in_float32():
    # The squares of values near 1000 are infinite in float16; so are the query-key products
    # below (about 113,000) unless they are scaled first (30,000).
    x = 1000 + 10 * floats(1, 4, D)
    y = layers.LayerNormalization(dtype="float16")(x.astype("float16"))
    expected = reference.layer_norm(x.astype("float16").astype("float64"), 1, 0)
    np.testing.assert_allclose(numpy(y), expected, atol=5e-3)
    attention = layers.SelfAttention(1, dtype="float16", kernel_initializer="ones")
    _, weights = attention((x / 155).astype("float16"), return_weights=True)
    assert keras.backend.standardize_dtype(weights.dtype) == "float32"
    np.testing.assert_allclose(numpy(weights).sum(-1), 1, atol=1e-6)


def test_layer_normalization_equals_reference():
    layer = layers.LayerNormalization()
    x = floats(B, T, D)
    layer(x)
    random_weights(layer)
    gamma, beta = (numpy(w) for w in layer.weights)
    np.testing.assert_allclose(numpy(layer(x)), reference.layer_norm(x, gamma, beta), atol=1e-5)
    assert layer.epsilon == 1e-5


def test_causal_attention_equals_reference():
    layer = layers.CausalSelfAttention(H)
    x = floats(B, T, D)
    layer(x)
    random_weights(layer)
    weights = [numpy(w) for w in layer.weights]
    for row, y in zip(x, numpy(layer(x)), strict=True):
        np.testing.assert_allclose(y, reference.attention(row, *weights, H), atol=1e-5)


def test_attention_weights_have_heads_and_sum_to_one():
    layer = layers.CausalSelfAttention(H)
    y, weights = layer(floats(B, T, D), return_weights=True)
    assert weights.shape == (B, H, T, T)
    np.testing.assert_allclose(numpy(weights).sum(-1), 1, atol=1e-6)
    assert not numpy(weights)[:, :, *np.triu_indices(T, 1)].any()
    np.testing.assert_array_equal(numpy(y), numpy(layer(floats(B, T, D))))


def test_causality():
    layer = layers.CausalSelfAttention(H)
    x = floats(B, T, D)
    changed = x.copy()
    changed[:, 3:] += 1
    before, after = numpy(layer(x)), numpy(layer(changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-4
    both_ways = layers.SelfAttention(H)
    assert np.abs(numpy(both_ways(x)) - numpy(both_ways(changed)))[:, :3].max() > 1e-4


def test_masked_entries_are_never_seen():
    layer = layers.SelfAttention(H)
    x = floats(B, T, D)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    y = numpy(layer(x, mask=mask))
    np.testing.assert_allclose(y[0, :3], numpy(layer(x[:1, :3]))[0], atol=1e-6)
    np.testing.assert_allclose(y[1], numpy(layer(x[1:]))[0], atol=1e-6)
    nothing = numpy(layer(x, mask=np.zeros((B, T), bool)))
    assert np.isfinite(nothing).all()


def test_mask_reaches_attention_inside_a_residual_block():
    block = layers.ResidualBlock(layers.SelfAttention(H))
    x = floats(1, T, D)
    mask = np.array([[1, 1, 0, 0, 0]], bool)
    alone = numpy(block(x[:, :2]))
    np.testing.assert_allclose(numpy(block(x, mask=mask))[:, :2], alone, atol=1e-6)
    # As Keras hands it on by itself, from a layer that masks.
    model = keras.Sequential([keras.layers.Masking(), block])
    np.testing.assert_allclose(numpy(model(x * mask[..., None]))[:, :2], alone, atol=1e-6)


def test_attention_in_steps_with_a_cache_equals_attention_at_once():
    layer = layers.CausalSelfAttention(H)
    x = floats(B, T, D)
    at_once = numpy(layer(x))
    cache = tuple(ops.zeros((B, H, T, D // H)) for _ in range(2))
    for begin, end in ((0, 2), (2, 3), (3, 5)):
        y, cache = layer(x[:, begin:end], cache=cache, position=begin)
        np.testing.assert_allclose(numpy(y), at_once[:, begin:end], atol=1e-6)
    y, (key, value) = layer(x, cache=())
    np.testing.assert_allclose(numpy(y), at_once, atol=1e-6)
    np.testing.assert_allclose(numpy(key), numpy(cache[0]), atol=1e-6)
    np.testing.assert_allclose(numpy(value), numpy(cache[1]), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone has such a kernel")
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_one_kernel_is_attention(causal, monkeypatch):
    """What a GPU is asked, here of JAX's own computation on a CPU."""
    layer = layers.SelfAttention(H, causal=causal, dtype="bfloat16")
    x = floats(B, T, D)
    mask = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], bool)
    caches = tuple(ops.zeros((B, H, T + 2, D // H), "bfloat16") for _ in range(2))
    room = np.pad(mask, ((0, 0), (0, 2)))
    calls = [{}, {"mask": mask}, {"mask": mask, "training": True}]
    calls += [{"mask": room, "cache": caches, "position": 0}]

    def values():
        results = [layer(x, **given) for given in calls]
        return [numpy(y[0] if isinstance(y, tuple) else y) * mask[..., None] for y in results]

    expected = values()
    asked = []
    monkeypatch.setattr("keras_gpt2.layers.self_attention.on_cpu", lambda: asked.append(1))
    for y, same in zip(values(), expected, strict=True):
        np.testing.assert_allclose(y, same, atol=2e-3, rtol=2e-2)
    assert len(asked) == len(calls)
    layer(x, return_weights=True)  # which the kernel does not give
    layers.SelfAttention(H, dropout=0.1, dtype="bfloat16")(x, training=True)
    assert len(asked) == len(calls)


def test_subclass_with_its_own_attend():
    class Uniform(layers.CausalSelfAttention):
        def attend(self, query, key, value, mask=None, training=None):
            return layers.dot_product_attention(0 * query, key, value, mask)

    x = floats(1, T, D)
    _, weights = Uniform(H)(x, return_weights=True)
    expected = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    np.testing.assert_allclose(numpy(weights)[0, 3], expected, atol=1e-6)


def test_subclass_with_its_own_sight():
    class Window(layers.CausalSelfAttention):
        def visible(self, query_position, key_position):
            near = query_position - key_position < 2
            return ops.logical_and(super().visible(query_position, key_position), near)

    layer = Window(H)
    _, weights = layer(floats(1, T, D), return_weights=True)
    seen = numpy(weights)[0, 0] > 0
    assert (seen == (np.eye(T) + np.eye(T, k=-1) > 0)).all()


@pytest.mark.parametrize("normalization", ["pre", "post", None])
@pytest.mark.parametrize("scale", [None, 0.5, "rsqrt_dim"])
def test_residual_block_equals_its_formula(normalization, scale):
    inner = keras.layers.Dense(D)
    block = layers.ResidualBlock(inner, normalization, scale)
    x = floats(B, T, D)
    block(x)
    random_weights(block)
    factor = {None: 1, 0.5: 0.5, "rsqrt_dim": D**-0.5}[scale]

    def norm(v):
        return reference.layer_norm(v, numpy(block.norm.gamma), numpy(block.norm.beta))

    before = norm(x) if normalization == "pre" else x
    expected = (x + numpy(inner(before))) * factor
    if normalization == "post":
        expected = norm(expected)
    np.testing.assert_allclose(numpy(block(x)), expected, atol=2e-5)


def test_dropout_acts_in_training_only():
    for layer in (
        layers.SelfAttention(H, dropout=0.5),
        layers.FeedForward(13, dropout=0.5),
        layers.ResidualBlock(keras.layers.Dense(D), dropout=0.5),
    ):
        x = floats(B, T, D)
        quiet = numpy(layer(x))
        np.testing.assert_array_equal(quiet, numpy(layer(x, training=False)))
        assert np.abs(quiet - numpy(layer(x, training=True))).max() > 1e-4


def test_position_embedding_counts_real_entries_only():
    layer = layers.PositionEmbedding(11)
    x = np.zeros((2, 4, D), "float32")
    table = numpy(layer(x))[0]
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 0]], bool)
    y = numpy(layer(x, mask=mask))
    np.testing.assert_array_equal(y[0, 2:], table[:2])
    np.testing.assert_array_equal(y[1, :3], table[:3])


def test_token_embedding_is_one_matrix_both_ways():
    layer = layers.TokenEmbedding(11, D, dtype="mixed_bfloat16")
    x = layer(np.array([[3, -1]]))
    logits = layer(x, reverse=True)
    assert [w.shape for w in layer.weights] == [(11, D)]
    assert logits.shape == (1, 2, 11)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    table = numpy(layer.embeddings)
    np.testing.assert_allclose(numpy(x)[0, 0], table[3], atol=1e-2)
    np.testing.assert_allclose(numpy(logits)[0, 0], table[3] @ table.T, atol=1e-2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: layers.SelfAttention(3)(floats(1, 2, 8)), "num_heads=3, last axis=8"),
        (lambda: layers.SelfAttention(0), "num_heads=0"),
        (lambda: layers.FeedForward(0), "intermediate_dim=0"),
        (lambda: layers.PositionEmbedding(0), "sequence_length=0"),
        (lambda: layers.PositionEmbedding(2)(floats(1, 3, 4)), "3 positions, sequence_length=2"),
        (lambda: layers.ResidualBlock(keras.layers.Dense(2), "inner"), "normalization='inner'"),
        (lambda: layers.ResidualBlock(keras.layers.Dense(2), scale="dim"), "scale='dim'"),
        (lambda: layers.TokenEmbedding(5, 2)(np.array([[5]])), "an id of 5, vocabulary_size=5"),
    ],
)
def test_errors_name_the_rule_and_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()
