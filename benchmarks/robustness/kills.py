"""Kills commands at random moments and runs them again: the same result, nothing published hurt.

    python benchmarks/robustness/kills.py --kills 100

A process is forked from one that has imported everything, so that the moments fall into the work
and not into the start of Python; it is killed with SIGKILL after a random share of the processor
time that the work takes. What was published before must be whole then. Three in four are killed
once more while they go on, and so on. At last the same words are run to the end, and what they end
with must be that of a run that was never killed, bit by bit: all files of prepared data; weights,
optimisers, figures and calibration of a run; all files of a bundle but its profiles; lists and
store of a batch. A retraining that was killed when it had published is done and is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from killed_commands import COMMANDS, ROOT, Command, make_base

from tests.warm_process import Ended, call

sys.path.insert(0, str(ROOT / "benchmarks" / "serving"))

from kill_and_resume import differences
from running import device, keep

KEPT = ROOT / "benchmarks" / "results" / "robustness" / "kills.json"
SIGKILL = -9
AGAIN = 3 / 4
COUNTS = ("kills", "runs", "ended before", "published hurt", "other result")
FIRST_MOMENT = 0.25  # Before that words are read, and nothing is written.
COLUMNS = {
    "command": "",
    "seconds": ".2f",
    "kills": "",
    "runs": "",
    "ended before": "",
    "published hurt": "",
    "other result": "",
}


@dataclass
class Found:
    """What was found of a command.

    Args:
        command: Its name.
        seconds: Of the processor, that its work takes.
        kills: How often it was killed.
        runs: How many folders that was in.
        ended: Runs that ended before their moment came.
        hurt: Kills after which something published was not whole.
        other: Runs that ended with something else than one that was never killed.
    """

    command: str
    seconds: float
    kills: int = 0
    runs: int = 0
    ended: int = 0
    hurt: int = 0
    other: int = 0

    def row(self) -> dict[str, Any]:
        """With the headings of the table."""
        return dict(zip(COLUMNS, asdict(self).values(), strict=True))


class Killer:
    """Kills one command again and again.

    Args:
        command: Which.
        home: A scratch folder.
        base: The folder that every try begins with.
        seed: Of the moments.
    """

    def __init__(self, command: Command, home: Path, base: Path, seed: int) -> None:
        self._command, self._home, self._base = command, home, base
        self._random = random.Random(f"{command.name} {seed}")
        whole, again = self._copy("whole"), self._copy("again")
        self._around = None
        self._to_the_end(whole)
        self._expected = command.result(whole)
        self._around = command.around(whole)
        self._seconds = self._to_the_end(again).seconds
        if found := differences(self._expected, command.result(again), ""):
            sys.exit(f"{command.name}: two runs that were not killed differ: {', '.join(found)}")

    def kill(self, kills: int, seconds: float) -> Found:
        """Kill it so many times, or until the time is over."""
        found, end = Found(self._command.name, self._seconds), time.monotonic() + seconds
        while found.kills < kills and time.monotonic() < end:
            found.runs += 1
            work = self._copy("killed")
            ended = self._killed(work, found, kills)
            if not ended:
                self._to_the_end(work)
            wrong = differences(self._expected, self._command.result(work), "")
            if wrong:
                found.other += 1
                print(f"{found.command}: other: {', '.join(wrong)}", file=sys.stderr)
        return found

    def _killed(self, work: Path, found: Found, kills: int) -> bool:
        """Kill it once or more; whether it had ended, or published, before."""
        before = published(work)
        while True:
            moment = self._random.uniform(FIRST_MOMENT, 1) * self._seconds
            ended = self._call(work, moment)
            if ended.status != SIGKILL:
                self._check(ended)
                found.ended += 1
                return True
            found.kills += 1
            if problems := self._command.hurt(work):
                found.hurt += 1
                print(f"{found.command}: hurt: {'; '.join(problems)}", file=sys.stderr)
            if self._command.name == "retrain" and published(work) != before:
                return True
            if found.kills == kills or self._random.random() > AGAIN:
                return False

    def _to_the_end(self, work: Path) -> Ended:
        ended = self._call(work, None)
        self._check(ended)
        return ended

    def _check(self, ended: Ended) -> None:
        if ended.status != 0:
            sys.exit(f"{self._command.name}: exit status {ended.status}:\n{ended.err}")

    def _call(self, work: Path, deadly: float | None) -> Ended:
        words, log = self._command.words(work), self._home / "said"
        return call(words, work, self._around, log, deadly=deadly)

    def _copy(self, name: str) -> Path:
        target = self._home / name
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self._base, target, symlinks=True))


def published(work: Path) -> str:
    """The version that readers of the bundle find."""
    return (work / "bundles" / "tiny" / "current").resolve().name


def scratch() -> str | None:
    """In memory where that is to be had: the disk is not what is tried."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() else None


def main() -> int:
    """Run the command line; 1 when something was hurt or other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most, for a command")
    parser.add_argument("--commands", nargs="+", default=[one.name for one in COMMANDS])
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="kills_", dir=scratch()) as folder:
        home = Path(folder)
        make_base(home / "base")
        for command in COMMANDS:
            if command.name not in given.commands:
                continue
            killer = Killer(command, home, home / "base", given.seed)
            found = killer.kill(given.kills, given.seconds)
            rows.append(found.row())
            print(json.dumps(rows[-1]), flush=True)
            if given.keep:
                keep_row(rows[-1])
    return int(any(row["published hurt"] or row["other result"] for row in rows))


def keep_row(row: dict[str, Any]) -> None:
    """Add the figures of a command to those that are kept."""
    earlier = json.loads(KEPT.read_text())["rows"] if KEPT.is_file() else []
    kept = {row["command"]: row for row in earlier}
    before = kept.get(row["command"], {})
    kept[row["command"]] = row | {name: row[name] + before.get(name, 0) for name in COUNTS}
    document = {
        "title": "Commands killed with SIGKILL at random moments and run again",
        "command": "python benchmarks/robustness/kills.py --keep --seed <several>",
        "device": f"{device()}, one core",
        "date": datetime.now(UTC).date().isoformat(),
        "columns": COLUMNS,
        "rows": [kept[one.name] for one in COMMANDS if one.name in kept],
    }
    keep(KEPT, document)


if __name__ == "__main__":
    sys.exit(main())
