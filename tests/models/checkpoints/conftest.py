import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_gpt2.models import checkpoints

FIXTURES = Path(__file__).parent / "fixtures"
LOADERS = {
    "tied": checkpoints.load_hugging_face,
    "untied_sharded": checkpoints.load_hugging_face,
    "bfloat16": checkpoints.load_hugging_face,
    "openai": checkpoints.load_openai,
}


@pytest.fixture(scope="session")
def fixtures():
    return FIXTURES


@pytest.fixture(scope="session", params=LOADERS)
def name(request):
    return request.param


@pytest.fixture(scope="session")
def results(name):
    """transformers' results; OpenAI's fixture has the weights, and so the results, of "tied"."""
    return dict(np.load(FIXTURES / ("tied" if name == "openai" else name) / "results.npz"))


@pytest.fixture(scope="session")
def model(name):
    return LOADERS[name](FIXTURES / name)


@pytest.fixture(scope="session")
def tied():
    return checkpoints.load_hugging_face(FIXTURES / "tied")


@pytest.fixture
def edited(tmp_path):
    """A copy of the fixture "tied" with changed configuration and tensors.

    `tensors` gets the dict of all tensors and changes it in place.
    """

    def edit(tensors=None, **config):
        directory = tmp_path / "edited"
        shutil.copytree(FIXTURES / "tied", directory)
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if tensors:
            content = load_file(directory / "model.safetensors")
            tensors(content)
            save_file(content, directory / "model.safetensors", {"format": "pt"})
        return directory

    return edit


def weights(model):
    return {variable.path: np.asarray(variable) for variable in model.weights}


@pytest.fixture(scope="session")
def assert_same_weights():
    def check(one, other):
        one, other = weights(one), weights(other)
        assert one.keys() == other.keys()
        for path in one:
            np.testing.assert_array_equal(one[path], other[path], err_msg=path)

    return check
