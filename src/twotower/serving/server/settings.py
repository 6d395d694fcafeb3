"""What the HTTP service is told when it starts; handed to its processes as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

# What a worker says to the parent when it can answer.
READY = "ready\n"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one worker process.

    Args:
        bundle: Folder of a bundle; followed when it is a link, or holds one called ``current``.
        max_batch: How many waiting requests are answered together.
        max_waiting: How many may wait; one more is refused.
        deadline_ms: Milliseconds after which a request is given up that names no deadline.
        reload_seconds: How often `bundle` is looked at.
        grace_seconds: How long requests in flight may take after a signal to stop.
        max_in_flight: Requests that one address may have in flight; None for any number.
        api_key_file: File with the key that clients must show; None to ask the environment.
        journal: File of changes to items, which all processes follow; None for no changes.
        batch_store: Folder or URL of a store that `twotower batch` fills; None for none.
        batch_max_age_hours: Age from which a stored list is called stale; None for never.
        traffic: Folder in which a sample of the requests is kept for monitoring; None for none.
        traffic_per_second: How many requests a second are kept in each process, at most.
        traffic_days: For how many days they are kept.
        access_log: Whether every request writes a line.
        page: Whether there is a page at ``/``, which shows ids and histories of users.
        threads: Threads of the models and the index in this process.

    Raises:
        ValueError: Lists everything that is out of range.
    """

    bundle: str
    max_batch: int = 16
    max_waiting: int = 128
    deadline_ms: int = 1000
    reload_seconds: float = 1.0
    grace_seconds: float = 20.0
    max_in_flight: int | None = None
    api_key_file: str | None = None
    journal: str | None = None
    batch_store: str | None = None
    batch_max_age_hours: float | None = None
    traffic: str | None = None
    traffic_per_second: float = 10.0
    traffic_days: int = 30
    access_log: bool = True
    page: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        least = {
            "max_batch": 1,
            "max_waiting": 1,
            "deadline_ms": 1,
            "reload_seconds": 0.01,
            "grace_seconds": 0,
            "max_in_flight": 1,
            "batch_max_age_hours": 0,
            "traffic_per_second": 0.001,
            "traffic_days": 1,
            "threads": 1,
        }
        problems = [
            f"{name}: must be at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) is not None and getattr(self, name) < low
        ]
        if problems:
            raise ValueError("\n".join(problems))

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ServerSettings:
        """Read what `to_json` wrote."""
        return ServerSettings(**json.loads(text))
