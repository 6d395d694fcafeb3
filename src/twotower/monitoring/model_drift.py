"""Model drift: how far two versions of a bundle are apart.

- ``neighbour_overlap``: share of an item's nearest items that are the same in both, over a sample
  of the items that both have; exact search.
- ``vector_shift``: 1 - cosine between an item's two vectors, as they are, and after the rotation
  that brings them closest (orthogonal Procrustes: Schönemann, "A generalized solution of the
  orthogonal Procrustes problem", 1966). Two trainings of one model differ by a rotation at least,
  and only the second figure says whether items have moved.
- cross-version recall: lists that old user vectors find among new item vectors, and the reverse,
  against what both vectors of the new version find. It says whether versions may be mixed.
- ``score_psi``: shift of the scores of the lists.
- coverage, Gini coefficient and the share of the most shown hundredth of the items, of what is
  recommended to the same users. When they close in from version to version, a model learns from
  its own lists: a feedback loop.

Shape letters: n items of both versions, m of a sample, U users, D width of the vectors, k length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twotower.index.base import NO_ITEM
from twotower.metrics.catalogue import gini, top_share
from twotower.metrics.top_k import Relevant, top_k_metrics
from twotower.monitoring.findings import Finding
from twotower.monitoring.scoring import BundleModels, WindowRows
from twotower.monitoring.statistics import psi
from twotower.monitoring.vector_drift import (
    best_items,
    best_rotation,
    neighbour_overlap,
    vector_shift,
)
from twotower.monitoring.version_pair import Lists, VersionPair

MODEL = "model"
NUM_BINS = 10

Integers = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ModelDriftSettings:
    """When two versions are too far apart.

    Args:
        k: Length of lists and of neighbourhoods.
        num_items: Items whose neighbours are compared.
        num_users: Users whose lists are compared.
        min_overlap: A smaller neighbour overlap is an alert.
        max_shift: A larger vector shift after rotation is an alert.
        max_recall_drop: Share of the recall of the new version that mixing versions may cost.
        max_psi: A larger shift of scores is an alert.
        max_concentration: By how much Gini coefficient and share of the most shown hundredth may
            rise, and coverage may fall.
        seed: Of the samples.

    Raises:
        ValueError: When a setting is out of range.
    """

    k: int = 10
    num_items: int = 2000
    num_users: int = 2000
    min_overlap: float = 0.2
    max_shift: float = 0.5
    max_recall_drop: float = 0.05
    max_psi: float = 0.25
    max_concentration: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"model drift: `{name}` must be at least 1, got {getattr(self, name)}"
            for name in ("k", "num_items", "num_users")
            if getattr(self, name) < 1
        ]
        problems += [
            f"model drift: `{name}` must be at least 0, got {getattr(self, name)}"
            for name in ("min_overlap", "max_shift", "max_recall_drop", "max_psi")
            if getattr(self, name) < 0
        ]
        if problems:
            raise ValueError("\n".join(problems))


def model_drift(
    old: BundleModels,
    new: BundleModels,
    settings: ModelDriftSettings,
    taken: WindowRows | None = None,
) -> list[Finding]:
    """Compare two versions of a bundle.

    Args:
        old: The version before.
        new: The version that is served.
        settings: When they are too far apart.
        taken: Rows of a window, as the new version knows them: recall is that of what users took in
            it. Without them, it is that of the lists that the new version finds itself.

    Raises:
        ValueError: When one of them has no retrieval stage, or they have no item or no user in
            common.
    """
    pair = VersionPair.of(old, new, num_users=settings.num_users, seed=settings.seed, taken=taken)
    return [*_vectors(pair, settings), *_mixed(pair, settings), *_lists(pair, settings)]


def _vectors(pair: VersionPair, settings: ModelDriftSettings) -> Iterator[Finding]:
    old, new = pair.old.items, pair.new.items
    count = len(old)
    rows = np.sort(np.random.default_rng(settings.seed).permutation(count)[: settings.num_items])
    k = min(settings.k, count - 1)
    if k:
        overlap = neighbour_overlap(old, new, rows, k)
        yield _finding(
            "items",
            f"neighbour_overlap@{k}",
            overlap,
            None,
            settings.min_overlap,
            alert=overlap < settings.min_overlap,
            advice="Items have other neighbours than in the version before: look at lists of both "
            "before publishing, and check whether the data has changed as much.",
        )
    if old.shape[1] != new.shape[1]:
        return
    rotated = vector_shift(old, new, best_rotation(old, new))
    yield _finding(
        "items",
        "vector_shift_rotated",
        rotated,
        None,
        settings.max_shift,
        alert=rotated > settings.max_shift,
        advice="Items have moved, and not only turned: look at lists of both versions.",
    )
    yield _finding("items", "vector_shift", vector_shift(old, new), rotated, 2.0, alert=False)


def _mixed(pair: VersionPair, settings: ModelDriftSettings) -> Iterator[Finding]:
    """Recall when vectors of the two versions meet."""
    if pair.old.items.shape[1] != pair.new.items.shape[1]:
        return
    k = settings.k
    own = best_items(pair.new.users, pair.new.items, pair.seen, k)
    truth, statistic, usual = pair.truth, f"recall@{k}", None
    if truth is not None:
        usual = _recall(own, truth, k)
    if truth is None or usual is None:
        truth, statistic, usual = _as_truth(own), f"recall_of_own@{k}", 1.0
    bound = (1 - settings.max_recall_drop) * usual
    for name, users, items in (
        ("old users, new items", pair.old.users, pair.new.items),
        ("new users, old items", pair.new.users, pair.old.items),
    ):
        value = _recall(best_items(users, items, pair.seen, k), truth, k) or 0.0
        yield _finding(
            name,
            statistic,
            value,
            usual,
            bound,
            alert=value < bound,
            advice="Vectors of the two versions do not fit together: compute all stored vectors "
            "anew, or train with `alignment`.",
        )


def _as_truth(lists: Integers) -> Relevant:
    """Lists (U, k) as right answers."""
    users, places = np.nonzero(lists != NO_ITEM)
    return Relevant.from_pairs(users, lists[users, places], len(lists))


def _lists(pair: VersionPair, settings: ModelDriftSettings) -> Iterator[Finding]:
    old, new = (one.lists(settings.k, pair.seconds) for one in (pair.old, pair.new))
    scores = [one.scores[one.rows != NO_ITEM] for one in (old, new)]
    shift = _score_shift(*scores)
    yield _finding(
        "lists",
        "score_psi",
        shift,
        None,
        settings.max_psi,
        alert=shift > settings.max_psi,
        advice="Scores are distributed differently: thresholds on them, and whoever reads them, "
        "must be looked at.",
    )
    advice = "Lists show fewer items than before: a feedback loop if it goes on; explore more."
    for name, sign in (("gini", 1), ("top_1_percent_share", 1), ("coverage", -1)):
        before, now = (_concentration(one, name) for one in (old, new))
        bound = before + sign * settings.max_concentration
        yield _finding(
            "lists",
            f"{name}@{settings.k}",
            now,
            before,
            bound,
            alert=sign * (now - bound) > 0,
            advice=advice,
        )


def _concentration(lists: Lists, name: str) -> float:
    shown = lists.rows[lists.rows != NO_ITEM]
    counts = np.bincount(shown, minlength=lists.num_items)
    if name == "coverage":
        return float(np.count_nonzero(counts) / lists.num_items)
    return gini(counts) if name == "gini" else top_share(counts)


def _score_shift(old: Vectors, new: Vectors) -> float:
    edges = np.unique(np.quantile(old, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    shares = [
        np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1) / len(one)
        for one in (old, new)
    ]
    return float(psi(shares[1][None], shares[0])[0])


def _recall(found: Integers, relevant: Relevant, k: int) -> float | None:
    values = top_k_metrics(found, relevant, [k])[f"recall@{k}"]
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _finding(
    subject: str,
    statistic: str,
    value: float,
    reference: float | None,
    threshold: float,
    *,
    alert: bool,
    advice: str = "",
) -> Finding:
    return Finding(
        area=MODEL,
        subject=subject,
        statistic=statistic,
        value=value,
        reference=reference,
        threshold=threshold,
        p_value=None,
        alert=bool(alert),
        since=None,
        advice=advice if alert else "",
    )
