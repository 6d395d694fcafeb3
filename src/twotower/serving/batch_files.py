"""The folder of a batch run: files of its chunks, how far it is, and its report.

===============================  ================================================================
``<name>/<namespace>/``          one run
``  run.json``                   what decides what is in it
``  lists/part-000000.parquet``  the lists of a chunk, see `twotower.serving.batch_scores`
``  progress.jsonl``             one line for every file that is whole, with its digest
``  batch.json``                 the report; there only when the run has ended
``<name>/current``               link to the last run that ended
===============================  ================================================================
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from twotower.data.prepared import checksum
from twotower.serving.batch_scores import ScoredChunk, chunk_path

LISTS, RUN, PROGRESS, REPORT = "lists", "run.json", "progress.jsonl", "batch.json"
CURRENT, LOCK, REMOVED, LINK = "current", ".lock", ".removed-", ".current-"
RUN_FORMAT = 1
# Lists of an older run would be out of date when they are in.
RESUME_WITHIN_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """All that decides what is in the files of a run.

    Args:
        bundle_version: Version of the bundle.
        bundle_digest: Digest of its manifest.
        num_users: All users of the bundle.
        k: Length of the lists.
        filters: What every item of a list must pass, field by field.
        chunk_size: Users of a file.
        seconds: Time of the requests, seconds since 1970 UTC.
    """

    bundle_version: str
    bundle_digest: str
    num_users: int
    k: int
    filters: Sequence[Mapping[str, Any]]
    chunk_size: int
    seconds: int

    @property
    def namespace(self) -> str:
        """Name of the run and of its version in a store."""
        text = json.dumps({"format": RUN_FORMAT, **asdict(self)})
        return f"{self.bundle_version}-{blake2b(text.encode(), digest_size=6).hexdigest()}"

    @property
    def num_chunks(self) -> int:
        """How many files there are."""
        return -(-self.num_users // self.chunk_size)


@contextmanager
def open_run(home: Path, facts: RunFacts, *, any_time: bool) -> Iterator[RunFolder]:
    """The folder of a run, new or as it was left; nobody else writes under the name meanwhile.

    Args:
        home: Folder of all runs of a name.
        facts: About the run.
        any_time: Whether a run that was left by less than a day ago may have another time.

    Raises:
        ValueError: When another run of the name is going on.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{home}: another batch run of this name is going on") from error
        _sweep(home)
        left = _left(home, facts) if any_time else []
        facts = max(left, key=lambda run: run.seconds, default=facts)
        folder = home / facts.namespace
        (folder / LISTS).mkdir(parents=True, exist_ok=True)
        _write(folder / RUN, {"format": RUN_FORMAT, **asdict(facts)})
        run = RunFolder(folder, facts)
        try:
            yield run
        except BaseException:
            if not run.scored:  # There is nothing to go on with.
                shutil.rmtree(folder)
            raise


class RunFolder:
    """One run.

    Args:
        folder: Where it lies; `lists` in it holds the files of the chunks.
        facts: About it.
    """

    def __init__(self, folder: Path, facts: RunFacts) -> None:
        self.folder, self.lists, self.facts = folder, folder / LISTS, facts
        self.scored = self._whole()
        self.num_found = len(self.scored)
        text = "".join(f"{json.dumps(asdict(chunk))}\n" for chunk in self.scored.values())
        _write_text(folder / PROGRESS, text)

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return chunk_path(self.lists, number)

    def note(self, chunk: ScoredChunk) -> None:
        """Remember that a chunk is written."""
        self.scored[chunk.number] = chunk
        with (self.folder / PROGRESS).open("a") as file:
            file.write(f"{json.dumps(asdict(chunk))}\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, report: Mapping[str, Any], *, keep: int) -> Path:
        """Write the report, let ``current`` lead here, and remove earlier runs.

        Args:
            report: Figures.
            keep: How many runs that ended stay, this one included.

        Returns:
            The report's path.
        """
        path = self.folder / REPORT
        _write(path, report)
        home = self.folder.parent
        staged = home / f"{LINK}{os.getpid()}"
        staged.symlink_to(self.folder.name, target_is_directory=True)
        staged.replace(home / CURRENT)
        runs = (path.parent for path in home.glob(f"[!.]*/{RUN}"))
        others = [run for run in runs if run.name not in (CURRENT, self.folder.name)]
        ended = [run for run in others if (run / REPORT).is_file()]
        ended.sort(key=lambda run: (run / REPORT).stat().st_mtime_ns, reverse=True)
        for run in set(others) - set(ended[: keep - 1]):
            # Not one file after the other: without its report it would look like one to go on with.
            run.rename(home / f"{REMOVED}{run.name}")
        _sweep(home)
        return path

    def _whole(self) -> dict[int, ScoredChunk]:
        """Chunks whose file is there as it was written; a last line may have been cut."""
        found = {}
        path = self.folder / PROGRESS
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                chunk = ScoredChunk(**json.loads(line))
            except (ValueError, TypeError):
                continue
            file = self.path(chunk.number)
            if file.is_file() and checksum(file) == chunk.digest:
                found[chunk.number] = chunk
        return found


def _left(home: Path, facts: RunFacts) -> list[RunFacts]:
    """Runs that did not end and differ in their time alone."""
    runs = []
    for path in home.glob(f"[!.]*/{RUN}"):
        try:
            document = json.loads(path.read_text())
            document.pop("format")
            run = RunFacts(**document)
        except (ValueError, TypeError, KeyError):
            continue
        recent = 0 <= facts.seconds - run.seconds < RESUME_WITHIN_SECONDS
        same = replace(run, seconds=facts.seconds) == facts
        if same and recent and not (path.parent / REPORT).is_file():
            runs.append(run)
    return runs


def _sweep(home: Path) -> None:
    """Remove what was to be removed, and links that a killed run left."""
    for path in home.glob(f"{REMOVED}*"):
        shutil.rmtree(path)
    for path in home.glob(f"{LINK}*"):
        path.unlink()


def _write(path: Path, document: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(document, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Write a file beside its place, and rename it when it is on the disk."""
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
