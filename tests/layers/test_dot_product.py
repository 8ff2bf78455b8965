"""Products of one row against numpy's."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest

from keras_gpt2.layers import SelfAttention
from keras_gpt2.layers.device import for_xla
from keras_gpt2.layers.dot_product import dot_product_attention, one_row_matmul


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("outer", [(), (2,), (2, 3)])
@pytest.mark.parametrize("transpose_y", [False, True])
def test_it_is_numpys_product(dtype, outer, transpose_y):
    rng = np.random.default_rng(0)
    x = keras.ops.cast(rng.normal(size=(*outer, 1, 5)), dtype)
    y = keras.ops.cast(rng.normal(size=(*outer, *((4, 5) if transpose_y else (5, 4)))), dtype)
    floats = [keras.ops.convert_to_numpy(keras.ops.cast(a, "float32")) for a in (x, y)]
    expected = floats[0] @ (floats[1].swapaxes(-1, -2) if transpose_y else floats[1])
    tolerance = {"float32": 1e-6, "float16": 1e-2, "bfloat16": 0.1}[dtype]
    for context in (nullcontext(), for_xla()):
        with context:
            product = one_row_matmul(x, y, transpose_y)
        assert keras.backend.standardize_dtype(product.dtype) == dtype
        product = keras.ops.convert_to_numpy(keras.ops.cast(product, "float32"))
        np.testing.assert_allclose(product, expected, atol=tolerance)


def test_one_query_is_the_last_of_many():
    rng = np.random.default_rng(1)
    query, key, value = rng.normal(size=(3, 2, 3, 6, 4)).astype("float32")
    mask = rng.random((2, 1, 6, 6)) < 0.7
    many = dot_product_attention(query, key, value, mask)
    one = dot_product_attention(query[..., -1:, :], key, value, mask[..., -1:, :])
    for a, b in zip(many, one, strict=True):
        np.testing.assert_allclose(np.asarray(a)[..., -1:, :], np.asarray(b), atol=1e-6)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.filterwarnings("error")
def test_a_single_key_is_all_that_is_seen(queries):
    query, value = np.ones((1, 2, queries, 4), "float32"), np.full((1, 2, 1, 4), 5.0, "float32")
    for mask in (None, np.zeros((1, 1, queries, 1), bool)):
        output, weights = dot_product_attention(query, value, value, mask)
        np.testing.assert_array_equal(np.asarray(weights), 1.0)
        np.testing.assert_array_equal(np.asarray(output), 5.0)


def test_a_graph_has_gradients_through_it():
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a graph of TensorFlow")
    layer = SelfAttention(2)
    x = tf.constant(np.random.default_rng(2).normal(size=(3, 1, 8)).astype("float32"))
    layer(x)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, [v.value for v in layer.trainable_variables])

    for plain, xla in zip(
        tf.function(gradients)(), tf.function(gradients, jit_compile=True)(), strict=True
    ):
        np.testing.assert_allclose(plain, xla, atol=1e-5)
