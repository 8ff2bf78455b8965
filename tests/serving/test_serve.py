"""The command that starts a server, and the files of examples/serving."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from keras_gpt2.cli import main
from keras_gpt2.serving.server import METRICS_PATH, MONITORING, server_command

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "serving"

PROGRAM = """\
#!/bin/sh
printf '%s\\n' "$0" "$@" > "$RECORD"
exit {code}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A PATH with nothing but what a test installs, and a model with versions 2 and 10."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    # The command takes the process's place; a test goes on.
    monkeypatch.setattr(os, "execvp", lambda _, words: subprocess.run(words, check=True))
    monkeypatch.chdir(tmp_path)
    for version in ("2", "10"):
        (tmp_path / "saved models" / "tales" / version).mkdir(parents=True)
        (tmp_path / "saved models" / "tales" / version / "saved_model.pb").touch()
    return tmp_path


def install(place, name, code=0):
    program = place / "bin" / name
    program.write_text(PROGRAM.format(code=code))
    program.chmod(0o755)


def recorded(place):
    return (place / "record").read_text().splitlines()[1:]


def test_the_servers_own_program(place, capsys):
    install(place, "tensorflow_model_server")
    install(place, "docker")
    assert main(["serve", "saved models/tales"]) == 0
    words = recorded(place)
    assert words == [
        "--port=8500",
        "--rest_api_port=8501",
        "--model_name=tales",
        f"--model_base_path={place}/saved models/tales",
        "--rest_api_timeout_in_ms=30000",
        f"--monitoring_config_file={MONITORING}",
    ]
    out = capsys.readouterr().out
    assert f"+ tensorflow_model_server {words[0]}" in out
    assert f"'--model_base_path={place}/saved models/tales'" in out, "quoted for a shell"
    curl = re.search(r"curl -d '(.*)' (\S+)", out)
    assert json.loads(curl[1]) == {"instances": ["Once upon"]}
    assert curl[2] == "http://localhost:8501/v1/models/tales:predict"
    assert "http://localhost:8501/monitoring/prometheus/metrics" in out


def test_with_every_choice(place, capsys):
    install(place, "tensorflow_model_server")
    parameters = place / "saved models" / "tales" / "10" / "batching_params.pbtxt"
    parameters.touch()
    assert main(
        ["serve", "saved models/tales/2", "--name", "t", "--port", "1", "--rest-port", "2",
         "--timeout", "1.5", "--xla"]
    ) == 0  # fmt: skip
    assert recorded(place) == [
        "--port=1",
        "--rest_api_port=2",
        "--model_name=t",
        f"--model_base_path={place}/saved models/tales",
        "--rest_api_timeout_in_ms=1500",
        f"--monitoring_config_file={MONITORING}",
        "--enable_batching=true",
        "--enable_per_model_batching_parameters=true",
        f"--batching_parameters_file={parameters}",
        "--xla_cpu_compilation_enabled=true",
    ]
    assert "http://localhost:2/v1/models/t:predict" in capsys.readouterr().out
    assert main(["serve", "saved models/tales", "--no-batching"]) == 0
    assert not any("batching" in word for word in recorded(place))


def test_docker(place):
    install(place, "docker")
    (place / "saved models" / "tales" / "10" / "batching_params.pbtxt").touch()
    assert main(["serve", "saved models/tales", "--port", "1", "--xla"]) == 0
    words = recorded(place)
    image = words.index("tensorflow/serving:2.21.0")
    assert words[:image] == [
        "run", "--rm", "--init", "-p", "8501:8501", "-p", "1:8500",
        "-v", f"{place}/saved models/tales:/models/tales:ro",
        "-v", f"{MONITORING}:/monitoring.config:ro", "-e", "MODEL_NAME=tales",
    ]  # fmt: skip
    assert words[image + 1 :] == [
        "--rest_api_timeout_in_ms=30000",
        "--monitoring_config_file=/monitoring.config",
        "--enable_batching=true",
        "--enable_per_model_batching_parameters=true",
        "--batching_parameters_file=/models/tales/10/batching_params.pbtxt",
        "--xla_cpu_compilation_enabled=true",
    ]


@pytest.mark.parametrize("docker", ["none", "without a daemon"])
def test_nothing_to_serve_with(place, capsys, docker):
    if docker != "none":
        install(place, "docker", code=1)
    assert main(["serve", "saved models/tales"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tensorflow-model-server" in error and "docker pull tensorflow/serving" in error


def test_nothing_to_serve(place, capsys):
    install(place, "tensorflow_model_server")
    (place / "unnumbered").mkdir()
    assert main(["serve", "unnumbered"]) == 1
    assert "saved_model.pb" in capsys.readouterr().err
    (place / "unnumbered" / "saved_model.pb").touch()
    assert main(["serve", "unnumbered"]) == 1
    assert "called by a number. Received: /" in capsys.readouterr().err
    assert not (place / "record").exists()
    with pytest.raises(ValueError, match="must differ. Received: 7 twice"):
        server_command(place / "saved models" / "tales", rest_port=7, port=7)


def flags_of(words):
    return {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}


def test_the_compose_file():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    services = yaml.safe_load((EXAMPLE / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"serving", "prometheus"}
    mounts = [v for s in services.values() for v in s["volumes"]]
    for mount in mounts:
        assert (EXAMPLE / mount.split(":")[0]).exists(), mount
    inside = {m.split(":")[1]: EXAMPLE / m.split(":")[0] for m in mounts}
    words = services["serving"]["command"]
    for word in words:
        if "_file=" in word:
            path = Path(word.partition("=")[2])
            assert (inside[str(path.parent)] / path.name).exists(), word
    known = {
        "model_config_file", "model_config_file_poll_wait_seconds", "monitoring_config_file",
        "allow_version_labels_for_unavailable_models", "rest_api_timeout_in_ms",
        "enable_batching", "enable_per_model_batching_parameters",
    }  # fmt: skip
    assert flags_of(words) == known

    scrape = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["metrics_path"] == METRICS_PATH
    assert scrape["static_configs"][0]["targets"] == ["serving:8501"]
    for file in (MONITORING, EXAMPLE / "config" / "monitoring.config"):
        assert f'path: "{METRICS_PATH}"' in file.read_text() and "enable: true" in file.read_text()


def test_the_models_config():
    pytest.importorskip("tensorflow_serving")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((EXAMPLE / "config" / "models.config").read_text(), config)
    (model,) = config.model_config_list.config
    served = set(model.model_version_policy.specific.versions)
    assert served and set(model.version_labels.values()) <= served
    assert "stable" in model.version_labels


def test_the_curls_name_every_signature_and_input():
    from keras_gpt2.serving.base_client import SIGNATURES

    bodies = re.findall(r"curl -d '(.*?)' \\", (EXAMPLE / "README.md").read_text(), re.S)
    asked = {
        body.get("signature_name", "serving_default"): body for body in map(json.loads, bodies)
    }
    assert list(asked) == list(SIGNATURES)
    assert set(asked["generate"]["instances"][0]) == {
        "prompt", "max_new_tokens", "temperature", "top_k", "top_p", "seed",
    }  # fmt: skip
