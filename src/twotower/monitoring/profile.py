"""Profiles: what is known of a stretch of data, small, mergeable and stored without pickle.

A profile counts, for every column, how many rows fell into each of the fixed bins of
`twotower.monitoring.bins`, how many were null and how many unseen. All counts are kept apart for
`NUM_GROUPS` groups of users: the events of one user are alike, and all of them are in one group,
so that the groups tell how far counts differ by chance (`twotower.monitoring.data_drift`).

Counts, bins and exposures of merged profiles are exactly those of the whole; quantiles and frequent
values are within the errors of their sketches.

Shape letters: G groups, B bins, C items of the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import DataError
from twotower.monitoring.bins import Bins
from twotower.monitoring.sketches import FrequentValues, Quantiles

PROFILE_VERSION = 1
NUM_GROUPS = 256

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(kw_only=True, slots=True)
class ColumnProfile:
    """Counts of one column.

    Args:
        counts: (G, B) values by group and bin.
        rows: (G,) rows that could have had a value; those of an unknown user or item could not.
        null: (G,) rows without a value.
        unseen: (G,) rows with a value that training did not see (often enough).
        quantiles: Of numbers, encoded; empty for other kinds.
        top: Most frequent values of a vocabulary, where they are known as they came.
        top_unseen: The same of values that training did not see.
    """

    counts: Counts
    rows: Counts
    null: Counts
    unseen: Counts
    quantiles: Quantiles = field(default_factory=Quantiles)
    top: FrequentValues = field(default_factory=FrequentValues)
    top_unseen: FrequentValues = field(default_factory=FrequentValues)

    @staticmethod
    def empty(num_bins: int) -> ColumnProfile:
        """Of no rows."""
        return ColumnProfile(
            counts=np.zeros((NUM_GROUPS, num_bins), np.int64),
            rows=np.zeros(NUM_GROUPS, np.int64),
            null=np.zeros(NUM_GROUPS, np.int64),
            unseen=np.zeros(NUM_GROUPS, np.int64),
        )

    def merge(self, other: ColumnProfile) -> None:
        """Add what another has seen."""
        self.counts += other.counts
        self.rows += other.rows
        self.null += other.null
        self.unseen += other.unseen
        self.quantiles.merge(other.quantiles)
        self.top.merge(other.top)
        self.top_unseen.merge(other.top_unseen)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of a stretch of data.

    Args:
        bins: How the columns are cut, by name.
        columns: Counts by name.
        rows: (G,) rows by group.
        exposures: (C,) rows by item of the catalogue; (0,) where there are no items.
        span: Earliest and latest time, epoch seconds UTC; None where there are no times.
        facts: What else belongs to it: plain values, kept as they are by a merge.
    """

    bins: Mapping[str, Bins]
    columns: Mapping[str, ColumnProfile]
    rows: Counts
    exposures: Counts
    span: tuple[int, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def empty(
        bins: Sequence[Bins] | Mapping[str, Bins],
        num_items: int,
        facts: Mapping[str, Any] | None = None,
    ) -> Profile:
        """Of no rows.

        Args:
            bins: How the columns are cut.
            num_items: C.
            facts: See `Profile`.
        """
        named = dict(bins) if isinstance(bins, Mapping) else {one.name: one for one in bins}
        return Profile(
            bins=named,
            columns={name: ColumnProfile.empty(one.num_bins) for name, one in named.items()},
            rows=np.zeros(NUM_GROUPS, np.int64),
            exposures=np.zeros(num_items, np.int64),
            facts=facts or {},
        )

    @property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return int(self.rows.sum())

    def digest(self) -> str:
        """Digest of the bins; only profiles with the same one can be merged or compared."""
        document = {name: one.to_dict() for name, one in sorted(self.bins.items())}
        text = json.dumps([document, len(self.exposures)], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def merge(self, other: Profile) -> Profile:
        """The profile of both parts; this one is used up.

        Raises:
            ValueError: When their bins differ.
        """
        check_same_bins(self, other)
        for name, column in self.columns.items():
            column.merge(other.columns[name])
        self.rows.__iadd__(other.rows)
        self.exposures.__iadd__(other.exposures)
        spans = [span for span in (self.span, other.span) if span is not None]
        span = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
        return replace(self, span=span)

    def save(self, path: Path) -> None:
        """Write it as one ``.npz`` file; it is there whole or not at all."""
        document = {
            "version": PROFILE_VERSION,
            "digest": self.digest(),
            "bins": [one.to_dict() for one in self.bins.values()],
            "span": self.span,
            "facts": dict(self.facts),
        }
        arrays: dict[str, Any] = {"rows": self.rows, "exposures": self.exposures}
        arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
        for place, name in enumerate(self.bins):
            column = self.columns[name]
            arrays |= {
                f"{place}.counts": column.counts,
                f"{place}.rows": column.rows,
                f"{place}.null": column.null,
                f"{place}.unseen": column.unseen,
                f"{place}.quantiles": np.frombuffer(column.quantiles.to_bytes(), np.uint8),
                f"{place}.top": np.frombuffer(column.top.to_bytes(), np.uint8),
                f"{place}.top_unseen": np.frombuffer(column.top_unseen.to_bytes(), np.uint8),
            }
        written = BytesIO()
        np.savez_compressed(written, allow_pickle=False, **arrays)
        staging = path.with_name(f".{path.name}.staging")
        staging.write_bytes(written.getvalue())
        staging.replace(path)

    @staticmethod
    def load(path: Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            DataError: When it is no profile of this version, or is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            document = json.loads(arrays["document"].tobytes())
            version = document["version"]
            if version != PROFILE_VERSION:
                problem = f"version {version!r}, this release reads {PROFILE_VERSION}"
                raise DataError([f"{path}: a profile of {problem}"])
            return _from_arrays(document, arrays)
        except DataError:
            raise
        except Exception as error:  # whatever NumPy, zip, JSON and the sketches make of it
            raise DataError([f"{path}: no profile, or damaged: {error}"]) from error


def check_same_bins(one: Profile, other: Profile) -> None:
    """Profiles can be added and compared when their bins are the same.

    Raises:
        ValueError: When they are not.
    """
    if one.digest() != other.digest():
        raise ValueError(
            f"profiles with other bins: {one.digest()} and {other.digest()}; allowed: profiles "
            "made with the reference of the same bundle"
        )


def _from_arrays(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> Profile:
    bins = [Bins.from_dict(one) for one in document["bins"]]
    columns = {
        one.name: ColumnProfile(
            counts=arrays[f"{place}.counts"],
            rows=arrays[f"{place}.rows"],
            null=arrays[f"{place}.null"],
            unseen=arrays[f"{place}.unseen"],
            quantiles=Quantiles(arrays[f"{place}.quantiles"].tobytes()),
            top=FrequentValues(arrays[f"{place}.top"].tobytes()),
            top_unseen=FrequentValues(arrays[f"{place}.top_unseen"].tobytes()),
        )
        for place, one in enumerate(bins)
    }
    profile = Profile(
        bins={one.name: one for one in bins},
        columns=columns,
        rows=arrays["rows"],
        exposures=arrays["exposures"],
        span=None if document["span"] is None else (document["span"][0], document["span"][1]),
        facts=document["facts"],
    )
    if profile.digest() != document["digest"]:
        raise ValueError(f"its bins have the digest {profile.digest()}, not {document['digest']}")
    return profile
