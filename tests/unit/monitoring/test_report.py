"""The page, Prometheus and TensorBoard of made-up windows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.monitoring.test_history import FIGURES, FINDING, entry
from twotower.monitoring.board import write_events
from twotower.monitoring.history import PENDING, UNUSABLE
from twotower.monitoring.prometheus import prometheus_text
from twotower.monitoring.report import Report, report_page, write_report

DATA = replace(
    FINDING, area="data", subject="user.country", statistic="psi", advice="Look at <users>."
)


class Balance(HTMLParser):
    """Whether every element that is opened is closed."""

    VOID = ("meta", "path", "use", "br", "rect", "line", "stop")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.outside += [v for n, v in attrs if n in ("src", "href") and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def report(small):
    profile = small.profiler.profile_rows(small.log.slice(0, 400))
    return Report(
        bundle="shop",
        entries=[entry("w1", 100, figures=FIGURES, findings=(FINDING, DATA))],
        profile=profile,
        reference=small.reference.training,
        scores=small.reference.validation,
        pipeline=small.pipeline,
    )


def test_page_says_what_since_when_and_what_to_do(report):
    page = report_page(report)
    for text in ("2 alerts", "user.country", "Look at &lt;users&gt;.", "1970-01-01 00:01", "0.75"):
        assert text in page
    assert page.count("<svg") == 2  # the distribution and the course of the AUC
    assert "var(--window)" in page


def test_page_needs_nothing_from_elsewhere(report):
    page = report_page(report)
    found = Balance()
    found.feed(page)
    assert found.open == []
    assert found.outside == []
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_of_plots_do_not_meet(report):
    ids = re.findall(r'\bid="([^"]+)"', report_page(report))
    assert len(set(ids)) == len(ids) > 0


def test_same_report_same_page(report, tmp_path):
    folders = [tmp_path / "bundle", tmp_path / "window"]
    for folder in folders:
        folder.mkdir()
    write_report(folders, report)
    for folder in folders:
        assert (folder / "report.html").read_text(encoding="utf-8") == report_page(report)
        assert [path.name for path in folder.iterdir()] == ["report.html"]


def test_a_pending_window_is_not_without_drift(report):
    waits = entry("w2", 200, labels=PENDING, until=90_000, reason="its labels mature later")
    page = report_page(replace(report, entries=[*report.entries, waits], profile=None))
    assert "No drift found" not in page
    assert "labels are still to come" in page
    assert "judged from 1970-01-02 01:00 on" in page


def test_an_unusable_window_is_not_without_drift(report):
    broken = entry("w2", 200, labels=UNUSABLE, reason="column `x` is missing")
    page = report_page(replace(report, entries=[broken], profile=None))
    assert "No drift found" not in page
    assert "column `x` is missing" in page


def test_a_quiet_window(report):
    calm = replace(FINDING, alert=False, advice="", since=None)
    page = report_page(replace(report, entries=[entry("w1", 100, findings=(calm,))]))
    assert "No drift found" in page
    assert "What to do" not in page


def test_prometheus_text(report):
    odd = replace(FINDING, subject='say "a\\b"', reference=None, alert=False)
    waits = entry("w0", 50, labels=PENDING)
    last = entry("w1", 100, findings=(FINDING, odd))
    text = prometheus_text("shop", [waits, last])
    one = 'bundle="shop",version="v1",area="concept",subject="all",statistic="auc"'
    assert f"twotower_drift_value{{{one}}} 0.7\n" in text
    assert f"twotower_drift_alert{{{one}}} 1.0\n" in text
    assert 'subject="say \\"a\\\\b\\""' in text
    assert text.count("twotower_drift_reference{") == 1
    assert 'twotower_drift_windows_pending{bundle="shop",version="v1"} 1.0' in text
    parser = pytest.importorskip("prometheus_client.parser")
    families = {f.name: f for f in parser.text_string_to_metric_families(text)}
    assert len(families["twotower_drift_alert"].samples) == 2
    assert families["twotower_drift_alerts"].samples[0].value == 1


def test_tensorboard_shows_every_window(tmp_path):
    for number in range(3):
        found = replace(FINDING, value=0.5 + number)
        write_events(tmp_path, entry("w", 100 * number, findings=(found,)))
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = sorted((e.step, e.value) for e in events.Scalars("concept/all/auc"))
    assert [step for step, _ in scalars][-1] == 200
    np.testing.assert_allclose([value for _, value in scalars][-1], 2.5)
