"""`twotower <command>`: finds the command and hands it the rest of the command line.

A command is a module of this folder with ``main(argv) -> int``; it is imported only when asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

COMMANDS = {
    "prepare": "user tables -> prepared data set",
    "train": "prepared data set -> run folder with both stages",
    "export": "run folder -> bundle, published when its gates pass",
    "retrain": "bundle and new window -> next version, published when it is no worse",
    "rollback": "bundle -> the version that was published before is published again",
    "evaluate": "bundle -> two-stage metrics with attribution",
    "recommend": "bundle and user, item or vector -> table of items",
    "explain": "bundle, user and item -> where the item was won or lost",
    "batch": "bundle -> lists for all users, as Parquet and in a store",
    "lookup": "store and user -> table of items",
    "serve": "bundle -> answers over HTTP",
    "embed": "encoder and items -> items with content vectors",
    "monitor": "bundle and window of logs -> what has drifted; exit status 3 on alert",
    "plan": "numbers of users and items -> memory, GPUs, hours, cores, index",
    "doctor": "check this machine and say how to mend it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit status of the command; 2 when there is no such command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command == "--version":
        print(f"twotower {version('twotower')}")
        return 0
    if command not in COMMANDS:
        close = get_close_matches(command, COMMANDS, n=1)
        hint = f", did you mean `{close[0]}`" if close else ""
        problem = f"no command `{command}`{hint}" if command else "no command given"
        print(f"error: {problem}\n\n{_usage()}", file=sys.stderr)
        return 2
    status: int = import_module(f"twotower.cli.{command}").main(arguments[1:])
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "usage: twotower <command> [key=value ...]",
            "",
            *lines,
            "",
            "`twotower <command> --help` shows the options of a command.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
