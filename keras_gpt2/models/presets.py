"""The sizes of GPT-2 by name."""

from __future__ import annotations

PRESETS: dict[str, dict[str, int]] = {
    "gpt2-tiny": dict(num_layers=2, num_heads=2, hidden_dim=64, sequence_length=128),
    "gpt2": dict(num_layers=12, num_heads=12, hidden_dim=768, sequence_length=1024),
    "gpt2-medium": dict(num_layers=24, num_heads=16, hidden_dim=1024, sequence_length=1024),
    "gpt2-large": dict(num_layers=36, num_heads=20, hidden_dim=1280, sequence_length=1024),
    "gpt2-xl": dict(num_layers=48, num_heads=25, hidden_dim=1600, sequence_length=1024),
}
"""Keyword arguments of `GPT2` for each size; all have `vocabulary_size=50257`.

The four published sizes are those of Radford et al. 2019, table 2, with the numbers of heads from
OpenAI's released `hparams.json` files. `gpt2-tiny` is ours, for tests and demonstrations.
"""

for _preset in PRESETS.values():
    _preset["vocabulary_size"] = 50257
