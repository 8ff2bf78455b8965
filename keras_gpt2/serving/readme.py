"""The page that an exported version carries about itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_gpt2.generation import Sampling
from keras_gpt2.serving import batching
from keras_gpt2.serving.limits import REST_SECONDS, Speed
from keras_gpt2.serving.server import XLA_FLAG
from keras_gpt2.serving.warmup import PROMPT, Record

IMAGE = "tensorflow/serving"


def write_readme(
    version: Path,
    name: str,
    model: Any,
    tokenizer: Any,
    defaults: Sampling,
    limit: int,
    speed: Speed,
    jit_compile: bool,
    description: str,
    records: Iterable[Record],
) -> None:
    """Writes README.md into `version`: what the model is, how to serve and ask it, its answers."""
    answers = "\n".join(_answer(name, record) for record in records if record.outputs)
    length = model.sequence_length
    megabytes = sum(p.stat().st_size for p in version.rglob("*") if p.is_file()) / 1e6
    xla = f" {XLA_FLAG}" if jit_compile else ""
    xla_note = (
        f"This export decodes under XLA: without `{XLA_FLAG}` the server refuses to load it.\n"
        "It compiles one program for each number of rows and of prompt tokens, rounded up; the\n"
        f"warm-up requests make those of up to {batching.MAX_BATCH_SIZE} rows while the model "
        "loads.\n\n"
        if jit_compile
        else ""
    )
    docker = f'docker run -p 8501:8501 -v "$PWD/{name}:/models/{name}" -e MODEL_NAME={name} {IMAGE}'
    (version / "README.md").write_text(
        f"""# {name}

A GPT-2 language model as a TensorFlow SavedModel: text in, text out.
{f"{chr(10)}{description}{chr(10)}" if description else ""}
- {model.count_params() / 1e6:.2f} million weights ({model.weights_type}), {megabytes:.1f} MB
- {model.num_layers} layers, {model.num_heads} heads, width {model.hidden_dim}; at most {length}
  tokens of prompt and new text together
- tokenizer: byte-level, {tokenizer.vocabulary_size} tokens, files in `assets/`, sha256
  `{tokenizer.fingerprint}`
- `serving_default` adds at most {defaults.max_new_tokens} tokens, temperature
  {defaults.temperature}, top_k {defaults.top_k}, top_p {defaults.top_p}, seed {defaults.seed}
- `generate` takes these as inputs, one value per row; max_new_tokens is at most {limit}
- on the machine that exported it a new token took {1000 * speed.token:.3g} ms, a prompt that fills
  the context {speed.prompt:.3g} s, so the longest request for one prompt alone
  {speed.seconds(limit, length):.3g} s; REST allows {REST_SECONDS:.0f} s unless the server is
  started with `--rest_api_timeout_in_ms`, and prompts that are answered together take longer

## Serve it

{xla_note}From the directory that holds the model's directory `{name}`:

```
{docker}{xla}
```

With requests merged into batches, as `{batching.NAME}` here says:

```
{docker}{xla} \\
  --enable_batching --enable_per_model_batching_parameters \\
  --batching_parameters_file=/models/{name}/VERSION/{batching.NAME}
```

VERSION is this directory's number: the number of threads is the whole server's, and read from that
file alone. `keras-gpt2 serve` puts all this together.

A new version is the next number beside this one; the server takes it within a second and leaves
the old one. Removing the new directory takes it back.

## Ask it

```
curl -d '{{"instances": [{json.dumps(PROMPT)}]}}' http://localhost:8501/v1/models/{name}:predict
```

A row that breaks a rule has `finish_reason` `invalid: <rule and value>` and no text; the others are
not touched by it. `truncated` tells that only the end of a prompt was read. `logits` takes
`token_ids` (batch, time), negative ids being padding, and gives float32 (batch, time,
{model.vocabulary_size}).

{answers}""",
        encoding="utf-8",
    )


def _answer(name: str, record: Record) -> str:
    body = {
        "signature_name": record.signature,
        "inputs": {key: _plain(value) for key, value in record.inputs.items()},
    }
    answer = json.dumps({k: _plain(v) for k, v in record.outputs.items()}, ensure_ascii=False)
    if len(answer) > 500:
        answer = f"{answer[:200]} ... (shortened)"
    return (
        f"### {record.signature}\n\n```\n"
        f"curl -d '{json.dumps(body)}' \\\n"
        f"  http://localhost:8501/v1/models/{name}:predict\n```\n\n"
        f"Answer at export time:\n\n```\n{answer}\n```\n"
    )


def _plain(tensor: Any) -> Any:
    """A tensor as what json writes."""

    def decoded(value: Any) -> Any:
        if isinstance(value, list):
            return [decoded(v) for v in value]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return round(value, 6) if isinstance(value, float) else value

    return decoded(tensor.numpy().tolist())
