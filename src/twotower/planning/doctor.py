"""Is this machine fit to train, index and serve, and if not, what mends it?

The ``check_...`` functions judge the facts that `probe.gather` collected, so that every verdict can
be tested without the machine that deserves it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from twotower.planning.probe import Facts

State = Literal["ok", "warn", "fail"]

MINIMUM_PYTHON, BELOW_PYTHON = (3, 11), (3, 14)
# Wheels that all install the same folder `faiss`.
FAISS_WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")
FOLDERS = ("runs", "bundles", "prepared")
GB = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    Args:
        name: What was looked at.
        state: ok, warn (works, but not as it could) or fail (something will not work).
        detail: What was found.
        remedy: How to mend it; empty when there is nothing to mend.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""


def examine(facts: Facts, *, folder: Path, data: Path | None) -> list[Finding]:
    """All findings.

    Args:
        facts: What `gather` found.
        folder: Where runs, bundles and prepared data are written.
        data: Raw data to be looked at, or None.

    Returns:
        One finding a line of the report.
    """
    findings = [
        check_python(facts.python),
        check_packages(facts.requirements, facts.installed),
        check_torch(facts.probes["torch"], facts.driver),
        check_faiss(facts.probes["faiss"], facts.installed, facts.driver),
        check_onnxruntime(facts.probes["onnxruntime"]),
        *(check_writable(folder / name) for name in FOLDERS),
        check_disk(shutil.disk_usage(folder).free),
    ]
    return findings if data is None else [*findings, check_data(data)]


def check_python(version: tuple[int, int, int]) -> Finding:
    """Whether the interpreter is one that the package supports."""
    found = ".".join(map(str, version))
    if MINIMUM_PYTHON <= version[:2] < BELOW_PYTHON:
        return Finding(name="Python", state="ok", detail=found)
    return Finding(
        name="Python",
        state="fail",
        detail=f"{found}; supported: 3.11 to 3.13",
        remedy="make an environment with `python3.12 -m venv .venv` and install into it",
    )


def check_packages(requirements: Iterable[str], installed: Mapping[str, str]) -> Finding:
    """Whether every required package is there in a version that was asked for."""
    right, wrong = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed.get(requirement.name.lower().replace("_", "-"))
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
        else:
            right.append(f"{requirement.name} {found}")
    if wrong:
        return Finding(
            name="packages",
            state="fail",
            detail="; ".join(wrong),
            remedy="`pip install -c constraints.txt -e .` in the checkout",
        )
    return Finding(name="packages", state="ok", detail=", ".join(right))


def check_torch(probe: Mapping[str, Any], driver: Sequence[str]) -> Finding:
    """Whether torch loads, and uses the GPUs that the driver shows."""
    if "error" in probe:
        return Finding(
            name="torch",
            state="fail",
            detail=f"does not work here: {probe['error']}",
            remedy="install the build of torch that fits the driver (`nvidia-smi` shows it), "
            "or the CPU build; see pytorch.org",
        )
    build = f"{probe['version']}, " + (f"CUDA {probe['cuda']}" if probe["cuda"] else "CPU build")
    devices = [_device(device) for device in probe["devices"]]
    detail = "; ".join([build, *devices]) if devices else f"{build}, no GPU"
    if not all(device["works"] for device in probe["devices"]):
        return Finding(
            name="torch",
            state="fail",
            detail=f"{detail}; a sum on the GPU came out wrong",
            remedy="update the driver and run again; test the GPU's memory",
        )
    if driver and not devices:
        why = "does not reach it" if probe["cuda"] else "is a CPU build"
        return Finding(
            name="torch",
            state="warn",
            detail=f"{detail}; the driver shows {', '.join(driver)}, but torch {why}",
            remedy="install a CUDA build of torch that the driver supports"
            if not probe["cuda"]
            else "update the driver, and check CUDA_VISIBLE_DEVICES",
        )
    return Finding(name="torch", state="ok", detail=detail)


def check_faiss(
    probe: Mapping[str, Any], installed: Mapping[str, str], driver: Sequence[str]
) -> Finding:
    """Whether exactly one FAISS wheel is installed, loads, and runs on this machine's GPU."""
    wheels = [name for name in FAISS_WHEELS if name in installed]
    wanted = "gpu" if driver else "cpu"
    install = f"`pip install -c constraints.txt -e '.[{wanted}]'`"
    shown = ", ".join(f"{name} {installed[name]}" for name in wheels)
    if len(wheels) > 1:
        return Finding(
            name="faiss",
            state="fail",
            detail=f"{shown}: they overwrite each other's files",
            remedy=f"`pip uninstall -y {' '.join(wheels)}`, then {install}",
        )
    if "error" in probe:
        uninstall = f"`pip uninstall -y {wheels[0]}`, then " if wheels else ""
        return Finding(
            name="faiss",
            state="fail",
            detail=f"{shown + ' ' if shown else ''}does not work here: {probe['error']}",
            remedy=uninstall + install,
        )
    cagra = ", CAGRA" if probe["cagra"] else ""
    detail = f"{shown or probe['version']}, GPUs: {probe['num_gpus']}{cagra}"
    if not probe["works"]:
        return Finding(
            name="faiss",
            state="fail",
            detail=f"{detail}; a search for known vectors found others",
            remedy="the wheel does not fit this processor or GPU; " + install,
        )
    if driver and not probe["num_gpus"]:
        uninstall = f"`pip uninstall -y {wheels[0]}`, then " if wheels else ""
        return Finding(
            name="faiss",
            state="warn",
            detail=f"{detail}; indexes run on the CPU although there is {', '.join(driver)}",
            remedy=uninstall + install,
        )
    return Finding(name="faiss", state="ok", detail=detail)


def check_onnxruntime(probe: Mapping[str, Any]) -> Finding:
    """Whether the runtime of exported models loads."""
    if "error" in probe:
        return Finding(
            name="onnxruntime",
            state="fail",
            detail=f"does not work here: {probe['error']}",
            remedy="`pip install -c constraints.txt onnxruntime`",
        )
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in probe["providers"])
    return Finding(name="onnxruntime", state="ok", detail=f"{probe['version']}, {providers}")


def check_writable(folder: Path) -> Finding:
    """Whether a folder, or where it would be made, can be written."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Finding(name=f"{folder.name}/", state="ok", detail=f"{folder} can be written")
    kind = "not a folder" if not existing.is_dir() else "not writable"
    return Finding(
        name=f"{folder.name}/",
        state="fail",
        detail=f"{existing} is {kind}",
        remedy="run in another folder, or change its owner or permissions",
    )


def check_disk(free: int) -> Finding:
    """Whether there is room for runs and bundles; `free` in bytes."""
    detail = f"{free / GB:.1f} GB free"
    if free >= 10 * GB:
        return Finding(name="disk", state="ok", detail=detail)
    return Finding(
        name="disk",
        state="warn" if free >= GB else "fail",
        detail=detail,
        remedy="remove old folders under runs/ and bundles/, or work on another disk",
    )


def check_data(path: Path) -> Finding:
    """Whether raw data can be read."""
    if not path.exists():
        problem = "does not exist"
    elif not os.access(path, os.R_OK):
        problem = "cannot be read"
    elif path.is_dir() and not any(path.iterdir()):
        problem = "is an empty folder"
    else:
        return Finding(name="data", state="ok", detail=f"{path.absolute()} can be read")
    return Finding(
        name="data",
        state="fail",
        detail=f"{path.absolute()} {problem}",
        remedy="give the file or folder of your tables; `data=synthetic` of train needs none",
    )


def _device(device: Mapping[str, Any]) -> str:
    major, minor = device["capability"]
    bf16 = "bf16" if device["bf16"] else "no bf16"
    return f"{device['name']} ({device['memory'] / GB:.0f} GB, compute {major}.{minor}, {bf16})"
