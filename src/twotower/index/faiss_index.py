"""A FAISS index as the rest of the code sees it: search, save, load.

FAISS' own index file holds vectors, structure and search settings; a small JSON file beside it says
what is inside, so that a wrong or damaged file is refused by name. Both need FAISS and numpy alone,
and neither knows of shards: an index is written undivided and divided again where it is read.

The metric is always inner product. Letters: ``Q`` queries, ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twotower.index.base import (
    FloatArray,
    SearchResult,
    check_k,
    check_least,
    checked_vectors,
    padded,
)
from twotower.index.cells import Cells
from twotower.index.faiss_library import Handle, faiss
from twotower.index.gpu_index import (
    GPU_LOCK,
    MAX_GPU_SELECTION,
    Device,
    Place,
    pick_device,
    pick_num_shards,
    placed,
    whole,
)
from twotower.index.shards import shards_of

INDEX_FILE = "index.faiss"
FACTS_FILE = "index.json"
FORMAT_VERSION = 1
METRIC = "inner_product"


class FaissIndex:
    """A built FAISS index on a CPU, a GPU, or in shards on several.

    Args:
        index: The FAISS index, filled; on a GPU its GPU form, in shards FAISS' `IndexShards`.
        kind: Name of the kind, such as ``ivf_flat``.
        settings: Its settings in words.
        device: Where `index` lives.
        beam: Width of CAGRA's search on a GPU, for the other kinds 0.
    """

    def __init__(
        self, index: Handle, *, kind: str, settings: str, device: Place, beam: int = 0
    ) -> None:
        self.kind = kind
        self.settings = settings
        self.device = device
        self.faiss_index = index
        self._beam = beam

    @property
    def num_items(self) -> int:
        """Number of items, ``N``."""
        return int(self.faiss_index.ntotal)

    @property
    def dim(self) -> int:
        """Width of the vectors, ``D``."""
        return int(self.faiss_index.d)

    @property
    def num_shards(self) -> int:
        """Into how many shards it is divided; 1 if it is not."""
        return len(shards_of(self.faiss_index))

    @property
    def description(self) -> str:
        """Kind, settings, size and device in words."""
        shards = "" if self.num_shards == 1 else f" in {self.num_shards} shards"
        return (
            f"{self.kind} ({self.settings}) on {self.device}{shards}: "
            f"{self.num_items:,} items x {self.dim}, inner product"
        )

    @property
    def max_k(self) -> int:
        """The longest list that a search can give."""
        if self.device == "cpu":
            return self.num_items
        return min(self.num_items, MAX_GPU_SELECTION // self.refine)

    @property
    def refine(self) -> int:
        """So many times `k` items are found by codes and scored again exactly; 1 without codes."""
        return int(getattr(self.faiss_index, "k_factor", 1))

    @cached_property
    def cells(self) -> Cells | None:
        """The cells of an inverted file on the CPU, None for other kinds."""
        if self.device != "cpu" or not self.kind.startswith("ivf_"):
            return None
        return Cells(shards_of(self.faiss_index))

    def search(self, queries: FloatArray, k: int, *, num_probes: int = 0) -> SearchResult:
        """Find the items with the largest inner products.

        Args:
            queries: Query vectors (Q, D); Q may be 0.
            k: How many items are wanted, at least 1; may exceed ``N``.
            num_probes: Cells that an undivided inverted file looks into; 0 for its own setting.

        Returns:
            Exactly ``k`` columns; equal scores are ordered by row, but which of several items with
            the last place's score are returned is FAISS' choice.

        Raises:
            ValueError: When the queries do not fit, or `k` exceeds what a GPU index can select.
        """
        check_k(k)
        vectors = checked_vectors("queries", queries, dim=self.dim)
        wanted = min(k, self.num_items)
        self._check_selection(wanted)
        if len(vectors) == 0:
            rows, scores = np.empty((0, wanted), np.int64), np.empty((0, wanted), np.float32)
        else:
            with self._lock():
                params = self._params(wanted, num_probes)
                scores, rows = self.faiss_index.search(vectors, wanted, params=params)
        return _ties_by_row(padded(rows, scores, k))

    def save(self, folder: Path) -> None:
        """Write the CPU form of the index and its facts into a folder, made if missing.

        Shards are merged for it, in memory.

        Args:
            folder: Where ``index.faiss`` and ``index.json`` go.
        """
        folder.mkdir(parents=True, exist_ok=True)
        index = self.faiss_index
        if self.device == "gpu" or self.num_shards > 1:
            with self._lock():
                index = whole(index, self.device)
        if self._beam:
            index.hnsw.efSearch = self._beam
        faiss.write_index(index, str(folder / INDEX_FILE))
        facts = {
            "version": FORMAT_VERSION,
            "kind": self.kind,
            "settings": self.settings,
            "metric": METRIC,
            "dim": self.dim,
            "num_items": self.num_items,
            "faiss": faiss.__version__,
        }
        text = json.dumps(facts, indent=2) + "\n"
        (folder / FACTS_FILE).write_text(text, encoding="utf-8")

    def _lock(self) -> AbstractContextManager[Any]:
        return GPU_LOCK if self.device == "gpu" else nullcontext()

    @property
    def num_probes(self) -> int:
        """Cells that a search of an undivided inverted file looks into; else 0."""
        (first, *others) = shards_of(self.faiss_index)
        return 0 if others else int(getattr(first, "nprobe", 0))

    def _params(self, k: int, num_probes: int) -> Handle:
        """Search parameters of this call: the beam of a graph must hold the wanted items."""
        if self._beam:
            params = faiss.SearchParametersCagra()
            params.itopk_size = max(self._beam, k)
            return params
        if self.kind in ("hnsw", "cagra"):
            beam = max(self.faiss_index.hnsw.efSearch, k)
            return faiss.SearchParametersHNSW(efSearch=beam)
        if not num_probes:
            return None
        params = faiss.SearchParametersIVF(nprobe=num_probes)
        if isinstance(self.faiss_index, faiss.IndexRefine):
            params = faiss.IndexRefineSearchParameters(
                k_factor=self.faiss_index.k_factor, base_index_params=params
            )
        return params

    def _check_selection(self, wanted: int) -> None:
        refine = self.refine
        if self.device == "gpu" and wanted * refine > MAX_GPU_SELECTION:
            factor = f" x {refine} to be refined" if refine > 1 else ""
            raise ValueError(
                f"k must be at most {MAX_GPU_SELECTION // refine} on a GPU, where FAISS selects at "
                f"most {MAX_GPU_SELECTION} items, got {wanted}{factor}; a larger k needs device=cpu"
            )


def _ties_by_row(result: SearchResult) -> SearchResult:
    if (result.scores[:, 1:] < result.scores[:, :-1]).all():
        return result
    order = np.lexsort((result.rows, -result.scores), axis=-1)  # (Q, k)
    return SearchResult(
        rows=np.take_along_axis(result.rows, order, axis=-1),
        scores=np.take_along_axis(result.scores, order, axis=-1),
    )


def load_index(folder: Path, *, device: Device = "cpu", num_shards: int = 1) -> FaissIndex:
    """Read an index that `FaissIndex.save` wrote.

    Args:
        folder: The folder it was saved into.
        device: Where it is to run.
        num_shards: Into how many shards it is to be divided, whatever it was when it was saved; 0
            is one for every GPU, or for every thread of a CPU.

    Raises:
        ValueError: When the files are missing, damaged, of another format, or contradict each
            other, or the device or so many shards cannot be used.
    """
    check_least("load_index", {"num_shards": (num_shards, 0)})
    facts = _read_facts(folder)
    place = pick_device(device, facts["kind"])
    num_shards = pick_num_shards(num_shards, facts["kind"], place, facts["num_items"])
    path = folder / INDEX_FILE
    # What is divided is copied out of the mapped file: it is in memory once, not twice.
    flags = 0 if num_shards == 1 else faiss.IO_FLAG_MMAP_IFC
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a readable FAISS index: {error}") from error
    found = {"dim": index.d, "num_items": index.ntotal, "metric": METRIC}
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        found["metric"] = f"FAISS metric {index.metric_type}"
    wrong = [name for name in found if found[name] != facts[name]]
    if wrong:
        stated = ", ".join(f"{name} {facts[name]}" for name in wrong)
        got = ", ".join(f"{name} {found[name]}" for name in wrong)
        raise ValueError(f"{path} does not belong to {FACTS_FILE}: stated {stated}; found {got}")
    beam = index.hnsw.efSearch if place == "gpu" and facts["kind"] == "cagra" else 0
    return FaissIndex(
        placed(index, place, num_shards),
        kind=facts["kind"],
        settings=facts["settings"],
        device=place,
        beam=beam,
    )


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no index: {FACTS_FILE} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    needed = {"version", "kind", "settings", "metric", "dim", "num_items"}
    if not isinstance(facts, dict) or not needed <= facts.keys():
        raise ValueError(f"{path} must hold {', '.join(sorted(needed))}, got {facts}")
    if facts["version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {facts['version']}, allowed is {FORMAT_VERSION}"
        )
    return facts
