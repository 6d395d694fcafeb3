"""Plots of the report as SVG that takes its colours from the page, so that it suits light and dark.

Shape letters: B bins, W windows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from twotower.features.pipeline import FeaturePipeline
from twotower.features.transforms import Categorical, Numeric, Tags
from twotower.monitoring.bins import Bins, coarse
from twotower.monitoring.concept_history import WindowFigures
from twotower.monitoring.profile import Profile

MAX_BARS = 12
MAX_LABEL = 14
# Colours that no plot uses for anything else, and the properties of the page that they become.
INK, GRID, USUAL, WINDOW, ALARM = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
PROPERTIES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    USUAL: "var(--usual)",
    WINDOW: "var(--window)",
    ALARM: "var(--alarm)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def distribution_plot(
    name: str, reference: Profile, window: Profile, pipeline: FeaturePipeline
) -> str:
    """Shares of a column's values in the reference and in a window, as bars.

    Of a vocabulary, the bins that differ most are shown.

    Args:
        name: The column.
        reference: Profile that the window was held against.
        window: Profile of the window.
        pipeline: The features, for the names of the values.
    """
    bins = reference.bins[name]
    counts = [
        one.columns[name].counts.sum(axis=0).astype(np.float64) for one in (reference, window)
    ]
    if bins.has_vocabulary:
        totals = [max(one.sum(), 1.0) for one in counts]
        moved = np.abs(counts[0] / totals[0] - counts[1] / totals[1])
        chosen = np.sort(np.argsort(-moved, kind="stable")[: MAX_BARS - 1])
        if len(moved) <= MAX_BARS:
            chosen = np.arange(len(moved))
        shown = [np.append(one[chosen], one.sum() - one[chosen].sum()) for one in counts]
        labels = [*(_value_name(bins, int(place), pipeline) for place in chosen), "others"]
        if len(chosen) == len(moved):
            shown, labels = [one[:-1] for one in shown], labels[:-1]
    else:
        groups = coarse(counts[0], MAX_BARS)
        shown = [np.bincount(groups, one, int(groups.max()) + 1) for one in counts]
        firsts = np.flatnonzero(np.diff(groups, prepend=-1))
        labels = [_range_name(bins, int(place), pipeline) for place in firsts]
    shares = [100 * one / max(one.sum(), 1.0) for one in shown]
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = _figure(0.26 * len(labels) + 1.0)
        places = np.arange(len(labels))
        axes.barh(places - 0.2, shares[0], 0.38, color=USUAL, label="usual")
        axes.barh(places + 0.2, shares[1], 0.38, color=WINDOW, label="this window")
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.grid(axis="x", linewidth=0.5)
        axes.set_xlabel("% of values")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
        return _svg(figure)


def course_plot(
    statistic: str,
    windows: Sequence[WindowFigures],
    alarming: Sequence[int],
    reference: float | None,
) -> str:
    """The course of a figure over windows with its 95 % interval.

    Args:
        statistic: Its name.
        windows: W windows that have it, oldest first.
        alarming: Starts of those where it alerted.
        reference: What it was in the reference, or None.
    """
    figures = [window.figures[statistic] for window in windows]
    times: Any = [datetime.fromtimestamp((w.start + w.end) / 2, UTC) for w in windows]
    values = np.array([figure.value for figure in figures])
    margins = 1.96 * np.array([figure.standard_error for figure in figures])
    with mpl.rc_context(STYLE | {"svg.hashsalt": statistic}):
        figure, axes = _figure(2.4)
        axes.errorbar(
            times, values, yerr=margins, color=WINDOW, marker="o", markersize=4, linewidth=1.5,
            elinewidth=1, capsize=2,
        )  # fmt: skip
        if reference is not None:
            axes.axhline(reference, color=USUAL, linewidth=1.2, linestyle="--", label="usual")
        alarms = [place for place, window in enumerate(windows) if window.start in alarming]
        if alarms:
            axes.plot(
                [times[place] for place in alarms], values[alarms], "o", color=ALARM, markersize=8,
                markerfacecolor="none", markeredgewidth=1.8, label="alert",
            )  # fmt: skip
        if reference is not None or alarms:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9)
        locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(formatter)
        axes.grid(axis="y", linewidth=0.5)
        axes.margins(x=0.08, y=0.15)
        return _svg(figure)


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    """A figure as an element of a page."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for colour, prop in PROPERTIES.items():
        text = text.replace(colour, prop)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every plot, and nobody's target
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )', _fluid, text, count=1)


def _fluid(found: re.Match[str]) -> str:
    return (found[1] or found[2]) + 'class="plot" role="img" '


def _value_name(bins: Bins, place: int, pipeline: FeaturePipeline) -> str:
    """What the rows of the vocabulary in a bin are called."""
    transform = pipeline.transforms[bins.feature]
    low = 1 if place == 0 else int(bins.edges[place - 1])
    high = int(bins.edges[place]) - 1 if place < len(bins.edges) else bins.values
    if isinstance(transform, (Categorical, Tags)) and low == high:
        values = transform.vocabulary.values
        return _short(str(values[low - 1].as_py())) if low <= len(values) else f"rank {low}"
    return f"rank {low:,}–{high:,}"


def _range_name(bins: Bins, place: int, pipeline: FeaturePipeline) -> str:
    """Where a bin of numbers begins."""
    transform = pipeline.transforms.get(bins.feature)
    if place == 0:
        return "lowest"
    edge = float(bins.edges[place - 1])
    if bins.kind == "time":
        return f"from {edge:.0f} h"
    if isinstance(transform, Numeric):
        edge = edge * transform.scale + transform.mean
        edge = float(np.expm1(edge)) if transform.log else edge
    return f"from {edge:.3g}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
