"""A bundle as it is served, and the thread that opens the next one when ``current`` moves.

Everything of one answer comes out of one generation. The next one is opened, compared with its
digests and tried beside it; then one reference changes. Answers under way finish on the old one,
whose files stay mapped until the last of them is given. A bundle that cannot be opened is refused
and the old one goes on; to roll back is to move the link back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twotower.export.bundle import open_bundle, resolve
from twotower.serving.freshness import Freshness
from twotower.serving.item_journal import ItemJournal, JournalError
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request, RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """One opened bundle.

    Args:
        built: Answers out of it as it was built.
        folder: Its version folder, with no link in it.
        opened: When it was opened, seconds since 1970.
        freshness: Items that were changed since; None where none may be.
    """

    built: Recommender
    folder: Path
    opened: float
    freshness: Freshness | None

    @property
    def recommender(self) -> Recommender:
        """Answers out of the bundle with its items as they are now; to be taken once an answer."""
        return self.built if self.freshness is None else self.freshness.recommender

    @property
    def version(self) -> str:
        """Of the bundle."""
        return self.built.bundle.manifest.version

    @property
    def name(self) -> str:
        """Of the bundle."""
        return self.built.bundle.manifest.name

    def follow(self) -> None:
        """Take up what other processes have changed of the items."""
        if self.freshness is None:
            return
        try:
            self.freshness.poll()
        except JournalError:
            log.exception("changes of items are not followed")


def open_generation(path: Path, *, num_threads: int = 1, journal: Path | None = None) -> Generation:
    """Open a bundle and try it.

    Args:
        path: What `open_bundle` takes.
        num_threads: Of the models in one call.
        journal: Where changes of its items are written and read; None for none.

    Raises:
        ValueError: When it is damaged, cannot recommend or cannot answer.
    """
    built = Recommender(open_bundle(path), num_threads=num_threads)
    freshness = None
    if journal is not None:
        name = built.bundle.manifest.name
        freshness = Freshness(built, ItemJournal(journal, bundle=name))
    generation = Generation(
        built=built, folder=built.bundle.folder, opened=time.time(), freshness=freshness
    )
    _try(generation.recommender)
    return generation


def _try(recommender: Recommender) -> None:
    """Answer a few requests, so that the first of a user is neither slow nor the first to fail."""
    items, users = recommender.items.ids, recommender.bundle.users
    requests = [Request(), Request(history=[items[0].as_py()])]
    if users is not None:
        requests += [Request(user=user) for user in users.ids[:2].to_pylist()]
    for some in ([one] for one in requests):
        for answer in recommender.answer(some):
            if isinstance(answer, RequestError):
                raise ValueError(f"{recommender.bundle.folder}: cannot answer: {answer}")


class Watcher:
    """Looks at where a bundle lies and opens the next generation when it leads elsewhere.

    Args:
        path: Folder of the bundle, or a link.
        open_next: Opens what it leads to.
        first: The generation that is served now.
        seconds: Between looks.
        swap: Called with a new generation.
        told: Called with whether the path leads to a bundle that was refused, when that changes.
    """

    def __init__(
        self,
        path: Path,
        open_next: Callable[[Path], Generation],
        first: Generation,
        *,
        seconds: float,
        swap: Callable[[Generation], None],
        told: Callable[[bool], None],
    ) -> None:
        self._path = path
        self._open = open_next
        self._seconds = seconds
        self._swap = swap
        self._told = told
        self._served = first.folder
        self._refused: Path | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after what it is opening."""
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Open and swap, if the path leads elsewhere than when it was last looked at."""
        folder = self._path
        try:
            folder = resolve(self._path)
            if folder == self._refused:
                return
            if folder != self._served:
                self._swap(self._open(folder))
                self._served = folder
        except Exception:
            # Whatever is wrong with it, the old one goes on.
            if folder != self._refused:
                log.exception("%s refused; %s is served further", folder, self._served)
                self._refused = folder
                self._told(True)
            return
        if self._refused is not None:
            self._refused = None
            self._told(False)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self.look()
