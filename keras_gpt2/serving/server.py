"""The command that starts TensorFlow Serving on a model's directory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from keras_gpt2.serving.batching import NAME as BATCHING_PARAMETERS
from keras_gpt2.serving.saved_model import last_version

BINARY = "tensorflow_model_server"
IMAGE = "tensorflow/serving:2.21.0"
METRICS_PATH = "/monitoring/prometheus/metrics"
XLA_FLAG = "--xla_cpu_compilation_enabled=true"
MONITORING = Path(__file__).with_name("monitoring.config")


def server_command(
    directory: Path,
    name: str | None = None,
    rest_port: int = 8501,
    port: int = 8500,
    timeout: float = 30.0,
    batching: bool = True,
    xla: bool = False,
) -> list[str]:
    """The words of the command: `tensorflow_model_server` if it is on the PATH, else docker.

    Args:
        directory: a model's directory, with numbered versions; one of these does as well.
        name: the model's name for requests; the directory's if None.
        rest_port: int, for REST and for Prometheus.
        port: int, for gRPC.
        timeout: seconds after which a REST request is given up.
        batching: False answers requests one by one, though the last version has a
            batching_params.pbtxt.
        xla: True allows XLA; where the last version's README.md asks for it, it is anyway.

    Raises:
        FileNotFoundError: if there is no version, or nothing that could serve it.
        ValueError: if both ports are the same.
    """
    if port == rest_port:
        raise ValueError(f"The ports of REST and gRPC must differ. Received: {port} twice.")
    directory = model_directory(directory)
    name = name or directory.name
    if shutil.which(BINARY):
        start = [BINARY, f"--port={port}", f"--rest_api_port={rest_port}"]
        start += [f"--model_name={name}", f"--model_base_path={directory}"]
        return start + _flags(directory, directory, MONITORING, timeout, batching, xla)
    if not _docker_answers():
        raise FileNotFoundError(
            f"To serve, install {BINARY} (the Debian package tensorflow-model-server of "
            "TensorFlow Serving's own package source) so that it is on the PATH, or install "
            f"docker, start its daemon and run: docker pull {IMAGE}. Received: neither "
            f"{BINARY} on the PATH nor an answer from a docker daemon."
        )
    inside, monitoring = Path("/models", name), Path("/monitoring.config")
    # The image's first process is a shell, which would not pass Ctrl-C on: hence --init.
    start = ["docker", "run", "--rm", "--init", "-p", f"{rest_port}:8501", "-p", f"{port}:8500"]
    start += ["-v", f"{directory}:{inside}:ro", "-v", f"{MONITORING}:{monitoring}:ro"]
    start += ["-e", f"MODEL_NAME={name}", IMAGE]
    return start + _flags(directory, inside, monitoring, timeout, batching, xla)


def model_directory(directory: Path) -> Path:
    """The absolute directory that holds the versions.

    Raises:
        FileNotFoundError: if there is none in it.
    """
    version = last_version(Path(directory).resolve())
    if not version.name.isdigit():
        raise FileNotFoundError(
            "A server takes versions from directories that are called by a number. "
            f"Received: {version}."
        )
    return version.parent


def _flags(
    directory: Path, served: Path, monitoring: Path, timeout: float, batching: bool, xla: bool
) -> list[str]:
    """What both ways to start have in common; `served` is `directory` as the server sees it."""
    flags = [
        f"--rest_api_timeout_in_ms={round(1000 * timeout)}",
        f"--monitoring_config_file={monitoring}",
    ]
    version = last_version(directory)
    parameters = version / BATCHING_PARAMETERS
    if batching and parameters.exists():
        # Each version's own file counts, but for the number of threads: that is of the whole
        # server, and read from this one.
        shared = served / parameters.relative_to(directory)
        flags += ["--enable_batching=true", "--enable_per_model_batching_parameters=true"]
        flags += [f"--batching_parameters_file={shared}"]
    readme = version / "README.md"
    if xla or (readme.exists() and XLA_FLAG in readme.read_text(encoding="utf-8")):
        flags += [XLA_FLAG]
    return flags


def _docker_answers() -> bool:
    try:
        done = subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
