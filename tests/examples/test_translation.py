"""examples/translation.py: right translations of sentences that need unseen agreements."""

import math

import numpy as np
import pytest

from examples import translation
from examples.translation import Phrase, Sentence


@pytest.fixture(scope="module")
def results():
    return translation.main(["--quick"])


def test_held_out_sentences(results):
    assert results["exact_match"] > 0.75  # 0.93 measured; 1.0 after the whole training
    assert results["bleu"] > 0.85


def test_nothing_held_out_was_trained_on(results):
    trained = {s.source() for s in results["training"]}
    pairs = {(p.adjective, p.noun) for s in results["training"] for p in (s.subject, s.object)}
    assert len({pair for pair in pairs if pair[0]}) == 160  # of 200
    for sentence in results["test"]:
        assert sentence.source() not in trained
        shown = {(p.adjective, p.noun) for p in (sentence.subject, sentence.object)}
        assert not shown <= pairs


@pytest.mark.parametrize(
    "sentence, source, target",
    [
        (
            Sentence(
                Phrase(True, "small", "dog", True),
                True,
                "follow",
                "past",
                Phrase(False, "red", "boat", False),
                "yesterday",
            ),
            "the small dogs did not follow a red boat yesterday",
            "hieru los kunes pikos unon bate rodon ne segint",
        ),
        (
            Sentence(
                Phrase(False, "", "king", False),
                False,
                "need",
                "present",
                Phrase(False, "green", "tree", True),
                "",
            ),
            "a king needs some green trees",
            "una rege ununs silves verduns bisat",
        ),
        (
            Sentence(
                Phrase(True, "", "cat", False),
                False,
                "help",
                "future",
                Phrase(True, "", "cat", False),
                "",
            ),
            "the cat will help the cat",
            "la mire lan mire judot",
        ),
    ],
)
def test_grammar_by_hand(sentence, source, target):
    assert sentence.source() == source
    assert sentence.target() == target


def test_only_translations_count():
    tokenizer = translation.kg.BytePairTokenizer.of_bytes()
    phrase = Phrase(True, "", "cat", False)

    class Short(Sentence):
        source, target = (lambda self: "ab"), (lambda self: "xyz")

    ids, targets = translation.rows([Short(phrase, False, "", "", phrase, "")], tokenizer)
    assert ids.shape == targets.shape == (1, translation.LENGTH)
    assert tokenizer.decode(ids[0, :8]) == "ab = xyz"
    assert tokenizer.decode(targets[0, 3:8]) == " xyz<|endoftext|>"
    np.testing.assert_array_equal(np.flatnonzero(targets[0] >= 0), [3, 4, 5, 6, 7])


def test_bleu_by_hand():
    assert translation.bleu(["a b c d e"], ["a b c d e"]) == pytest.approx(1)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 runs of four.
    assert translation.bleu(["a b c d x"], ["a b c d e"]) == pytest.approx(0.2**0.25)
    # All runs are right, but 4 words stand for 5.
    assert translation.bleu(["a b c d"], ["a b c d e"]) == pytest.approx(math.exp(1 - 5 / 4))
    assert translation.bleu(["e d c b a"], ["a b c d e"]) == 0
