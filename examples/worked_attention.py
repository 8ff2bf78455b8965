"""Attention by hand, then what a residual connection does to gradients in deep models.

    python examples/worked_attention.py --output pictures

15 seconds on 2 cores (`--quick` 10). The picture is gradients_by_depth.png.

Two words, e1 = (1, 0, 0) and e2 = (0, 1, 0), and three matrices are enough to compute attention on
paper. Every word gets a query q, a key k and a value v. The score of a pair is the product of one
word's query and the other's key; softmax turns a word's scores into weights that sum to 1; its new
vector is the sum of all values with these weights.

A widely read article prints the scores 3, 1 / 1, 1 and the weights 0.878, 0.122 / 0.5, 0.5 for
this example. Whether a vector is multiplied from the left (x W, as Keras does) or from the right
(W x, as most books do) makes a difference, so both are computed:

    x W: scores 2, 0 / 1, 1   weights 0.8808, 0.1192 / 0.5, 0.5
    W x: scores 2, 1 / 1, 1   weights 0.7311, 0.2689 / 0.5, 0.5

So of the article's numbers the second word's are right both ways. No reading gives a score of 3,
since q1 = (1, 0, 1) both ways and no key has entries above 1. The first word's weights are those
of x W up to rounding, because softmax sees differences only: 3 - 1 = 2 - 0. softmax(3, 1) is
0.8808, 0.1192, not 0.878, 0.122.

The article also divides the residual sum by the root of the width, (x + F(x)) / sqrt(d). The second
part puts blocks on top of each other and measures how large the gradient is that reaches each of
them before any training (width 64):

    form                           2 blocks       8 blocks       24 blocks     first, last block
    article (x + F) / sqrt(d)      2e-4, 2e-4     3e-15, 4e-15   0, 0
    post-norm, 2017                0.72, 0.78     0.72, 1.04     0.83, 1.02
    pre-norm, GPT-2                0.73, 0.71     0.72, 0.58     0.82, 0.41

The article's factor makes every layer's signal 8 times smaller, and its gradient too: nothing would
be learnt. (A root of a width belongs to attention's scores, which are divided by it.) Both
normalizations keep the gradient alive at any depth. They differ at the last blocks: post-norm's
gradient does not fall there with depth, which Xiong et al. 2020, "On Layer Normalization in the
Transformer Architecture", give as the reason why it needs a slow start of the learning rate.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_gpt2 as kg

EMBEDDINGS = np.array([[1, 0, 0], [0, 1, 0]], "float32")  # e1, e2: one row per word
W_Q = W_V = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]], "float32")
W_K = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 1]], "float32")

# What is around each layer F of a block, and the name in the picture.
FORMS = {
    "article": (dict(normalization=None, scale="rsqrt_dim"), "the article: (x + F(x)) / sqrt(d)"),
    "post": (dict(normalization="post"), "2017's post-norm: norm(x + F(x))"),
    "pre": (dict(normalization="pre"), "GPT-2's pre-norm: x + F(norm(x))"),
}
DEPTHS = (2, 8, 24)


def attention_by_hand(convention: str) -> dict[str, np.ndarray]:
    """Queries, keys, values, scores, weights and sums; each row belongs to one word."""
    x = EMBEDDINGS
    if convention == "x W":
        query, key, value = x @ W_Q, x @ W_K, x @ W_V
    else:  # rows of (W x^T)^T
        query, key, value = x @ W_Q.T, x @ W_K.T, x @ W_V.T

    sums, weights = kg.layers.dot_product_attention(query, key, value, scale=1.0)  # no scaling

    # The same in plain numpy.
    scores = query @ key.T
    exponentials = np.exp(scores)
    by_numpy = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, by_numpy, atol=1e-6)
    np.testing.assert_allclose(sums, by_numpy @ value, atol=1e-6)
    names = ("Q", "K", "V", "scores", "weights", "sums")
    arrays = (query, key, value, scores, weights, sums)
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}


def gradient_norms(form: str, depth: int, width: int = 64) -> list[float]:
    """The size of the gradient of each block's feed-forward kernel, first block first."""
    keras.utils.set_random_seed(0)
    around, _ = FORMS[form]

    def initializer() -> keras.Initializer:  # keeps a vector's size, as 2017's models did
        return keras.initializers.GlorotNormal()

    blocks, kernels = [], []
    for _ in range(depth):
        attention = kg.layers.SelfAttention(
            4, kernel_initializer=initializer(), output_initializer=initializer()
        )
        feed_forward = kg.layers.FeedForward(
            4 * width, "gelu_tanh", 0, initializer(), initializer()
        )
        blocks += [kg.layers.ResidualBlock(layer, **around) for layer in (attention, feed_forward)]
        kernels.append(feed_forward)
    norm = [kg.layers.LayerNormalization()] if form == "pre" else []  # GPT-2 ends with one
    model = keras.Sequential([*blocks, *norm, keras.layers.Dense(10)])
    x = keras.random.normal((8, 16, width), seed=1)
    labels = keras.random.randint((8, 16), 0, 10, seed=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        value = loss(labels, model(x))
    gradients = tape.gradient(value, [layer.expand.kernel.value for layer in kernels])
    return [float(tf.norm(tf.cast(gradient, "float64"))) for gradient in gradients]


def draw(norms: dict[str, dict[int, list[float]]], path: Path) -> None:
    """One panel per form: block from first (left) to last, and the gradient that reaches it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (form, by_depth) in zip(figure.subplots(1, 3), norms.items(), strict=True):
        for depth, values in by_depth.items():
            place = np.linspace(0, 1, depth)
            zero = "" if any(values) else ": 0 in float32"
            axes.plot(place, np.maximum(values, 1e-45), "o-", label=f"{depth} blocks{zero}")
        axes.set(title=FORMS[form][1], yscale="log", xlabel="first block ... last block")
        axes.set_xticks([])
        if form != "article":
            axes.set_ylim(0.1, 10)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.supylabel("norm of the gradient")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out the depth between")
    parser.add_argument("--output", type=Path, help="directory for the picture")
    options = parser.parse_args(arguments)

    attention = {}
    for convention in ("x W", "W x"):
        attention[convention] = attention_by_hand(convention)
        print(f"\n{convention}, equal to numpy:")
        for name, array in attention[convention].items():
            print(f"  {name:8}{'   '.join(np.array2string(row, precision=4) for row in array)}")

    norms: dict[str, dict[int, list[float]]] = {}
    print("\nGradient at the first and at the last block:")
    for form, (_, title) in FORMS.items():
        norms[form] = {}
        for depth in DEPTHS[::2] if options.quick else DEPTHS:
            norms[form][depth] = gradient_norms(form, depth)
            first, last = norms[form][depth][0], norms[form][depth][-1]
            print(f"  {title:37} {depth:2} blocks: {first:8.2g} {last:8.2g}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        draw(norms, options.output / "gradients_by_depth.png")
    return {"attention": attention, "norms": norms}


if __name__ == "__main__":
    main()
