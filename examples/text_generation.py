"""Ways to choose the next token: greedy, temperature, top-k, top-p, beam search.

    python examples/text_generation.py --output pictures

2 minutes on 2 cores (`--quick` half a minute). Mean log-probability of 33 texts of 32 tokens: beam
search -35, greedy -48, temperature 0.5 -65, top-k 5 -67, top-p 0.7 -87, temperature 1 -108,
temperature 1.5 -159. Greedy is not the likeliest text: beam search finds likelier ones. Whether a
likely text is a good one is another question; compare what is printed. The picture is
next_token.png.

A language model gives a probability to every token that may come next; it does not say which one to
take. The usual ways:

    greedy         the likeliest token, always: safe, and soon repeats itself
    temperature    draw, after dividing the logits: below 1 likely tokens gain, above 1 they lose
    top-k          draw among the k likeliest tokens only
    top-p          draw among the likeliest tokens that together have this probability; few where
                   the model is sure, many where it is not
    beam search    keep the likeliest few texts, not tokens, and give the likeliest at the end

The picture shows what each leaves of one and the same distribution, as bars, and how often 1000
calls of `kg.generate` with as many seeds took each token, as dots.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics  # Python's language reference, a text that everyone has

import keras
import numpy as np

import keras_gpt2 as kg

PROMPT = "The value of the"
LENGTH = 64
DRAWS = 1000
RULES = {
    "greedy": dict(temperature=0.0),
    "temperature 1": dict(temperature=1.0),
    "temperature 0.5": dict(temperature=0.5),
    "temperature 1.5": dict(temperature=1.5),
    "top-k 5": dict(top_k=5),
    "top-p 0.7": dict(top_p=0.7),
}


def distribution(
    logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """The probability of each token under these parameters, said as plainly as possible."""
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    probabilities = np.exp((logits - logits.max()) / temperature)
    probabilities /= probabilities.sum()
    likeliest = np.argsort(-probabilities)
    if top_k:
        probabilities[likeliest[top_k:]] = 0
    # A token stays if those before it do not make up top_p yet.
    before = np.cumsum(probabilities[likeliest]) - probabilities[likeliest]
    probabilities[likeliest[before >= top_p * probabilities.sum()]] = 0
    return probabilities / probabilities.sum()


def train(tokenizer, token_ids: np.ndarray, epochs: int, steps: int | None) -> kg.GPT2:
    data = kg.data.WindowDataset(token_ids, LENGTH, batch_size=16, shuffle=True)
    steps = steps or len(data)
    model = kg.GPT2(
        tokenizer.vocabulary_size,
        sequence_length=LENGTH,
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        dropout=0.0,
    )
    trainer = kg.training.NextTokenModel(model)
    optimizer = kg.training.adamw(model, 3e-3, total_steps=epochs * steps, warmup_steps=20)
    trainer.compile(optimizer, jit_compile=True)
    trainer.fit(data, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=2)
    return model


def draw(results: dict, tokenizer, path: Path) -> None:
    from matplotlib.figure import Figure

    shown = np.argsort(-results["distributions"]["temperature 1"])[:20]
    names = [repr(tokenizer.decode([i])) for i in shown]
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for axes, name in zip(panels, RULES, strict=True):
        axes.bar(range(20), results["distributions"][name][shown], color="lightsteelblue")
        axes.plot(range(20), results["frequencies"][name][shown], "k.", markersize=5)
        axes.set_title(name)
        axes.set_xticks(range(20), names, rotation=90, fontsize=8)
    figure.suptitle(f"The 20 likeliest tokens after {PROMPT!r}")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="train for 100 steps only")
    parser.add_argument("--output", type=Path, help="directory for the picture")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokenizer = kg.BytePairTokenizer.train_from_iterator([text], 1024)
    token_ids = np.array(tokenizer.encode(text), "int32")
    model = train(tokenizer, token_ids, *((1, 100) if options.quick else (6, None)))

    logits = np.array(model(np.array([tokenizer.encode(PROMPT)])))[0, -1]
    results: dict = {"distributions": {}, "frequencies": {}, "log_probs": {}}
    seeds = list(range(DRAWS))
    for name, rule in RULES.items():
        # Each prompt of a call has its own seed; 1000 times the same prompt are 1000 draws.
        drawn = kg.generate(model, tokenizer, [PROMPT] * DRAWS, 1, seed=seeds, **rule, details=True)
        counts = np.bincount([c.token_ids[0] for c in drawn], minlength=len(logits))
        results["frequencies"][name] = counts / DRAWS
        results["distributions"][name] = distribution(logits, **rule)
    # One text to read under each rule, and 32 more to compare how likely the model finds them.
    starts = token_ids[: 32 * 1000].reshape(32, 1000)[:, :8]
    prompts = [PROMPT, *(tokenizer.decode(start) for start in starts)]
    for name, rule in {**RULES, "beam search, 4": dict(num_beams=4)}.items():
        found = kg.generate(model, tokenizer, prompts, 32, seed=1, **rule, details=True)
        results["log_probs"][name] = float(np.mean([sum(c.log_probs) for c in found]))
        print(f"--- {name} (mean log-probability of 33 texts {results['log_probs'][name]:.1f})")
        print(PROMPT + found[0].text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        draw(results, tokenizer, options.output / "next_token.png")
    return results


if __name__ == "__main__":
    main()
