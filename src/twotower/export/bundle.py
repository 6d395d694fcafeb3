"""A bundle: everything that serving needs, in one folder, read without torch.

===========================  ====================================================================
``manifest.json``            facts, figures, digest of every file
``features/``                feature spec and fitted state
``items/``                   the catalogue, C rows: the user's table, the encoded features side by
                             side in ``columns.rows``, and those that are long in a file each
``users/``                   the same of all users
``events/``                  positives of every user that are in the catalogue, oldest first, CSR,
                             and their times where the log has any
``popular.npy``              (C,) item rows, most popular in training first
``item_vectors.npy``         (C, D) float32
``index/``                   the index over them, and the digest of the towers it belongs to
``query_tower.onnx``         user, context and history to a vector
``item_tower.onnx``          item to a vector
``ranker.onnx``              user, context, history and candidate to a probability
``ranker_int8.onnx``         the same nearly, and faster, to screen the candidates; only on demand
``reference/``               profiles of the training and validation part, which monitoring holds
                             later data against
``golden.npz``               requests with the answers that the models gave before the export
===========================  ====================================================================

Without a retrieval stage there are no towers, vectors and index, without a ranking stage there is
no ranker, and a flat click table has neither items nor users nor events.

Bundles lie in ``bundles/<name>/<version>/``, and ``bundles/<name>/current`` is a link to one.
Written by `twotower.export.writer`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import Entities, read_arrow
from twotower.export import manifest as names
from twotower.export.manifest import (
    BundleError,
    Manifest,
    file_digests,
    file_problems,
    link_problems,
    read_manifest,
    tower_hash,
)
from twotower.features.pipeline import FeaturePipeline

if TYPE_CHECKING:
    from twotower.index.faiss_index import FaissIndex
    from twotower.index.gpu_index import Device

CONTEXT_PREFIX = "context."

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Requests with the answers of the models as they were trained; Q queries, K candidates.

    Args:
        context: Encoded context features of each query, (Q, ...) each.
        user_rows: (Q,) users, or None for a flat click table.
        history_ends: (Q,) the query's history are the bundle's events from its user's offset up to
            here; None where there are no events.
        query_vectors: (Q, D) float32, or None without a retrieval stage.
        candidates: (Q, K) item rows: with a retrieval stage the exact best, padded with -1 and
            without seen items where the bundle removes them; else the item of one impression
            (Q, 1); None for a flat click table.
        candidate_scores: (Q, K) float32 scores of the retrieval, minus infinity where padded; None
            without a retrieval stage.
        logits: (Q, K) float32 logits of the ranker, NaN where padded; None without a ranker.
        probabilities: (Q, K) float32, calibrated.
    """

    context: Mapping[str, Array]
    user_rows: Array | None = None
    history_ends: Array | None = None
    query_vectors: Array | None = None
    candidates: Array | None = None
    candidate_scores: Array | None = None
    logits: Array | None = None
    probabilities: Array | None = None

    def save(self, path: Path) -> None:
        """Write it as ``.npz``."""
        arrays = {name: value for name, value in vars(self).items() if name != "context"}
        arrays |= {CONTEXT_PREFIX + name: column for name, column in self.context.items()}
        present: dict[str, Any] = {k: v for k, v in arrays.items() if v is not None}
        np.savez(path, allow_pickle=False, **present)

    @staticmethod
    def load(path: Path) -> Golden:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in arrays.files}
        context = {
            name.removeprefix(CONTEXT_PREFIX): fields.pop(name)
            for name in list(fields)
            if name.startswith(CONTEXT_PREFIX)
        }
        return Golden(context=context, **fields)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle; large arrays are memory-mapped.

    Args:
        folder: The version folder, with no link in it.
        manifest: Facts and figures.
        pipeline: The features with their fitted state.
        items: The catalogue, row 0 to C - 1, or None.
        users: All users, or None.
        offsets: (U + 1,) int64, or None; events of user ``u`` are
            ``item_rows[offsets[u] : offsets[u + 1]]``.
        item_rows: (E,) int32 item rows, or None.
        event_times: (E,) int64 seconds since 1970, or None where the log has no times.
        popular: (C,) int64 item rows, most popular first, or None.
        item_vectors: (C, D) float32, or None.
        query_tower: Path of the query tower, or None.
        item_tower: Path of the item tower, or None.
        ranker: Path of the ranker, or None.
        screen: Path of the ranker that screens candidates, or None.
    """

    folder: Path
    manifest: Manifest
    pipeline: FeaturePipeline
    items: Entities | None
    users: Entities | None
    offsets: Array | None
    item_rows: Array | None
    event_times: Array | None
    popular: Array | None
    item_vectors: Array | None
    query_tower: Path | None
    item_tower: Path | None
    ranker: Path | None
    screen: Path | None

    def golden(self) -> Golden:
        """The requests with known answers."""
        return Golden.load(self.folder / names.GOLDEN)

    def load_index(self, *, device: Device = "cpu", num_shards: int = 1) -> FaissIndex:
        """The index over the item vectors.

        Args:
            device: Where it is to run.
            num_shards: Into how many shards it is to be divided; 0 is one for every GPU, or for
                every thread of a CPU.

        Raises:
            BundleError: When the bundle has no retrieval stage.
        """
        if self.item_vectors is None:
            stages = ", ".join(self.manifest.stages)
            raise BundleError([f"{self.folder}: has no index; its stages are {stages}"])
        from twotower.index.faiss_index import load_index

        return load_index(self.folder / names.INDEX, device=device, num_shards=num_shards)


def open_bundle(path: Path) -> Bundle:
    """Open a bundle after every file has been compared with its digest.

    Args:
        path: A version folder, ``current``, or the folder ``bundles/<name>`` for its ``current``.

    Raises:
        BundleError: Lists every file that was changed, is missing, is not listed or is a link, and
            every contradiction between towers, index and features.
    """
    folder = resolve(path)
    manifest = read_manifest(folder)
    if links := link_problems(folder):
        raise BundleError(links)
    digests = file_digests(folder)
    problems = file_problems(folder, manifest, digests) + _tower_problems(folder, manifest, digests)
    if problems:
        raise BundleError(problems)
    pipeline = FeaturePipeline.load(folder / names.FEATURES)
    if pipeline.digest() != manifest.feature_digest:
        raise BundleError(
            [
                f"{folder / names.FEATURES}: digest of the features {pipeline.digest()}, the "
                f"manifest names {manifest.feature_digest}; export the run again"
            ]
        )
    return _bundle(folder, manifest, pipeline)


def resolve(path: Path) -> Path:
    """The version folder that a path means, with links followed once and for all.

    Raises:
        BundleError: When there is no bundle.
    """
    for folder in (path, path / names.CURRENT):
        if (folder / names.MANIFEST).is_file():
            return folder.resolve()
    versions = sorted(found.parent.name for found in path.glob(f"[!.]*/{names.MANIFEST}"))
    hint = f"; versions, none of them published: {', '.join(versions)}" if versions else ""
    raise BundleError(
        [f"{path}: no bundle here (no {names.MANIFEST}); run `twotower export run=<run>`{hint}"]
    )


def _tower_problems(folder: Path, manifest: Manifest, digests: Mapping[str, str]) -> list[str]:
    expected = manifest.tower_hash
    if expected is None:
        return []
    problems = []
    towers = tower_hash(*(digests.get(name, "") for name in (names.QUERY_TOWER, names.ITEM_TOWER)))
    if towers != expected:
        problems.append(f"{folder}: towers with the digest {towers}, the manifest names {expected}")
    index = _belonging(folder / names.TOWER)
    owner, space = index.get(names.TOWER_HASH), index.get(names.SPACE)
    found = f"an index of the towers {owner}, the manifest names {expected}"
    if owner == expected:
        found = f"vectors of the space {space}, the manifest names {manifest.space}"
    if (owner, space) != (expected, manifest.space):
        problems.append(f"{folder / names.INDEX}: {found}")
    return problems


def _belonging(path: Path) -> Mapping[str, object]:
    """What an index says about the towers that it belongs to."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _bundle(folder: Path, manifest: Manifest, pipeline: FeaturePipeline) -> Bundle:
    return Bundle(
        folder=folder,
        manifest=manifest,
        pipeline=pipeline,
        items=_entities(folder / names.ITEMS),
        users=_entities(folder / names.USERS),
        offsets=_array(folder / names.EVENTS / "offsets.npy"),
        item_rows=_array(folder / names.EVENTS / "item_rows.npy"),
        event_times=_array(folder / names.EVENTS / "times.npy"),
        popular=_array(folder / names.POPULAR),
        item_vectors=_array(folder / names.ITEM_VECTORS),
        query_tower=_present(folder / names.QUERY_TOWER),
        item_tower=_present(folder / names.ITEM_TOWER),
        ranker=_present(folder / names.RANKER),
        screen=_present(folder / names.SCREEN),
    )


def _entities(folder: Path) -> Entities | None:
    if not folder.is_dir():
        return None
    table = read_arrow(folder / names.TABLE)
    columns = {path.stem: _mapped(path) for path in sorted(folder.glob("*.npy"))}
    if (folder / names.COLUMNS).is_file():
        together = _mapped(folder / names.COLUMNS)
        # Views (C, ...) whose rows are apart.
        columns |= {name: together[name] for name in together.dtype.names or ()}
    return Entities(ids=table.column(0).combine_chunks(), table=table, columns=columns)


def _array(path: Path) -> Array | None:
    return _mapped(path) if path.is_file() else None


def _mapped(path: Path) -> Array:
    small = path.stat().st_size <= mmap.PAGESIZE  # an empty array cannot be mapped
    array = np.load(path, mmap_mode=None if small else "r", allow_pickle=False)
    return np.asarray(array)  # a view of the map without what makes every access of it slow


def _present(path: Path) -> Path | None:
    return path if path.is_file() else None
