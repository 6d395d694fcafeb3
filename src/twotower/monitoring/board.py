"""Findings and figures of windows as TensorBoard events, a step being the start of a window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from twotower.monitoring.history import Entry


def write_events(folder: Path, entry: Entry) -> None:
    """Add a window to a TensorBoard folder.

    Args:
        folder: Where events are written; every window has a file of its own.
        entry: The window.
    """
    writer = EventFileWriter(str(folder), filename_suffix=f".{entry.start}")
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(entry)]
    writer.add_event(
        Event(wall_time=float(entry.end), step=entry.start, summary=Summary(value=values))
    )
    writer.close()


def _scalars(entry: Entry) -> Iterator[tuple[str, float]]:
    yield "alerts", float(entry.num_alerts)
    for finding in entry.findings:
        if math.isfinite(finding.value):
            subject = finding.subject.replace(" ", "_")
            yield f"{finding.area}/{subject}/{finding.statistic}", finding.value
