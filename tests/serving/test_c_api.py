"""An export in a process that has TensorFlow's C library and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serving.conftest import assert_same_answer, generate_rows, request

PROGRAM = Path(__file__).with_name("c_api.py")
INITIALIZER = "__saved_model_init_op"  # listed beside the signatures


@pytest.fixture(scope="module")
def ask(small, small_version):
    """(signature, inputs) -> answer with the outputs as from `Session.run`, or with an error."""
    package = Path(importlib.util.find_spec("tensorflow").submodule_search_locations[0])
    library = next(iter(package.glob("libtensorflow_cc.so*")), None)
    if library is None or not Path("/proc/self/status").exists():
        pytest.skip("needs libtensorflow_cc.so of TensorFlow's wheel for Linux")
    # Isolated, and without site-packages: there is no Python package to import.
    command = [sys.executable, "-I", "-S", PROGRAM, library, small_version]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(signature, inputs):
        definition = small.signatures[signature]
        process.stdin.write(line(definition, inputs) + "\n")
        answer = json.loads(process.stdout.readline())
        if "outputs" in answer:
            answer["outputs"] = {
                name: array(definition.outputs[name].dtype, *value)
                for name, value in zip(sorted(definition.outputs), answer["outputs"], strict=True)
            }
        return answer

    with subprocess.Popen(command, **pipes) as process:
        yield run
    assert process.returncode == 0


def line(signature, inputs):
    """A request as c_api.py reads it."""
    tensors = {}
    for name, value in inputs.items():
        flat = value.ravel().tolist()
        if value.dtype == object:
            flat = [text.decode("latin-1") for text in flat]
        kind = "string" if value.dtype == object else value.dtype.name
        tensors[signature.inputs[name].name] = kind, value.shape, flat
    outputs = [signature.outputs[name].name for name in sorted(signature.outputs)]
    return json.dumps({"inputs": tensors, "outputs": outputs})


def array(code, shape, values):
    if code == 7:
        values = [value.encode("latin-1") for value in values]
    return np.array(values, {1: "float32", 3: "int32", 7: object, 10: bool}[code]).reshape(shape)


def test_every_signature_answers_as_in_a_session(ask, small):
    rng = np.random.default_rng(0)
    requests = [request(rng, rng.integers(0, 4)) for _ in range(60)]
    assert {signature for signature, _ in requests} == set(small.signatures) - {INITIALIZER}
    for signature, inputs in requests:
        assert_same_answer(ask(signature, inputs)["outputs"], small.run(signature, inputs))


def test_a_refused_request_leaves_the_session_as_it_was(ask, small):
    good = generate_rows(np.random.default_rng(1), 2)
    assert "shape" in ask("generate", {**good, "seed": np.zeros(3, "int32")})["error"]
    assert_same_answer(ask("generate", good)["outputs"], small.run("generate", good))


def test_memory_is_flat_over_2000_requests(ask):
    rng = np.random.default_rng(2)
    kilobytes = []
    for number in range(2000):
        rows = generate_rows(rng, 1, max_new_tokens=3)
        # No two prompts alike: what keeps what it has seen would grow.
        rows["prompt"][0] = b"%d x%x " % (number, number) + rows["prompt"][0]
        kilobytes.append(ask("generate", rows)["kilobytes"])
    assert kilobytes[-1] - kilobytes[500] < 2000
