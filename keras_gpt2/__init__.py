"""GPT-2 as Keras layers: train it on your own text, serve it from one SavedModel.

The names below stand in the order the data flows. What needs TensorFlow is imported when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keras_gpt2 import data, generation, layers, text, training, visualize
from keras_gpt2.generation import generate, stream
from keras_gpt2.models import GPT2, PRESETS
from keras_gpt2.text.tokenizer import BytePairTokenizer

if TYPE_CHECKING:
    from keras_gpt2 import serving
    from keras_gpt2.models import checkpoints
    from keras_gpt2.text.graph_tokenizer import GraphTokenizer

__version__ = "0.1.0"

__all__ = [
    "BytePairTokenizer",
    "GraphTokenizer",
    "data",
    "layers",
    "GPT2",
    "PRESETS",
    "checkpoints",
    "training",
    "generation",
    "generate",
    "stream",
    "serving",
    "text",
    "visualize",
]

_LAZY = {
    "GraphTokenizer": ("keras_gpt2.text.graph_tokenizer", "GraphTokenizer"),
    "serving": ("keras_gpt2.serving", None),
    "checkpoints": ("keras_gpt2.models.checkpoints", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
