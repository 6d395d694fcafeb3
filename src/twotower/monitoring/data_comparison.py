"""One column of a window against the reference: its statistics and what they would be by chance.

Shape letters: G groups, B bins, M draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from twotower.monitoring import statistics
from twotower.monitoring.bins import NUM_SINGLE, SCORE_COLUMN, Bins, Codes, coarse
from twotower.monitoring.chance import Counts, Floats, Null, differences, group_parts
from twotower.monitoring.profile import ColumnProfile, Profile
from twotower.monitoring.reference import Reference

UNSEEN_RATE, NULL_RATE, MISSING_RATE = "unseen_rate", "null_rate", "missing_rate"

Statistic = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class DataDriftSettings:
    """What is an alert.

    Args:
        false_alarm_rate: Share of windows without drift that raise any alert at all.
        min_psi: A smaller population stability index is no alert; 0.1 to 0.25 is called moderate.
        min_jensen_shannon: The same of the Jensen-Shannon distance; 0.13 is about a PSI of 0.1.
        min_ks: The same of the Kolmogorov-Smirnov statistic; 0.1 is about a PSI of 0.07.
        min_chi_squared: The same of chi-squared over the rows (the harmonic sum of both numbers of
            rows), Cohen's w squared; 0.1 is about a PSI of 0.1.
        min_rate: The same of the difference of rates of unseen and null values.
        num_bins: Bins of all statistics but Kolmogorov-Smirnov's.
        num_draws: Draws by which chance is known.
        min_rows: A column with fewer values on either side is not looked at.
        leave_out: Names of columns that are not looked at.
        seed: Of the draws.

    Raises:
        ValueError: When a setting is out of range.
    """

    false_alarm_rate: float = 0.05
    min_psi: float = 0.1
    min_jensen_shannon: float = 0.13
    min_ks: float = 0.1
    min_chi_squared: float = 0.1
    min_rate: float = 0.01
    num_bins: int = 10
    num_draws: int = 2000
    min_rows: int = 100
    leave_out: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            **{f"min_{n}": 0 for n in ("psi", "jensen_shannon", "ks", "chi_squared", "rate")},
            "num_bins": 2,
            "num_draws": 100,
            "min_rows": 2,
        }
        problems = [
            f"data drift: `{name}` must be at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if not 0 < self.false_alarm_rate < 1:
            rate = self.false_alarm_rate
            problems.append(f"data drift: `false_alarm_rate` must lie between 0 and 1, got {rate}")
        elif self.num_draws * self.false_alarm_rate < 5:
            problems.append(
                f"data drift: {self.num_draws} `num_draws` do not tell a false-alarm rate of "
                f"{self.false_alarm_rate}; at least {int(np.ceil(5 / self.false_alarm_rate))}"
            )
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One comparison before it is judged."""

    bins: Bins
    statistic: str
    null: Null
    reference: float | None
    rises: bool = True


class Comparison:
    """One column of a window and of the reference."""

    def __init__(
        self,
        window: Profile,
        reference: Reference,
        bins: Bins,
        settings: DataDriftSettings,
        drawn: npt.NDArray[np.float32],
        place: int,
    ) -> None:
        self._bins = bins
        self._settings = settings
        self._drawn = drawn
        self._seed = settings.seed * 1009 + place
        self._column = window.columns[bins.name]
        training, later = (part.columns[bins.name] for part in reference.parts)
        # Where the validation part tells nothing, what training saw is better than no verdict.
        self._later = later if later.rows.sum() >= settings.min_rows else training
        of_later = bins.name == SCORE_COLUMN or bins.values > NUM_SINGLE
        self._normal = self._later if of_later else training
        self._told_apart = bins.told_apart and not window.facts.get("encoded_only", False)

    def all(self) -> Iterator[Compared]:
        """All comparisons of the column."""
        yield from self._distributions()
        if self._bins.name == SCORE_COLUMN:
            return
        if not self._bins.has_vocabulary:
            yield from self._rate(NULL_RATE, lambda column: column.null, self._normal)
        elif self._told_apart:
            yield from self._rate(NULL_RATE, lambda column: column.null, self._normal)
            yield from self._rate(UNSEEN_RATE, lambda column: column.unseen, self._later)
        else:
            yield from self._rate(MISSING_RATE, lambda c: c.null + c.unseen, self._later)

    def _distributions(self) -> Iterator[Compared]:
        now, before = self._column.counts, self._normal.counts
        num_rows = (float(now.sum()), float(before.sum()))
        if min(num_rows) < self._settings.min_rows or now.shape[1] < 2:
            return
        settings, bins = self._settings, self._bins
        places = coarse(before.sum(axis=0), settings.num_bins)
        few_now, few_before = _joined(now, places), _joined(before, places)
        of_few: list[tuple[str, Statistic, float]] = [
            (statistics.PSI, statistics.psi, settings.min_psi),
            (statistics.JENSEN_SHANNON, statistics.jensen_shannon, settings.min_jensen_shannon),
        ]
        if bins.has_vocabulary:
            of_rows = partial(statistics.chi_squared, num_rows=num_rows)
            harmonic = num_rows[0] * num_rows[1] / sum(num_rows)
            least = settings.min_chi_squared * harmonic
            of_few.append((statistics.CHI_SQUARED, of_rows, least))
        yield from self._compare(few_now, few_before, of_few)
        if not bins.has_vocabulary and bins.kind != "time":
            yield from self._compare(now, before, [(statistics.KS, statistics.ks, settings.min_ks)])

    def _compare(
        self, now: Counts, before: Counts, wanted: Sequence[tuple[str, Statistic, float]]
    ) -> Iterator[Compared]:
        of_now, of_before = now.sum(axis=1), before.sum(axis=1)
        parts = group_parts(now, of_now) - group_parts(before, of_before)  # (G, B)
        chance = differences(parts, self._drawn, self._seed)  # (M, B)
        shares, normal = now.sum(axis=0) / of_now.sum(), before.sum(axis=0) / of_before.sum()
        by_chance = np.maximum(normal + chance, 0.0)
        for name, statistic, least in wanted:
            null = Null(
                value=float(statistic(shares[None], normal)[0]),
                draws=statistic(by_chance, normal),
                least=least,
            )
            yield Compared(bins=self._bins, statistic=name, null=null, reference=None)

    def _rate(
        self, name: str, of: Callable[[ColumnProfile], Counts], normal: ColumnProfile
    ) -> Iterator[Compared]:
        if min(self._column.rows.sum(), normal.rows.sum()) < self._settings.min_rows:
            return
        now, before = of(self._column)[:, None], of(normal)[:, None]  # (G, 1)
        parts = group_parts(now, self._column.rows) - group_parts(before, normal.rows)
        chance = differences(parts, self._drawn, self._seed)[:, 0]  # (M,)
        rate = float(now.sum() / self._column.rows.sum())
        usual = float(before.sum() / normal.rows.sum())
        yield Compared(
            bins=self._bins,
            statistic=name,
            null=Null(value=abs(rate - usual), draws=np.abs(chance), least=self._settings.min_rate),
            reference=usual,
            rises=rate >= usual,
        )


def _joined(counts: Counts, places: Codes) -> Counts:
    """Counts (G, B') of fewer bins."""
    membership = np.eye(int(places.max()) + 1, dtype=np.int64)[places]  # (B, B')
    return counts @ membership
