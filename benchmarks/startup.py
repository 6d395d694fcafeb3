"""How long every command takes until something is seen: its help, and its first bar or line.

python benchmarks/startup.py FOLDER [--rounds 3]

A small shop is written to FOLDER and trained, exported and stored there. Then every command is
called as a process of its own on a terminal, and its output is read as it comes. Help is timed to
the end of the process; a command to its first progress bar, be it of loading, or, where it has
none, to the first line that it prints; "at work" is the first bar or line after loading. CPU
seconds of the process up to then stand beside, since a machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pty
import re
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from twotower.cli.main import COMMANDS
from twotower.data.synthetic import SyntheticSource

KEPT = Path(__file__).resolve().parent / "results" / "speed"
TWOTOWER = (sys.executable, "-m", "twotower.cli.main")
# What is looked for, a line or a bar: any, and one that is not of loading.
SHOWN = re.compile(rb"[^\s\x1b]"), re.compile(rb"%\|")
BEGINS = rb"(?:^|[\r\n])(?!\s*\w+: loading:)"
AT_WORK = re.compile(BEGINS + rb"\s*[^\s\x1b]"), re.compile(BEGINS + rb"[^\r\n]*%\|")
TICKS = os.sysconf("SC_CLK_TCK")

DATA = ("data=tables", "data.interactions=log.parquet", "data.items=items.parquet")
LABEL = ("data.label.column=label", "data.context=[position,device]")
FEW = ("training.retrieval.max_epochs=1", "training.ranking.max_epochs=1")
TRAIN = ("name=shop", *DATA, *LABEL, *FEW)
BUNDLE = "bundle=bundles/shop/current"
# What each command is asked, and whether a bar is what its work shows first.
ASKED: dict[str, tuple[tuple[str, ...], bool]] = {
    "prepare": ((*DATA, *LABEL, "prepared_dir=new"), False),
    "train": (TRAIN, True),
    "export": (("run=runs/shop/latest", "gates.max_calibration_error=null"), True),
    "retrain": ((BUNDLE, "interactions=log.parquet", "items=items.parquet"), True),
    "evaluate": ((BUNDLE,), True),
    "recommend": ((BUNDLE, "user=u000007"), False),
    "explain": ((BUNDLE, "user=u000007", "item=i00003"), False),
    "batch": ((BUNDLE, "name=again"), True),
    "lookup": (("name=shop", "user=u000007"), False),
    "serve": ((BUNDLE, "port=0"), False),
    "monitor": ((BUNDLE, "interactions=log.parquet", "items=items.parquet"), False),
    "plan": (("users=1e6", "items=1e5"), False),
    "doctor": ((), False),
}


def make_shop(folder: Path) -> None:
    """Tables, a run, a bundle, and stored lists."""
    world = SyntheticSource(
        num_users=300, num_items=120, num_days=20, slates_per_user=8, slate_size=8, seed=0
    )
    tables = world.read()
    log = tables.interactions
    seconds = [time // 1_000_000 for time in log["timestamp"].to_pylist()]
    log = log.set_column(log.column_names.index("timestamp"), "timestamp", [seconds])
    pq.write_table(log, folder / "log.parquet")
    pq.write_table(tables.items, folder / "items.parquet")
    for words in (
        ("train", *TRAIN),
        ("export", *ASKED["export"][0]),
        ("batch", BUNDLE),
    ):
        subprocess.run([*TWOTOWER, *words], cwd=folder, check=True, capture_output=True)


def seconds_of_help(folder: Path, command: str) -> tuple[float, float]:
    """Wall and CPU seconds of the whole process."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([*TWOTOWER, command, "--help"], cwd=folder, check=True, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return time.perf_counter() - began, cpu


def until_seen(folder: Path, command: str) -> tuple[float, float, float]:
    """Wall and CPU seconds until the first bar or line, wall until the first after loading.

    The process, which believes to be on a terminal, is then ended.
    """
    words, has_bar = ASKED[command]
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))
    began = time.perf_counter()
    process = subprocess.Popen([*TWOTOWER, command, *words], cwd=folder, stdout=its, stderr=its)
    os.close(its)
    seen, found = b"", []
    for wanted in (SHOWN, AT_WORK):
        while not wanted[has_bar].search(seen):
            try:
                seen += os.read(ours, 4096)
            except OSError as ended:
                text = f"{command} ended without anything to see: {seen.decode()}"
                raise RuntimeError(text) from ended
        found += [time.perf_counter() - began, cpu_of(process.pid)]
    process.terminate()
    process.wait()
    os.close(ours)
    return found[0], found[1], found[2]


def cpu_of(pid: int) -> float:
    """CPU seconds of a process that runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default=f"{os.cpu_count()} cores")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    make_shop(given.folder)
    rows = []
    for command in COMMANDS:
        helps = [seconds_of_help(given.folder, command) for _ in range(given.rounds)]
        row: dict[str, object] = {"command": command}
        row["help, wall"], row["help, CPU"] = map(median, zip(*helps, strict=True))
        if command in ASKED:
            found = [until_seen(given.folder, command) for _ in range(given.rounds)]
            row["work shows"] = "bar" if ASKED[command][1] else "line"
            names = ("seen, wall", "seen, CPU", "at work, wall")
            row |= dict(zip(names, map(median, zip(*found, strict=True)), strict=True))
        rows.append(row)
        print(row, flush=True)
    document = {
        "title": "Start of a command, seconds",
        "command": f"python benchmarks/startup.py FOLDER --rounds {given.rounds}",
        "device": f"{given.device}, {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
        "columns": {
            **{"command": "", "help, wall": ".2f", "help, CPU": ".2f"},
            **{"work shows": "", "seen, wall": ".2f", "seen, CPU": ".2f", "at work, wall": ".2f"},
        },
        "rows": rows,
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / "startup.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
