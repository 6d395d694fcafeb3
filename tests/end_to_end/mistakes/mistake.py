"""What a mistake is: words of a command line, what was spoiled before, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import TinyRun


@dataclass(frozen=True)
class Place:
    """Where a mistake is made.

    Args:
        work: The folder in which the command is called; it is empty before.
        tiny: Run and bundle of the tiny world, which are of another folder and only read.
    """

    work: Path
    tiny: TinyRun

    @property
    def run(self) -> str:
        """The override that names the run."""
        return f"run={self.tiny.run}"

    @property
    def bundle(self) -> str:
        """The override that names the bundle."""
        return f"bundle={self.tiny.bundle}"


@dataclass(frozen=True)
class Mistake:
    """One thing that a newcomer gets wrong.

    Args:
        what: In a few words.
        words: Spoils what has to be, in the working folder, and returns the command line.
        received: What the message must quote.
        then: What the message must say is allowed, is there, or is to be done.
        around: Called in the process of the command, which then is one of its own: it takes away
            memory, disk, rights or packages.
        leaves: Top folders that may have been written: what is in them is whole, or can be resumed.
        status: How the command ends.
    """

    what: str
    words: Callable[[Place], Sequence[str]]
    received: str
    then: str
    around: Callable[[Path], None] | None = None
    leaves: tuple[str, ...] = ()
    status: int = 2


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included; without locks, which are empty."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
