"""The page that an exported version carries about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_gpt2.generation import Sampling

PROMPT = "Once upon a time"


def write_readme(
    version: Path, name: str, model: Any, tokenizer: Any, defaults: Sampling, limit: int
) -> None:
    """Loads the SavedModel in `version`, asks each signature once, and writes README.md there."""
    loaded = tf.saved_model.load(str(version))
    prompt = tf.constant([PROMPT])
    token_ids = loaded.signatures["tokenize"](text=prompt)["token_ids"]
    requests = {
        "serving_default": {"prompt": prompt},
        "generate": {
            "prompt": prompt,
            "max_new_tokens": tf.constant([min(16, limit)]),
            "temperature": tf.constant([0.8]),
            "top_k": tf.constant([0]),
            "top_p": tf.constant([0.95]),
            "seed": tf.constant([1]),
        },
        "score": {"text": prompt},
        "tokenize": {"text": prompt},
        "detokenize": {"token_ids": token_ids},
    }
    sections = []
    for signature, inputs in requests.items():
        answer = loaded.signatures[signature](**inputs)
        body = {
            "signature_name": signature,
            "inputs": {key: _plain(value) for key, value in inputs.items()},
        }
        sections.append(
            f"### {signature}\n\n```\n"
            f"curl -d '{json.dumps(body)}' \\\n"
            f"  http://localhost:8501/v1/models/{name}:predict\n```\n\n"
            f"Answer at export time:\n\n```\n"
            f"{json.dumps({k: _plain(v) for k, v in answer.items()}, ensure_ascii=False)}\n```\n"
        )
    signatures = "\n".join(sections)
    millions = model.count_params() / 1e6
    (version / "README.md").write_text(
        f"""# {name}

A GPT-2 language model as a TensorFlow SavedModel: text in, text out.

- {millions:.1f} million weights, {model.num_layers} layers, {model.num_heads} heads, width
  {model.hidden_dim}, at most {model.sequence_length} tokens of prompt and new text together
- tokenizer: byte-level, {tokenizer.vocabulary_size} tokens, files in `assets/`, sha256
  `{tokenizer.fingerprint}`
- `serving_default` adds at most {defaults.max_new_tokens} tokens, temperature
  {defaults.temperature}, top_k {defaults.top_k}, top_p {defaults.top_p}, seed {defaults.seed}
- `generate` takes these as inputs, one value per row; max_new_tokens is at most {limit}

## Serve it

From the directory that holds the model's directory `{name}`:

```
docker run -p 8501:8501 -v "$PWD/{name}:/models/{name}" -e MODEL_NAME={name} tensorflow/serving
```

## Ask it

```
curl -d '{{"instances": [{json.dumps(PROMPT)}]}}' http://localhost:8501/v1/models/{name}:predict
```

{signatures}
`logits` takes `token_ids` int32 (batch, time), negative ids being padding, and gives float32
(batch, time, {model.vocabulary_size}).
""",
        encoding="utf-8",
    )


def _plain(tensor: Any) -> Any:
    """A tensor as what json writes."""
    values = tensor.numpy().tolist()

    def decoded(value: Any) -> Any:
        if isinstance(value, list):
            return [decoded(v) for v in value]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return round(value, 6) if isinstance(value, float) else value

    return decoded(values)
