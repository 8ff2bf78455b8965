"""What a server sees of exports that are killed, or run side by side."""

import os
import subprocess
import sys

import keras
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel needs the TensorFlow backend", allow_module_level=True)

from tests.serving.session import Session

# Imports once, then splits into a process for each pair of a directory and the moment at which the
# export into it is killed: a file or folder that is there, or the renaming.
PROGRAM = """
import os, pathlib, signal, sys, threading, time
import keras_gpt2 as kg

rename = os.rename

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(directory, path):
    while not any(directory.glob(".*/" + path)):
        time.sleep(0.001)
    kill()

def main(directory, moment):
    def killing_rename(source, target):
        last = pathlib.Path(target).parent == directory
        if last and moment == "before renaming":
            kill()
        rename(source, target)
        if last and moment == "after renaming":
            kill()

    os.rename = killing_rename
    if "/" in moment:
        threading.Thread(target=watch, args=(directory, moment), daemon=True).start()
    model = kg.GPT2(257, 7, num_layers=1, num_heads=1, hidden_dim=4)
    kg.serving.export(model, kg.BytePairTokenizer.of_bytes(), directory)

children = []
for directory, moment in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if not child:
        try:
            main(pathlib.Path(directory), moment)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(child)
for child in children:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
# Moment -> the versions that are there afterwards.
KILLED = {
    "tokenizer/merges.txt": [],
    "version/variables": [],
    "version/saved_model.pb": [],
    "before renaming": [],
    "after renaming": ["1"],
}


@pytest.mark.slow
def test_killed_exports_and_two_at_once_leave_whole_versions_only(tmp_path):
    directories = [tmp_path / str(i) for i in range(len(KILLED))]
    both = tmp_path / "both"
    jobs = [*zip(directories, KILLED, strict=True), (both, "none"), (both, "none")]
    for directory in (*directories, both):
        directory.mkdir()
    arguments = [str(argument) for job in jobs for argument in job]
    # Who is killed leaves temporary files.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.split() == ["-9"] * len(KILLED) + ["0", "0"], answer.stderr
    for directory, expected in [
        *zip(directories, KILLED.values(), strict=True),
        (both, ["1", "2"]),
    ]:
        # A server looks at names that are integers, and at nothing else.
        versions = sorted(path.name for path in directory.iterdir() if path.name.isdigit())
        assert versions == expected, directory
        for version in versions:
            answer = Session(directory / version).run("tokenize", {"text": ["ab"]})
            assert answer["token_ids"].tolist() == [[97, 98]]
    assert {path.name for path in both.iterdir()} == {"1", "2"}, "nothing is left over"
