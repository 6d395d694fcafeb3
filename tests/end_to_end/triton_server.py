"""NVIDIA's Triton as a process: the server in the wheel `nvidia-pytriton`, with its Python backend.

The wheel holds no other backend, so a model for ``onnxruntime`` is served by a stand-in: the same
config and file, run by ONNX Runtime within the Python backend.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.http import InferenceServerClient

PATIENCE = 180.0

STAND_IN = """
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(__file__).parent / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.outputs = [node.name for node in self.session.get_outputs()]

    def execute(self, requests):
        responses = []
        for request in requests:
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            values = self.session.run(self.outputs, feeds)
            tensors = [utils.Tensor(name, v) for name, v in zip(self.outputs, values)]
            responses.append(utils.InferenceResponse(tensors))
        return responses
"""


def stand_in(repository: Path) -> None:
    """Let the Python backend serve the models for ``onnxruntime``; their configs stay."""
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text(encoding="utf-8")
        if 'backend: "onnxruntime"' not in text:
            continue
        text = text.replace('backend: "onnxruntime"', 'backend: "python"')
        text = text.replace('"model.onnx"', '"model.py"')
        config.write_text(text, encoding="utf-8")
        for version in config.parent.iterdir():
            if version.is_dir():
                (version / "model.py").write_text(STAND_IN, encoding="utf-8")


def backends(environment: Path, folder: Path) -> Path:
    """The folder of backends with the stub of the environment's Python."""
    (package,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
    python = package.parents[2].name.removeprefix("python")
    shutil.copytree(package / "backends", folder)
    stub = package / "python_backend_stubs" / python / "triton_python_backend_stub"
    shutil.copy(stub, folder / "python")
    return folder


@contextmanager
def tritonserver(
    environment: Path, repository: Path, folder: Path
) -> Iterator[tuple[str, Path, subprocess.Popen]]:
    """Address, log and process of a server, which may have ended.

    Args:
        environment: A virtual environment with `nvidia-pytriton` and what serving needs.
        repository: The models.
        folder: Empty, for the backends and the log.
    """
    (package,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = package.parents[1] / "nvidia_pytriton.libs"
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                package / "bin" / "tritonserver",
                f"--model-repository={repository}",
                f"--backend-directory={backends(environment, folder / 'backends')}",
                *("--http-address=127.0.0.1", f"--http-port={port}"),
                *("--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=5"),
                *("--strict-readiness=true", "--model-control-mode=none"),
            ],
            env=os.environ
            | {
                "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
                "LD_LIBRARY_PATH": str(libraries),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"127.0.0.1:{port}"
        wait_until_ready(address, process)
        yield address, log, process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def wait_until_ready(address: str, process: subprocess.Popen) -> None:
    """Return when the server is ready, or has ended."""
    end = time.monotonic() + PATIENCE
    with InferenceServerClient(address, network_timeout=PATIENCE) as client:
        while time.monotonic() < end and process.poll() is None:
            try:
                if client.is_server_ready():
                    return
            except OSError:
                pass
            time.sleep(0.1)
    if process.poll() is None:
        raise TimeoutError(f"Triton was not ready within {PATIENCE:g} s")
