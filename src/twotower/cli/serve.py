"""`twotower serve`: answers HTTP requests out of a bundle until it is told to stop."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

NEEDS = ("fastapi", "uvicorn", "httptools", "prometheus_client")


def serve(cfg: DictConfig) -> None:
    """Serve a bundle; returns when a signal has stopped it.

    Args:
        cfg: The composed and checked config.

    Raises:
        ValueError: When something is out of range, there is no bundle, or a package is missing.
    """
    absent = [name for name in NEEDS if find_spec(name) is None]
    if absent:
        raise ValueError(
            f"serve: {', '.join(absent)} is not installed; pip install 'twotower[serve]'"
        )
    from twotower.serving.server import processes
    from twotower.serving.server.settings import ServerSettings

    settings = ServerSettings(
        bundle=cfg.bundle,
        max_batch=cfg.max_batch,
        max_waiting=cfg.max_waiting,
        deadline_ms=cfg.deadline_ms,
        reload_seconds=cfg.reload_seconds,
        grace_seconds=cfg.grace_seconds,
        max_in_flight=cfg.max_in_flight,
        api_key_file=cfg.api_key_file,
        journal=cfg.journal,
        batch_store=cfg.batch_store,
        batch_max_age_hours=cfg.batch_max_age_hours,
        traffic=cfg.traffic,
        traffic_per_second=cfg.traffic_per_second,
        traffic_days=cfg.traffic_days,
        access_log=cfg.access_log,
        page=cfg.page,
    )

    def announce(url: str) -> None:
        if not cfg.quiet:
            print(f"serving {cfg.bundle} at {url}", flush=True)

    processes.serve(
        settings, host=cfg.host, port=cfg.port, num_workers=cfg.processes, announce=announce
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("serve", serve, argv)
