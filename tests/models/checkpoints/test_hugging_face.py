import contextlib
import json
import re
import shutil
import struct
import subprocess
import sys

import keras
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from keras_gpt2.layers import CausalSelfAttention, ResidualBlock
from keras_gpt2.layers.feed_forward import gelu_tanh
from keras_gpt2.models import GPT2
from keras_gpt2.models.checkpoints import load_hugging_face, save_hugging_face
from keras_gpt2.text import BytePairTokenizer

# --- Loading: the same model in other files ---


def test_names_without_prefix_and_with_mask_buffers(edited, tied, assert_same_weights):
    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 29, 29), "uint8")
        tensors["h.1.attn.masked_bias"] = np.full((), -1e4, "float32")

    assert_same_weights(load_hugging_face(edited(change)), tied)


def test_float16_file(edited, tied):
    def change(tensors):
        for name, value in tensors.items():
            tensors[name] = value.astype("float16")

    loaded = load_hugging_face(edited(change))
    for variable, exact in zip(loaded.weights, tied.weights, strict=True):
        assert variable.dtype == "float32"
        expected = np.asarray(exact).astype("float16").astype("float32")
        np.testing.assert_array_equal(np.asarray(variable), expected)


def test_bfloat16_file_is_read_as_the_library_reads_it(fixtures):
    path = fixtures / "bfloat16" / "model.safetensors"
    expected = load_file(path)["transformer.wte.weight"]
    assert expected.dtype.name == "bfloat16"
    loaded = load_hugging_face(path.parent)
    np.testing.assert_array_equal(
        np.asarray(loaded.token_embedding.embeddings), expected.astype("float32")
    )


def test_tied_head_stored_twice(edited, tied, assert_same_weights):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()

    assert_same_weights(load_hugging_face(edited(change)), tied)


def test_tied_head_that_differs(edited):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1e-3

    with pytest.raises(ValueError, match=r"'lm_head.weight' must equal 'wte.weight'.*safetensors"):
        load_hugging_face(edited(change))


def test_configuration_becomes_arguments(fixtures, edited):
    model = load_hugging_face(fixtures / "untied_sharded")
    found = {key: model.get_config()[key] for key in ("vocabulary_size", "sequence_length")}
    assert found == dict(vocabulary_size=257, sequence_length=17)
    assert (model.num_layers, model.num_heads, model.hidden_dim) == (3, 5, 35)
    assert (model.intermediate_dim, model.epsilon, model.dropout) == (31, 1e-3, 0.1)
    assert (model.activation, model.tie_weights) == ("relu", False)
    other = edited(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu")
    model = load_hugging_face(other)
    assert (model.dropout, model.activation, model.intermediate_dim) == (0.0, "gelu", 84)


def test_gelu_pytorch_tanh_is_the_tanh_form(edited):
    model = load_hugging_face(edited(activation_function="gelu_pytorch_tanh"))
    assert model.activation == "gelu_tanh"


def test_unequal_dropout_rates_warn(edited):
    with pytest.warns(UserWarning, match="'resid_pdrop': 0.3, 'embd_pdrop': 0.2"):
        model = load_hugging_face(edited(resid_pdrop=0.3, embd_pdrop=0.2))
    assert model.dropout == 0.3


def test_a_harmless_field_is_accepted(edited, tied, assert_same_weights):
    assert_same_weights(load_hugging_face(edited(reorder_and_upcast_attn=True)), tied)


def test_dtype_policy_is_kept(fixtures):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = load_hugging_face(fixtures / "tied")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in model.weights} == {"float32"}
    assert model.final_norm.compute_dtype == "bfloat16"


def test_loaded_model_trains(edited, fixtures):
    model = load_hugging_face(edited(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=keras.backend.backend() == "tensorflow")  # no tracing
    token_ids = np.load(fixtures / "tied" / "results.npz")["token_ids"]
    losses = [model.train_on_batch(token_ids[:, :-1], token_ids[:, 1:]) for _ in range(3)]
    assert losses[2] < losses[0] - 0.01


def test_a_keras_without_deferred_variables(tied, fixtures, monkeypatch, assert_same_weights):
    monkeypatch.setattr("keras.StatelessScope", contextlib.nullcontext)
    assert_same_weights(load_hugging_face(fixtures / "tied"), tied)


# --- Loading: what GPT2 cannot express ---


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "gpt_neo"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 4}),
        ("activation_function", "silu"),
        ("n_layer", None),
        ("n_head", "3"),
    ],
)
def test_refused_configuration(edited, field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .* Received: {field}=.*config\.json"):
        load_hugging_face(edited(**{field: value}))


def test_pickle_is_refused_and_never_opened(edited):
    directory = edited()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin can run any code.*safe_ser"):
        load_hugging_face(directory)


def test_no_weights(edited):
    directory = edited()
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="with config.json, generation_config.json, res"):
        load_hugging_face(directory)


def test_no_configuration(edited):
    directory = edited()
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="must have a config.json.*model.safetensors"):
        load_hugging_face(directory)
    (directory / "config.json").write_text('{"n_embd": 2')
    with pytest.raises(ValueError, match=r"config.json must be JSON. Received: .*edited"):
        load_hugging_face(directory)


# --- Loading: damaged files ---

_NAME = "transformer.h.1.mlp.c_fc.weight"
_SHORT = r"h\.1\.mlp\.c_fc\.weight"


def _without(tensors):
    del tensors[_NAME]


def _extra(tensors):
    tensors["score.weight"] = np.zeros((2, 21), "float32")


def _wrong_shape(tensors):
    tensors[_NAME] = np.ascontiguousarray(tensors[_NAME].T)


def _nan(tensors):
    tensors[_NAME][20, 83] = np.nan


def _infinity(tensors):
    tensors[_NAME][0, 0] = -np.inf


def _integers(tensors):
    tensors[_NAME] = tensors[_NAME].astype("int32")


def _twice(tensors):
    tensors[_NAME.removeprefix("transformer.")] = tensors[_NAME].copy()


@pytest.mark.parametrize(
    "damage, message",
    [
        (_without, f"edited without '{_SHORT}'"),
        (_extra, r"edited with 'score\.weight'"),
        (_wrong_shape, r"'h\.1\.mlp\.c_fc\.weight' must have the shape \(21, 84\).*\(84, 21\) in "),
        (_nan, r"'h\.1\.mlp\.c_fc\.weight' must be finite.*model\.safetensors"),
        (_infinity, r"'h\.1\.mlp\.c_fc\.weight' must be finite.*model\.safetensors"),
        (_integers, r"c_fc\.weight' must be of type .*dtype=I32 in .*model\.safetensors"),
        (_twice, r"'h\.1\.mlp\.c_fc\.weight' must be there once.*model\.safetensors"),
    ],
)
def test_damaged_tensors(edited, damage, message, fixtures, tied, assert_same_weights):
    with pytest.raises(ValueError, match=message):
        load_hugging_face(edited(damage))
    # The failure leaves nothing behind that the next model stumbles over.
    assert_same_weights(load_hugging_face(fixtures / "tied"), tied)
    GPT2(5, 3, 1, 1, 2)


def test_every_truncation_is_an_error_that_names_the_file(edited):
    path = edited() / "model.safetensors"
    content = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for size in (0, 7, 8, header_end - 1, header_end, (header_end + len(content)) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_hugging_face(path.parent)
    path.write_bytes(content[:-1])
    with pytest.raises(
        ValueError, match=r"must be whole.*safetensors.* tensor 'transformer\.\S+' damaged"
    ):
        load_hugging_face(path.parent)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": [21, 85]}, f"tensor '{_NAME}' damaged"),
        ({"data_offsets": [8, 4]}, f"tensor '{_NAME}' damaged"),
        ({"data_offsets": [-7056, 0]}, f"tensor '{_NAME}' damaged"),
        ({"data_offsets": [0]}, "header"),
        ({"shape": None}, "header"),
    ],
)
def test_false_header(edited, change, message):
    path = edited() / "model.safetensors"
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header[_NAME].update(change)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[start:])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
        load_hugging_face(path.parent)


@pytest.mark.parametrize("moved", [True, False])
def test_shard_that_is_not_there(fixtures, tmp_path, moved):
    directory = shutil.copytree(fixtures / "untied_sharded", tmp_path / "copy")
    shard = "model-00002-of-00003.safetensors"
    if moved:  # out of the directory: an index must not reach there
        (directory / shard).rename(tmp_path / shard)
        index = directory / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(shard, f"../{shard}"))
    else:
        (directory / shard).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard}', which should hold 'transformer\.h\."):
        load_hugging_face(directory)


# --- Saving ---


@pytest.fixture(scope="module")
def tokenizer():
    text = ["the quick brown fox jumps over the lazy dog, the fox", "Zwölf Boxkämpfer jagen"]
    return BytePairTokenizer.train_from_iterator(text, 277)


def test_there_and_back_is_bit_identical(model, name, fixtures, tmp_path, assert_same_weights):
    directory = save_hugging_face(model, tmp_path / "parents" / "saved")
    back = load_hugging_face(directory)
    assert_same_weights(back, model)
    for key, value in model.get_config().items():
        assert key == "name" or back.get_config()[key] == value, key
    if name == "tied":
        original = load_file(fixtures / name / "model.safetensors")
        saved = load_file(directory / "model.safetensors")
        assert saved.keys() == original.keys()
        for tensor in saved:
            np.testing.assert_array_equal(saved[tensor], original[tensor], err_msg=tensor)
        with safe_open(directory / "model.safetensors", "np") as file:
            assert file.metadata() == {"format": "pt"}


def test_activation_given_as_a_function(tmp_path):
    model = GPT2(7, 3, 1, 1, 2, activation=gelu_tanh)
    save_hugging_face(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["activation_function"] == (
        "gelu_new"
    )
    with pytest.raises(ValueError, match="activation=tanh"):
        save_hugging_face(GPT2(7, 3, 1, 1, 2, activation="tanh"), tmp_path / "other")


class OwnAttention(CausalSelfAttention):
    pass


class OwnBlock(ResidualBlock):
    pass


def test_layer_classes_of_its_own_are_refused(tmp_path):
    with pytest.raises(ValueError, match="attention_class=OwnAttention"):
        save_hugging_face(GPT2(7, 3, 1, 1, 2, attention_class=OwnAttention), tmp_path / "a")
    with pytest.raises(ValueError, match="block_class=OwnBlock"):
        save_hugging_face(GPT2(7, 3, 1, 1, 2, block_class=OwnBlock), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_quantized_model_is_refused(tmp_path):
    model = GPT2(7, 3, 1, 1, 2)
    model.quantize("int8")
    with pytest.raises(ValueError, match="no place for.*scale"):
        save_hugging_face(model, tmp_path / "a")


def test_a_directory_with_content_is_left_alone(tied, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="new or empty"):
        save_hugging_face(tied, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    assert (save_hugging_face(tied, tmp_path / "empty") / "model.safetensors").is_file()


def test_a_crash_leaves_no_directory(tied, tmp_path, tokenizer, monkeypatch):
    seen = []

    def crash(path, tensors):
        seen.extend(file.name for file in path.parent.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_gpt2.models.checkpoints.hugging_face.write_safetensors", crash)
    with pytest.raises(KeyboardInterrupt):
        save_hugging_face(GPT2(277, 3, 1, 1, 2), tmp_path / "saved", tokenizer)
    assert "config.json" in seen and not list(tmp_path.iterdir())


def test_tokenizer_must_fit(tied, tmp_path, tokenizer):
    with pytest.raises(ValueError, match="277 tokens, vocabulary_size=263"):
        save_hugging_face(tied, tmp_path / "saved", tokenizer)


def test_saved_tokenizer(tmp_path, tokenizer):
    directory = save_hugging_face(GPT2(281, 13, 1, 1, 2), tmp_path / "saved", tokenizer)
    assert BytePairTokenizer.from_directory(directory) == tokenizer
    for file in ("config.json", "generation_config.json"):
        content = json.loads((directory / file).read_text())
        assert content["bos_token_id"] == content["eos_token_id"] == 276
    assert json.loads((directory / "tokenizer_config.json").read_text())["model_max_length"] == 13


def test_transformers_opens_what_was_saved(model, results, tokenizer, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    directory = save_hugging_face(model, tmp_path / "saved")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(results["token_ids"], dtype=torch.int64)).logits
    np.testing.assert_allclose(logits.numpy(), results["logits"], rtol=0, atol=1e-4)

    own = GPT2(277, 13, 1, 1, 2)
    directory = save_hugging_face(own, tmp_path / "with tokenizer", tokenizer)
    opened = transformers.AutoTokenizer.from_pretrained(directory)
    text = "the fox: Zwölf\n\n  lazy 🦊 dogs<|endoftext|>the"
    assert opened(text)["input_ids"] == tokenizer.encode(text, allow_special=True)
    assert opened.decode(opened(text)["input_ids"]) == text
    assert len(opened) == 277 and opened.model_max_length == 13
    assert opened.eos_token_id == opened.bos_token_id == tokenizer.end_of_text_id
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert theirs.generation_config.eos_token_id == tokenizer.end_of_text_id


# --- The hub ---


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_hub_id_in_the_cache(hub_cache, fixtures, tied, assert_same_weights):
    repository = hub_cache / "models--openai-community--gpt2"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(revision)
    shutil.copytree(fixtures / "tied", repository / "snapshots" / revision)
    assert_same_weights(load_hugging_face("openai-community/gpt2"), tied)
    assert_same_weights(GPT2.from_preset("gpt2"), tied)


def test_hub_id_out_of_reach(hub_cache):
    with pytest.raises(OSError, match="'openai-community/gpt2-xl' is no directory") as caught:
        GPT2.from_preset("gpt2-xl")
    assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)


def test_a_missing_directory_is_not_asked_of_the_hub():
    with pytest.raises(FileNotFoundError, match="'./no/such/directory'"):
        load_hugging_face("./no/such/directory")


# --- Memory ---

_MEASURE = """
import json, sys
import numpy as np
import keras_gpt2.models as models
from keras_gpt2.models import checkpoints

def megabytes(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6

models.GPT2(11, 5, 1, 1, 4)(np.zeros((1, 3), "int32"))
before = megabytes("VmRSS")
model = checkpoints.load_hugging_face(sys.argv[1])
weights = sum(4 * int(np.prod(variable.shape)) for variable in model.weights) / 1e6
print(json.dumps([weights, megabytes("VmHWM") - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_little_more_than_the_weights(tmp_path):
    from keras_gpt2.models.checkpoints.variables import rows  # the names; zeros as values

    config = dict(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}))
    model = GPT2(**{**GPT2.from_preset("gpt2-tiny").get_config(), "num_layers": 12})
    shapes = {variable.path: tuple(variable.shape) for variable in model.weights}
    sizes = {50257: 50257, 128: 1024, 64: 768, 192: 2304, 256: 3072}
    header, end = {}, 0
    for row in rows(12):
        kind = "bias" if row.kind in ("beta", "bias") else "weight"
        shape = [sizes[size] for size in shapes[row.path]]
        start, end = end, end + 4 * int(np.prod(shape))
        header[f"{row.hugging_face}.{kind}"] = dict(
            dtype="F32", shape=shape, data_offsets=[start, end]
        )
    encoded = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    output = subprocess.run(
        [sys.executable, "-c", _MEASURE, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    weights, peak = json.loads(output.splitlines()[-1])
    assert weights == pytest.approx(497.8, abs=0.1)
    assert peak < 1.3 * weights
