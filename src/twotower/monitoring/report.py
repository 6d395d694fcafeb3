"""One page about a window: what has drifted, how much, since when, and what to do.

The page is whole in itself: no script, no font and no picture from elsewhere, so it opens without
network, in light and dark, on a phone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from twotower.features.pipeline import FeaturePipeline
from twotower.monitoring.bins import SCORE_COLUMN
from twotower.monitoring.findings import Finding, alerts, in_words
from twotower.monitoring.history import JUDGED, PENDING, UNUSABLE, Entry
from twotower.monitoring.page_style import STYLE_SHEET
from twotower.monitoring.plots import course_plot, distribution_plot
from twotower.monitoring.profile import Profile
from twotower.monitoring.slices import ALL

REPORT_FILE = "report.html"
AREAS = {"data": "Data", "concept": "Concept", "model": "Model"}
ABOUT = {
    "data": "do features and scores look as they did in training",
    "concept": "do users still do what the bundle predicts",
    "model": "how far two versions of the bundle are apart",
}
NUMBERS = ("value", "usual", "alert from", "p")
MAX_PLOTS = 12
MAX_WINDOWS = 60


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page is made of.

    Args:
        bundle: Name of the bundle.
        entries: All windows, oldest first; the last one is what the page is about.
        profile: Profile of that window, or None.
        reference: Profile of the training part.
        scores: Profile of the validation part, which scores and rates of unseen values are held
            against.
        pipeline: The features.
    """

    bundle: str
    entries: Sequence[Entry]
    profile: Profile | None
    reference: Profile
    scores: Profile
    pipeline: FeaturePipeline


def write_report(folders: Iterable[Path], report: Report) -> None:
    """Draw the page once and write it into every folder, whole or not at all."""
    page = report_page(report)
    for folder in folders:
        staging = folder / f".{REPORT_FILE}.staging"
        staging.write_text(page, encoding="utf-8")
        staging.replace(folder / REPORT_FILE)


def report_page(report: Report) -> str:
    """The page as HTML."""
    last = report.entries[-1]
    title = f"Drift of {report.bundle}"
    body = [
        _header(report, last),
        _what_to_do(last),
        _alert_table(last),
        _distributions(report, last),
        _courses(report),
        _windows(report.entries),
        _all_findings(last),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report, last: Entry) -> str:
    count = last.num_alerts
    if count:
        verdict, kind = f"{count} alert{'s' if count > 1 else ''}", "bad"
    elif last.labels == UNUSABLE:
        verdict, kind = "The window cannot be used", "bad"
    elif last.labels == PENDING:
        verdict, kind = "No alert so far; labels are still to come", "wait"
    else:
        verdict, kind = "No drift found", "good"
    note = ""
    if last.labels == PENDING:
        until = "" if last.until is None else f" It is judged from {_time(last.until)} on."
        note = f"Concept drift is not judged yet: {escape(last.reason)}.{until}"
    elif last.labels != JUDGED and last.reason:
        note = f"Concept drift is not judged: {escape(last.reason)}."
    if note:
        note = f'<p class="note wait">{note}</p>'
    facts = (
        ("Window", f"{escape(last.window)}: {_time(last.start)} to {_time(last.end)}"),
        ("Rows", f"{last.rows:,}"),
        ("Bundle", f"{escape(report.bundle)} {escape(last.bundle)}"),
        ("Comparisons", f"{len(last.findings):,}"),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f"<header><h1>Drift of {escape(report.bundle)}</h1>"
        f'<p class="verdict {kind}">{verdict}</p><dl>{cells}</dl>{note}</header>'
    )


def _what_to_do(last: Entry) -> str:
    by_advice: dict[str, list[Finding]] = {}
    for finding in alerts(last.findings):
        by_advice.setdefault(finding.advice, []).append(finding)
    if not by_advice:
        return ""
    items = []
    for advice, findings in by_advice.items():
        subjects = ", ".join(dict.fromkeys(_subject(one) for one in findings))
        items.append(f"<li><strong>{escape(subjects)}.</strong> {escape(advice)}</li>")
    return f"<section><h2>What to do</h2><ul>{''.join(items)}</ul></section>"


def _alert_table(last: Entry) -> str:
    found = alerts(last.findings)
    if not found:
        return ""
    return f"<section><h2>What has drifted</h2>{_table(found)}</section>"


def _distributions(report: Report, last: Entry) -> str:
    """Columns that alert, with their values."""
    if report.profile is None:
        return ""
    names = dict.fromkeys(one.subject for one in alerts(last.findings) if one.area == "data")
    figures = [
        f"<figure><figcaption>{escape(name)}</figcaption>"
        + distribution_plot(
            name,
            report.scores if name == SCORE_COLUMN else report.reference,
            report.profile,
            report.pipeline,
        )
        + "</figure>"
        for name in names
        if name in report.reference.columns
    ]
    if not figures:
        return ""
    left = len(figures) - MAX_PLOTS
    more = f"<p>{left} more are in the table.</p>" if left > 0 else ""
    plots = "".join(figures[:MAX_PLOTS])
    return f'<section><h2>Distributions</h2><div class="plots">{plots}</div>{more}</section>'


def _courses(report: Report) -> str:
    """Figures over all rows, window by window."""
    with_figures = [entry for entry in report.entries if entry.figures is not None]
    names = dict.fromkeys(
        name for entry in with_figures if entry.figures for name in entry.figures.figures
    )
    plots = []
    for name in names:
        entries = [e for e in with_figures if e.figures and name in e.figures.figures]
        usual = [f.reference for e in entries for f in e.findings if _is_course(f, name)]
        alarming = [e.start for e in entries for f in e.findings if f.alert and _is_of(f, name)]
        svg = course_plot(
            name,
            [e.figures for e in entries if e.figures],
            alarming,
            usual[-1] if usual else None,
        )
        plots.append(f"<figure><figcaption>{escape(in_words(name))}</figcaption>{svg}</figure>")
    if not plots:
        return ""
    return (
        "<section><h2>Over time</h2><p>Over all rows of a window, with 95 % intervals that know "
        f'that a user’s events are alike.</p><div class="plots">{"".join(plots)}</div></section>'
    )


def _windows(entries: Sequence[Entry]) -> str:
    rows = []
    for entry in list(reversed(entries))[:MAX_WINDOWS]:
        kind = "bad" if entry.num_alerts or entry.labels == UNUSABLE else ""
        kind = kind or ("wait" if entry.labels == PENDING else "")
        rows.append(
            f'<tr class="{kind}"><td>{escape(entry.window)}</td><td>{_time(entry.start)}</td>'
            f'<td class="number">{entry.rows:,}</td><td class="number">{entry.num_alerts}</td>'
            f"<td>{escape(entry.labels)}</td></tr>"
        )
    head = (
        '<tr><th>window</th><th>from</th><th class="number">rows</th>'
        '<th class="number">alerts</th><th>labels</th></tr>'
    )
    return (
        f'<section><h2>Windows</h2><div class="wide"><table><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _all_findings(last: Entry) -> str:
    parts = []
    for area, name in AREAS.items():
        found = [finding for finding in last.findings if finding.area == area]
        if found:
            parts.append(
                f"<details><summary>{name}: {ABOUT[area]} ({len(found)} comparisons)</summary>"
                f"{_table(found)}</details>"
            )
    if not parts:
        return ""
    return f"<section><h2>All comparisons</h2>{''.join(parts)}</section>"


def _table(findings: Sequence[Finding]) -> str:
    rows = []
    for one in findings:
        usual = "" if one.reference is None else f"{one.reference:.4g}"
        chance = "" if one.p_value is None else f"{one.p_value:.2g}"
        since = "" if one.since is None else _time(one.since)
        rows.append(
            f'<tr class="{"bad" if one.alert else ""}"><td>{escape(_subject(one))}</td>'
            f"<td>{escape(in_words(one.statistic))}</td>"
            f'<td class="number">{one.value:.4g}</td><td class="number">{usual}</td>'
            f'<td class="number">{one.threshold:.4g}</td><td class="number">{chance}</td>'
            f"<td>{since}</td></tr>"
        )
    names = ("what", "statistic", "value", "usual", "alert from", "p", "since")
    head = "".join(
        f'<th class="{"number" if name in NUMBERS else ""}">{name}</th>' for name in names
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _is_of(finding: Finding, statistic: str) -> bool:
    own = (statistic, f"{statistic}_adwin", f"{statistic}_page_hinkley")
    return finding.area == "concept" and finding.subject == ALL and finding.statistic in own


def _is_course(finding: Finding, statistic: str) -> bool:
    return _is_of(finding, statistic) and finding.statistic == statistic


def _subject(finding: Finding) -> str:
    if finding.area == "concept":
        return "all rows" if finding.subject == ALL else finding.subject
    return finding.subject


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
