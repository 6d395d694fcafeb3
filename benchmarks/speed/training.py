"""Training speed against the bare loop and against peers: one thread, turn by turn, ratios.

    python benchmarks/speed/world.py FOLDER --interactions 5000000 --large
    python benchmarks/speed/training.py --data FOLDER --stage retrieval --core 0
    python benchmarks/speed/training.py --data FOLDER --stage ranking --batch 4096 16384
    ... --stage ranking --large      10M rows more in a further table, and 1,000 as the control
    ... --peers torchrec:fused=FOLDER/bin/python rechub=FOLDER/bin/python ...
                                                        environments: peers/make_env.sh

Every run is a process of its own, pinned to one core. In a round all of them take turns, some
steps each (`turns.py`), so that what else the machine does falls on all. The figure of each is the
median of its rounds, and a ratio the median of the ratios within rounds. Figures are examples a CPU
second, not of the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from turns import Command, take_turns

HERE = Path(__file__).parent
BARE = "bare"
SCRIPTS = {"retrieval": "bare_two_tower.py", "ranking": "bare_ranker.py"}


def own_commands(given: argparse.Namespace, batch: int) -> dict[str, Command]:
    """The bare loop and ours, whole and on ready batches, by name."""
    common = ["--data", str(given.data), "--steps", str(given.steps), "--batch", str(batch)]
    bare = [sys.executable, str(HERE / SCRIPTS[given.stage]), *common]
    ours = [sys.executable, str(HERE / "ours.py"), "--stage", given.stage, *common]
    commands = {BARE: bare, "ours": ours}
    narrow = {"ours, bf16": [*ours, "--precision", "bf16-mixed"]}
    commands |= {f"{name}, step": [*c, "--mode", "step"] for name, c in commands.items()} | narrow
    if given.stage == "retrieval":
        commands["bare, uncorrected"] = [*bare, "--loss", "plain"]
        commands["bare, merged"] = [*bare, "--loss", "merged"]
    if given.large:
        commands = {BARE: bare, "ours": ours}
        for rows, further in (("10M", "large"), ("1,000", "small")):
            commands[f"ours, {rows} rows more"] = [*ours, "--further", further]
            commands[f"bare, {rows} rows more"] = [*bare, "--further", further]
    return commands


def peer_commands(given: argparse.Namespace, batch: int) -> dict[str, Command]:
    """Peers in their own environments, by name."""
    commands, ranks = {}, given.stage == "ranking"
    for peer in given.peers:
        name, python = peer.split("=", 1)
        library, _, variant = name.partition(":")
        script = HERE / "peers" / f"{library}_{'ranker' if ranks else 'two_tower'}.py"
        common = ["--data", str(given.data), "--steps", str(given.steps), "--batch", str(batch)]
        commands[name] = [python, str(script), "--measure", "--mode", "loop", *common]
        commands[name] += ["--variant", variant] if variant else []
        commands[name] += ["--rows", str((given.steps + 8) * batch)]
    return commands


def compare(given: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """All rounds of one batch size; a row for each."""
    commands = own_commands(given, batch) | peer_commands(given, batch)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(given.rounds):
        for name, figures in take_turns(commands, given.core).items():
            found[name].append(figures)
            rate = figures["examples_per_cpu_second"]
            print(f"round {number + 1}: {name:24} {rate:10,.0f}", file=sys.stderr)
    rates = {n: [row["examples_per_cpu_second"] for row in rows] for n, rows in found.items()}
    return [
        {
            "stage": given.stage,
            "batch": batch,
            "name": name,
            "examples_per_cpu_second": median(rates[name]),
            "lowest": min(rates[name]),
            "highest": max(rates[name]),
            "ratio": median(a / b for a, b in zip(rates[name], rates[BARE], strict=True)),
            "peak_rss_mib": max(row["peak_rss_mib"] for row in rows),
            "loss": rows[0]["loss"],
            "rounds": len(rows),
        }
        for name, rows in found.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage", choices=list(SCRIPTS), required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[4096])
    parser.add_argument("--large", action="store_true", help="ranking: a further table")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args()
    rows = [row for batch in given.batch for row in compare(given, batch)]
    print(f"{'':24} {'batch':>6} {'examples/CPU-s':>15} {'lowest-highest':>17}  ratio    MiB")
    for row in rows:
        spread = f"{row['lowest']:,.0f}-{row['highest']:,.0f}"
        print(
            f"{row['name']:24} {row['batch']:>6} {row['examples_per_cpu_second']:>15,.0f}"
            f" {spread:>17} {row['ratio']:>6.2f} {row['peak_rss_mib']:>6,.0f}"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
