"""The history: what a killed process leaves, and which line of a window counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from twotower.data.schema import DataError
from twotower.monitoring.concept_history import Figure, WindowFigures
from twotower.monitoring.findings import Finding
from twotower.monitoring.history import (
    HISTORY_FILE,
    JUDGED,
    PENDING,
    Entry,
    append_history,
    read_history,
)

FINDING = Finding(
    area="concept",
    subject="all",
    statistic="auc",
    value=0.7,
    reference=0.8,
    threshold=0.75,
    p_value=1e-9,
    alert=True,
    since=100,
    advice="Retrain.",
)
FIGURES = WindowFigures(
    start=100,
    end=200,
    figures={"auc": Figure(value=0.7, standard_error=0.01, blocks=[0.25, -1.5])},
)


def entry(window: str, start: int, **fields) -> Entry:
    given = {"bundle": "v1", "end": start + 100, "rows": 5, "labels": JUDGED} | fields
    return Entry(window=window, start=start, **given)


def test_what_is_written_is_read(tmp_path):
    one = entry("a", 100, figures=FIGURES, findings=(FINDING,))
    append_history(tmp_path / "new", one)
    (again,) = read_history(tmp_path / "new")
    assert again.findings == (FINDING,)
    assert again.figures.to_dict() == FIGURES.to_dict()
    assert again.num_alerts == 1
    assert again.to_json() == one.to_json()


def test_the_last_line_of_a_window_counts_and_windows_come_by_time(tmp_path):
    append_history(tmp_path, entry("late", 300))
    append_history(tmp_path, entry("early", 100, labels=PENDING, until=250, reason="soon"))
    append_history(tmp_path, entry("early", 100, rows=7))
    assert [(e.window, e.labels, e.rows) for e in read_history(tmp_path)] == [
        ("early", JUDGED, 7),
        ("late", JUDGED, 5),
    ]


def test_a_line_that_was_cut_off_is_no_window_and_is_mended(tmp_path):
    append_history(tmp_path, entry("a", 100))
    append_history(tmp_path, entry("b", 200))
    path = tmp_path / HISTORY_FILE
    whole = path.read_bytes()
    for cut in range(1, 60, 7):
        path.write_bytes(whole[:-cut])
        assert [e.window for e in read_history(tmp_path)] == ["a"]
        append_history(tmp_path, entry("c", 300))
        assert [e.window for e in read_history(tmp_path)] == ["a", "c"]


def test_no_history_is_none(tmp_path):
    assert read_history(tmp_path) == []


def test_numbers_that_are_none_survive(tmp_path):
    odd = replace(FINDING, value=math.nan, threshold=math.inf)
    append_history(tmp_path, entry("a", 100, findings=(odd,)))
    (again,) = read_history(tmp_path)
    assert math.isnan(again.findings[0].value)


@pytest.mark.parametrize(
    ("line", "match"),
    [("no json", "line 1 is damaged"), ('{"version": 9}', "version 9, this release reads 1")],
)
def test_a_damaged_line_is_named(tmp_path, line, match):
    (tmp_path / HISTORY_FILE).write_text(line + "\n")
    with pytest.raises(DataError, match=match):
        read_history(tmp_path)
