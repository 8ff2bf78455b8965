"""Writes the checkpoints and results in fixtures/ with transformers and plain TensorFlow.

    pip install torch transformers tensorflow
    python tests/models/checkpoints/make_fixtures.py

Nothing of keras_gpt2 is used: the results are transformers', computed in float32 on the weights as
they are stored. About 30 seconds; the files differ from the last ones only if the versions do.
"""

import json
import shutil
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"

MODELS = {
    "tied": dict(
        config=dict(vocab_size=263, n_positions=29, n_embd=21, n_layer=2, n_head=3),
        dtype="float32",
        shard_size="1GB",
    ),
    "untied_sharded": dict(
        config=dict(
            vocab_size=257,
            n_positions=17,
            n_embd=35,
            n_layer=3,
            n_head=5,
            n_inner=31,
            activation_function="relu",
            layer_norm_epsilon=1e-3,
            tie_word_embeddings=False,
        ),
        dtype="float32",
        shard_size="60KB",
    ),
    "bfloat16": dict(
        config=dict(
            vocab_size=269,
            n_positions=19,
            n_embd=14,
            n_layer=1,
            n_head=7,
            activation_function="gelu",
        ),
        dtype="bfloat16",
        shard_size="1GB",
    ),
}


def write_hugging_face(name: str, config: dict, dtype: str, shard_size: str, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    directory = FIXTURES / name
    shutil.rmtree(directory, ignore_errors=True)
    last = config["vocab_size"] - 1
    written = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=last, eos_token_id=last))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in written.named_parameters():
            # transformers starts with zero biases and norms of one, which would hide mistakes.
            parameter.normal_(0.0, 0.3, generator=generator)
            if ".ln_" in path and path.endswith("weight"):
                parameter += 1.0
    written.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard_size)

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    token_ids = torch.randint(0, last + 1, (3, 13), generator=generator)
    with torch.no_grad():
        output = model(token_ids, labels=token_ids, output_hidden_states=True)
        greedy = token_ids[:, :5]
        while greedy.shape[1] < config["n_positions"]:
            following = model(greedy).logits[:, -1].argmax(-1, keepdim=True)
            greedy = torch.cat([greedy, following], dim=1)
    np.savez_compressed(
        directory / "results.npz",
        token_ids=token_ids.numpy().astype("int32"),
        logits=output.logits.numpy(),
        hidden=np.stack([hidden.numpy() for hidden in output.hidden_states]),
        loss=output.loss.numpy(),
        greedy=greedy.numpy().astype("int32"),
    )


def write_openai(name: str, source: str) -> None:
    """The weights of the fixture `source`, named as in OpenAI's `src/model.py`; same results."""
    import tensorflow as tf
    from safetensors.numpy import load_file

    directory = FIXTURES / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    weights = load_file(FIXTURES / source / "model.safetensors")
    norm, dense = {"weight": "g", "bias": "b"}, {"weight": "w", "bias": "b"}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = []
        for full_name, value in weights.items():
            _, *scopes, kind = full_name.split(".")
            if scopes[0] == "h":
                scopes[:2] = [f"h{scopes[1]}"]
            if scopes[-1].startswith("ln_"):
                scopes.append(norm[kind])
            elif len(scopes) > 1:
                scopes.append(dense[kind])
                value = value[None] if kind == "weight" else value
            variables.append(
                tf.compat.v1.get_variable("/".join(["model", *scopes]), initializer=value)
            )
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)
        saver.save(session, str(directory / "model.ckpt"), write_meta_graph=False)
    config = json.loads((FIXTURES / source / "config.json").read_text())
    hparams = dict(
        n_vocab=config["vocab_size"],
        n_ctx=config["n_positions"],
        n_embd=config["n_embd"],
        n_head=config["n_head"],
        n_layer=config["n_layer"],
    )
    (directory / "hparams.json").write_text(json.dumps(hparams, indent=2) + "\n")


if __name__ == "__main__":
    for seed, (name, model) in enumerate(MODELS.items()):
        write_hugging_face(name, **model, seed=seed)
    write_openai("openai", source="tied")
