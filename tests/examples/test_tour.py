"""examples/tour.ipynb as a file; .ci/run executes it, and its own asserts check its claims."""

import ast
import json
from pathlib import Path

import pytest

import examples

NOTEBOOK = Path(examples.__path__[0]) / "tour.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_is_a_notebook(notebook):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, which nbclient brings")
    nbformat.validate(notebook)


def test_is_stored_without_outputs(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]


def test_ids_are_words(notebook):
    """Ids that an editor makes anew would change with every save."""
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(cell_id.replace("-", "").isalpha() for cell_id in ids), ids


def test_code_compiles_and_checks_itself(notebook):
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    trees = [ast.parse(cell) for cell in code]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert sum(isinstance(node, ast.Assert) for node in nodes) >= 3


def test_walks_the_whole_path(notebook):
    """Every code cell has words before it, and all stations of the README's first example come."""
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == "markdown" and kinds.count("markdown") >= kinds.count("code") - 1
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    for name in ("BytePairTokenizer", "text_datasets", "GPT2", ".fit(", "generate", "visualize"):
        assert name in text
    assert "serving.export" in text and "tf.saved_model.load" in text
