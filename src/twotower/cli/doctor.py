"""`twotower doctor [data=<path>] [folder=<path>]`: checks this machine and says how to mend it.

It does without Hydra and torch, since either may be what is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twotower.planning.doctor import Finding, examine
from twotower.planning.probe import gather

OPTIONS = {
    "data": "raw data to be looked at: a file or folder",
    "folder": "where runs, bundles and prepared data are written; default: this folder",
}
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine and print a table.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0, or 2 when something needed does not work or an argument is wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        lines = [f"  {name}=<path>  {about}" for name, about in OPTIONS.items()]
        print("\n".join(["usage: twotower doctor [key=value ...]", "", *lines]))
        return 0
    given = dict(argument.partition("=")[::2] for argument in arguments)
    problems = _argument_problems(given)
    if problems:
        print("error: " + "\n".join(problems), file=sys.stderr)
        return 2
    with Console(stderr=True).status("looking at this machine"):
        findings = examine(
            gather(),
            folder=Path(given.get("folder", ".")),
            data=Path(given["data"]) if "data" in given else None,
        )
    Console().print(_table(findings))
    return 2 if any(finding.state == "fail" for finding in findings) else 0


def _argument_problems(given: dict[str, str]) -> list[str]:
    problems = []
    for name, value in given.items():
        if name not in OPTIONS:
            close = get_close_matches(name, OPTIONS, n=1)
            hint = f", did you mean `{close[0]}`" if close else ""
            problems.append(f"`{name}`: unknown{hint}; valid: {', '.join(OPTIONS)}")
        elif not value:
            problems.append(f"`{name}`: must be a path, as in `{name}=<path>`")
    folder = Path(given.get("folder") or ".")
    if not folder.is_dir():
        problems.append(f"`folder`: no folder `{folder}`")
    return problems


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(show_lines=True)
    for column in ("what", "state", "found", "how to mend it"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        state = f"[{STYLES[finding.state]}]{finding.state}[/]"
        table.add_row(finding.name, state, escape(finding.detail), escape(finding.remedy))
    return table
