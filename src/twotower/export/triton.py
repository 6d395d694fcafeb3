"""A Triton model repository of a bundle.

====================================  ==============================================================
``query_tower/<version>/model.onnx``  the bundle's models, for the backend ``onnxruntime``
``item_tower/<version>/model.onnx``
``ranker/<version>/model.onnx``
``recommender/<version>/model.py``    whole requests, for the backend ``python``
``recommender/<version>/bundle/``     the bundle itself, found by ``model.py`` beside it
``<model>/config.pbtxt``              tensors, batching, where it runs; of the newest version
====================================  ==============================================================

Triton names versions by integers: the bundle ``2026-11-25_14-01-13`` is ``202611251401130001``, and
``2026-11-25_14-01-13-0002`` is ``202611251401130002``; the newest is served. Files are links to
those of the bundle where the disk can link, and copies elsewhere; none names a path outside, so
that the folder can be moved.

A version comes into place whole: it is put together in a hidden folder beside the repository and
renamed, so that a Triton which polls never loads half of it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from twotower.export import manifest as names
from twotower.export import recommender_tensors
from twotower.export.manifest import STAGING_PREFIX, read_manifest
from twotower.export.triton_config import (
    MODEL_FILE,
    PYTHON_FILE,
    ModelConfig,
    onnx_config,
    recommender_config,
)
from twotower.export.writer import lock

FOLDER = "triton"
CONFIG = "config.pbtxt"
BUNDLE = "bundle"
MODELS = {"query_tower": names.QUERY_TOWER, "item_tower": names.ITEM_TOWER, "ranker": names.RANKER}
# A request brings as many rows to the ranker as it has candidates.
MAX_BATCH_SIZES = {"query_tower": 256, "item_tower": 1024, "ranker": 8192}
VERSION = re.compile(r"(\d{4})-(\d\d)-(\d\d)_(\d\d)-(\d\d)-(\d\d)(?:-(\d{4}))?")

MODEL_PY = '''"""Recommendations for whole requests, out of the bundle beside this file."""

from pathlib import Path

import triton_python_backend_utils

from twotower.serving.triton_backend import TritonBackend


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args):
        """Open the bundle."""
        folder = Path(__file__).parent / "bundle"
        self.backend = TritonBackend(folder, triton_python_backend_utils)

    def execute(self, requests):
        """Answer requests that Triton has gathered."""
        return self.backend.execute(requests)
'''


@dataclass(frozen=True, kw_only=True)
class TritonRepository:
    """What was written.

    Args:
        folder: The repository.
        version: Triton's number of the version.
        models: Names of the models.
    """

    folder: Path
    version: int
    models: tuple[str, ...]


def repository_folder(given: object, home: Path) -> Path | None:
    """Where the repository goes.

    Args:
        given: What ``triton=`` says: true, false, or a folder.
        home: Folder of all versions of the bundle.

    Returns:
        The folder, or None where none is wanted.

    Raises:
        ValueError: When it is neither, or no folder.
    """
    if given is None or given is False:
        return None
    if given is True:
        return home / FOLDER
    if not isinstance(given, str) or not given:
        raise ValueError(f"triton: must be true, false or a folder, got {given!r}")
    if Path(given).exists() and not Path(given).is_dir():
        raise ValueError(f"triton: must be a folder, {given} is a file")
    return Path(given)


def triton_version(version: str) -> int:
    """The number by which Triton knows a version of a bundle; a later one is greater.

    Args:
        version: Of the bundle.

    Raises:
        ValueError: When it is not of the form that an export gives.
    """
    found = VERSION.fullmatch(version)
    if found is None:
        raise ValueError(
            f"version of the bundle: must be a time such as 2026-11-25_14-01-13, got {version!r}"
        )
    *parts, number = found.groups(default="0001")
    return int("".join([*parts, number]))


def write_repository(bundle: Path, repository: Path) -> TritonRepository:
    """Add a version of a bundle to a repository, which is made where there is none.

    Args:
        bundle: A version folder.
        repository: The repository.

    Raises:
        ValueError: When the repository has this version, or a model is none that Triton can run.
    """
    manifest = read_manifest(bundle)
    version = triton_version(manifest.version)
    configs = [
        onnx_config(name, bundle / file, max_batch_size=MAX_BATCH_SIZES[name])
        for name, file in MODELS.items()
        if (bundle / file).is_file()
    ]
    if manifest.tower_hash is not None:
        configs.append(recommender_config())
    taken = [c.name for c in configs if (repository / c.name / str(version)).exists()]
    if taken:
        raise ValueError(f"{repository}: has version {version} of {', '.join(taken)} already")
    with lock(bundle.parent):
        repository.parent.mkdir(parents=True, exist_ok=True)
        staging = repository.parent / f"{STAGING_PREFIX}{repository.name}-{manifest.name}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            for config in configs:
                _stage(config, bundle, staging / config.name, str(version))
            for config in configs:
                _move(staging / config.name, repository / config.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    models = tuple(config.name for config in configs)
    return TritonRepository(folder=repository, version=version, models=models)


def _stage(config: ModelConfig, bundle: Path, model: Path, version: str) -> None:
    folder = model / version
    folder.mkdir(parents=True)
    (model / CONFIG).write_text(config.render(), encoding="utf-8")
    if config.name != recommender_tensors.MODEL:
        _link(bundle / MODELS[config.name], folder / MODEL_FILE)
        return
    (folder / PYTHON_FILE).write_text(MODEL_PY, encoding="utf-8")
    for path in sorted(bundle.rglob("*")):
        if path.is_file():
            _link(path, folder / BUNDLE / path.relative_to(bundle))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # Another disk, or one without links.
        shutil.copyfile(source, target)


def _move(staged: Path, model: Path) -> None:
    """Put a model into place, or its new version beside the old ones."""
    model.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        staged.rename(model)
        return
    for path in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG):
        path.replace(model / path.name)
