"""An LSTM and a GPT-2 with no more parameters, trained on the same text.

    python examples/lstm_baseline.py --output pictures

4 minutes on 2 cores (`--quick` half a minute). Validation perplexity on Python's language
reference, one run (the tokens' frequencies alone: 400):

                           LSTM           GPT-2
    parameters             2,362,368      2,120,704
    tokens a second        4995           8820
    210 steps              43.7           48.5
    the LSTM's 86 seconds  43.7           38.8 (371 steps)

So at the same steps the LSTM wins in the end: GPT-2 is ahead for about 80 steps, then falls behind.
At the same time GPT-2 wins, since it makes 1.8 times as many steps: it computes all places of a
window at once, while the LSTM must go through 64 places one after the other. The picture is
lstm_baseline.png.

The LSTM is the placeholder of an article on GPT-2: Embedding(10000, 256), LSTM(512), softmax,
batches of 32. There its loss stayed at 2.3026 with an accuracy of 0.2; 2.3026 is ln 10, the loss of
guessing evenly among ten classes, so that it had learnt nothing. Here the same layers are trained
as they should be. Two things differ. The vocabulary is 1024: the reference has 159,155 such tokens,
and with 10,000 the two matrices at the ends would hold 7.7 of 9.3 million weights. And the LSTM
predicts at each place, as GPT-2 does, so that both learn from the same number of targets.

Both get the same batches, optimizer and schedule, and XLA. In the runs of 210 steps each step of
one is followed by a step of the other, so that whatever else the machine does slows both; neither
evaluation nor compilation is counted. The largest learning rate was searched for each in runs of
210 steps, by validation perplexity: 0.032 for the LSTM (0.016 gave 47.8, 0.064 gave 45.5), 0.003
for GPT-2 (0.002 gave 48.6, and 0.005 was far behind after 140 steps). Other initial weights moved
GPT-2's perplexity by 1.7.
"""

import argparse
import time
from pathlib import Path
from pydoc_data.topics import topics  # Python's language reference, a text that everyone has

import keras
import numpy as np

import keras_gpt2 as kg

VOCABULARY_SIZE = 1024
LENGTH = 64  # tokens in a window
BATCH_SIZE = 32

Curve = list[tuple[int, float, float]]  # steps, seconds of training, validation perplexity


def lstm() -> keras.Model:
    """The article's layers; a prediction at each place, since GPT-2 makes one there too."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(VOCABULARY_SIZE, 256),
            keras.layers.LSTM(512, return_sequences=True),
            keras.layers.Dense(VOCABULARY_SIZE),  # the softmax is in the loss
        ]
    )


def gpt2() -> keras.Model:
    """Two blocks; with an output matrix of its own, as the LSTM has one."""
    return kg.GPT2(
        VOCABULARY_SIZE,
        LENGTH,
        num_layers=2,
        num_heads=4,
        hidden_dim=256,
        dropout=0.0,
        tie_weights=False,
    )


MODELS = {"LSTM": (lstm, 32e-3), "GPT-2": (gpt2, 3e-3)}  # and the largest learning rate


def train(
    parts: list[np.ndarray], steps: dict[str, int], evaluations: int, jit_compile: bool = True
) -> dict[str, Curve]:
    """Trains new models of these names, each making a step in turn, on the same batches."""
    keras.utils.set_random_seed(0)
    data = kg.data.WindowDataset(parts[0], LENGTH, BATCH_SIZE, shuffle=True)
    validation = kg.data.WindowDataset(parts[1], LENGTH, BATCH_SIZE)
    models, seconds = {}, dict.fromkeys(steps, 0.0)
    curves: dict[str, Curve] = {name: [] for name in steps}
    for name, count in steps.items():
        make, learning_rate = MODELS[name]
        models[name] = model = make()
        model.compile(
            kg.training.adamw(model, learning_rate, total_steps=count, warmup_steps=count // 10),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[kg.training.Perplexity()],
            jit_compile=jit_compile,
        )
    for step in range(1, max(steps.values()) + 1):
        data.epoch = (step - 1) // len(data)
        inputs, targets = data[(step - 1) % len(data)]
        for name, model in models.items():
            start = time.perf_counter()
            model.train_on_batch(inputs, targets)
            if step > 1:  # the first one compiles
                seconds[name] += time.perf_counter() - start
            if step in np.linspace(0, steps[name], evaluations + 1).round()[1:]:
                perplexity = model.evaluate(validation, verbose=0, return_dict=True)["perplexity"]
                curves[name].append((step, seconds[name], perplexity))
                print(f"{name}, step {step}: {seconds[name]:.1f} s, {perplexity:.2f}", flush=True)
    return curves


def tokens_per_second(curve: Curve) -> float:
    steps, seconds, _ = curve[-1]
    return (steps - 1) * BATCH_SIZE * LENGTH / seconds


def draw(results: dict[str, dict[str, Curve]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, curves), column in zip(panels, results.items(), (0, 1), strict=True):
        for name, curve in curves.items():
            points = np.array(curve)
            label = f"{name}, {points[-1, 2]:.1f} at the end"
            axes.plot(points[:, column], points[:, 2], "o-", markersize=3, label=label)
        axes.set(title=title, xlabel=("steps", "seconds of training")[column], yscale="log")
        axes.legend()
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("validation perplexity")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="28 steps; leave out the same time")
    parser.add_argument("--text", type=Path, help="UTF-8 file in place of Python's reference")
    parser.add_argument("--output", type=Path, help="directory for the picture")
    options = parser.parse_args(arguments)

    if options.text:
        text = options.text.read_text(encoding="utf-8")
    else:
        text = "\n\n".join(topics[name] for name in sorted(topics))
    tokenizer = kg.BytePairTokenizer.train_from_iterator([text], VOCABULARY_SIZE)
    token_ids = np.array(tokenizer.encode(text), "int32")
    parts = np.split(token_ids, [len(token_ids) * 9 // 10])
    unigram = kg.data.unigram_perplexity(*parts, VOCABULARY_SIZE)
    print(f"validation perplexity by the tokens' frequencies alone: {unigram:.0f}")

    parameters = {name: make().count_params() for name, (make, _) in MODELS.items()}
    steps, evaluations = (28, 2) if options.quick else (210, 7)
    same_steps = dict.fromkeys(MODELS, steps)
    curves = train(parts, same_steps, evaluations, jit_compile=not options.quick)
    results = {"same steps": curves, "same time": dict(curves)}
    for name, curve in curves.items():
        speed = tokens_per_second(curve)
        print(f"{name}: {parameters[name]:,} parameters, {speed:.0f} tokens a second")
    if not options.quick:  # the faster one again, with as many steps as the other's time allows
        slower, faster = sorted(curves, key=lambda name: tokens_per_second(curves[name]))
        more = steps * curves[slower][-1][1] / curves[faster][-1][1]
        results["same time"] |= train(parts, {faster: round(more)}, evaluations)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        draw(results, options.output / "lstm_baseline.png")
    return {"parameters": parameters, "unigram_perplexity": unigram, **results}


if __name__ == "__main__":
    main()
