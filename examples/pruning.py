"""What can be taken out of a trained model: attention heads, and small weights.

    python examples/pruning.py --output pictures

3 minutes on 2 cores (`--quick` half a minute). Perplexity per byte of Python's language reference,
on text that neither training nor the choice of heads has seen; nothing is trained after pruning:

    heads taken out (of 12)       0      1      3      6      9      12
    least important first         2.88   2.93   3.07   3.53   5.51   100
    at random (mean of 3)         2.88   2.98   3.72   6.77   27.6   100
    most important first          2.88   10.3   36.5   56.6   72.9   100

    share of weights taken out    0%     10%    20%    30%    50%    70%    90%
    smallest of all               2.88   2.89   2.93   3.14   5.52   20.4   155
    smallest of each matrix       2.88   2.89   2.94   3.11   5.05   17.6   140

A fifth of the weights costs 2%, and half of the heads 23% if they are well chosen. One head of the
first layer cannot be spared: without it alone perplexity is 2.7 times as high. Without 90% of its
weights the model is ruined. The picture is pruning.png.

How much a head matters is found by ablation: take out this one head, measure perplexity on a text
kept for it, put it back. Heads then go in that order, in the reverse order, and in three random
ones (Michel et al. 2019, "Are Sixteen Heads Really Better than One?", pruned in this way). Weights
are chosen by size only: the smallest of all kernels together, or the same share of each; embeddings
and biases stay.

Zeros alone make nothing smaller or faster, since the products are as large as before; what is
gained depends on a format that leaves the zeros out.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics  # Python's language reference, a text that everyone has

import keras
import numpy as np

import keras_gpt2 as kg

LENGTH = 64  # bytes in a window
HELD_OUT = 8192  # bytes to measure on, twice
LAYERS, HEADS, WIDTH = 3, 4, 64
Head = tuple[int, int]  # layer, head


def train(tokenizer, token_ids: np.ndarray, epochs: int, steps: int | None) -> kg.GPT2:
    data = kg.data.WindowDataset(token_ids, LENGTH, batch_size=16, shuffle=True)
    steps = steps or len(data)
    model = kg.GPT2(
        tokenizer.vocabulary_size,
        LENGTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        dropout=0.0,
    )
    trainer = kg.training.NextTokenModel(model)
    optimizer = kg.training.adamw(model, 4e-3, total_steps=epochs * steps, warmup_steps=20)
    trainer.compile(optimizer, jit_compile=True)
    trainer.fit(data, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=2)
    return model


def perplexity(model: kg.GPT2, data: kg.data.WindowDataset) -> float:
    return model.evaluate(data, verbose=0, return_dict=True)["perplexity"]


def without_heads(model: kg.GPT2, heads: list[Head], data: kg.data.WindowDataset) -> list[float]:
    """The perplexity after each of these heads has been taken out, one after the other."""
    trained, found = model.get_weights(), []
    for layer, head in heads:
        # The output projection takes the values of all heads side by side: a head whose rows are
        # zero there says nothing.
        kernel = model.attention_blocks[layer].layer.output_projection.kernel
        values = keras.ops.convert_to_numpy(kernel).copy()
        values[head * WIDTH // HEADS : (head + 1) * WIDTH // HEADS] = 0
        kernel.assign(values)
        found.append(perplexity(model, data))
    model.set_weights(trained)
    return found


def without_weights(
    model: kg.GPT2, shares: list[float], per_matrix: bool, data: kg.data.WindowDataset
) -> list[float]:
    """The perplexity without this share of the blocks' weights, the smallest ones."""
    trained, found = model.get_weights(), []
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]  # embeddings stay
    sizes = [np.abs(keras.ops.convert_to_numpy(kernel)) for kernel in kernels]
    together = np.concatenate([size.ravel() for size in sizes])
    for share in shares:
        for kernel, size in zip(kernels, sizes, strict=True):
            least = np.quantile(size if per_matrix else together, share)
            kernel.assign(keras.ops.where(size < least, 0.0, kernel))
        found.append(perplexity(model, data))
    model.set_weights(trained)
    return found


def draw(results: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    grid, heads, weights = figure.subplots(1, 3)
    rise = 100 * (results["importance"] / results["perplexity"] - 1)
    grid.imshow(np.log1p(np.maximum(rise, 0)), cmap="Blues")
    for (layer, head), percent in np.ndenumerate(rise):
        color = "white" if percent > rise.max() / 4 else "black"
        grid.text(head, layer, f"{percent:+.0f}%", ha="center", va="center", color=color)
    grid.set(title="perplexity without this head", xlabel="head", ylabel="layer")
    grid.set(xticks=range(HEADS), yticks=range(LAYERS))
    for axes, name in ((heads, "heads"), (weights, "weights")):
        for label, (shares, found) in results[name].items():
            axes.plot(shares, found, "o-", markersize=3, label=label)
        axes.set(xlabel=f"share of the {name} taken out", ylabel="perplexity", yscale="log")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))  # above the panel
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="300 steps, one random order")
    parser.add_argument("--output", type=Path, help="directory for the picture")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokenizer = kg.BytePairTokenizer.of_bytes()
    token_ids = np.array(tokenizer.encode(text), "int32")
    # One part to train, one to find out which heads matter, one to say what pruning costs.
    parts = np.split(token_ids, [-2 * HELD_OUT, -HELD_OUT])
    model = train(tokenizer, parts[0], *((1, 300) if options.quick else (8, None)))
    choice, test = (kg.data.WindowDataset(part, LENGTH, batch_size=64) for part in parts[1:])
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[kg.training.Perplexity()],
    )
    results: dict = {"perplexity": perplexity(model, choice), "heads": {}, "weights": {}}

    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    alone = {head: without_heads(model, [head], choice)[0] for head in heads}
    results["importance"] = np.array(list(alone.values())).reshape(LAYERS, HEADS)
    print(f"perplexity with all heads {results['perplexity']:.2f}; without one of a layer's heads:")
    print(results["importance"].round(2))

    whole = perplexity(model, test)
    least_first = sorted(heads, key=lambda head: alone[head])
    orders = {"least important first": [least_first], "most important first": [least_first[::-1]]}
    rng = np.random.default_rng(0)
    times = 1 if options.quick else 3
    orders["at random"] = [list(rng.permutation(heads)) for _ in range(times)]
    for name, some in orders.items():
        found = np.mean([without_heads(model, order, test) for order in some], axis=0)
        results["heads"][name] = np.arange(len(heads) + 1) / len(heads), np.array([whole, *found])
    shares = np.arange(10) / 10
    for name, per_matrix in (("smallest of all", False), ("smallest of each matrix", True)):
        found = without_weights(model, shares[1:], per_matrix, test)
        results["weights"][name] = shares, np.array([whole, *found])
    for name in ("heads", "weights"):
        for label, (shares, found) in results[name].items():
            print(f"{name}, {label}:")
            print("  ", "  ".join(f"{s:.0%} {p:.2f}" for s, p in zip(shares, found, strict=True)))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        draw(results, options.output / "pruning.png")
    return results


if __name__ == "__main__":
    main()
