"""Facts about this machine, for the doctor to judge.

``python -m twotower.planning.probe <package>`` tries one package and prints a JSON object. `gather`
does so in processes of their own, because a broken driver or a wheel built for another GPU ends the
process that touches it, and the doctor must survive the patient.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

PROBE_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found on a machine.

    Args:
        python: Version of the interpreter.
        requirements: Requirements of the package, as in its metadata.
        installed: Version of each installed distribution, by normalised name.
        driver: GPU names as the NVIDIA driver lists them; empty without driver or GPU.
        probes: For each of `PROBES` what it printed, or ``{"error": reason}``.
    """

    python: tuple[int, int, int]
    requirements: tuple[str, ...]
    installed: Mapping[str, str]
    driver: tuple[str, ...]
    probes: Mapping[str, Mapping[str, Any]]


def gather() -> Facts:
    """Look at this machine; takes a few seconds, since torch and faiss are loaded and tried."""
    with ThreadPoolExecutor() as pool:
        probes = dict(zip(PROBES, pool.map(_probe, PROBES), strict=True))
        installed = {
            distribution.name.lower().replace("_", "-"): distribution.version
            for distribution in metadata.distributions()
        }
    return Facts(
        python=sys.version_info[:3],
        requirements=tuple(metadata.requires("twotower") or ()),
        installed=installed,
        driver=_driver_gpus(),
        probes=probes,
    )


def torch_facts() -> dict[str, Any]:
    """Version, CUDA build, and for every GPU its name, compute capability and memory (bytes)."""
    torch = import_module("torch")
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        # A kernel has to run: a build without code for this GPU still sees it.
        works = float(torch.ones(8, device=f"cuda:{index}").sum()) == 8.0
        devices.append(
            {
                "name": properties.name,
                "capability": [properties.major, properties.minor],
                "memory": properties.total_memory,
                "bf16": properties.major >= 8,
                "works": works,
            }
        )
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices}


def faiss_facts() -> dict[str, Any]:
    """Version, number of GPUs it sees, whether it can search on them, whether it has CAGRA."""
    faiss = import_module("faiss")
    numpy = import_module("numpy")
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    vectors = numpy.eye(8, dtype=numpy.float32)
    index = faiss.IndexFlatIP(8)
    index.add(vectors)
    if num_gpus:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    _, found = index.search(vectors, 1)
    return {
        "version": faiss.__version__,
        "num_gpus": num_gpus,
        "works": found[:, 0].tolist() == list(range(8)),
        "cagra": hasattr(faiss, "GpuIndexCagra"),
    }


def onnxruntime_facts() -> dict[str, Any]:
    """Version and execution providers."""
    onnxruntime = import_module("onnxruntime")
    return {
        "version": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }


def _probe(package: str) -> dict[str, Any]:
    """Run the probe of a package in a process of its own."""
    command = [sys.executable, "-m", "twotower.planning.probe", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PROBE_SECONDS} seconds"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else "no message"
        return {"error": f"{reason} (exit status {done.returncode})"}
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _driver_gpus() -> tuple[str, ...]:
    """Names of the GPUs that the NVIDIA driver lists."""
    if shutil.which("nvidia-smi") is None:
        return ()
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
    )
    return tuple(done.stdout.strip().splitlines()) if done.returncode == 0 else ()


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": torch_facts,
    "faiss": faiss_facts,
    "onnxruntime": onnxruntime_facts,
}


if __name__ == "__main__":
    json.dump(PROBES[sys.argv[1]](), sys.stdout)
