"""What the README and the pages of docs/ show, taken apart, and their commands run as processes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
PROGRAMS = {
    "twotower": [sys.executable, "-m", "twotower.cli.main"],
    "python": [sys.executable],
}


def blocks(page: str, kind: str, *, after: str = "") -> list[str]:
    """The blocks of a kind.

    Args:
        page: Its path below the root.
        kind: As ``bash``.
        after: A heading; only its section is looked at.
    """
    text = PAGES[page]
    if after:
        level = "#" * (len(after) - len(after.lstrip("#")))
        text = text[text.index(f"{after}\n") + len(after) :]
        text = re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return [block for found, block in BLOCK.findall(text) if found == kind]


def commands(page: str, *, after: str = "") -> list[str]:
    """The lines of its ``bash`` blocks, those that go on after a backslash as one."""
    text = "".join(blocks(page, "bash", after=after)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def files(page: str) -> dict[str, str]:
    """Files that are shown whole: blocks that begin with a comment that is a path."""
    shown = [*blocks(page, "python"), *blocks(page, "yaml")]
    return {match[1]: block for block in shown if (match := FILE.match(block))}


@dataclass
class Terminal:
    """A reader's terminal: lines of a page are run in a folder, each as a process.

    Args:
        folder: Where the reader is.
        environment: What the reader has exported.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, line: str, *, status: int = 0) -> str:
        """Run a line; what it has printed.

        Args:
            line: As the page shows it.
            status: The exit status that it must have.
        """
        program, *arguments = shlex.split(line, comments=True)
        if program == "export":
            self.environment |= dict(pair.split("=", 1) for pair in arguments)
            return ""
        done = subprocess.run(
            [*PROGRAMS[program], *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=600,
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{line}\nexit status {done.returncode}\n{said}"
        return said

    @contextmanager
    def serving(self, line: str) -> Iterator[str]:
        """Run a line that serves, at a port that is free; its address."""
        _, *arguments = shlex.split(line)
        process = subprocess.Popen(
            [*PROGRAMS["twotower"], *arguments, "port=0", "deadline_ms=30000"],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()

    def _environment(self) -> dict[str, str]:
        """That of the tests; what the reader adds to PYTHONPATH stands beside ours."""
        given = os.environ | {"COLUMNS": "100"} | self.environment
        paths = [self.environment.get("PYTHONPATH", ""), str(ROOT / "src")]
        return given | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
