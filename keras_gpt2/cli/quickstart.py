"""The whole path on a text that every Python has."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import keras_gpt2 as kg
from keras_gpt2.cli.run import train_run

SIZES = dict(num_layers=4, num_heads=4, hidden_dim=128, sequence_length=128)

# Runs in a new process that can import neither keras_gpt2 nor Keras.
ASK = """\
import sys
sys.modules["keras"] = sys.modules["keras_gpt2"] = None
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
answer = served.signatures["serving_default"](prompt=tf.constant([sys.argv[2]]))
sys.stdout.buffer.write(answer["text"].numpy()[0])
"""


def quickstart(options: argparse.Namespace) -> None:
    """Trains, exports, and asks the export from a process that has TensorFlow only."""
    with tempfile.TemporaryDirectory() as scratch:
        files = options.text
        if not files:
            files = [str(Path(scratch) / "python_language_reference.txt")]
            Path(files[0]).write_text(_language_reference(), encoding="utf-8")
            print("The text: Python's language reference, from pydoc_data.topics")
        model, tokenizer = train_run(
            files, options.output, SIZES, dropout=0.0, epochs=options.epochs
        )

    version = kg.serving.export(model, tokenizer, options.saved_model, temperature=0.7, top_p=0.95)
    name = options.saved_model.name
    prompt = options.prompt or ("The" if options.text else "A function definition")
    print(f"Exported to {version}\n")
    print("What the export writes, loaded in a new process with TensorFlow alone:\n")
    answer = subprocess.run(
        [sys.executable, "-c", ASK, str(version), prompt], capture_output=True, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"The export did not load: {answer.stderr.decode()}")
    print(f"{prompt}{answer.stdout.decode('utf-8')}\n")
    print("Serve it:\n")
    print(f'  docker run -p 8501:8501 -v "{options.saved_model.resolve()}:/models/{name}" \\')
    print(f"    -e MODEL_NAME={name} tensorflow/serving\n")
    print("and ask it:\n")
    body = '{"instances": ["' + prompt.replace('"', '\\"') + '"]}'
    print(f"  curl -d '{body}' \\\n    http://localhost:8501/v1/models/{name}:predict")


def _language_reference() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))
