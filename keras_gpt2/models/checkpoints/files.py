"""Reading the small files of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def listing(directory: Path) -> str:
    """The names of what is in a directory, in one line."""
    names = sorted(path.name for path in directory.iterdir())
    return ", ".join(names[:20] + ["..."] * (len(names) > 20)) or "nothing"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"A checkpoint must have a {path.name}. "
            f"Received: {path.parent} with {listing(path.parent)}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} must be JSON. Received: {path}, {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must be a JSON object. Received: {path}.")
    return content


def read_sizes(config: Mapping[str, Any], fields: Mapping[str, str], place: str) -> dict[str, Any]:
    """The entries of `config` under `fields` (their name -> ours), all of them ints."""
    for field in fields:
        if type(config.get(field)) is not int:
            raise ValueError(
                f"{field} must be an int. Received: {field}={config.get(field)!r} in {place}."
            )
    return {ours: config[field] for field, ours in fields.items()}
