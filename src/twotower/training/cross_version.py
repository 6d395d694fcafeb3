"""Whether vectors of two versions may be compared: queries of each against items of the other.

Of an old and a new version of the towers there are four pairs. The new queries must find the old
items, and the old queries the new ones, about as well as old queries find old items; then whoever
has stored vectors of the old version can go on using them beside new ones. This is the criterion of
Shen et al. 2020, "Towards Backward-Compatible Representation Learning", in both directions. Only
items that both versions know are ranked.

Shapes: C items of the catalogue, K of them that both versions know, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from twotower.data.queries import Queries
from twotower.index.exact import exact_search
from twotower.losses.alignment import FrozenItems
from twotower.metrics.top_k import Relevant, top_k_metrics
from twotower.training.run_folder import read_json, write_json

SPACE = "space.json"
MIN_KEPT = 0.95
PAIRS = ("old_queries_old_items", "old_queries_new_items", "new_queries_old_items")
NEW_PAIR = "new_queries_new_items"


@dataclass(frozen=True, kw_only=True)
class Space:
    """In which space the vectors of a run lie.

    Args:
        space: Its name; runs of the same name have vectors that may be compared.
        inherited: Whether it is that of the run that was gone on from.
        kept: Share of the recall that is left where vectors of the first run of this space meet
            those of this one, as far as it was measured: the product over all runs in between.
        recall: Of every pair of queries and items; empty for a run that goes on from none.
        k: Length of the lists that the recall is of; 0 where there is none.
    """

    space: str
    inherited: bool
    kept: float
    recall: Mapping[str, float]
    k: int

    def save(self, folder: Path) -> None:
        """Write it into a run folder."""
        write_json(folder / SPACE, asdict(self))

    @staticmethod
    def load(folder: Path) -> Space | None:
        """Read it from a run folder; None where there is none."""
        path = folder / SPACE
        return read_json(path, lambda found: Space(**found)) if path.is_file() else None


def new_space(model: nn.Module) -> Space:
    """A space of its own, named by a digest of the towers.

    Args:
        model: The trained towers.
    """
    digest = blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return Space(space=digest.hexdigest(), inherited=False, kept=1.0, recall={}, k=0)


def space_of(model: nn.Module, before: Space | None, recall: Mapping[str, float], k: int) -> Space:
    """The space of a run that went on from another one: the same where that was measured.

    Args:
        model: The trained towers.
        before: Space of the earlier run, None where it is not known.
        recall: As `cross_version_recall` gives it.
        k: Length of its lists.
    """
    own = new_space(model)
    old, *crossed = (recall[pair] for pair in PAIRS)
    kept = min(1.0, min(crossed) / old) if old > 0 else 0.0
    if before is not None and kept * before.kept >= MIN_KEPT:
        return Space(
            space=before.space, inherited=True, kept=kept * before.kept, recall=recall, k=k
        )
    return Space(space=own.space, inherited=False, kept=1.0, recall=recall, k=k)


@dataclass(frozen=True, kw_only=True)
class OldVersion:
    """Vectors of the old version.

    Args:
        items: (C, D), and which of them it knew.
        queries: (Q, D) of the queries that recall is measured on.
    """

    items: FrozenItems
    queries: Tensor


def cross_version_recall(
    old: OldVersion, *, items: Tensor, vectors: Tensor, queries: Queries, k: int, remove_seen: bool
) -> dict[str, float]:
    """Recall of every pair of a version's queries and a version's items.

    Args:
        old: The old version.
        items: (C, D) items of the new one.
        vectors: (Q, D) queries of the new one.
        queries: What is asked and what is right.
        k: Length of the lists, cut to the number of items that both versions know.
        remove_seen: Whether what a user had taken before is left out of the lists.

    Returns:
        Mean recall by pair; all nan where no right answer is an item that both know.
    """
    known = old.items.known.cpu()
    places = known.nonzero().flatten()  # (K,)
    row_of = np.full(int(max(len(known), queries.truth.item_rows.max(initial=0) + 1)), -1)
    row_of[places.numpy()] = np.arange(len(places))
    truth = queries.truth.where(_row(row_of, queries.truth.item_rows) >= 0)
    right = Relevant(offsets=truth.offsets, item_rows=_row(row_of, truth.item_rows))
    seen = queries.seen.where(_row(row_of, queries.seen.item_rows) >= 0)
    seen = type(seen)(offsets=seen.offsets, item_rows=_row(row_of, seen.item_rows))
    of_items = {"old": old.items.vectors.cpu()[places], "new": items.cpu()[places]}  # (K, D)
    of_queries = {"old": old.queries.cpu(), "new": vectors.cpu()}
    found = {}
    for pair in (*PAIRS, NEW_PAIR):
        asks, _, asked, _ = pair.split("_")
        length = min(k, len(places))
        if not length or not len(truth.item_rows):
            found[pair] = float("nan")
            continue
        lists = exact_search(
            of_queries[asks], of_items[asked], length, seen if remove_seen else None
        ).rows
        recall = top_k_metrics(lists, right, [length])[f"recall@{length}"]
        found[pair] = float(np.nanmean(recall))
    return found


def _row(row_of: np.ndarray, item_rows: np.ndarray) -> np.ndarray:
    """Rows among the items that both know, -1 for others."""
    inside = item_rows < len(row_of)
    return np.where(inside, row_of[np.where(inside, item_rows, 0)], -1)
