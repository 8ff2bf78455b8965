"""Commands as a user runs them."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_gpt2.cli import main

if keras.backend.backend() != "tensorflow":
    pytest.skip("commands run on the TensorFlow backend", allow_module_level=True)

TEXT = "The king is dead, long live the king! A function definition names a function.\n" * 60


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with a text and a trained run."""
    place = tmp_path_factory.mktemp("cli")
    (place / "book.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        code = main(
            [
                "train", "--text", str(place / "book.txt"), "--output", str(place / "run"),
                "--vocabulary-size", "300", "--num-layers", "1", "--num-heads", "2",
                "--hidden-dim", "32", "--sequence-length", "16", "--batch-size", "4",
                "--epochs", "3", "--learning-rate", "0.01",
            ]
        )  # fmt: skip
    assert code == 0
    return place


def test_train_writes_a_run_that_has_learnt(workplace, capsys):
    names = {p.name for p in (workplace / "run").iterdir()}
    assert {"model.keras", "vocab.json", "merges.txt", "history.csv"} <= names
    with open(workplace / "run" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[-1]["val_perplexity"]) < 0.3 * float(rows[0]["val_perplexity"])
    pytest.importorskip("matplotlib")
    assert (workplace / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_train_never_overwrites(workplace, capsys):
    before = (workplace / "run" / "model.keras").read_bytes()
    code = main(
        ["train", "--text", str(workplace / "book.txt"), "--output", str(workplace / "run")]
    )
    assert code == 1 and "must not hold a model already" in capsys.readouterr().err
    assert (workplace / "run" / "model.keras").read_bytes() == before


def test_generate_export_query_agree(workplace, capsys):
    greedy = ["--prompt", "The king", "--max-new-tokens", "8", "--temperature", "0"]
    assert main(["generate", str(workplace / "run"), *greedy]) == 0
    generated = capsys.readouterr().out
    assert generated.startswith("The king is dead")
    code = main(
        ["export", str(workplace / "run"), str(workplace / "saved" / "book"),
         "--max-new-tokens", "8"]
    )  # fmt: skip
    assert code == 0 and "saved/book/1" in capsys.readouterr().out
    assert main(["query", str(workplace / "saved" / "book"), *greedy]) == 0
    assert capsys.readouterr().out == generated
    both = ["--prompt", "The king", "A function", "--max-new-tokens", "4", "--seed", "5"]
    assert main(["generate", str(workplace / "run"), *both]) == 0
    assert capsys.readouterr().out.count("---") == 1


def test_convert_there_and_back_is_bit_identical(workplace, tmp_path, capsys):
    there, back = str(tmp_path / "hf"), str(tmp_path / "back")
    assert main(["convert", str(workplace / "run"), there, "--to", "hugging-face"]) == 0
    assert main(["convert", there, back, "--to", "keras"]) == 0
    one, other = (
        keras.saving.load_model(Path(place) / "model.keras", compile=False)
        for place in (workplace / "run", back)
    )
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        assert (a == b).all()
    for name in ("vocab.json", "merges.txt"):
        assert (Path(back) / name).read_bytes() == (workplace / "run" / name).read_bytes()
    capsys.readouterr()
    one, other = (
        main(["generate", place, "--prompt", "The", "--max-new-tokens", "4"]) or capsys.readouterr()
        for place in (str(workplace / "run"), there)
    )
    assert one.out == other.out, "a foreign directory does as well"
    assert main(["convert", there, back, "--to", "keras"]) == 1
    assert "would be lost" in capsys.readouterr().err


def test_evaluate(workplace, capsys):
    outputs = []
    for more in ([], ["--stride", "4"]):
        command = ["evaluate", str(workplace / "run"), "--text", str(workplace / "book.txt")]
        assert main(command + more) == 0
        outputs.append(capsys.readouterr().out)
    numbers = [
        {k: float(v) for k, v in re.findall(r"^(\w[\w ]*\w)  +([\d.]+)$", out, re.M)}
        for out in outputs
    ]
    assert set(numbers[0]) == {"tokens", "perplexity", "nats per token", "bits per byte"}
    assert numbers[0]["perplexity"] < 10 and numbers[1]["perplexity"] < 10
    assert numbers[0]["tokens"] == numbers[1]["tokens"]
    assert numbers[0]["perplexity"] != numbers[1]["perplexity"], "the context differs"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "./nowhere", "--prompt", "a"], "There must be a directory"),
        (["query", "nowhere", "--prompt", "a"], "saved_model.pb"),
        (["query", "http://127.0.0.1:9/v1/models/x", "--prompt", "a"], "No answer from"),
        (["query", "http://127.0.0.1:9", "--prompt", "a"], "/v1/models/NAME"),
        (["train", "--text", "nowhere.txt", "--output", "run"], "nowhere.txt"),
        (["train", "--text", "x", "--output", "run", "--preset", "gpt3"], "Received: gpt3"),
        (["evaluate", "{run}", "--text", "nowhere.txt"], "nowhere.txt"),
        (
            ["generate", "{run}", "--prompt", "a", "--max-new-tokens", "4", "--top-k", "-1"],
            "top_k=-1",
        ),
        (["export", "{run}", "{run}/out", "--top-p", "7"], "top_p=7"),
    ],
)
def test_errors_are_one_line(workplace, capsys, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main([a.format(run=workplace / "run") for a in arguments])
    error = capsys.readouterr().err
    assert code == 1 and words in error and error.count("\n") == 1
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "nothing half-made is left"


def train_command(place, output, *more):
    return [
        "train", "--text", str(place / "book.txt"), "--output", str(output), "--dropout", "0.1",
        "--tokenizer", str(place / "run"), "--num-layers", "1", "--num-heads", "2",
        "--hidden-dim", "16", "--sequence-length", "16", "--batch-size", "4", "--epochs", "8",
        "--checkpoint-seconds", "0", *more,
    ]  # fmt: skip


def test_resume_is_for_runs(workplace, tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) == 1
    assert "must hold run.json" in capsys.readouterr().err
    before = (workplace / "run" / "history.csv").read_bytes()
    assert main(["resume", str(workplace / "run")]) == 0, "a run that has ended stays as it is"
    assert (workplace / "run" / "history.csv").read_bytes() == before


@pytest.mark.slow
def test_killed_three_times_and_resumed(workplace, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "XDG_CACHE_HOME": str(workplace / "cache"),
    }

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "keras_gpt2", *arguments], env=environment, cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def kill_after(process, number):
        """With SIGKILL, as soon as a checkpoint of that step or a later one is there."""
        while process.poll() is None:
            steps = [int(p.stem[11:]) for p in (tmp_path / "run").glob("checkpoints/check*")]
            if max(steps, default=0) >= number:
                process.kill()
        assert process.wait() == -9, process.stderr.read().decode()

    kill_after(start(*train_command(workplace, tmp_path / "run")), 1)
    kill_after(start("resume", "run"), 40)
    kill_after(start("resume", "run"), 90)
    assert start("resume", "run").wait() == 0
    assert start(*train_command(workplace, tmp_path / "whole")).wait() == 0
    tables = []
    for name in ("run", "whole"):
        with open(tmp_path / name / "history.csv", newline="") as file:
            tables.append([{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)])
    assert len(tables[0]) == 8
    for row, expected in zip(*tables, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_wrong_usage_and_help(capsys):
    for arguments, code in (([], 2), (["fly"], 2), (["--help"], 0), (["train", "--help"], 0)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
    assert "--text" in capsys.readouterr().out


def test_ctrl_c_keeps_the_model(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", interrupted)
    code = main(
        ["train", "--text", str(workplace / "book.txt"), "--output", str(tmp_path / "run"),
         "--tokenizer", str(workplace / "run"), "--sequence-length", "16"]
    )  # fmt: skip
    assert code == 130 and calls
    assert "The best model so far" in capsys.readouterr().out
    keras.saving.load_model(tmp_path / "run" / "model.keras")


@pytest.mark.slow
def test_quickstart_on_ones_own_text(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{TEXT[:40]} {i} kings.\n" for i in range(4000)), encoding="utf-8")
    command = [
        sys.executable, "-m", "keras_gpt2", "quickstart", "--text", str(book), "--epochs", "2",
        "--output", "run", "--saved-model", "saved/own", "--prompt", "The king",
    ]  # fmt: skip
    root = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Exported to {tmp_path.resolve() / 'saved/own/1'}" in done.stdout
    assert "docker run" in done.stdout and "curl" in done.stdout
    assert re.search(r"^The king.+", done.stdout, re.M)
