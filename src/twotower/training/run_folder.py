"""The run folder: everything that is needed to load a run again, and what it measured.

==========================  =====================================================================
``config.yaml``             the resolved config
``features/``               feature spec and fitted state, as in the prepared data set
``features.yaml``           the spec to be edited and given back with ``features=file``
``prepared.json``           which prepared data set it was trained on
``<stage>/best.ckpt``       weights of the best epoch
``<stage>/last.ckpt``       what ``resume=<run>`` continues from
``<stage>/finished.json``   epochs, steps, seconds; there once the stage is finished
``<stage>/profile.txt``     where a step goes, with ``trainer.profile=true``; ``trace.json`` too
``ranker.json``             what the weights of the ranker do not tell: calibration, inputs
``versions.json``           versions of Python and of the libraries that matter
``metrics.json``            figures by ``<stage>/<split>/<metric>``
``tensorboard/``            curves and plots
``train.log``               log with times
==========================  =====================================================================
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.schema import DataError

T = TypeVar("T")

CONFIG = "config.yaml"
PREPARED = "prepared.json"
METRICS = "metrics.json"
VERSIONS = "versions.json"
RANKER_STATE = "ranker.json"
BEST = "best"
LAST = "last"
FINISHED = "finished.json"
TENSORBOARD = "tensorboard"

LIBRARIES = ("twotower", "torch", "pytorch-lightning", "hydra-core", "numpy", "pyarrow", "onnx")


def start_run(folder: Path, config: str, prepared: Prepared) -> None:
    """Write what is known before training.

    Args:
        folder: The run folder; that of a run to go on with holds these files already.
        config: The resolved config as YAML.
        prepared: The data set.

    Raises:
        DataError: When the run began on other data.
    """
    fingerprint = prepared.manifest["fingerprint"]
    known = folder / PREPARED
    began = read_json(known, _fingerprint) if known.is_file() else fingerprint
    if began != fingerprint:
        raise DataError(
            [
                f"{folder}: the run began on prepared data {began}, the tables now give "
                f"{fingerprint}; start a new run"
            ]
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / CONFIG, config)
    shutil.copytree(prepared.folder / FEATURES_FOLDER, folder / FEATURES_FOLDER, dirs_exist_ok=True)
    write_json(known, {"folder": str(prepared.folder.resolve()), "fingerprint": fingerprint})
    write_json(folder / VERSIONS, versions())


def _fingerprint(document: Any) -> str:  # noqa: ANN401
    return str(document["fingerprint"])


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write the figures of a run; what is not a number becomes null."""
    entries = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_json(folder / METRICS, entries)


def point_latest(folder: Path) -> None:
    """Let ``<name>/latest`` point to a run folder."""
    link = folder.parent / "latest"
    staged = folder.parent / f".latest-{os.getpid()}"
    staged.unlink(missing_ok=True)
    staged.symlink_to(folder.name, target_is_directory=True)
    staged.replace(link)


def read_json(path: Path, use: Callable[[Any], T]) -> T:
    """Read a JSON file of a run.

    Args:
        path: The file; it is there.
        use: Takes from the document what is wanted.

    Raises:
        DataError: When it is no JSON, or not what `use` expects.
    """
    try:
        return use(json.loads(path.read_bytes()))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(
            [
                f"{path}: damaged, or of another release: {type(error).__name__} {error}; copy the "
                "run again, or train again"
            ]
        ) from error


def write_json(path: Path, document: object) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(document, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    staged = path.with_name(f".{path.name}-{os.getpid()}")
    staged.write_text(text)
    staged.replace(path)


def read_metrics(folder: Path) -> dict[str, float]:
    """The figures of a finished run.

    Raises:
        DataError: When the run was not finished.
    """
    path = folder / METRICS
    if not path.is_file():
        raise DataError(
            [f"{folder}: no {METRICS}; the run was not finished, resume={folder} goes on"]
        )

    def figures(found: Any) -> dict[str, float]:  # noqa: ANN401 - JSON
        return {name: float("nan") if v is None else float(v) for name, v in found.items()}

    return read_json(path, figures)
