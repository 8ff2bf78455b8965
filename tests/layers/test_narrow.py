"""Products with matrices kept by rows, narrow ones too, against the same product of floats."""

import keras
import numpy as np
import pytest

from keras_gpt2.layers import Dense, TokenEmbedding, narrow
from keras_gpt2.layers.dense import kernels_by_rows, reading_by_rows
from keras_gpt2.layers.device import for_xla
from keras_gpt2.layers.narrow import narrow_matmul


@pytest.fixture
def processor(monkeypatch):
    """Keras's devices are processors, whatever this runs on."""
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *_: ["cpu:0"])


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("size", [48, 5])
def test_every_form_is_the_product_of_floats(rows, size):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, size)).astype("float32")
    kernel = rng.integers(-127, 128, (11, size)).astype("int8")
    scale = rng.uniform(50, 100, 11).astype("float32")
    y = narrow_matmul(keras.ops.array(x), keras.ops.array(kernel), scale)
    expected = x.astype("float64") @ (kernel.T / scale.astype("float64"))
    np.testing.assert_allclose(np.asarray(y), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
def test_bfloat16_is_the_product_of_its_values(rows):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 33)).astype("float32")
    kernel = keras.ops.cast(rng.normal(size=(11, 33)), "bfloat16")
    values = np.asarray(keras.ops.cast(kernel, "float32")).astype("float64")
    y = narrow_matmul(keras.ops.array(x), kernel)
    np.testing.assert_allclose(np.asarray(y), x.astype("float64") @ values.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 3, 32), (5, 32)])
def test_kernels_by_rows_are_read_within_and_gone_after(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = Dense(13, bias_initializer="normal")
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    before, kernel = np.asarray(model(x)), np.asarray(layer.kernel)
    weights = model.get_weights()
    ((key, copy),) = kernels_by_rows(model).items()
    copy = keras.Variable(copy)
    with pytest.raises(KeyError, match="no answer"), reading_by_rows({key: copy}):
        assert copy.shape == (13, 32)
        np.testing.assert_allclose(np.asarray(layer(x)), before, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(layer.kernel), kernel)
        copy.assign(0 * copy)  # it is the copy that is read
        assert not np.asarray(layer.kernel).any()
        np.testing.assert_array_equal(
            np.asarray(layer(x)), np.broadcast_to(layer.bias, (*shape[:-1], 13))
        )
        raise KeyError("no answer")
    np.testing.assert_array_equal(np.asarray(model(x)), before)
    for one, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("outputs", [256, 279, 300])
def test_blocks_of_a_large_matrix_are_the_product_of_floats(monkeypatch, outputs, dtype, rows):
    monkeypatch.setattr(narrow, "_BLOCK", 32 * 31)
    rng = np.random.default_rng(outputs)
    x = rng.normal(size=(rows, 32)).astype("float32")
    kernel = keras.ops.cast(rng.integers(-127, 128, (outputs, 32)), dtype)
    y = narrow_matmul(keras.ops.array(x), kernel)
    expected = x @ np.asarray(keras.ops.cast(kernel, "float32")).T
    np.testing.assert_allclose(np.asarray(y), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 32, 33])
@pytest.mark.parametrize("outputs", [64, 67])  # 67 is a prime number
def test_products_of_parts_are_those_of_wholes(processor, monkeypatch, outputs, rows):
    formed = []
    divisor = narrow._divisor

    def counted(number, at_least):
        formed.append(divisor(number, at_least))
        return formed[-1]

    monkeypatch.setattr(narrow, "_divisor", counted)
    monkeypatch.setattr(narrow, "_BLOCK", 48 * 20)
    rng = np.random.default_rng(outputs)
    layer, embedding = Dense(outputs, bias_initializer="normal"), TokenEmbedding(outputs, 96)
    layer.build((rows, 96))
    embedding.build(None)
    x = rng.normal(size=(rows, 96)).astype("float32")
    for hidden in (x[:, None], x[None]):
        expected = np.asarray(layer(hidden)), np.asarray(embedding(hidden, reverse=True))
        assert not formed
        with for_xla(), reading_by_rows(kernels_by_rows(layer)):
            y, logits = layer(hidden), embedding(hidden, reverse=True)
        # At most 1,920 values each; 67 has no such divisor but itself, and stays whole.
        assert formed == ([] if rows in (1, 33) else 2 * [4 if outputs == 64 else 67])
        formed.clear()
        np.testing.assert_allclose(np.asarray(y), expected[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.asarray(logits), expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 13, 16, 17, 32, 33])
@pytest.mark.parametrize("block", [1 << 20, 48 * 20])
def test_products_for_xla_are_those_of_floats(processor, monkeypatch, block, rows, dtype):
    monkeypatch.setattr(narrow, "_BLOCK", block)
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 96)).astype("float32")
    kernel = keras.ops.cast(rng.integers(-127, 128, (96, 96)), dtype)
    scale = rng.uniform(50, 100, 96).astype("float32") if dtype == "int8" else None
    with for_xla():
        by_rows = dtype == "float32"
        y = narrow.matmul_by_rows(x, kernel) if by_rows else narrow_matmul(x, kernel, scale)
    values = np.asarray(keras.ops.cast(kernel, "float32")).astype("float64")
    expected = x @ (values if scale is None else values / scale[:, None]).T
    np.testing.assert_allclose(np.asarray(y), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "rows, full", [(2, 2), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 17)]
)
def test_rows_are_filled_up_for_xla_only(processor, rows, full):
    x = keras.ops.ones((rows, 3))
    assert narrow._filled_up(x).shape[0] == rows
    with for_xla():
        filled = np.asarray(narrow._filled_up(x))
    np.testing.assert_array_equal(
        filled, np.repeat([1, 0], [rows, full - rows])[:, None] * np.ones(3)
    )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow's graphs")
def test_blocks_share_a_trace_in_graphs_and_leave_none_outside(monkeypatch):
    import tensorflow as tf

    traces = []
    in_blocks = narrow._in_blocks

    def counted(x, kernel):
        traces.append((x.shape[0], tf.executing_eagerly()))
        return in_blocks(x, kernel)

    monkeypatch.setattr(narrow, "_BLOCK", 32 * 31)
    monkeypatch.setattr(narrow, "_in_blocks", counted)
    kernels = [keras.ops.ones((256, 32), "int8")] * 3

    @tf.function(autograph=False)
    def products(x):
        return [narrow_matmul(x, kernel) for kernel in kernels]

    x = np.ones((3, 32), "float32")
    np.testing.assert_array_equal(products(tf.constant(x))[2], np.full((3, 256), 32))
    assert traces == [(3, False)]
    narrow_matmul(keras.ops.array(x), kernels[0])
    assert traces == [(3, False), (3, True)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(value):
    x = np.ones((2, 32), "float32")
    x[0, 0] = value
    kernel, scale = np.ones((3, 32), "int8"), np.ones(3)
    np.testing.assert_array_equal(np.asarray(narrow_matmul(x[:1], kernel, scale)), [[value] * 3])
    both = np.asarray(narrow_matmul(x, kernel, scale))
    np.testing.assert_array_equal(both, [[value] * 3, [32] * 3])


def quantized_error(layer, x, **kwargs):
    before = np.asarray(layer(x, **kwargs))
    layer.quantize("int8")
    after = np.asarray(layer(x, **kwargs))
    return np.abs(after - before).max() / before.std()


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 3, 32), (5, 32)])
def test_dense(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = Dense(13, bias_initializer="normal")
    layer.build(shape)
    assert quantized_error(layer, x) < 0.03
    assert layer.kernel_scale.shape == (13,)
    assert keras.backend.standardize_dtype(layer._kernel.dtype) == "int8"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("length", [1, 3])
def test_token_embedding(tied, length):
    layer = TokenEmbedding(17, 32, tie_weights=tied)
    layer.build(None)
    ids = np.array([[3, 16, -1]])
    vectors = np.asarray(layer(ids))
    hidden = np.random.default_rng(0).normal(size=(1, length, 32)).astype("float32")
    assert quantized_error(layer, hidden, reverse=True) < 0.03
    np.testing.assert_allclose(np.asarray(layer(ids)), vectors, rtol=0, atol=vectors.max() / 100)
    with pytest.raises(ValueError, match="an id of 17"):
        layer(np.array([[17]]))


def test_one_row_keeps_the_type_of_its_input():
    x = keras.ops.ones((1, 32), "bfloat16")
    y = narrow_matmul(x, keras.ops.ones((3, 32), "int8"), keras.ops.ones(3))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"


def test_an_int8_layer_is_saved_and_takes_no_lora(tmp_path):
    model = keras.Sequential([keras.Input((32,)), Dense(13, name="only")])
    model.quantize("int8")
    with pytest.raises(ValueError, match="Weights must be float here.*only"):
        model.layers[0].enable_lora(2)
    model.save(tmp_path / "int8.keras")
    x = np.random.default_rng(0).normal(size=(3, 32)).astype("float32")
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))


@pytest.mark.parametrize("mode", [None, "int8"])
def test_one_token_obeys_the_soft_cap_as_several_do(mode):
    layer = TokenEmbedding(17, 32, logit_soft_cap=0.5, embeddings_initializer="normal")
    layer.build(None)
    if mode:
        layer.quantize(mode)
    hidden = 50 * np.random.default_rng(0).normal(size=(1, 3, 32)).astype("float32")
    together = np.asarray(layer(hidden, reverse=True))
    alone = np.asarray(layer(hidden[:, :1], reverse=True))
    assert np.abs(together).max() <= 0.5
    np.testing.assert_allclose(alone, together[:, :1], atol=1e-5)
