"""The assembled model against numpy, and the laws it must keep."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_gpt2 import GPT2, PRESETS, layers
from tests import reference
from tests.conftest import random_weights


def numpy(x):
    return ops.convert_to_numpy(x)


def ids(*shape, vocabulary_size=311, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary_size, shape).astype("int32")


def test_all_logits_equal_the_numpy_reference(gpt2):
    token_ids = ids(3, 23)
    logits = numpy(gpt2(token_ids))
    assert logits.dtype == "float32" and logits.shape == (3, 23, 311)
    for row, row_logits in zip(token_ids, logits, strict=True):
        expected = reference.logits(gpt2, row)
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(row_logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_predict_compiled_equals_eager(gpt2, jit_compile):
    token_ids = ids(2, 7)
    gpt2.compile(jit_compile=jit_compile)
    np.testing.assert_allclose(
        gpt2.predict(token_ids, verbose=0), numpy(gpt2(token_ids)), atol=2e-5
    )


def test_causality(gpt2):
    token_ids = ids(2, 11)
    changed = token_ids.copy()
    changed[:, 6] += 1
    before, after = numpy(gpt2(token_ids)), numpy(gpt2(changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after).max(-1)[:, 6:] > 1e-4).all()


def test_rows_do_not_mix(gpt2):
    token_ids = ids(5, 7)
    together = numpy(gpt2(token_ids))
    for i in range(5):
        np.testing.assert_allclose(numpy(gpt2(token_ids[i : i + 1]))[0], together[i], atol=1e-5)


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing(gpt2, left):
    token_ids = ids(2, 7)
    padding = np.full((2, 4), -1, "int32")
    padded = np.concatenate([padding, token_ids] if left else [token_ids, padding], axis=1)
    real = slice(4, None) if left else slice(0, 7)
    np.testing.assert_allclose(numpy(gpt2(padded))[:, real], numpy(gpt2(token_ids)), atol=1e-5)


def test_padding_has_no_share_in_the_loss(gpt2):
    gpt2.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = ids(1, 7), ids(1, 7, seed=1)
    alone = gpt2.evaluate(inputs, targets, verbose=0)
    padding = np.full((1, 4), -1, "int32")
    padded = gpt2.evaluate(
        np.concatenate([padding, inputs], 1), np.concatenate([0 * padding, targets], 1), verbose=0
    )
    assert padded == pytest.approx(alone, rel=1e-5)


def test_cached_equals_whole(gpt2):
    token_ids = ids(2, 11)
    token_ids[0, :3] = -1
    whole = numpy(gpt2(token_ids))
    mask = np.concatenate([token_ids >= 0, np.ones((2, 2), bool)], axis=1)
    logits, cache = gpt2.call_with_cache(token_ids[:, :5])
    np.testing.assert_allclose(numpy(logits), whole[:, 4], atol=1e-5)
    cache = gpt2.extend_cache(cache, 8)
    for begin, end in ((5, 6), (6, 7), (7, 11)):
        logits, cache = gpt2.call_with_cache(token_ids[:, begin:end], cache, begin, mask)
        np.testing.assert_allclose(numpy(logits), whole[:, end - 1], atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_parameter_counts(preset, count):
    assert _count(**PRESETS[preset]) == count


def _count(vocabulary_size, sequence_length, num_layers, num_heads, hidden_dim):
    """Parameters of the size, from models of one and of two layers."""
    sizes = dict(num_heads=num_heads, hidden_dim=hidden_dim)
    one, two = (
        GPT2(vocabulary_size=1, sequence_length=1, num_layers=n, **sizes).count_params()
        for n in (1, 2)
    )
    rows = vocabulary_size - 1 + sequence_length - 1
    return one + (two - one) * (num_layers - 1) + rows * hidden_dim


def test_a_built_preset_has_the_published_count():
    assert GPT2.from_preset("gpt2", load_weights=False).count_params() == 124_439_808


def test_initialisation_is_gpt2s():
    model = GPT2(997, 128, num_layers=8, num_heads=2, hidden_dim=64, dropout=0.0)
    stddev = {w.path: numpy(w).std() for w in model.weights}
    assert stddev["token_embedding/embeddings"] == pytest.approx(0.02, rel=0.03)
    assert stddev["position_embedding/embeddings"] == pytest.approx(0.01, rel=0.03)
    for i in range(8):
        for path, expected in {
            f"attention_{i}/attention/query_key_value/kernel": 0.02,
            f"feed_forward_{i}/feed_forward/expand/kernel": 0.02,
            f"attention_{i}/attention/output_projection/kernel": 0.02 / 4,
            f"feed_forward_{i}/feed_forward/project/kernel": 0.02 / 4,
        }.items():
            assert stddev[path] == pytest.approx(expected, rel=0.08), path
    kernels = [numpy(w) for w in model.weights if w.path.endswith("query_key_value/kernel")]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01, "layers must not start equal"
    # At the start every token is about as likely as any other.
    token_ids = ids(4, 33, vocabulary_size=997)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loss = model.evaluate(token_ids[:, :-1], token_ids[:, 1:], verbose=0)
    assert loss == pytest.approx(np.log(997), rel=0.02)


def test_layer_names_are_addresses(gpt2):
    assert [layer.name for layer in gpt2.layers if layer.weights] == [
        "token_embedding",
        "position_embedding",
        "attention_0",
        "feed_forward_0",
        "attention_1",
        "feed_forward_1",
        "final_norm",
    ]
    assert sorted(w.path for w in gpt2.weights if w.path.startswith("attention_0")) == [
        "attention_0/attention/output_projection/bias",
        "attention_0/attention/output_projection/kernel",
        "attention_0/attention/query_key_value/bias",
        "attention_0/attention/query_key_value/kernel",
        "attention_0/norm/beta",
        "attention_0/norm/gamma",
    ]
    paths = [w.path for w in gpt2.weights]
    assert sum("token_embedding" in path for path in paths) == 1, "the head is tied"
    assert len(set(paths)) == len(paths)


def test_untied_head_is_a_second_matrix():
    tied, untied = (
        GPT2(101, 7, num_layers=1, num_heads=2, hidden_dim=6, tie_weights=t) for t in (True, False)
    )
    assert untied.count_params() - tied.count_params() == 101 * 6


def test_keras_file_round_trip_is_exact(gpt2, tmp_path):
    token_ids = ids(2, 7)
    gpt2.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is GPT2
    assert loaded.get_config() == gpt2.get_config()
    np.testing.assert_array_equal(numpy(loaded(token_ids)), numpy(gpt2(token_ids)))


@keras.saving.register_keras_serializable(package="tests")
class Alibi(layers.CausalSelfAttention):
    """Attention with linear biases: the nearer a key, the more it counts."""

    def attend(self, query, key, value, mask=None, training=None):
        slope = ops.reshape(2.0 ** -ops.arange(1.0, self.num_heads + 1), (-1, 1, 1))
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) * query.shape[-1] ** -0.5
        # A softmax does not mind a constant per query, so the key's position is enough.
        scores = scores + slope * ops.arange(ops.shape(key)[2], dtype="float32")
        weights = ops.softmax(ops.where(mask, scores, -1e30))
        return ops.matmul(weights, value), weights


@keras.saving.register_keras_serializable(package="tests")
class PostNormBlock(layers.ResidualBlock):
    def __init__(self, inner, normalization="post", **kwargs):
        super().__init__(inner, normalization, **kwargs)


def test_custom_classes_train_save_and_decode(tmp_path):
    model = GPT2(
        31, 13, num_layers=2, num_heads=2, hidden_dim=6,
        attention_class=Alibi, block_class=PostNormBlock,
    )  # fmt: skip
    plain = GPT2(31, 13, num_layers=2, num_heads=2, hidden_dim=6)
    plain.set_weights(random_weights(model).get_weights())
    token_ids = ids(2, 9, vocabulary_size=31)
    whole = numpy(model(token_ids))
    assert np.abs(whole - numpy(plain(token_ids))).max() > 1e-2
    _, cache = model.call_with_cache(token_ids[:, :5])
    cache = model.extend_cache(cache, 4)
    logits, _ = model.call_with_cache(token_ids[:, 5:], cache, 5, np.ones((2, 9), bool))
    np.testing.assert_allclose(numpy(logits), whole[:, -1], atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(token_ids)), whole)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(gpt2, dtype, tmp_path):
    low = GPT2.from_config({**gpt2.get_config(), "dtype": dtype})
    low.set_weights(gpt2.get_weights())
    token_ids = ids(2, 7)
    logits = low(token_ids)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert {w.dtype for w in low.weights} == {"float32"}
    expected = numpy(gpt2(token_ids))
    assert np.abs(numpy(logits) - expected).max() < 0.1 * np.abs(expected).max()
    low.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].dtype_policy.name == dtype


@pytest.mark.parametrize("jit_compile", [True, False])
def test_one_batch_is_learnt_by_heart(jit_compile):
    model = GPT2(53, 17, num_layers=2, num_heads=2, hidden_dim=32, dropout=0.0)
    token_ids = ids(3, 14, vocabulary_size=53)
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    losses = model.fit(
        token_ids[:, :-1], token_ids[:, 1:], epochs=60, batch_size=3, verbose=0
    ).history["loss"]
    assert losses[0] > 3.5 and losses[-1] < 0.1


def test_summary_fits_a_terminal_and_names_the_parts(gpt2):
    lines = []
    gpt2.summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    for name in ("token_embedding", "position_embedding", "attention_1", "feed_forward_1"):
        assert name in text
    assert f"{gpt2.count_params():,}" in text


def test_presets(tmp_path, gpt2):
    tiny = GPT2.from_preset("gpt2-tiny", vocabulary_size=101, dropout=0.0)
    assert tiny.vocabulary_size == 101 and tiny.num_layers == 2
    gpt2.save(tmp_path / "model.keras")
    loaded = GPT2.from_preset(tmp_path)
    np.testing.assert_array_equal(numpy(loaded(ids(1, 5))), numpy(gpt2(ids(1, 5))))
    with pytest.raises(ValueError, match="load_weights=False"):
        GPT2.from_preset("gpt2", dropout=0.0)


def _sizes(**changes):
    sizes = dict(vocabulary_size=11, sequence_length=5, num_layers=1, num_heads=2, hidden_dim=4)
    return {**sizes, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_heads=3), "num_heads=3, hidden_dim=4"),
        (dict(num_layers=0), "num_layers=0"),
        (dict(vocabulary_size=-1), "vocabulary_size=-1"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(attention_class="no>Class"), "no>Class"),
    ],
)
def test_bad_sizes(changes, words):
    with pytest.raises(ValueError, match=words):
        GPT2(**_sizes(**changes))


def test_bad_token_ids_are_seen():
    model = GPT2(**_sizes())
    too_large, too_long = np.array([[1, 11]]), np.zeros((1, 6), int)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for run in (model, lambda x: model.fit(x, 0 * x, verbose=0)):
        with pytest.raises(ValueError, match="an id of 11, vocabulary_size=11"):
            run(too_large)
        with pytest.raises(ValueError, match="6.*sequence_length=5"):
            run(too_long)
    # Compiled code cannot raise; nobody overlooks NaN, and no other row has it.
    logits = model.predict(np.array([[1, 11], [1, 2]]), verbose=0)
    assert np.isnan(logits[0, 1]).all() and np.isfinite(logits[1]).all()


@pytest.mark.parametrize("weights_type, error", [("int8", 0.1), ("bfloat16", 0.03)])
@pytest.mark.parametrize("tied", [True, False])
def test_narrow_weights(tmp_path, weights_type, error, tied):
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=32, tie_weights=tied)
    model = random_weights(GPT2(101, 13, **sizes), scale=0.2)
    ids = np.random.default_rng(0).integers(0, 101, (3, 7)).astype("int32")
    before = np.asarray(model(ids))
    model.narrow(weights_type)
    assert model.weights_type == weights_type
    after = np.asarray(model(ids))
    assert 0 < np.abs(after - before).max() < error * before.std()
    matrices = [
        w for w in model.weights if w.path.endswith(("kernel", "token_embedding/embeddings"))
    ]
    assert len(matrices) == 9
    assert {keras.backend.standardize_dtype(w.dtype) for w in matrices} == {weights_type}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(ids)), after)
    other = "int8" if weights_type == "bfloat16" else "bfloat16"
    with pytest.raises(ValueError, match=f"{weights_type} weights cannot become {other}"):
        model.narrow(other)
    with pytest.raises(ValueError, match="Weights must be float here.*token_embedding"):
        model.to_bfloat16()


def test_weights_that_cannot_be_narrow():
    model = GPT2(**_sizes())
    with pytest.raises(ValueError, match="mode must be 'int8'. Received: mode='int4'"):
        model.quantize("int4")
    with pytest.raises(ValueError, match="one of float, bfloat16, int8. Received: 'int3'"):
        model.narrow("int3")
    model.attention_blocks[0].layer.query_key_value.enable_lora(2)
    for narrow in ("int8", "bfloat16"):
        with pytest.raises(ValueError, match="LoRA must be merged.*lora_rank=2"):
            model.narrow(narrow)
    assert model.weights_type == "float", "all is as it was"
