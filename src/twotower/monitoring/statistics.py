"""How far two distributions over the same bins are apart.

====================  =========================================================================
``psi``               population stability index, sum of (p - q) ln(p / q)
``ks``                Kolmogorov-Smirnov, the largest difference of the distribution functions at
                      the edges of the bins; at most that of the values themselves
``jensen_shannon``    square root of the divergence with logarithms to base 2, from 0 to 1
``chi_squared``       Pearson's, of the two rows of counts; needs to know how many rows there are
====================  =========================================================================

PSI: Siddiqi, "Credit Risk Scorecards", 2006; Yurdakul and Naranjo, "Statistical properties of the
population stability index", 2020. Shares below `FLOOR` count as that much in the logarithms of the
PSI, as is usual.

Shape letters: M distributions, B bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FLOOR = 1e-4
PSI, KS, JENSEN_SHANNON, CHI_SQUARED = "psi", "ks", "jensen_shannon", "chi_squared"


def psi(shares: Floats, reference: Floats) -> Floats:
    """Population stability index (M,).

    Args:
        shares: (M, B) shares of the bins.
        reference: (B,) those of the reference.
    """
    p, q = np.maximum(shares, FLOOR), np.maximum(reference, FLOOR)
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def ks(shares: Floats, reference: Floats) -> Floats:
    """Kolmogorov-Smirnov statistic (M,) of bins (M, B) and (B,) that are in order."""
    return np.asarray(np.abs(np.cumsum(shares - reference, axis=-1)).max(axis=-1))


def jensen_shannon(shares: Floats, reference: Floats) -> Floats:
    """Jensen-Shannon distance (M,) of shares (M, B) and (B,), from 0 to 1."""
    p = np.maximum(shares, 0.0)
    p = p / np.maximum(p.sum(axis=-1, keepdims=True), FLOOR)
    middle = (p + reference) / 2
    divergence = (_relative(p, middle) + _relative(np.broadcast_to(reference, p.shape), middle)) / 2
    return np.sqrt(np.maximum(divergence, 0.0))


def chi_squared(shares: Floats, reference: Floats, num_rows: tuple[float, float]) -> Floats:
    """Pearson's statistic (M,) of the table of two rows of counts.

    Args:
        shares: (M, B) shares of the bins.
        reference: (B,) those of the reference.
        num_rows: How many rows the shares and the reference are of.
    """
    of_shares, of_reference = num_rows
    total = of_shares + of_reference
    pooled = (shares * of_shares + reference * of_reference) / total
    terms = np.divide(
        (shares - reference) ** 2, pooled, out=np.zeros_like(pooled), where=pooled > 0
    )
    return np.asarray(of_shares * of_reference / total * terms.sum(axis=-1))


def _relative(p: Floats, q: Floats) -> Floats:
    """Relative entropy in bits, over the last axis."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=(p > 0) & (q > 0))
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))
