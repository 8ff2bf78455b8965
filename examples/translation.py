"""Translation by prompting: a GPT-2 that continues `source =` with the translation.

    python examples/translation.py

1.5 minutes on 2 cores (`--quick` 25 seconds). All of 500 held-out sentences are translated without
a mistake (BLEU 1.000); 0.93 of them after `--quick`'s 130 steps of training (BLEU 0.96).

There is no encoder: source, translation and `<|endoftext|>` are one text for one model, and the
loss counts what comes after `=` only. Targets of -1 are left out, ids of -1 are padding.

    the small dogs did not follow a red boat yesterday =
        hieru los kunes pikos unon bate rodon ne segint

The other language is made up, but it is no code for English word by word:

    order       the time comes first, the verb last, an adjective after its noun
    agreement   article and adjective end in the noun's gender (o, a or u, which the noun does not
                show), then n in the object, then s in the plural
    the verb    ends in its tense (a, i, o) and the number of its subject (t, nt), where English has
                `does not`, `did not` and `will`

Sentences need no sense: there are 139 million of them. A fifth of the 200 pairs of an adjective and
a noun occurs in no training sentence, and every held-out sentence has such a pair: its endings
cannot be known from having seen it.
"""

import argparse
import math
import random
from collections import Counter
from typing import NamedTuple

import keras
import numpy as np

import keras_gpt2 as kg


def lexicon(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


ADJECTIVES = lexicon(
    """small=pik big=gran young=jun new=nov red=rod green=verd black=neg white=alb tall=alt
    quiet=tran"""
)
NOUNS = lexicon(
    """dog=kune/o cat=mire/a bird=pule/u horse=kave/a king=rege/a farmer=gare/u doctor=mede/o
    teacher=lese/u house=dome/a garden=horte/o tree=silve/u boat=bate/o road=vie/a lamp=luke/o
    book=libe/u table=mense/a window=fenre/o wall=mure/u letter=karte/u river=fluse/o"""
)
VERBS = lexicon(
    """follow=seg help=jud paint=pint visit=vis clean=lav guard=gard want=vol need=bis repair=rep
    remember=mem"""
)
TIMES = {
    "present": {"": "", "today": "hodi", "now": "nun"},
    "past": {"": "", "yesterday": "hieru", "recently": "nupe"},
    "future": {"": "", "tomorrow": "mane", "soon": "breve"},
}
LENGTH = 40


class Phrase(NamedTuple):
    definite: bool
    adjective: str  # "" for none
    noun: str
    plural: bool

    def source(self) -> str:
        article = "the" if self.definite else "some" if self.plural else "a"
        return words(article, self.adjective, self.noun + "s" * self.plural)

    def target(self, case: str) -> str:
        noun, gender = NOUNS[self.noun].split("/")
        ending = gender + "n" * (case == "object") + "s" * self.plural
        article = ("l" if self.definite else "un") + ending
        adjective = self.adjective and ADJECTIVES[self.adjective] + ending
        return words(article, noun + "s" * self.plural, adjective)

    def is_new(self) -> bool:
        """Whether adjective and noun are a pair that training does not show."""
        if not self.adjective:
            return False
        return ([*ADJECTIVES].index(self.adjective) + [*NOUNS].index(self.noun)) % 5 == 0


class Sentence(NamedTuple):
    subject: Phrase
    negated: bool
    verb: str
    tense: str
    object: Phrase
    time: str  # "" for none

    def source(self) -> str:
        s, es = ("", "") if self.subject.plural else ("s", "es")
        forms = {  # and with `not`
            "present": (self.verb + s, f"do{es} not {self.verb}"),
            "past": (self.verb + "ed", f"did not {self.verb}"),
            "future": (f"will {self.verb}", f"will not {self.verb}"),
        }
        verb = forms[self.tense][self.negated]
        return words(self.subject.source(), verb, self.object.source(), self.time)

    def target(self) -> str:
        ending = {"present": "a", "past": "i", "future": "o"}[self.tense]
        verb = VERBS[self.verb] + ending + ("nt" if self.subject.plural else "t")
        subject, object_ = self.subject.target("subject"), self.object.target("object")
        return words(TIMES[self.tense][self.time], subject, object_, "ne" * self.negated, verb)


def words(*found: str) -> str:
    return " ".join(filter(None, found))


def draw(rng: random.Random, held_out: bool) -> Sentence:
    """A random sentence with a new pair of adjective and noun, or without."""

    def phrase() -> Phrase:
        adjective = rng.choice(["", *ADJECTIVES])
        return Phrase(rng.random() < 0.5, adjective, rng.choice([*NOUNS]), rng.random() < 0.5)

    while True:
        subject, object_ = phrase(), phrase()
        if (subject.is_new() or object_.is_new()) == held_out:
            tense, verb = rng.choice([*TIMES]), rng.choice([*VERBS])
            time = rng.choice([*TIMES[tense]])
            return Sentence(subject, rng.random() < 0.3, verb, tense, object_, time)


def rows(sentences: list[Sentence], tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `(N, LENGTH)`; all targets but those of the translations are -1."""
    prompts = tokenizer.encode_batch([f"{s.source()} =" for s in sentences])
    translations = tokenizer.encode_batch([f" {s.target()}" for s in sentences])
    ids = np.full((len(sentences), LENGTH + 1), -1, "int32")
    targets = ids.copy()
    for row, (prompt, translation) in enumerate(zip(prompts, translations, strict=True)):
        start, end = len(prompt), len(prompt) + len(translation) + 1
        ids[row, :end] = [*prompt, *translation, tokenizer.end_of_text_id]
        targets[row, start:end] = ids[row, start:end]
    return ids[:, :-1], targets[:, 1:]


def bleu(found: list[str], right: list[str]) -> float:
    """BLEU of Papineni et al. 2002, with one right translation for each text, on its words."""
    texts = [(f.split(), r.split()) for f, r in zip(found, right, strict=True)]
    mean = 0.0
    for n in range(1, 5):
        common = total = 0
        for pair in texts:
            runs, wanted = (Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in pair)
            common, total = common + (runs & wanted).total(), total + runs.total()
        if not common:
            return 0.0
        mean += math.log(common / total) / 4
    lengths = [sum(map(len, side)) for side in zip(*texts, strict=True)]
    return math.exp(mean + min(0.0, 1 - lengths[1] / lengths[0]))


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="130 steps in place of 800")
    options = parser.parse_args(arguments)
    steps, batch_size = 130 if options.quick else 800, 64

    keras.utils.set_random_seed(0)
    rng = random.Random(0)
    training = [draw(rng, held_out=False) for _ in range(steps * batch_size)]
    test = [draw(rng, held_out=True) for _ in range(500)]
    texts = (f"{s.source()} = {s.target()}" for s in training[:5000])
    tokenizer = kg.BytePairTokenizer.train_from_iterator(texts, 512)

    model = kg.GPT2(
        tokenizer.vocabulary_size, LENGTH, num_layers=2, num_heads=4, hidden_dim=128, dropout=0.0
    )
    trainer = kg.training.NextTokenModel(model)
    optimizer = kg.training.adamw(model, 4e-3, total_steps=steps, warmup_steps=20)
    trainer.compile(optimizer, jit_compile=True)
    trainer.fit(*rows(training, tokenizer), batch_size=batch_size, verbose=2)

    prompts, right = [f"{s.source()} =" for s in test], [s.target() for s in test]
    made = kg.generate(model, tokenizer, prompts, max_new_tokens=20, temperature=0)
    found = [text.strip() for text in made]
    exact = float(np.mean([a == b for a, b in zip(found, right, strict=True)]))
    for prompt, text, wanted in list(zip(prompts, found, right, strict=True))[:5]:
        print(prompt, text, "" if text == wanted else f"(right: {wanted})")
    score = bleu(found, right)
    print(f"{len(test)} held-out sentences: {exact:.3f} right, BLEU {score:.3f}")
    return {"exact_match": exact, "bleu": score, "training": training, "test": test}


if __name__ == "__main__":
    main()
