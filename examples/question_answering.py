"""Answers to questions about facts that the model has never seen, read from the prompt.

    python examples/question_answering.py

1 minute on 2 cores (`--quick` 25 seconds). All of 992 questions about new facts are answered
rightly; without the first part of the training, see below, 0.47 of them after as many steps.

A prompt states three to five facts and asks for one of them:

    They taught Ann chess. They gave Ann cows. They taught Bob golf. What did they teach Ann?

The answer, `They taught Ann chess.`, cannot be known by heart: names and things are drawn anew for
each text, and no facts of the test were together in training. It takes both name and verb: somebody
else was taught something too, and Ann was given something. By one of the two alone, at most half of
the answers would be right. Training has two parts:

    copying     lists of random words that repeat, where every word from the second round on counts.
                The model learns to find an earlier occurrence of a word and to read what followed:
                the induction heads of attention_maps.py
    questions   facts, question and answer, of which the answer's words alone count: all other
                targets are -1, which the loss leaves out, since the facts are random

One answer in a text gives the heads too little to form by: from questions alone the model learns
which things can be taught, and to name one of those that the facts mention. For the same reason
each word is one token and there are no others: tokens that never occur slow so small a model down.
"""

import argparse
import random
import re

import keras
import numpy as np

import keras_gpt2 as kg

NAMES = "Ann Bob Cem Dan Eva Fay Gus Ida Jan Kim".split()
VERBS = {"teach": "taught", "show": "showed", "sell": "sold", "give": "gave"}
THINGS = {
    "teach": "chess golf drums tennis cards rugby flute piano poker darts".split(),
    "show": "Rome Oslo Bonn Lima Cairo Paris Tokyo Quito Delhi Kyiv".split(),
    "sell": "rice soup cake fish tea milk beans plums bread honey".split(),
    "give": "dogs cats horses goats birds cows ducks mice frogs pigs".split(),
}
LENGTH = 40


class Words:
    """A token for each word and mark of a text; `kg.generate` asks no more of a tokenizer."""

    end_of_text_id = None

    def __init__(self, text: str) -> None:
        self.words = sorted(set(self.split(text)))
        self.vocabulary_size = len(self.words)
        self.ids = {word: i for i, word in enumerate(self.words)}

    def split(self, text: str) -> list[str]:
        return re.findall(r"\w+|[.?]", text)

    def encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in self.split(text)]

    def decode(self, ids: list[int]) -> str:
        return re.sub(r" (?=[.?])", "", " ".join(self.words[i] for i in ids))


def draw(rng: random.Random, count: int) -> tuple[list[str], str, str]:
    """Facts, a question about one, and its answer, of the first `count` names and things."""
    verb, other_verb = rng.sample([*VERBS], 2)
    name, other_name, third_name = rng.sample(NAMES[:count], 3)
    told = [(verb, name), (verb, other_name), (other_verb, name)]  # it takes both to answer
    told += [(other_verb, other_name), (other_verb, third_name)][: rng.randint(0, 2)]
    facts = [f"They {VERBS[v]} {n} {rng.choice(THINGS[v][:count])}." for v, n in told]
    return rng.sample(facts, len(facts)), f"What did they {verb} {name}?", facts[0]


def copying(count: int, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of 6 to 12 random words that repeat; targets of -1 in the first round."""
    rng = np.random.default_rng(0)
    period = rng.integers(6, 13, (count, 1))
    shuffled = np.argsort(rng.random((count, vocabulary_size)), axis=1)
    places = np.arange(LENGTH + 1)
    ids = np.take_along_axis(shuffled, places % period, axis=1).astype("int32")
    return ids[:, :-1], np.where(places[1:] >= period, ids[:, 1:], -1)


def questions(texts: list[tuple], tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `(N, LENGTH)`; all targets but those of the answers are -1."""
    ids = np.full((len(texts), LENGTH + 1), -1, "int32")
    targets = ids.copy()
    for row, (facts, question, answer) in enumerate(texts):
        prompt = tokenizer.encode(" ".join([*facts, question]))
        answered = tokenizer.encode(answer)
        end = len(prompt) + len(answered)
        ids[row, :end] = prompt + answered
        targets[row, len(prompt) : end] = answered
    return ids[:, :-1], targets[:, 1:]


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, half of the words")
    options = parser.parse_args(arguments)
    copy_steps, question_steps = (300, 200) if options.quick else (500, 700)
    count, batch_size = 5 if options.quick else 10, 64

    keras.utils.set_random_seed(0)
    rng = random.Random(0)
    training = [draw(rng, count) for _ in range(question_steps * batch_size)]
    known = {frozenset(facts) for facts, _, _ in training}
    test = [text for text in (draw(rng, count) for _ in range(1000)) if {*text[0]} not in known]
    tokenizer = Words(" ".join(" ".join([*facts, *rest]) for facts, *rest in training))

    model = kg.GPT2(
        tokenizer.vocabulary_size, LENGTH, num_layers=2, num_heads=4, hidden_dim=64, dropout=0.0
    )
    trainer = kg.training.NextTokenModel(model)
    optimizer = kg.training.adamw(
        model, 4e-3, total_steps=copy_steps + question_steps, warmup_steps=20, weight_decay=0.01
    )
    trainer.compile(optimizer, jit_compile=True)
    lists = copying(copy_steps * batch_size, tokenizer.vocabulary_size)
    for part in (lists, questions(training, tokenizer)):
        trainer.fit(*part, batch_size=batch_size, verbose=2)

    prompts = [" ".join([*facts, question]) for facts, question, _ in test]
    found = kg.generate(model, tokenizer, prompts, max_new_tokens=5, temperature=0)
    right = [answer for _, _, answer in test]
    exact = float(np.mean([a == b for a, b in zip(found, right, strict=True)]))
    for prompt, text, wanted in list(zip(prompts, found, right, strict=True))[:5]:
        print(prompt, text, "" if text == wanted else f"(right: {wanted})")
    print(f"right answers to {len(test)} questions: {exact:.3f}")
    return {"exact_match": exact, "training": training, "test": test}


if __name__ == "__main__":
    main()
