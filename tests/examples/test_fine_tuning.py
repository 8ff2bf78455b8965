"""examples/fine_tuning.py: what LoRA learns and leaves alone, and what is exported of it."""

import numpy as np
import pytest

import keras_gpt2 as kg
from examples import fine_tuning


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def results(output):
    return fine_tuning.main(["--quick", "--output", str(output)])


def test_learns_the_new_text(results):
    assert results["after"]["new"] < 0.8 * results["before"]["new"]


def test_the_base_knew_the_old_text_better(results):
    assert results["before"]["old"] < 0.8 * results["before"]["new"]


def test_few_weights(results):
    # Rank 8, two layers of width 128: 8 (inputs + outputs) of each of the four products.
    assert results["trained"] == 2 * 8 * (128 + 384 + 128 + 128 + 128 + 512 + 512 + 128)
    assert results["trained"] < 0.1 * results["frozen"]


def test_export_of_merged_weights(results, output):
    assert results["served_is_same"]
    # An export without the learnt products would give the base's texts.
    base = kg.GPT2.from_preset(output / "base")
    tokenizer = kg.BytePairTokenizer.from_directory(output / "base")
    client = kg.serving.SavedModelClient(output / "export")
    ids = tokenizer.encode("    def __init__(self")
    moved = np.abs(client.logits([ids])[0] - np.array(base(np.array([ids])))[0]).max()
    assert moved > 0.1


def test_any_checkpoint_and_text(results, output, tmp_path):
    """A directory in Hugging Face's layout, and a file of one's own."""
    base = kg.GPT2.from_preset(output / "base")
    tokenizer = kg.BytePairTokenizer.from_directory(output / "base")
    kg.checkpoints.save_hugging_face(base, tmp_path / "hugging_face", tokenizer)
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 600)
    options = ["--checkpoint", str(tmp_path / "hugging_face"), "--text", str(text), "--steps", "20"]
    found = fine_tuning.main([*options, "--output", str(tmp_path / "output")])
    assert found["before"]["old"] == pytest.approx(results["before"]["old"], rel=1e-4)
    assert found["after"]["new"] < 0.5 * found["before"]["new"]
    assert found["served_is_same"]
    assert not (tmp_path / "output" / "base").exists()
