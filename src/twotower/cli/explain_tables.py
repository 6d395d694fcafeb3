"""What `twotower explain` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from twotower.serving.explanation import Contribution, Explanation, Places

CAPTION = (
    "by occlusion: how much lower the retrieval's score and the ranker's logit are without the "
    "feature"
)


def places_table(title: str, explanation: Explanation) -> Table:
    """Where an item stands after every step."""
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", overflow="fold")
    table.add_column("place", justify="right")
    table.add_column("of", justify="right")
    table.add_column("", overflow="fold")
    for step, place, total, note in _steps(explanation.places, explanation.k):
        table.add_row(step, "-" if place is None else f"{place:,}", f"{total:,}", note)
    return table


def _steps(places: Places, k: int) -> Iterator[tuple[str, int | None, int, str]]:
    if places.score is not None:
        yield "score, exact search", places.exact_rank, places.num_items, f"{places.score:.3f}"
        yield "score, by the index", places.index_rank, places.num_items, _cell(places)
        yield "of what may be shown", places.allowed_rank, places.num_allowed, ""
        yield "candidate", places.candidate_rank, places.num_candidates, ""
    if places.probability is not None:
        would = "" if places.candidate_rank is not None else "would be; "
        note = f"{would}probability {places.probability:.4f}, logit {places.logit:.3f}"
        yield "ranker", places.ranker_rank, places.num_candidates, note
    yield "shown", places.place, k, ""


def _cell(places: Places) -> str:
    probe = places.probe
    if probe is None:
        return ""
    return f"cell {probe.cell}, {probe.place:,}. nearest; {probe.num_probes:,} looked into"


def contributions_table(contributions: Sequence[Contribution]) -> Table:
    """What every feature does for an item."""
    table = Table(caption=CAPTION, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("feature", "side", "value"):
        table.add_column(column, overflow="fold")
    for column in ("score", "logit"):
        table.add_column(column, justify="right")
    for one in contributions:
        table.add_row(
            *(escape(text) for text in (one.feature, one.side, one.value)),
            *("" if value is None else f"{value:+.3f}" for value in (one.score, one.logit)),
        )
    return table
