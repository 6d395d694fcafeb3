"""Writes RESULTS.md from what the benchmarks of this folder have kept.

python benchmarks/render.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from twotower.config_files import read_yaml

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results"
TABLES = read_yaml(HERE / "quality" / "tables.yaml")
BASELINES = ("popularity", "item_knn")
NAMES = {"popularity": "popularity", "item_knn": "item-kNN"}
HEADLINES = {
    "demo": (
        *(f"{stage}/test/recall@100" for stage in ("retrieval", *BASELINES)),
        *(f"{stage}/test/ndcg@10" for stage in ("retrieval", *BASELINES)),
        "ranking/test/auc",
        "ranking/test/calibration_error",
        "index/test/recall@200",
    ),
    "movielens_1m": (
        *(f"{stage}/test/hit_rate@10" for stage in ("retrieval", *BASELINES)),
        *(f"{stage}/test/hit_rate@100" for stage in ("retrieval", *BASELINES)),
        *(f"{stage}/test/ndcg@10" for stage in ("retrieval", *BASELINES)),
        "retrieval/test/hit_rate@10_over_item_knn",
        "two_stage/test/ndcg@10",
        "two_stage/test/hit_rate@10",
        "two_stage/test/ndcg@10_over_retrieval",
        "two_stage/test/hit_rate@10_over_retrieval",
        *(f"two_stage/test/{name}@10" for name in ("found", "lost_by_retrieval", "lost_by_ranker")),
        "two_stage/test/lost_by_index@10",
        "index/test/recall@200",
        "ranking/test/auc",
    ),
    "movielens_1m_clicks": (
        "ranking/test/auc",
        "ranking/test/log_loss",
        "ranking/test/calibration_error",
        "ranking/test/examples",
    ),
}


def quality() -> list[str]:
    """The published tables, with what this project reaches."""
    lines = ["## Against published tables", ""]
    for table, facts in TABLES.items():
        path = KEPT / "quality" / f"{table}.json"
        if path.is_file():
            lines += quality_table(table, facts, json.loads(path.read_text()))
    return lines


def quality_table(table: str, facts: Any, kept: dict[str, Any]) -> list[str]:
    """One table: baselines and published figures first, then ours, then the aims."""
    runs = list(kept["runs"].values())
    columns = list(facts.metrics)
    header = ["model", *facts.metrics.values(), "parameters", "minutes", "where from"]
    rows = []
    for name in BASELINES if facts.stage == "retrieval" else ():
        values = [runs[0]["figures"].get(f"{name}/test/{column}") for column in columns]
        rows.append([NAMES[name], *map(figure, values), "", "", "computed"])
    if "ease" in kept:
        values = [kept["ease"].get(column) for column in columns]
        rows.append([f"EASE, l2 {kept['ease']['l2']:g}", *map(figure, values), "", "", "computed"])
    rows += [
        [p.model, *(figure(p.get(column)) for column in columns), "", "", p.source]
        for p in facts.published
    ]
    found = [[run["figures"][f"{facts.stage}/test/{c}"] for run in runs] for c in columns]
    parameters = runs[0]["figures"][f"{facts.stage}/train/parameters"]
    minutes = np.mean([run["minutes"] for run in runs])
    cells = [f"**{np.mean(values):.4f}** {interval(values)}" for values in found]
    ours = f"**twotower**, mean of {len(runs)} seeds" if len(runs) > 1 else "**twotower**, 1 seed"
    rows.append([ours, *cells, f"{parameters:,.0f}", f"{minutes:.1f}", "measured"])
    for aim in ("must", "goal"):
        if aim in facts:
            values = [facts[aim].get(column) for column in columns]
            rows.append([f"*{aim}*", *map(figure, values), "", "", ""])
    devices = ", ".join(sorted({run["device"] for run in runs}))
    most = max(run["gigabytes"] for run in runs)
    return [
        f"### {facts.title}",
        "",
        f"{facts.protocol}",
        "",
        f"`python benchmarks/quality/run.py {table} --seeds {' '.join(kept['runs'])}`, "
        f"{runs[-1]['date']}, {devices}, torch {runs[-1]['torch']}; at most {most:.1f} GiB of "
        "memory a run.",
        "",
        *table_lines(header, rows),
        "",
    ]


def ablation() -> list[str]:
    """What each part of the retrieval loss is worth."""
    path = KEPT / "quality" / "ablation.json"
    if not path.is_file():
        return []
    kept = json.loads(path.read_text())
    metrics = {"hit_rate@10": "HR@10", "ndcg@10": "NDCG@10", "hit_rate@200": "HR@200"}
    rows = []
    for name, runs in kept.items():
        found = [[run["figures"][f"retrieval/test/{m}"] for run in runs.values()] for m in metrics]
        cells = [f"{np.mean(values):.4f} {interval(values)}" for values in found]
        minutes = np.mean([run["minutes"] for run in runs.values()])
        rows.append([name, *cells, f"{minutes:.1f}", ", ".join(runs)])
    devices = ", ".join(sorted({run["device"] for runs in kept.values() for run in runs.values()}))
    return [
        "### Parts of the retrieval loss, switched off alone",
        "",
        "MovieLens-1M, next item, the pooled tower after two epochs; "
        f"`python benchmarks/quality/ablation.py`, {devices}.",
        "",
        *table_lines(["loss", *metrics.values(), "minutes", "seeds"], rows),
        "",
    ]


def negative_sampling() -> list[str]:
    """What a ranker loses that is trained on a share of the negatives."""
    path = KEPT / "quality" / "negative_sampling.json"
    if not path.is_file():
        return []
    kept = json.loads(path.read_text())
    metrics = {"log_loss": "log loss", "calibration_error": "calibration error", "auc": "AUC"}
    rows = [
        [
            f"{name}, world {seed}",
            *(figure(run["figures"][f"ranking/test/{metric}"]) for metric in metrics),
            f"{run['minutes']:.1f}",
            run["device"],
        ]
        for seed in sorted(set.intersection(*(set(runs) for runs in kept.values())))
        for name, runs in kept.items()
        for run in [runs[seed]]
    ]
    return [
        "### One in twenty negatives",
        "",
        "The ranker alone, on built-in worlds of 8,000 users, trained on all impressions, and on "
        "the clicks and a twentieth of the rest, drawn anew in every epoch; the test part is "
        "whole. "
        "`python benchmarks/quality/negative_sampling.py`.",
        "",
        *table_lines(["trained on", *metrics.values(), "minutes", "device"], rows),
        "",
    ]


def figure(value: float | None) -> str:
    """Four digits, or nothing."""
    return "" if value is None else f"{value:.4f}"


def interval(values: Sequence[float]) -> str:
    """The 95 % interval of the mean over seeds, by Student's t; empty for one seed."""
    if len(values) < 2:
        return ""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"+- {half:.4f}"


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown; figures to the right."""
    rule = ["---", *["--:"] * (len(header) - 2), "---"]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def measured(heading: str, folder: str) -> list[str]:
    """The tables of a folder, such as of training against the least that the work takes."""
    lines = [f"## {heading}", ""]
    for path in sorted((KEPT / folder).glob("*.json")):
        kept = json.loads(path.read_text())
        lines += [
            f"### {kept['title']}",
            "",
            f"`{kept['command']}`, {kept['date']}, {kept['device']}.",
            "",
            *table(kept["columns"], kept["rows"]),
            "",
        ]
    return lines


def table(columns: dict[str, str], rows: list[dict[str, Any]]) -> list[str]:
    """Rows as Markdown; a column has a heading and says how its numbers are written."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [format(row[name], form) if name in row else "" for name, form in columns.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def end_to_end() -> list[str]:
    """What whole experiments measured."""
    lines = []
    for path in sorted(KEPT.glob("*.json")):
        document, name = json.loads(path.read_text()), path.stem
        steps = ", ".join(
            f"{step} {seconds:.0f} s" for step, seconds in document["seconds"].items()
        )
        total = sum(document["seconds"].values()) / 60
        lines += [
            f"### `experiment={name}`",
            "",
            f"{document['how']}, {document['date']}, {document['device']}, "
            f"torch {document['torch']}: {steps} ({total:.1f} minutes together).",
            "",
            "| figure | value | 95 % interval over users |",
            "|---|--:|---|",
        ]
        figures = document["figures"]
        for figure in HEADLINES[name]:
            low, high = figures.get(f"{figure}/low"), figures.get(f"{figure}/high")
            interval = "" if low is None else f"{low:.4f} .. {high:.4f}"
            lines.append(f"| `{figure}` | {figures[figure]:.4f} | {interval} |")
        lines.append("")
    return lines


def document() -> str:
    """The text of RESULTS.md."""
    lines = ["# Results", "", "Made by `benchmarks/render.py`; do not edit.", ""]
    lines += [
        *quality(),
        *ablation(),
        *negative_sampling(),
        *measured("Speed", "speed"),
        *measured("Serving", "serving"),
        *measured("Monitoring", "monitoring"),
        *measured("Robustness", "robustness"),
        "## Whole experiments",
        "",
        *end_to_end(),
    ]
    lines += [*(HERE / "notes.md").read_text().splitlines(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "RESULTS.md").write_text(document())
