"""examples/image_classification.py: the blocks of GPT-2 read digits."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn, of the extra examples")

from examples import image_classification  # noqa: E402


def test_accuracy(tmp_path):
    results = image_classification.main(["--quick", "--output", str(tmp_path)])
    assert (tmp_path / "vision_transformer.png").stat().st_size > 0
    images, labels = results["test"]
    right = np.array(results["model"](images)).argmax(axis=1) == labels
    assert len(labels) == 360
    assert right.mean() == pytest.approx(results["accuracy"])
    assert right.mean() > 0.95


def test_patches():
    """A patch is 2 x 2 neighbouring pixels, and patches follow each other as words do."""
    model = image_classification.vision_transformer(num_layers=1)
    cut = next(i for i, layer in enumerate(model.layers) if layer.name.startswith("dense"))
    x = np.arange(64.0).reshape(1, 8, 8)
    for layer in model.layers[1:cut]:
        x = layer(x)
    assert np.array(x)[0, :5].tolist() == [
        [0, 1, 8, 9],
        [2, 3, 10, 11],
        [4, 5, 12, 13],
        [6, 7, 14, 15],
        [16, 17, 24, 25],
    ]
