"""Asking a server, or a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Client:
    """Sends prompts to a model that TensorFlow Serving serves over REST.

    Args:
        url: the server's address, for example `"http://localhost:8501"`.
        name: the model's name there.
        timeout: seconds to wait for an answer.

    Example:
        >>> client = Client("http://localhost:8501", "tales")  # doctest: +SKIP
        >>> client.generate(["Once upon"], max_new_tokens=8)  # doctest: +SKIP
        [' a time there was']
    """

    def __init__(self, url: str, name: str, timeout: float = 60.0) -> None:
        self.url = f"{url.rstrip('/')}/v1/models/{name}"
        self.timeout = timeout

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int | Sequence[int] = 64,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """The completions of prompts, as `keras_gpt2.generate` gives them.

        Raises:
            ConnectionError: if no server answers.
            RuntimeError: with the server's own words, if it refuses.
            ValueError: with the row's number, if a parameter breaks its rule.
        """
        inputs = generate_inputs(prompts, max_new_tokens, temperature, top_k, top_p, seed)
        # All inputs always: REST does not fill in defaults.
        return completions(self.predict("generate", inputs)) if inputs["prompt"] else []

    def predict(self, signature: str, inputs: dict[str, list]) -> dict[str, list]:
        """Any signature: named columns in, named columns out."""
        import requests

        body: dict[str, Any] = {"signature_name": signature, "inputs": inputs}
        try:
            answer = requests.post(f"{self.url}:predict", json=body, timeout=self.timeout)
        except requests.RequestException as error:
            raise ConnectionError(f"No answer from {self.url}: {error}") from None
        if answer.status_code != 200:
            raise RuntimeError(f"The server answered {answer.status_code}: {answer.text.strip()}")
        return answer.json()["outputs"]


class SavedModelClient:
    """`Client`'s face over an exported version on disk, loaded with TensorFlow alone.

    Args:
        directory: a version (`saved_models/NAME/1`) or a model's directory, whose last version
            is taken.

    Raises:
        FileNotFoundError: if there is no SavedModel.
    """

    def __init__(self, directory: str | Path) -> None:
        import tensorflow as tf

        self.version = _version(Path(directory))
        self._loaded = tf.saved_model.load(str(self.version))

    generate = Client.generate

    def predict(self, signature: str, inputs: dict[str, list]) -> dict[str, list]:
        """Any signature: named columns in, named columns out."""
        import tensorflow as tf

        function = self._loaded.signatures[signature]
        specs = function.structured_input_signature[1]
        tensors = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(v) for v in value]
            return value.decode("utf-8") if isinstance(value, bytes) else value

        return {key: plain(value.numpy().tolist()) for key, value in function(**tensors).items()}


def _version(directory: Path) -> Path:
    if (directory / "saved_model.pb").exists():
        return directory
    versions = [p for p in directory.glob("*/saved_model.pb") if p.parent.name.isdigit()]
    if not versions:
        raise FileNotFoundError(
            "An export is a directory with saved_model.pb, or one that holds numbered versions. "
            f"Received: {directory}."
        )
    return max(versions, key=lambda p: int(p.parent.name)).parent


def generate_inputs(prompts: str | Sequence[str], *parameters: Any) -> dict[str, list]:
    """The columns of the `generate` signature, every parameter once per row."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    inputs: dict[str, list] = {"prompt": prompts}
    for name, value in zip(names, parameters, strict=True):
        column = list(value) if isinstance(value, Sequence) else [value] * len(prompts)
        if len(column) != len(prompts):
            raise ValueError(
                f"{name} must be one value, or one for each of the {len(prompts)} prompts. "
                f"Received: {len(column)} values."
            )
        inputs[name] = column
    return inputs


def completions(outputs: dict[str, list]) -> list[str]:
    """The column of texts, if no row was refused."""
    for row, reason in enumerate(outputs["finish_reason"]):
        if reason.startswith("invalid: "):
            raise ValueError(f"{reason.removeprefix('invalid: ')} (prompt {row})")
    return outputs["text"]
