"""An exported version: what it holds, and what it answers where our package is not."""

import json
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

import keras_gpt2 as kg

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

import tensorflow as tf

from keras_gpt2.serving.inspection import operations
from tests.serving.session import Session

PROMPTS = ["The king", "", "A function definition", "Ärger 漢"]


@pytest.fixture(scope="module")
def model():
    from tests.conftest import random_weights

    return random_weights(kg.GPT2(311, 23, num_layers=2, num_heads=3, hidden_dim=15))


@pytest.fixture(scope="module")
def version(model, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved_models") / "tales"
    return kg.serving.export(model, tokenizer, directory, max_new_tokens=7)


@pytest.fixture(scope="module")
def session(version):
    return Session(version)


@pytest.fixture
def ask(session):
    return lambda signature, **inputs: session.run(signature, inputs)


def columns(rows, **changes):
    values = dict(max_new_tokens=7, temperature=0.9, top_k=0, top_p=0.9, seed=3)
    dtypes = dict(temperature="float32", top_p="float32")
    return {
        name: np.broadcast_to(np.array(value, dtypes.get(name, "int32")), (rows,))
        for name, value in {**values, **changes}.items()
    }


def test_version_numbers_count_up(model, tokenizer, version):
    assert version.name == "1"
    (version.parent / "17").mkdir()
    (version.parent / "notes").mkdir()
    assert kg.serving.export(model, tokenizer, version.parent).name == "18"
    names = {p.name for p in version.parent.iterdir()}
    assert names == {"1", "17", "18", "notes"}, "nothing is left over"


def test_two_exports_at_once_get_two_versions(model, tokenizer, tmp_path):
    made = []
    threads = [
        threading.Thread(
            target=lambda: made.append(kg.serving.export(model, tokenizer, tmp_path / "both").name)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["1", "2"]


def test_a_failed_export_leaves_nothing(model, tokenizer, tmp_path, monkeypatch):
    import keras_gpt2.serving.export as module

    monkeypatch.setattr(sys.modules[module.__module__], "write_readme", _fail)
    with pytest.raises(OSError, match="disk full"):
        kg.serving.export(model, tokenizer, tmp_path / "tales")
    assert not list((tmp_path / "tales").iterdir())


def _fail(*_):
    raise OSError("disk full")


def test_weights_are_stored_once(model, version):
    stored = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    shapes = stored.get_variable_to_shape_map()
    count = sum(int(np.prod(s)) for key, s in shapes.items() if "weights" in key)
    assert count == model.count_params()


def test_files(version, tokenizer):
    names = {"README.md", "saved_model.pb", "variables", "assets", "assets.extra"}
    assert names <= {p.name for p in version.iterdir()}
    assets = {p.name for p in (version / "assets").iterdir()}
    assert assets == {"vocab.json", "merges.txt"}
    assert kg.BytePairTokenizer.from_directory(version / "assets") == tokenizer
    readme = (version / "README.md").read_text(encoding="utf-8")
    assert "docker run" in readme and tokenizer.fingerprint in readme


SUBPROCESS = """
import json, sys
sys.modules["keras"] = sys.modules["keras_gpt2"] = sys.modules["tensorflow_text"] = None
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
prompts = json.loads(sys.argv[2])
default = served.signatures["serving_default"](prompt=tf.constant(prompts))
n = len(prompts)
sampled = served.signatures["generate"](
    prompt=tf.constant(prompts), max_new_tokens=tf.fill([n], 7), temperature=tf.fill([n], 0.9),
    top_k=tf.fill([n], 40), top_p=tf.fill([n], 0.9), seed=tf.fill([n], 3))
print(json.dumps([[t.decode() for t in a["text"].numpy()] for a in (default, sampled)]))
"""


def test_a_process_without_our_package_writes_the_same_text(model, tokenizer, version, tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", SUBPROCESS, str(version), json.dumps(PROMPTS)],
        capture_output=True, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    default, sampled = json.loads(answer.stdout.splitlines()[-1])
    assert default == kg.generate(model, tokenizer, PROMPTS, 7, temperature=0)
    assert sampled == kg.generate(
        model, tokenizer, PROMPTS, 7, temperature=0.9, top_k=40, top_p=0.9, seed=3
    )


def test_signatures_have_the_batch_first(session):
    signatures = session.signatures
    names = {"serving_default", "generate", "score", "logits", "tokenize", "detokenize"}
    assert names <= set(signatures)
    assert list(signatures["serving_default"].inputs) == ["prompt"]
    for name in names:
        for info in (*signatures[name].inputs.values(), *signatures[name].outputs.values()):
            dims = info.tensor_shape.dim
            assert len(dims) >= 1 and dims[0].size == -1, (name, info)


def test_defaults_are_in_the_signature_and_broadcast(version, ask, model, tokenizer):
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((version / "saved_model.pb").read_bytes())
    defaults = proto.meta_graphs[0].signature_def["generate"].defaults
    values = {name: tf.make_ndarray(value).tolist() for name, value in defaults.items()}
    expected = dict(max_new_tokens=[7], temperature=[0.0], top_k=[0], top_p=[1.0], seed=[0])
    assert values == expected
    text = ask("generate", prompt=PROMPTS, **columns(1, **expected))["text"]
    assert [t.decode() for t in text] == kg.generate(model, tokenizer, PROMPTS, 7, temperature=0)


def test_generate_outputs(ask, model, tokenizer):
    answer = ask("generate", prompt=["The king", "Ärger"], **columns(2))
    assert answer["num_tokens"].tolist() == [7, 7]
    assert answer["finish_reason"].tolist() == [b"length", b"length"]
    texts = kg.generate(
        model, tokenizer, ["The king", "Ärger"], 7, temperature=0.9, top_p=0.9, seed=3
    )
    assert [t.decode() for t in answer["text"]] == texts
    assert (answer["log_prob"] < 0).all()


BAD_ROWS = [
    (dict(temperature=-1.0), "temperature must be a number >= 0. Received: temperature=-1"),
    (dict(temperature=np.nan), "temperature=nan"),
    (dict(temperature=np.inf), "temperature=inf"),
    (dict(top_k=-5), "top_k must be an integer >= 0. Received: top_k=-5"),
    (dict(top_p=0.0), "top_p must be in (0, 1]"),
    (dict(top_p=np.nan), "top_p=nan"),
    (dict(max_new_tokens=-1), "max_new_tokens must be from 0 to 22"),
    (dict(max_new_tokens=23), "Received: max_new_tokens=23"),
]


def test_bad_rows_are_told_and_the_others_get_their_text(ask):
    prompts = [f"The king {i}" for i in range(len(BAD_ROWS) + 1)]
    rows = [columns(1, seed=i + 1, **bad) for i, (bad, _) in enumerate([*BAD_ROWS, ({}, "")])]
    merged = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    answer = ask("generate", prompt=prompts, **merged)
    alone = ask("generate", prompt=prompts[-1:], **rows[-1])
    assert answer["text"][-1] == alone["text"][0] != b""
    for i, (_, words) in enumerate(BAD_ROWS):
        reason = answer["finish_reason"][i].decode()
        assert reason.startswith("invalid: ") and words in reason
        assert answer["text"][i] == b"" and answer["num_tokens"][i] == 0


def test_odd_rows_are_answered(ask, tokenizer):
    long = "The king is dead. " * 50
    prompts = ["", long, b"\xff\xfe broken \xc3", "a\0b", "<|endoftext|>"]
    answer = ask("generate", prompt=prompts, **columns(5))
    assert answer["finish_reason"].tolist() == [b"length"] * 5
    texts = [p if isinstance(p, str) else p.decode("utf-8", "replace") for p in prompts]
    too_long = [len(tokenizer.encode(text)) > 16 for text in texts]
    assert answer["truncated"].tolist() == too_long and sum(too_long) == 2
    for text in answer["text"]:
        text.decode("utf-8")
    end = tokenizer.decode(tokenizer.encode(long)[-16:])
    assert tokenizer.encode(end) == tokenizer.encode(long)[-16:]
    assert ask("generate", prompt=[end], **columns(1))["text"][0] == answer["text"][1]
    nothing = ask("generate", prompt=["The king"], **columns(1, max_new_tokens=0))
    assert nothing["text"].tolist() == [b""] and nothing["num_tokens"].tolist() == [0]
    assert nothing["finish_reason"].tolist() == [b"length"]


def test_a_batch_of_no_rows(ask):
    none = np.zeros((0,), object)
    assert ask("serving_default", prompt=none)["text"].shape == (0,)
    assert ask("generate", prompt=none, **columns(0))["text"].shape == (0,)
    assert ask("score", text=none)["log_prob"].shape == (0,)
    assert ask("tokenize", text=none)["num_tokens"].shape == (0,)
    assert ask("detokenize", token_ids=np.zeros((0, 3), "int32"))["text"].shape == (0,)
    assert ask("logits", token_ids=np.zeros((0, 3), "int32"))["logits"].shape == (0, 3, 311)


def test_end_of_text_finishes_a_row(tokenizer, tmp_path):
    certain = kg.GPT2(311, 23, num_layers=1, num_heads=1, hidden_dim=4)
    # All hidden states alike, and nearest to the end's embedding.
    for weight in certain.weights:
        weight.assign(0 * weight)
    certain.final_norm.beta.assign([1.0, 0, 0, 0])
    table = np.zeros((311, 4), "float32")
    table[tokenizer.end_of_text_id, 0] = 9
    certain.token_embedding.embeddings.assign(table)
    served = tf.saved_model.load(str(kg.serving.export(certain, tokenizer, tmp_path / "end")))
    arguments = {k: tf.constant(v) for k, v in columns(1, temperature=0.0).items()}
    answer = served.signatures["generate"](prompt=tf.constant(["The"]), **arguments)
    assert answer["finish_reason"].numpy().tolist() == [b"end_of_text"]
    assert answer["text"].numpy().tolist() == [b""] and answer["num_tokens"].numpy() == [1]
    assert kg.generate(certain, tokenizer, "The", temperature=0, max_new_tokens=5) == [""]


def test_score_equals_the_models_loss(ask, model, tokenizer):
    texts = ["The king is dead", "", "A", "long live the king! " * 20]
    answer = ask("score", text=texts)
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text)[:23]
        assert answer["num_tokens"][i] == max(len(ids) - 1, 0)
        if len(ids) < 2:
            assert answer["log_prob"][i] == 0 and answer["perplexity"][i] == 1
            continue
        score = kg.training.score_tokens(model, ids, 23)
        assert answer["perplexity"][i] == pytest.approx(score.perplexity, rel=1e-4)
        assert answer["log_prob"][i] == pytest.approx(
            -score.nats_per_token * score.num_tokens, rel=1e-4
        )


def test_logits_ignore_padding_and_poison_no_neighbour(ask, model):
    ids = np.array([[5, 7, 300, -1, -1], [1, 2, 3, 4, 5], [1, 2, 400, 4, 5]], "int32")
    logits = ask("logits", token_ids=ids)["logits"]
    np.testing.assert_allclose(logits[0, :3], model(ids[:1, :3]).numpy()[0], atol=1e-5)
    np.testing.assert_allclose(logits[1], model(ids[1:2]).numpy()[0], atol=1e-5)
    assert np.isnan(logits[2, 2:]).all()


def test_tokenize_and_detokenize(ask, tokenizer):
    texts = ["The king's 漢字", "", "a\n\nb <|endoftext|>"]
    answer = ask("tokenize", text=texts)
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text)
        assert answer["num_tokens"][i] == len(ids)
        row = answer["token_ids"][i]
        assert row.tolist() == ids + [-1] * (len(row) - len(ids))
    back = ask("detokenize", token_ids=answer["token_ids"])["text"]
    assert [t.decode() for t in back] == texts


def test_core_operations_only(version):
    found = operations(version)
    for op in found:
        assert not op.startswith(("Xla", "PyFunc", "EagerPyFunc")), op
    # Whatever is registered before any other package is imported belongs to TensorFlow itself.
    code = (
        "import sys; from tensorflow.python.framework import op_def_registry as r;"
        "import tensorflow; print([o for o in sys.argv[1:] if r.get(o) is None])"
    )
    answer = subprocess.run([sys.executable, "-c", code, *found], capture_output=True, check=True)
    assert answer.stdout.split(b"\n")[0] == b"[]"
    assert "_XlaMustCompile" not in _attributes(version)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(temperature=-1.0), "temperature=-1"),
        (dict(top_p=2.0), "top_p=2"),
        (dict(max_new_tokens_limit=23), "max_new_tokens_limit=23"),
        (dict(max_new_tokens=8, max_new_tokens_limit=7), "max_new_tokens=8"),
        (dict(seed=2**31), "seed must be an integer of 32 bits. Received: seed=2147483648"),
    ],
)
def test_bad_parameters_write_nothing(model, tokenizer, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        kg.serving.export(model, tokenizer, tmp_path / "bad", **arguments)
    assert not (tmp_path / "bad").exists()


def test_a_model_of_one_place_writes_nothing(tokenizer, tmp_path):
    model = kg.GPT2(311, 1, num_layers=1, num_heads=1, hidden_dim=2)
    with pytest.raises(ValueError, match="at least 2 to write text. Received: sequence_length=1"):
        kg.serving.export(model, tokenizer, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_client_of_a_directory(model, tokenizer, version, tmp_path):
    client = kg.serving.SavedModelClient(version)
    texts = client.generate(PROMPTS, max_new_tokens=5, temperature=[0, 1, 1, 0], seed=4)
    assert texts == kg.generate(model, tokenizer, PROMPTS, 5, [0, 1, 1, 0], seed=4)
    with pytest.raises(ValueError, match=r"temperature=-1.*\(prompt 1\)"):
        client.generate(["a", "b"], max_new_tokens=5, temperature=[1, -1])
    with pytest.raises(FileNotFoundError, match="saved_model.pb"):
        kg.serving.SavedModelClient(tmp_path)


@pytest.mark.parametrize("weights, share", [("int8", 0.45), ("bfloat16", 0.6)])
def test_narrow_export(tokenizer, tmp_path, weights, share):
    from tests.conftest import random_weights

    model = random_weights(kg.GPT2(311, 23, num_layers=1, num_heads=2, hidden_dim=64), scale=0.2)
    with pytest.raises(ValueError, match="one of float, bfloat16, int8. Received: 'int3'"):
        kg.serving.export(model, tokenizer, tmp_path, weights="int3")
    version = kg.serving.export(model, tokenizer, tmp_path, weights=weights)
    assert model.weights_type == "float", "the model itself stays as it was"
    signatures = tf.saved_model.load(str(version)).signatures
    ids = np.random.default_rng(0).integers(0, 311, (2, 7)).astype("int32")
    logits = signatures["logits"](token_ids=tf.constant(ids))["logits"].numpy()
    size = (version / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert size < share * 4 * sum(int(np.prod(w.shape)) for w in model.weights)
    model.narrow(weights)
    np.testing.assert_allclose(logits, np.asarray(model(ids)), atol=1e-5)
    prompt = tf.constant(["The king"])
    served = signatures["serving_default"](prompt=prompt)["text"].numpy()[0].decode()
    assert [served] == kg.generate(model, tokenizer, "The king", 22, temperature=0)


def test_an_export_with_drafts_gives_the_same_text(tokenizer, tmp_path):
    from tests.conftest import random_weights

    model = random_weights(kg.GPT2(311, 37, num_layers=1, num_heads=2, hidden_dim=16), scale=0.2)
    with pytest.raises(ValueError, match="num_draft_tokens must be at least 0. Received"):
        kg.serving.export(model, tokenizer, tmp_path, num_draft_tokens=-1)
    prompts = tf.constant(["a b a b a b a b", "", "to be to be to"])
    answers = []
    for drafts in (0, 3):
        version = kg.serving.export(model, tokenizer, tmp_path, num_draft_tokens=drafts)
        generate = tf.saved_model.load(str(version)).signatures["generate"]
        answers.append(
            generate(
                prompt=prompts,
                max_new_tokens=tf.constant([17, 17, 9]),
                temperature=tf.constant([0.0, 1.0, 0.5]),
                top_k=tf.constant([0, 0, 5]),
                top_p=tf.constant([1.0, 0.9, 1.0]),
                seed=tf.constant([1, 2, 3]),
            )
        )
    for name in ("text", "num_tokens", "finish_reason"):
        assert answers[1][name].numpy().tolist() == answers[0][name].numpy().tolist()


def test_an_export_under_xla_gives_the_same_text(model, tokenizer, tmp_path):
    version = kg.serving.export(model, tokenizer, tmp_path / "xla", jit_compile=True)
    assert "--xla_cpu_compilation_enabled=true" in (version / "README.md").read_text()
    client = kg.serving.SavedModelClient(version)
    prompts = [*PROMPTS, "The king is dead. " * 9]
    texts = client.generate(prompts, max_new_tokens=[5, 0, 7, 3, 9], temperature=0.9, seed=2)
    with pytest.warns(UserWarning, match="Only the end of the prompt is kept"):
        expected = kg.generate(
            model, tokenizer, prompts, [5, 0, 7, 3, 9], temperature=0.9, seed=2, jit_compile=False
        )
    assert texts == expected
    assert {"_XlaMustCompile"} <= _attributes(version)
    assert not any(op.startswith("Xla") for op in operations(version))


def _attributes(version):
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((version / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    nodes = [node for function in functions for node in function.node_def]
    return {name for node in nodes for name, value in node.attr.items() if value.b}
