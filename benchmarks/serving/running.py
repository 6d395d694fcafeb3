"""A server for a benchmark: `twotower serve` in processes of its own, and what is seen of them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "results" / "serving"
PATIENCE = 60.0


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Args:
        process: The parent of its workers.
        port: Where it listens at 127.0.0.1.
        start_seconds: From the command to the first answer.
    """

    process: subprocess.Popen[str]
    port: int
    start_seconds: float

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def memory(self) -> dict[str, float]:
        """MiB of all workers: resident, and of that what is no file (anonymous)."""
        found = {"resident": 0.0, "anonymous": 0.0}
        for worker in self.workers:
            text = Path(f"/proc/{worker}/smaps_rollup").read_text()
            for name, key in (("resident", "Rss"), ("anonymous", "Anonymous")):
                found[name] += int(re.search(rf"^{key}:\s+(\d+) kB", text, re.M)[1]) / 1024
        return found

    def cpu_seconds(self) -> float:
        """CPU time of all workers so far."""
        stats = [Path(f"/proc/{worker}/stat").read_text() for worker in self.workers]
        fields = [stat.rpartition(")")[2].split() for stat in stats]
        return sum(int(one[11]) + int(one[12]) for one in fields) / 100

    def metrics(self) -> dict[str, float]:
        """Value of every series of `/metrics`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as found:
            lines = found.read().decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}


@contextmanager
def running(
    bundle: Path, overrides: Sequence[str] = (), pin: str | None = None
) -> Iterator[Running]:
    """Start `twotower serve`, and stop it when the block is left.

    Args:
        bundle: What it serves.
        overrides: Of its config.
        pin: Cores for `taskset`; None for those of this process.
    """
    prefix = [] if pin is None else ["taskset", "-c", pin]
    command = [sys.executable, "-m", "twotower.cli.main", "serve", f"bundle={bundle}", "port=0"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*prefix, *command, "access_log=false", *overrides], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        port = int(line.rpartition(":")[2])
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").read()
        seconds = time.perf_counter() - started
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Running(process, port, seconds)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def device() -> str:
    """The processor, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")


def keep(path: Path, document: dict) -> None:
    """Write figures that `benchmarks/render.py` shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def keep_rows(
    name: str, title: str, command: str, columns: Mapping[str, str], rows: Sequence[Mapping]
) -> None:
    """The same, of a process that ran on one core.

    Args:
        name: Of the file.
        title: Of the table.
        command: That measured.
        columns: Names and formats; a row may lack some.
        rows: The figures.
    """
    document = {
        "title": title,
        "command": f"python benchmarks/serving/{command}",
        "device": f"{device()}, one core",
        "date": datetime.now(UTC).date().isoformat(),
        "columns": columns,
        "rows": rows,
    }
    keep(KEPT / f"{name}.json", document)
