"""Gates by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from twotower.export.gates import Gate, GateSettings, Measured, check_gates

RECALL = "retrieval/test/recall@100"
BOTH = ("retrieval", "ranking")
GOOD = Measured(
    figures={
        "retrieval/index/recall": 0.97,
        "export/onnx/parity": 2e-6,
        "ranking/test/calibration_error": 0.03,
        RECALL: 0.50,
    },
    stages=BOTH,
    fingerprint="a",
)


def with_figures(measured: Measured, **changes: float | None) -> Measured:
    keys = {
        "index": "retrieval/index/recall",
        "parity": "export/onnx/parity",
        "calibration": "ranking/test/calibration_error",
        "quality": RECALL,
    }
    figures = dict(measured.figures)
    for short, value in changes.items():
        if value is None:
            del figures[keys[short]]
        else:
            figures[keys[short]] = value
    return replace(measured, figures=figures)


def gates(
    measured: Measured = GOOD, current: Measured | None = None, **settings: object
) -> dict[str, Gate]:
    found = check_gates(GateSettings(**settings), measured, current)
    assert len({gate.name for gate in found}) == len(found)
    return {gate.name: gate for gate in found}


def test_a_good_bundle_passes_all() -> None:
    found = gates()
    assert list(found) == ["index_recall", "onnx_parity", "calibration", "quality_drop"]
    assert all(gate.passed for gate in found.values())


@pytest.mark.parametrize(
    ("name", "figure", "at_bound", "beyond"),
    [
        ("index_recall", "index", 0.95, 0.949),
        ("onnx_parity", "parity", 1e-5, 1.01e-5),
        ("calibration", "calibration", 0.05, 0.051),
    ],
)
def test_bounds_are_inclusive(name: str, figure: str, at_bound: float, beyond: float) -> None:
    assert gates(with_figures(GOOD, **{figure: at_bound}))[name].passed
    failed = gates(with_figures(GOOD, **{figure: beyond}))
    assert [gate.name for gate in failed.values() if not gate.passed] == [name]
    assert (failed[name].value, failed[name].bound) == (beyond, at_bound)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("index_recall", "index"),
        ("onnx_parity", "parity"),
        ("calibration", "calibration"),
        ("quality_drop", "quality"),
    ],
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_missing_figure_fails_and_says_so(name: str, figure: str, value: float | None) -> None:
    gate = gates(with_figures(GOOD, **{figure: value}))[name]
    assert not gate.passed
    assert gate.value is None
    assert "was not measured" in str(gate)


def test_a_missing_figure_fails_the_floor_and_the_comparison() -> None:
    found = gates(with_figures(GOOD, quality=None), GOOD, quality_floor=0.1)
    assert not found["quality_floor"].passed
    assert not found["quality_drop"].passed
    assert "was not measured" in found["quality_drop"].note


@pytest.mark.parametrize(
    ("quality", "passed"), [(0.50, True), (0.491, True), (0.49, True), (0.489, False), (0.6, True)]
)
def test_quality_may_drop_by_two_percent_of_the_published(quality: float, passed: bool) -> None:
    gate = gates(with_figures(GOOD, quality=quality), GOOD)["quality_drop"]
    assert gate.passed is passed
    assert gate.bound == pytest.approx(0.49)


def test_quality_below_zero_may_drop_too() -> None:
    before = with_figures(GOOD, quality=-1.0)
    assert gates(with_figures(GOOD, quality=-1.1), before, max_quality_drop=0.2)[
        "quality_drop"
    ].passed
    assert not gates(with_figures(GOOD, quality=-1.3), before, max_quality_drop=0.2)[
        "quality_drop"
    ].passed


def test_floor() -> None:
    assert gates(quality_floor=0.5)["quality_floor"].passed
    assert not gates(quality_floor=0.51)["quality_floor"].passed


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        (None, "no bundle is published"),
        (with_figures(GOOD, quality=None), "the published bundle does not have it"),
        (replace(with_figures(GOOD, quality=0.9), fingerprint="b"), "tested on other data"),
    ],
)
def test_what_cannot_be_compared_passes_and_says_so(current: Measured | None, reason: str) -> None:
    gate = gates(current=current)["quality_drop"]
    assert gate.passed
    assert gate.bound is None
    assert "not comparable" in gate.note
    assert reason in gate.note


def test_a_screening_ranker_must_leave_lists_as_they_are() -> None:
    """At least 99 of 100 of them; without one there is no such gate."""
    figures = dict(GOOD.figures)
    for share, passed in ((1.0, True), (0.99, True), (0.989, False), (math.nan, False)):
        measured = replace(GOOD, figures=figures | {"export/int8/same_top_10": share})
        found = gates(measured)
        assert list(found)[3] == "int8"
        assert found["int8"].passed is passed
        assert all(gate.passed for name, gate in found.items() if name != "int8")
    looser = gates(
        replace(GOOD, figures=figures | {"export/int8/same_top_10": 0.9}), min_same_top=0.9
    )
    assert looser["int8"].passed


def test_gates_of_a_missing_stage_do_not_exist() -> None:
    ranking = replace(GOOD, stages=("ranking",), figures={"export/onnx/parity": 0.0})
    assert list(gates(ranking)) == ["onnx_parity", "calibration"]
    auc = replace(ranking, figures=dict(ranking.figures) | {"ranking/test/auc": 0.7})
    found = gates(auc, quality_metric="ranking/test/auc", max_calibration_error=None)
    assert list(found) == ["onnx_parity", "quality_drop"]
    retrieval = replace(GOOD, stages=("retrieval",))
    assert list(gates(retrieval)) == ["index_recall", "onnx_parity", "quality_drop"]


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ValueError, match="`min_index_recall` must lie in") as caught:
        GateSettings(min_index_recall=1.2, max_quality_drop=-0.1, quality_metric="recall@100")
    message = str(caught.value)
    assert "[0, 1], got 1.2" in message
    assert "`max_quality_drop` must lie in [0, 1], got -0.1" in message
    assert "`quality_metric` must be <stage>/<split>/<metric>" in message


def test_a_gate_in_words() -> None:
    gate = Gate(name="x", value=0.9, bound=0.95, comparison="at_least", passed=False, note="why")
    assert str(gate) == "x: failed, 0.9, at least 0.95 (why)"
    gate = Gate(name="x", value=None, bound=None, comparison="at_most", passed=True)
    assert str(gate) == "x: passed, missing"
