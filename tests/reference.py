"""GPT-2 in numpy, float64, one loop per layer: what everything else is compared with."""

import math

import numpy as np


def layer_norm(x, gamma, beta, epsilon=1e-5):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gamma + beta


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, kernel, bias, kernel_out, bias_out, num_heads):
    """One text (T, D), one head after the other."""
    length, dim = x.shape
    width = dim // num_heads
    q, k, v = np.split(x @ kernel + bias, 3, axis=-1)
    heads = []
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        scores[np.triu_indices(length, 1)] = -np.inf
        heads.append(softmax(scores) @ v[:, part])
    return np.concatenate(heads, axis=-1) @ kernel_out + bias_out


def logits(model, token_ids):
    """Logits (T, V) of one text (T,), from the weights of a keras_gpt2.GPT2."""
    w = {v.path: np.asarray(keras_numpy(v), "float64") for v in model.weights}
    embeddings = w["token_embedding/embeddings"]
    x = embeddings[token_ids] + w["position_embedding/embeddings"][: len(token_ids)]
    for i in range(model.num_layers):
        a, f = f"attention_{i}", f"feed_forward_{i}"
        x = x + attention(
            layer_norm(x, w[f"{a}/norm/gamma"], w[f"{a}/norm/beta"]),
            w[f"{a}/attention/query_key_value/kernel"],
            w[f"{a}/attention/query_key_value/bias"],
            w[f"{a}/attention/output_projection/kernel"],
            w[f"{a}/attention/output_projection/bias"],
            model.num_heads,
        )
        n = layer_norm(x, w[f"{f}/norm/gamma"], w[f"{f}/norm/beta"])
        inner = gelu(n @ w[f"{f}/feed_forward/expand/kernel"] + w[f"{f}/feed_forward/expand/bias"])
        kernel, bias = w[f"{f}/feed_forward/project/kernel"], w[f"{f}/feed_forward/project/bias"]
        x = x + inner @ kernel + bias
    x = layer_norm(x, w["final_norm/gamma"], w["final_norm/beta"])
    return x @ embeddings.T


def keras_numpy(variable):
    import keras

    return keras.ops.convert_to_numpy(variable)
