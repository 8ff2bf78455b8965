"""What attention heads learn: a model that continues a repetition, and where each head looks.

    python examples/attention_maps.py --output pictures

1 minute on 2 cores (`--quick` 20 seconds). The model continues all new rows without a mistake. In
the first round two heads of the first layer put 0.95 and 0.99 of their weight on the token before;
from the second round on the heads of the second layer put 0.91 to 1.00 on the places behind an
earlier occurrence, the first layer's no more than 0.09. The picture is attention_maps.png.

The texts are random tokens that repeat after 6 to 12 of them: `h c r a b m  h c r a b m  h c ...`.
What comes next can be known from the second round on, but only by looking back: find the place
where the present token stood before, and read the token behind it. One layer of attention cannot do
that, since a place knows nothing of the token before it. Two layers can: a head of the first one
looks at the token before, so that every place knows what it follows; a head of the second one then
looks for the place that follows the present token (an induction head; Olsson et al. 2022,
"In-context Learning and Induction Heads").

`kg.visualize.attention_weights` gives the weights of every layer and head, and
`kg.visualize.plot_attention` draws them: each line of a panel shows where one place looks.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

import keras_gpt2 as kg

LETTERS = "abcdefghijklmnopqrst"  # the vocabulary: token 0 is a, token 1 is b, ...
LENGTH = 32


def repetitions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and targets `(count, LENGTH)`, and after how many tokens each row repeats."""
    rng = np.random.default_rng(seed)
    period = rng.integers(6, 13, (count, 1))
    shuffled = np.argsort(rng.random((count, len(LETTERS))), axis=1)  # no token twice in a round
    places = np.arange(LENGTH + 1)
    ids = np.take_along_axis(shuffled, places % period, axis=1).astype("int32")
    targets = np.where(places[1:] >= period, ids[:, 1:], -1)  # the first round is left to chance
    return ids[:, :-1], targets, period[:, 0]


def head_scores(
    weights: list[np.ndarray], ids: np.ndarray, period: np.ndarray
) -> dict[str, np.ndarray]:
    """The share of its weight that each head puts on certain places; `(layers, heads)` each."""
    places = np.arange(LENGTH)
    first_round = (places > 0) & (places < period[:, None])  # (B, T)
    later = places >= period[:, None]
    before = np.roll(ids, 1, axis=1)
    before[:, 0] = -1
    # [b, t, s]: s is the place before t; the token before s is the one at t.
    previous = np.broadcast_to(places == places[:, None] - 1, (len(ids), LENGTH, LENGTH))
    follows = before[:, None, :] == ids[:, :, None]

    def share(looked_at: np.ndarray, lines: np.ndarray) -> np.ndarray:
        found = [(layer * looked_at[:, None]).sum(-1) * lines[:, None] for layer in weights]
        return np.stack([layer.sum((0, 2)) / lines.sum() for layer in found])

    return {"previous": share(previous, first_round), "induction": share(follows, later)}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="300 steps in place of 1200")
    parser.add_argument("--output", type=Path, help="directory for the picture")
    options = parser.parse_args(arguments)
    steps, batch_size = 300 if options.quick else 1200, 64

    keras.utils.set_random_seed(0)
    model = kg.GPT2(
        len(LETTERS), sequence_length=LENGTH, num_layers=2, num_heads=4, hidden_dim=64, dropout=0.0
    )
    trainer = kg.training.NextTokenModel(model)  # leaves out targets of -1
    optimizer = kg.training.adamw(
        model, 4e-3, total_steps=steps, warmup_steps=20, weight_decay=0.01
    )
    trainer.compile(optimizer, jit_compile=True)
    ids, targets, _ = repetitions(steps * batch_size, seed=0)  # no row twice
    trainer.fit(ids, targets, batch_size=batch_size, verbose=2)

    ids, targets, period = repetitions(256, seed=1)  # rows it has not seen
    accuracy = trainer.evaluate(ids, targets, verbose=0, return_dict=True)["accuracy"]
    weights = kg.visualize.attention_weights(model, ids)
    scores = head_scores(weights, ids, period)
    print(f"accuracy on new rows: {accuracy:.4f}")
    for layer in range(2):
        for name, by_head in scores.items():
            print(f"layer {layer}, share of weight, {name:9}: {by_head[layer].round(2)}")

    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        row = int(np.argmax(period == 9))
        shown = [layer[:, :, :27, :27] for layer in weights]  # three rounds of nine
        labels = [LETTERS[i] for i in ids[row, :27]]
        figure = kg.visualize.plot_attention(shown, labels, row)
        figure.savefig(options.output / "attention_maps.png", dpi=110)
    return {"accuracy": accuracy, **scores}


if __name__ == "__main__":
    main()
