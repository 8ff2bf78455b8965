"""examples/custom_training.py: masks, precision, a train_step and saving, by their effects."""

import keras
import numpy as np
import pytest

from examples import custom_training


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return custom_training.main(["--quick", "--output", str(tmp_path_factory.mktemp("output"))])


def test_accuracy(results):
    assert results["accuracy"] > 0.85  # without positions 0.61


def test_padding_is_not_seen(results):
    assert results["mask"] < 1e-4
    assert results["no mask"] > 1


def test_mixed_precision(results):
    assert results["dtypes"] == {"variables": {"float32"}, "layers": {"bfloat16"}}


def test_reloaded_file_answers_the_same(results):
    assert results["reloaded"] == 0


def test_reviews():
    """The label is that of the first words behind the `but`, and both are as frequent."""
    texts, labels = custom_training.reviews(1000, seed=3)
    assert max(len(text.split()) for text in texts) <= custom_training.LENGTH
    for text, label in zip(texts, labels, strict=True):
        before, behind = text.split(" but ")
        clause = behind.split(" and ")[0].split()
        assert label == ((clause[-1] in custom_training.GOOD) != ("not" in clause))
    assert 0.45 < np.mean(labels) < 0.55


def test_train_step_wants_agreement():
    """Where dropout makes two passes differ, the loss is more than that of the answers."""
    classifier = custom_training.build_classifier(7)
    ids, labels = np.array([[1, 2, 3], [4, 5, 0]] * 8), np.array([1, 0] * 8)
    losses = {}
    for agreement in (0.0, 1000.0):
        trainer = custom_training.TwoPasses(classifier, agreement)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.0), loss)
        losses[agreement] = trainer.train_on_batch(ids, labels)
    assert losses[1000.0] > losses[0.0] + 0.01
