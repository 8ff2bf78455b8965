"""One program that generates, as a process that is asked over its standard input.

    python benchmarks/decoders.py NAME DIRECTORY

`decode.py` starts these and asks them in turn. DIRECTORY holds GPT-2 in Hugging Face's layout
(`hf/`), from which each program takes its weights. A request is a line of JSON, `[rows, prompt
tokens, new tokens]`; the answer is a line with the seconds it took and the ids of the last row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from programs import forget_peak, serve

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
Run = Callable[[int, int, int], Any]


def prompt_ids(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50000, (batch, length)).astype("int32")


def ours(directory: Path, jit_compile: bool, weights: str = "float") -> Run:
    import keras_gpt2 as kg
    from keras_gpt2.generation import generate_ids

    model = kg.GPT2.from_preset(directory / "hf")
    model.narrow(weights)

    def run(batch: int, length: int, new: int) -> Any:
        return generate_ids(
            model, prompt_ids(batch, length), new, temperature=0, jit_compile=jit_compile
        )

    return run


def exported(directory: Path, weights: str | None = None) -> Run:
    """The SavedModel in a TF1 session, as a stock server runs it: text in, text out."""
    import tensorflow as tf

    extra = {"weights": weights} if weights else {}
    name = f"saved-{weights or 'float32'}"
    if not (directory / name).exists():
        # In another process: what exporting leaves in memory is not the server's.
        code = f"""
import keras_gpt2 as kg
model = kg.GPT2.from_preset({str(directory / "hf")!r})
tokenizer = kg.BytePairTokenizer.from_directory({str(directory / "hf")!r})
kg.serving.export(model, tokenizer, {str(directory / name)!r}, **{extra!r})
"""
        subprocess.run([sys.executable, "-c", code], check=True)
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(directory / name / "1"))
    signature = meta.signature_def["generate"]
    feeds = {key: info.name for key, info in signature.inputs.items()}
    fetch = signature.outputs["num_tokens"].name

    def run(batch: int, length: int, new: int) -> Any:
        values = dict(prompt=[" the" * length], max_new_tokens=[new], temperature=[0.0])
        values |= dict(top_k=[0], top_p=[1.0], seed=[0])
        feed = {feeds[key]: value * batch for key, value in values.items()}
        assert (session.run(fetch, feed) == new).all()
        return [[]]

    return run


def keras_hub(directory: Path, jit_compile: bool) -> Run:
    import keras_hub as hub

    import keras_gpt2 as kg

    model = kg.GPT2.from_preset(directory / "hf")
    model = hub.models.GPT2CausalLM(kg.checkpoints.to_keras_nlp(model), preprocessor=None)
    model.compile(sampler="greedy", jit_compile=jit_compile)

    def run(batch: int, length: int, new: int) -> Any:
        ids = np.zeros((batch, length + new), "int32")
        ids[:, :length] = prompt_ids(batch, length)
        mask = np.zeros_like(ids)
        mask[:, :length] = 1
        out = model.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)
        return np.asarray(out["token_ids"])[:, length:]

    return run


def transformers(directory: Path) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(
        directory / "hf", attn_implementation="sdpa"
    ).eval()

    def run(batch: int, length: int, new: int) -> Any:
        ids = torch.tensor(prompt_ids(batch, length).astype("int64"))
        arguments = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
        return out[:, length:].numpy()

    return run


def ctranslate2(directory: Path, compute_type: str) -> Run:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    converted = str(directory / f"ctranslate2-{compute_type}")
    if not Path(converted).exists():
        quantization = None if compute_type == "float32" else compute_type
        TransformersConverter(str(directory / "hf")).convert(converted, quantization=quantization)
    generator = ctranslate2.Generator(
        converted, "cpu", compute_type=compute_type, inter_threads=1, intra_threads=THREADS
    )
    vocabulary = json.loads((directory / "hf/vocab.json").read_text())
    tokens = sorted(vocabulary, key=vocabulary.get)

    def run(batch: int, length: int, new: int) -> Any:
        prompts = [[tokens[i] for i in row] for row in prompt_ids(batch, length)]
        options = dict(max_length=new, min_length=new, sampling_topk=1, beam_size=1)
        out = generator.generate_batch(prompts, include_prompt_in_result=False, **options)
        return [row.sequences_ids[0] for row in out]

    return run


def llama_cpp(directory: Path, kind: str) -> Run:
    import llama_cpp as cpp

    path = directory / f"gpt2-{kind}.gguf"
    if not path.exists():
        write_gguf(directory / "hf", path, kind)
    owner = cpp.Llama(str(path), n_ctx=8, verbose=False)  # frees the model with itself
    contexts: dict[tuple[int, int], Any] = {}

    def context(batch: int, places: int) -> tuple[Any, Any]:
        if (batch, places) not in contexts:
            parameters = cpp.llama_context_default_params()
            parameters.n_ctx = batch * -(-places // 256) * 256
            parameters.n_batch, parameters.n_ubatch, parameters.n_seq_max = 1024, 512, batch
            parameters.n_threads = parameters.n_threads_batch = THREADS
            made = cpp.llama_init_from_model(owner._model.model, parameters)
            contexts[batch, places] = made, cpp.llama_batch_init(1024, 0, batch)
        return contexts[batch, places]

    def feed(ctx: Any, tokens: Any, entries: list[tuple[int, int, int, bool]]) -> None:
        tokens.n_tokens = len(entries)
        for i, (token, position, row, wanted) in enumerate(entries):
            tokens.token[i], tokens.pos[i], tokens.n_seq_id[i] = token, position, 1
            tokens.seq_id[i][0], tokens.logits[i] = row, wanted
        assert cpp.llama_decode(ctx, tokens) == 0

    def best(ctx: Any, place: int) -> int:
        return int(np.argmax(np.ctypeslib.as_array(cpp.llama_get_logits_ith(ctx, place), (50257,))))

    def run(batch: int, length: int, new: int) -> Any:
        ctx, tokens = context(batch, length + new)
        cpp.llama_memory_clear(cpp.llama_get_memory(ctx), True)
        last = length - 1
        prompt = [
            (int(token), place, row, place == last)
            for row, ids in enumerate(prompt_ids(batch, length))
            for place, token in enumerate(ids)
        ]
        feed(ctx, tokens, prompt)
        out = [[best(ctx, row * length + last)] for row in range(batch)]
        for step in range(new - 1):
            feed(ctx, tokens, [(out[row][-1], length + step, row, True) for row in range(batch)])
            for row in range(batch):
                out[row].append(best(ctx, row))
        return out

    return run


def write_gguf(source: Path, path: Path, kind: str) -> None:
    import gguf
    from safetensors.numpy import load_file

    tensors = {
        name.removeprefix("transformer."): value
        for name, value in load_file(source / "model.safetensors").items()
    }
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(12)
    writer.add_context_length(1024)
    writer.add_embedding_length(768)
    writer.add_feed_forward_length(3072)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-5)
    vocabulary = json.loads((source / "vocab.json").read_text())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    merges = (source / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    writer.add_token_merges([line for line in merges if line])
    quantized = gguf.GGMLQuantizationType.Q8_0
    names = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    for name, value in tensors.items():
        layer, kind_of = name.rsplit(".", 1)
        block = ""
        if layer.startswith("h."):
            _, number, layer = layer.split(".", 2)
            block = f"blk.{number}."
        is_product = layer.split(".")[-1].startswith("c_") and kind_of == "weight"
        array = np.ascontiguousarray(value.T if is_product else value, "float32")
        full_name = f"{block}{names[layer]}.{kind_of}"
        if kind == "q8_0" and (is_product or layer == "wte"):
            writer.add_tensor(
                full_name, gguf.quants.quantize(array, quantized), raw_dtype=quantized
            )
        else:
            writer.add_tensor(full_name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


DECODERS: dict[str, Callable[[Path], Run]] = {
    "keras_gpt2 graph": lambda d: ours(d, False),
    "keras_gpt2 XLA": lambda d: ours(d, True),
    "keras_gpt2 bfloat16 XLA": lambda d: ours(d, True, "bfloat16"),
    "keras_gpt2 int8 graph": lambda d: ours(d, False, "int8"),
    "keras_gpt2 int8 XLA": lambda d: ours(d, True, "int8"),
    "SavedModel": exported,
    "SavedModel int8": lambda d: exported(d, "int8"),
    "KerasHub graph": lambda d: keras_hub(d, False),
    "KerasHub XLA": lambda d: keras_hub(d, True),
    "transformers": transformers,
    "CTranslate2": lambda d: ctranslate2(d, "float32"),
    "CTranslate2 int8": lambda d: ctranslate2(d, "int8"),
    "llama.cpp": lambda d: llama_cpp(d, "f32"),
    "llama.cpp q8_0": lambda d: llama_cpp(d, "q8_0"),
}


def main() -> None:
    name, directory = sys.argv[1], Path(sys.argv[2])

    def make() -> Callable[[list[int]], dict[str, Any]]:
        run = DECODERS[name](directory)
        forget_peak()  # that of loading
        return lambda sizes: {"ids": [int(i) for i in run(*sizes)[-1]]}

    serve(make)


if __name__ == "__main__":
    main()
