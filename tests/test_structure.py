"""Who imports whom, what importing costs, and what README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_gpt2 as kg

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_gpt2"

ALLOWED = {
    "layers": set(),
    "models": {"layers"},
    "text": set(),
    "data": set(),
    "training": set(),
    "generation": set(),
    "visualize": set(),
    "serving": {"text", "models", "generation"},
    "cli": {"layers", "models", "text", "data", "training", "generation", "serving", ""},
}
# Layers, models, loss and decoding run on every backend: TensorFlow only inside functions.
KERAS_ONLY = {"layers", "models", "data", "training", "generation", "visualize"}


def imports(path):
    """(module, inside a function) for every import of a file."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module, id(node) in inside


FILES = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0][:2] != "__"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_rule(path):
    folder = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module, lazy in imports(path):
        parts = module.split(".")
        if parts[0] == "keras_gpt2":
            other = parts[1] if len(parts) > 1 else ""
            assert other == folder or other in ALLOWED[folder], f"{folder} imports {module}"
        if parts[0] in ("tensorflow", "jax", "torch") and folder in KERAS_ONLY:
            assert lazy, f"{path} imports {module} when it is imported itself"
        assert parts[0] not in ("pickle", "tensorflow_text"), module


def test_every_folder_has_its_rule():
    folders = {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    folders = {name for name in folders if name[0] not in "._"}
    assert folders == set(ALLOWED)


def test_public_names_exist():
    for name in kg.__all__:
        assert getattr(kg, name) is not None
        assert name in dir(kg)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kg.nothing


def test_importing_brings_no_tensorflow_of_its_own():
    code = (
        "import sys, os; os.environ['KERAS_BACKEND'] = 'jax'; import keras;"
        "before = set(sys.modules);"
        "import keras_gpt2; new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "heavy = new & {'tensorflow', 'keras_hub', 'keras_nlp', 'tokenizers', 'matplotlib',"
        "'huggingface_hub', 'requests'}; assert not heavy, heavy"
    )
    pytest.importorskip("jax")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_readme_names_what_exists():
    readme = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"\bkg\.((?:[a-z_]+\.)*[A-Za-z_0-9]+)", readme)):
        found = kg
        for part in name.split("."):
            found = getattr(found, part)
    for path in set(re.findall(r"\]\(([^)#:]+)\)", readme)):
        assert (ROOT / path).exists(), path
