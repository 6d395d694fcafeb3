"""Figures of the service in Prometheus' format.

Several processes serve one port and each is asked now and then, so their figures lie in files that
every one of them can add up: `prometheus_client`'s multiprocess mode, chosen by its environment
variable, which the process that starts the workers sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import InfoMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from twotower.serving.requests import Answer

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from twotower.serving.server.generation import Generation

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class _BundleInfo(Collector):
    """Name and version of the bundle that the answering process serves."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}

    def collect(self) -> Iterable[Metric]:
        info = InfoMetricFamily("twotower_bundle", "The bundle that is served.")
        info.add_metric([], self.labels)
        return [info]


class Metrics:
    """Counts and times of one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._info = _BundleInfo()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def histogram(name: str, about: str, *labels: str) -> Histogram:
            buckets = SECONDS if name.endswith("seconds") else SIZES
            return Histogram(name, about, labels, buckets=buckets, registry=registry)

        def gauge(name: str, about: str, mode: Literal["livesum", "livemin", "livemax"]) -> Gauge:
            return Gauge(name, about, multiprocess_mode=mode, registry=registry)

        self._requests = counter(
            "twotower_requests", "Requests by route and status.", "route", "status"
        )
        self._seconds = histogram(
            "twotower_request_seconds", "From the head of a request to its end.", "route"
        )
        self._stages = histogram(
            "twotower_stage_seconds", "Time of a batch by stage; `queue` of a request.", "stage"
        )
        self._batches = histogram("twotower_batch_size", "Requests that were answered together.")
        self._waiting = gauge("twotower_waiting", "Requests in the queue.", "livesum")
        self._overloaded = counter(
            "twotower_overloaded", "Requests refused for want of time.", "reason"
        )
        self._reloads = counter(
            "twotower_reloads", "Bundles that were taken or refused.", "outcome"
        )
        self._created = gauge(
            "twotower_bundle_created_timestamp_seconds",
            "When the oldest bundle that a process serves was exported.",
            "livemin",
        )
        self._opened = gauge(
            "twotower_bundle_opened_timestamp_seconds",
            "When the bundle was opened that is served longest.",
            "livemin",
        )
        self._failing = gauge(
            "twotower_reload_failing",
            "1 while the path leads to a bundle that was refused.",
            "livemax",
        )
        self._failing.set(0)
        self._waiting.set(0)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, waited: Sequence[float]) -> None:
        """A batch begins; seconds that each of it waited."""
        self._batches.observe(len(waited))
        queue = self._stages.labels("queue")
        for seconds in waited:
            queue.observe(seconds)

    def stages(self, answers: Sequence[Answer]) -> None:
        """Some requests were answered together; their stages are counted once."""
        seen: list[object] = []
        for answer in answers:
            if not any(answer.seconds is one for one in seen):
                seen.append(answer.seconds)
                for stage, seconds in answer.seconds.items():
                    self._stages.labels(stage).observe(seconds)

    def looked_up(self, seconds: float) -> None:
        """The batch store was asked."""
        self._stages.labels("store").observe(seconds)

    def waiting(self, count: int) -> None:
        """So many wait."""
        self._waiting.set(count)

    def overloaded(self, reason: str) -> None:
        """A request was refused."""
        self._overloaded.labels(reason).inc()

    def serves(self, generation: Generation) -> None:
        """From now on it is this bundle."""
        created = generation.built.bundle.manifest.created
        self._info.labels = {"name": generation.name, "version": generation.version}
        self._created.set(datetime.fromisoformat(created).timestamp())
        self._opened.set(generation.opened)

    def swapped_bundle(self) -> None:
        """A new bundle was taken."""
        self._reloads.labels("taken").inc()

    def refusal(self, refused: bool) -> None:
        """Whether `current` leads to a bundle that was refused, where that has changed."""
        self._failing.set(refused)
        if refused:
            self._reloads.labels("refused").inc()

    def render(self) -> bytes:
        """All figures as text, of all processes where there are several."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry) + self._bundle()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + self._bundle()

    def _bundle(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(self._info)
        return generate_latest(registry)
