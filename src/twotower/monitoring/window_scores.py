"""Scores of a bundle's ranker on rows of a window: as many as its reference holds, in its bins.

Shape letters: S rows that are scored.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from twotower.monitoring.profile import Profile
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.validation_scores import MAX_SCORED, SEED
from twotower.monitoring.window_profile import WindowProfiler
from twotower.monitoring.windows import Window


def with_scores(
    profile: Profile,
    window: Window,
    models: BundleModels,
    profiler: WindowProfiler,
    positive_from: float,
) -> Profile:
    """A window's profile with scores of some of its rows; as it is without a ranker.

    Args:
        profile: Of the window; it is used up.
        window: The window.
        models: The bundle.
        profiler: Made the profile.
        positive_from: Smallest label of a success.
    """
    num_rows = window.interactions.num_rows
    chosen = np.sort(np.random.default_rng(SEED).permutation(num_rows)[:MAX_SCORED])  # (S,)
    some = replace(window, interactions=window.interactions.take(pa.array(chosen)))
    scores = models.probabilities(some, models.rows(some, positive_from))
    if scores is None:
        return profile
    return profile.merge(profiler.profile_scores(some.interactions, scores))
