"""Runs an experiment through train, export and evaluate, and keeps its figures.

    python benchmarks/end_to_end.py movielens_1m          both stages, export, evaluate, recommend
    python benchmarks/end_to_end.py movielens_1m_clicks   the ranker alone
    python benchmarks/end_to_end.py --render              write RESULTS.md from what was kept

Figures are kept in ``benchmarks/results/<experiment>.json``; RESULTS.md is made of them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BASELINES = ("popularity", "item_knn")
# Who is asked for at the end; experiments of the ranker alone recommend nothing.
USERS = {"demo": "u000042", "movielens_1m": "1"}
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


def device() -> str:
    """The device that the figures were measured on, by name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}, no GPU"


def run_experiment(name: str) -> None:
    """Run the commands of an experiment in a scratch folder and keep what they measured."""
    twotower = str(Path(sys.executable).with_name("twotower"))
    with tempfile.TemporaryDirectory() as scratch:
        out = f"output_dir={scratch}/evaluations"
        commands = [[twotower, "train", f"experiment={name}", f"prepared_dir={scratch}/prepared"]]
        run, bundle = f"runs/{name}/latest", f"bundle={scratch}/bundles/{name}/current"
        if name in USERS:
            commands += [
                [twotower, "export", f"run={run}", f"output_dir={scratch}/bundles"],
                [twotower, "evaluate", bundle, out],
                [twotower, "recommend", bundle, f"user={USERS[name]}"],
            ]
        seconds = {}
        for command in commands:
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True)
            seconds[command[1]] = round(time.perf_counter() - started, 1)
        found = sorted(Path(scratch).glob("evaluations/*/*/evaluation.json"))
        figures = json.loads((found[-1] if found else ROOT / run / "metrics.json").read_text())
    KEPT.mkdir(exist_ok=True)
    document = {
        "how": f"`python benchmarks/end_to_end.py {name}`",
        "date": date.today().isoformat(),
        "device": device(),
        "torch": torch.__version__.split("+")[0],
        "seconds": seconds,
        "figures": figures,
    }
    (KEPT / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def render() -> None:
    """Write RESULTS.md."""
    lines = ["# Results", "", "Made by `benchmarks/end_to_end.py`; do not edit.", ""]
    for path in sorted(KEPT.glob("*.json")):
        document, name = json.loads(path.read_text()), path.stem
        steps = ", ".join(
            f"{step} {seconds:.0f} s" for step, seconds in document["seconds"].items()
        )
        total = sum(document["seconds"].values()) / 60
        lines += [
            f"## `experiment={name}`",
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
    lines += [*(ROOT / "benchmarks" / "notes.md").read_text().splitlines(), ""]
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument == "--render":
            render()
        elif argument in HEADLINES:
            run_experiment(argument)
        else:
            sys.exit(f"no experiment {argument!r}; known: {', '.join(HEADLINES)}, --render")
