"""The statistics of data drift against those of evidently, on the same arrays.

In an environment of its own, with `pip install evidently 'pandas<3'` beside NumPy and SciPy:

    PYTHONPATH=src python benchmarks/monitoring/evidently_check.py

Twenty pairs of numeric and of categorical samples. evidently bins numbers itself; its bins are
taken as they are. It gives the Jensen-Shannon distance with natural logarithms, and tests a window
against the shares of the reference as if these were known, which is a reference of very many rows.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests.chisquare_stattest import chi_stat_test
from evidently.legacy.calculations.stattests.jensenshannon import jensenshannon_stat_test
from evidently.legacy.calculations.stattests.ks_stattest import ks_stat_test
from evidently.legacy.calculations.stattests.psi import psi_stat_test
from evidently.legacy.calculations.stattests.utils import get_binned_data
from evidently.legacy.core import ColumnType
from scipy import stats

from twotower.monitoring.statistics import chi_squared, jensen_shannon, ks, psi

NUMBER, CATEGORY = ColumnType.Numerical, ColumnType.Categorical
MANY_ROWS = 1e15


def main() -> None:
    rng = np.random.default_rng(0)
    worst: dict[str, float] = defaultdict(float)

    def note(name: str, ours: float, theirs: float) -> None:
        worst[name] = max(worst[name], abs(ours - theirs) / max(abs(theirs), 1e-12))

    for _ in range(20):
        before = pd.Series(rng.normal(size=5000))
        now = pd.Series(rng.normal(rng.uniform(0, 0.8), rng.uniform(0.8, 1.3), 3000))
        q, p = (np.asarray(part) for part in get_binned_data(before, now, NUMBER, 30))
        note("psi, numbers", psi(p[None], q)[0], psi_stat_test.func(before, now, NUMBER, 0.1)[0])
        q, p = (np.asarray(x) for x in get_binned_data(before, now, NUMBER, 30, feel_zeroes=False))
        theirs = jensenshannon_stat_test.func(before, now, NUMBER, 0.1)[0] / math.sqrt(math.log(2))
        note("jensen_shannon, numbers", jensen_shannon(p[None], q)[0], theirs)
        values = np.unique(np.concatenate([before, now]))
        places = (np.searchsorted(values, part) for part in (now, before))
        p, q = (np.bincount(codes, minlength=len(values)) / len(codes) for codes in places)
        p_value = stats.ks_2samp(now, before).pvalue
        note("ks", ks(p[None], q)[0], stats.ks_2samp(now, before).statistic)
        note("ks, p-value", p_value, ks_stat_test.func(before, now, NUMBER, 0.05)[0])

        shares = rng.dirichlet(np.full(int(rng.integers(3, 15)), 3.0))
        names = np.arange(len(shares)).astype(str)
        before = pd.Series(rng.choice(names, 5000, p=shares))
        now = pd.Series(rng.choice(names, 3000, p=rng.dirichlet(200 * shares)))
        known = sorted(set(before) | set(now))
        q, p = (np.array([(x == n).mean() for n in known]) for x in (before, now))
        note("psi, values", psi(p[None], q)[0], psi_stat_test.func(before, now, CATEGORY, 0.1)[0])
        theirs = jensenshannon_stat_test.func(before, now, CATEGORY, 0.1)[0]
        note(
            "jensen_shannon, values", jensen_shannon(p[None], q)[0], theirs / math.sqrt(math.log(2))
        )
        value = chi_squared(p[None], q, (3000.0, MANY_ROWS))[0]
        theirs = chi_stat_test.func(before, now, CATEGORY, 0.05)[0]
        note("chi_squared, p-value", stats.chi2.sf(value, len(known) - 1), theirs)
    for name, difference in worst.items():
        print(f"{name:25} largest relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
