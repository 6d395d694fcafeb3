"""The gates: what a bundle must prove before it is published.

==================  ===========================================================================
``index_recall``    share of the exact best candidates that the index finds
``onnx_parity``     largest difference between the exported models and the trained ones
``calibration``     expected calibration error of the ranker on the test part
``int8``            share of test queries whose ten best stay the same when a ranker of 8-bit
                    integers screens the candidates
``quality_floor``   a figure against a floor, where one is set
``quality_drop``    the same figure against that of the published bundle
==================  ===========================================================================

A figure that a gate needs and does not find fails the gate. A gate of a stage that the bundle does
not have does not exist.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twotower.export.manifest import BundleError, read_manifest

log = logging.getLogger(__name__)

INDEX_RECALL = "retrieval/index/recall"
PARITY = "export/onnx/parity"
CALIBRATION_ERROR = "ranking/test/calibration_error"
SAME_TOP = "export/int8/same_top_10"
SAME_TOP_ALONE = "export/int8/same_top_10_alone"  # if it had the last word; no gate asks for it

Comparison = Literal["at_least", "at_most"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One comparison.

    Args:
        name: Name of the gate.
        value: What was measured; None where nothing was.
        bound: What it is compared with; None where there is nothing to compare with.
        comparison: Whether the value must be ``at_least`` or ``at_most`` the bound.
        passed: How it ended.
        note: What the numbers do not say: which figure, or why there is nothing to compare.
    """

    name: str
    value: float | None
    bound: float | None
    comparison: Comparison
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        sign = "at least" if self.comparison == "at_least" else "at most"
        value = "missing" if self.value is None else f"{self.value:.6g}"
        bound = "" if self.bound is None else f", {sign} {self.bound:.6g}"
        state = "passed" if self.passed else "failed"
        return f"{self.name}: {state}, {value}{bound}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a bundle is held against.

    Args:
        min_index_recall: Least share of the exact best candidates that the index finds, 0 to 1.
        max_parity: Largest allowed difference between exported and trained models.
        max_calibration_error: Largest expected calibration error of the ranker; None for no gate.
        min_same_top: Least share of queries whose ten best a screening ranker leaves the same.
        quality_metric: The figure that stands for quality, ``<stage>/<split>/<metric>``; more must
            be better.
        quality_floor: Its least value; None for no floor.
        max_quality_drop: Largest loss against the published bundle, as a share of its figure.
    """

    min_index_recall: float = 0.95
    max_parity: float = 1e-5
    max_calibration_error: float | None = 0.05
    min_same_top: float = 0.99
    quality_metric: str = "retrieval/test/recall@100"
    quality_floor: float | None = None
    max_quality_drop: float = 0.02

    def __post_init__(self) -> None:
        bounds = {
            "min_index_recall": (self.min_index_recall, 0.0, 1.0),
            "max_parity": (self.max_parity, 0.0, math.inf),
            "max_calibration_error": (self.max_calibration_error, 0.0, 1.0),
            "min_same_top": (self.min_same_top, 0.0, 1.0),
            "max_quality_drop": (self.max_quality_drop, 0.0, 1.0),
        }
        problems = [
            f"gates: `{name}` must lie in [{low:g}, {high:g}], got {value}"
            for name, (value, low, high) in bounds.items()
            if value is not None and not low <= value <= high
        ]
        if self.quality_metric.count("/") != 2:
            problems.append(
                "gates: `quality_metric` must be <stage>/<split>/<metric> such as "
                f"retrieval/test/recall@100, got {self.quality_metric!r}"
            )
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a bundle.

    Args:
        figures: Metrics by name.
        stages: The stages it has.
        fingerprint: Of the prepared data set whose test part the figures are of.
    """

    figures: Mapping[str, float | None]
    stages: tuple[str, ...]
    fingerprint: str

    def figure(self, name: str) -> float | None:
        """A figure, None where it is missing or not a number."""
        value = self.figures.get(name)
        return value if value is not None and math.isfinite(value) else None


def known(version: Path | None) -> Measured | None:
    """What is known of a published version; None where there is none that can be read.

    Args:
        version: The version folder, or None where nothing is published.
    """
    if version is None:
        return None
    try:
        manifest = read_manifest(version)
    except BundleError as error:
        log.warning("The published bundle cannot be compared with: %s", error)
        return None
    return Measured(
        figures=manifest.figures,
        stages=manifest.stages,
        fingerprint=manifest.prepared["fingerprint"],
    )


def check_gates(
    settings: GateSettings, measured: Measured, current: Measured | None
) -> tuple[Gate, ...]:
    """Hold a bundle against the gates.

    Args:
        settings: The bounds.
        measured: What was measured of the new bundle.
        current: What is known of the published bundle, or None where there is none.

    Returns:
        The gates that the bundle's stages ask for.
    """
    gates = []
    if "retrieval" in measured.stages:
        recall = measured.figure(INDEX_RECALL)
        gates.append(
            _gate("index_recall", recall, settings.min_index_recall, "at_least", INDEX_RECALL)
        )
    gates.append(
        _gate("onnx_parity", measured.figure(PARITY), settings.max_parity, "at_most", PARITY)
    )
    if "ranking" in measured.stages and settings.max_calibration_error is not None:
        error, bound = measured.figure(CALIBRATION_ERROR), settings.max_calibration_error
        gates.append(_gate("calibration", error, bound, "at_most", CALIBRATION_ERROR))
    if SAME_TOP in measured.figures:
        same = measured.figure(SAME_TOP)
        gates.append(_gate("int8", same, settings.min_same_top, "at_least", SAME_TOP))
    metric = settings.quality_metric
    if metric.split("/")[0] not in measured.stages:
        return tuple(gates)
    quality = measured.figure(metric)
    if settings.quality_floor is not None:
        gates.append(_gate("quality_floor", quality, settings.quality_floor, "at_least", metric))
    gates.append(_quality_drop(settings, quality, measured, current))
    return tuple(gates)


def _gate(
    name: str, value: float | None, bound: float, comparison: Comparison, figure: str
) -> Gate:
    if value is None:
        passed, note = False, _missing(figure)
    else:
        passed = value >= bound if comparison == "at_least" else value <= bound
        note = figure
    return Gate(
        name=name, value=value, bound=bound, comparison=comparison, passed=passed, note=note
    )


def _quality_drop(
    settings: GateSettings, quality: float | None, measured: Measured, current: Measured | None
) -> Gate:
    metric = settings.quality_metric
    before = None if current is None else current.figure(metric)
    if current is None:
        reason = "no bundle is published"
    elif before is None:
        reason = "the published bundle does not have it"
    elif current.fingerprint != measured.fingerprint:
        reason = "the published bundle was tested on other data"
    else:
        bound = before - settings.max_quality_drop * abs(before)
        return _gate("quality_drop", quality, bound, "at_least", metric)
    note = f"{metric}: not comparable, {reason}" if quality is not None else _missing(metric)
    return Gate(
        name="quality_drop",
        value=quality,
        bound=None,
        comparison="at_least",
        passed=quality is not None,
        note=note,
    )


def _missing(figure: str) -> str:
    return f"{figure}: was not measured"
