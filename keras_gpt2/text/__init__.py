"""Text to token ids and back."""

from typing import TYPE_CHECKING, Any

from keras_gpt2.text.tokenizer import BytePairTokenizer

if TYPE_CHECKING:
    from keras_gpt2.text.graph_tokenizer import GraphTokenizer

__all__ = ["BytePairTokenizer", "GraphTokenizer"]


def __getattr__(name: str) -> Any:
    # Only the graph tokenizer needs TensorFlow, which takes seconds to import.
    if name == "GraphTokenizer":
        from keras_gpt2.text.graph_tokenizer import GraphTokenizer

        return GraphTokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
