"""Damages every kind of file that is read, a byte or a piece at a time, and reads it.

    python benchmarks/robustness/fuzz_files.py --cases 300

A reader must refuse with one error of the kind that a command shows as a message with exit status
2, naming the file or its folder; or read what was written. Where a checksum guards the file nothing
else may be read; elsewhere other values are what the file now says. An error of another kind, a
message that does not say where, a crash of the process, a hang and other data behind a checksum are
faults.
Readers run in processes of their own, with little memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import chdir
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "serving")]

from damaged_files import READERS, Reader, make_home  # noqa: E402
from running import device, keep  # noqa: E402

from tests.warm_process import warm  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "robustness" / "fuzz_files.json"
REFUSED, SAME, OTHER = "refused", "as written", "other data"
FAULTS = ("other kind of error", "file not named", "other data behind a checksum", "crash", "hang")
COLUMNS = {"file": "", "cases": ",", REFUSED: ",", SAME: ",", OTHER: ",", "faults": ","}
SECONDS_OF_A_CASE = 20
MEMORY = 6 * 2**30


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content with one thing done to it."""
    place = chance.randrange(len(content) + 1)
    length = min(len(content) - place, chance.choice((1, 2, 4, 16, 200)))
    noise = chance.randbytes(max(1, length))
    return chance.choice(
        (
            content[:place]
            + bytes(b ^ (1 << chance.randrange(8)) for b in content[place : place + 1])
            + content[place + 1 :],
            content[:place],
            content[:place] + noise + content[place:],
            content[:place] + noise + content[place + length :],
            content[:place] + content[place + length :],
            content[:place] + bytes(length) + content[place + length :],
            content[:place] + b"\xff" * length + content[place + length :],
            content[place:] + content[:place],
        )
    )


def cases(reader: Reader, home: Path, count: int, seed: int) -> Iterator[tuple[Path, bytes]]:
    """Files and what is to stand in them instead."""
    chance = random.Random(f"{reader.name} {seed}")
    paths = sorted({path for one in reader.files for path in home.glob(one) if path.is_file()})
    for _ in range(count):
        path = chance.choice(paths)
        content = path.read_bytes()
        changed = damaged(content, chance)
        if changed != content:
            yield path, changed


def outcome(reader: Reader, home: Path, path: Path, good: Any) -> str:
    """What a reader makes of a damaged file."""
    from twotower.cli.failures import sentence

    try:
        found = reader.read(home)
    except Exception as error:
        said = sentence(error)
        if said is None:
            traceback.print_exc()
            return FAULTS[0]
        named = any(name in said for name in (path.name, path.resolve().parent.name, reader.place))
        return REFUSED if named else f"{FAULTS[1]}: {said[:200]}"
    if found == good or (reader.torn and good[: len(found)] == found):
        return SAME
    return FAULTS[2] if reader.guarded else OTHER


def child(number: int, home: str, count: int, seed: int, skip: int, report: str) -> None:
    """Read all damaged files of a reader, from one of them on; a line for each."""
    reader, folder = READERS[number], Path(home)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not reader.maps:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(f"{report}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    signal.alarm(SECONDS_OF_A_CASE)
    with chdir(folder), open(report, "a") as lines:
        good = reader.read(folder)
        for place, (path, changed) in enumerate(cases(reader, folder, count, seed)):
            if place < skip:
                continue
            signal.alarm(SECONDS_OF_A_CASE)
            content = path.read_bytes()
            swapped(path, changed)
            try:
                result = outcome(reader, folder, path, good)
            finally:
                swapped(path, content)
            lines.write(f"{json.dumps([place, path.name, result])}\n")
            lines.flush()
    os._exit(0)


def swapped(path: Path, content: bytes) -> None:
    """Another file in the place of one: what is mapped of that one stays as it was."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


def fuzz(number: int, home: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """All cases of a reader: how often each outcome was, and the faults in words."""
    report = home.parent / f"report-{number}-{seed}"
    report.write_text("")
    kept = {
        path: path.read_bytes()
        for one in READERS[number].files
        for path in home.glob(one)
        if path.is_file()
    }
    found: Counter[str] = Counter()
    faults: list[str] = []
    skip = 0
    while True:
        process = warm().Process(
            target=child, args=(number, str(home), count, seed, skip, str(report))
        )
        process.start()
        process.join()
        done = [json.loads(line) for line in report.read_text().splitlines()]
        if process.exitcode == 0:
            break
        kind = FAULTS[4] if process.exitcode == -signal.SIGALRM else FAULTS[3]
        found[kind] += 1
        skip = (done[-1][0] if done else skip - 1) + 2 if len(done) else skip + 1
        faults.append(f"{READERS[number].name}: {kind} ({process.exitcode}) at case {skip - 1}")
        for path, content in kept.items():
            swapped(path, content)
        if found[kind] > 20:
            break
    for _, name, result in done:
        found[result.partition(":")[0]] += 1
        if result.partition(":")[0] in FAULTS:
            faults.append(f"{READERS[number].name}: {name}: {result}")
    return found, faults


def row(reader: Reader, found: Counter[str]) -> dict[str, Any]:
    """A row of the table."""
    counts = {name: found[name] for name in (REFUSED, SAME, OTHER)}
    faults = sum(found[name] for name in FAULTS)
    return {"file": reader.name, "cases": found.total(), **counts, "faults": faults}


def main() -> int:
    """Run the command line; 1 when there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="of every kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of readers' names")
    parser.add_argument("--run", type=Path, help="a run folder; else one is made")
    parser.add_argument("--bundle", type=Path, help="its bundle")
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        run, bundle = given.run, given.bundle
        if run is None:
            from killed_commands import make_base

            make_base(Path(scratch) / "base")
            run = Path(scratch) / "base" / "runs" / "tiny" / "earlier"
            bundle = Path(scratch) / "base" / "bundles" / "tiny" / "current"
        home = Path(scratch) / "home"
        make_home(home, run.resolve(), bundle.resolve())
        for number, reader in enumerate(READERS):
            if not any(part in reader.name for part in given.only):
                continue
            found, faults = fuzz(number, home, given.cases, given.seed)
            rows.append(row(reader, found))
            print(json.dumps(rows[-1]), flush=True)
            for fault in faults[:8]:
                print("   ", fault, flush=True)
            said = home.parent / f"report-{number}-{given.seed}.err"
            if faults and said.is_file():
                print(said.read_text()[-1500:], file=sys.stderr)
    if given.keep:
        keep_rows(rows, given.cases, given.seed)
    return int(any(one["faults"] for one in rows))


def keep_rows(rows: Sequence[dict[str, Any]], count: int, seed: int) -> None:
    """Keep the figures."""
    total = sum(one["cases"] for one in rows)
    document = {
        "title": f"{total:,} damaged files, read",
        "command": f"python benchmarks/robustness/fuzz_files.py --cases {count} --seed {seed}",
        "device": f"{device()}, one core",
        "date": datetime.now(UTC).date().isoformat(),
        "columns": COLUMNS,
        "rows": rows,
    }
    keep(KEPT, document)


if __name__ == "__main__":
    sys.exit(main())
