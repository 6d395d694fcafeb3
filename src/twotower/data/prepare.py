"""Raw tables to a prepared data set: read, build, checksum, publish.

A prepared folder carries the fingerprint of its inputs and options in its name; `prepare` opens the
folder that is there and whole, and otherwise builds one beside it and renames it into place. One
process at a time builds below a folder; what a killed one left is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import get_args

from twotower.data.build import Built, build
from twotower.data.entities import Catalogue
from twotower.data.memory import check_source, check_tables
from twotower.data.prepared import (
    PREPARED_VERSION,
    Prepared,
    checksum,
    open_prepared,
    write_manifest,
)
from twotower.data.schema import DataError, Source
from twotower.data.spill import Log, StreamedSource, spill
from twotower.data.split import Splitter
from twotower.data.training_part import EncoderFactory
from twotower.data.training_part import TrainingPart as TrainingPart
from twotower.data.workers import Budget, Scratch, Threads, WithBar, Workers

log = logging.getLogger(__name__)

STAGING = ".preparing"


def prepare(
    *,
    source: Source,
    splitter: Splitter,
    encoders: EncoderFactory,
    root: Path,
    catalogue: Catalogue = "all",
    workers: Workers | None = None,
    budget: Budget | None = None,
    progress: bool = False,
) -> Prepared:
    """Open the prepared data set of a source, building it when it is missing, stale or damaged.

    Args:
        source: Where the tables come from.
        splitter: Which rows train, validate and test.
        encoders: Fits the features.
        root: Folder of prepared data sets.
        catalogue: ``all`` items of the items table and of the training rows may be recommended, or
            those ``interacted`` with anywhere in the log, held-out rows included, as published
            tables have it.
        workers: Who runs the stages; by default a thread on every core of this process.
        budget: How many interactions are in memory at a time; the result does not depend on it.
        progress: Whether long stages show a progress bar.

    Returns:
        The opened data set.

    Raises:
        ValueError: When there is no such catalogue.
        DataError: When a table cannot be used; the root then holds what it held before.
    """
    if catalogue not in get_args(Catalogue):
        raise ValueError(f"catalogue: got {catalogue!r}; allowed: {', '.join(get_args(Catalogue))}")
    check_source(source)
    fingerprint = _fingerprint(source, splitter, encoders, catalogue)
    folder = root / f"{source.name}-{fingerprint[:12]}"
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    staging = root / STAGING
    with _alone(root):
        try:
            ready = _up_to_date(folder, fingerprint)
            if ready is not None:
                return ready
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            built, scratch = staging / "built", staging / "scratch"
            for new in (built, scratch):
                new.mkdir(parents=True)
            workers = workers or Threads()
            work = Scratch(
                folder=scratch,
                workers=WithBar(workers=workers) if progress else workers,
                budget=budget or Budget(),
            )
            if isinstance(source, StreamedSource):
                tables = source.stream(work)
            else:
                tables = spill(check_tables(source.read(), source), work)
            done = build(built, Log.of(tables, scratch), splitter, encoders, catalogue, work)
            _write_manifest(built, done, fingerprint)
            if folder.exists():
                shutil.rmtree(folder)
            built.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new and not any(root.iterdir()):
                root.rmdir()
    log.info("Prepared data written: %s", folder)
    return open_prepared(folder, verify=False)


def _up_to_date(folder: Path, fingerprint: str) -> Prepared | None:
    if not folder.exists():
        return None
    try:
        prepared = open_prepared(folder)
        if prepared.manifest["fingerprint"] != fingerprint:
            raise DataError([f"{folder}: belongs to other data or options"])
    except DataError as error:
        log.warning("Preparing again, %s", error)
        return None
    log.info("Prepared data is up to date: %s", folder)
    return prepared


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process builds below a folder; the lock ends with the process."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fingerprint(
    source: Source, splitter: Splitter, encoders: EncoderFactory, catalogue: str
) -> str:
    options = (repr(splitter), encoders.fingerprint(), catalogue)
    parts = [PREPARED_VERSION, source.fingerprint(), *options]
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _write_manifest(folder: Path, built: Built, fingerprint: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: str(path.relative_to(folder)) for path in files}
    manifest = {
        "fingerprint": fingerprint,
        "training": asdict(built.training),
        "label": built.label,
        "counts": built.counts,
        "files": {
            name: built.checksums.get(name) or checksum(path) for path, name in names.items()
        },
    }
    write_manifest(folder, manifest)
