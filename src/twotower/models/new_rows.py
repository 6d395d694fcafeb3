"""Rows of tables for values that an earlier model did not know.

The row of a new id starts where the rows of known ids with such content lie: a ridge regression of
the known ids' rows on what the model makes of their other features is asked for the new ids. Where
there is no other feature, that is the mean of the known rows. New values of other features start
from the mean of the known ones. Row 0, "missing or never seen", is a known one and stays.

Schein et al. 2002, "Methods and Metrics for Cold-Start Recommendations", has the idea that what is
new starts from its content; the regression is that of Gantner et al. 2010, "Learning
Attribute-to-Feature Mappings for Cold-Start Recommendations".

Shapes: N users or items, W width of the embedded content with a one behind it, D width of a row, V
rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twotower.models.embedding import FeatureEmbedder

BLOCK = 65_536
RIDGE = 1e-2  # of the mean square of the embedded content


@torch.no_grad()
def start_new_rows(
    embedder: FeatureEmbedder,
    columns: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
) -> dict[str, int]:
    """Fill the rows that were not carried over.

    Args:
        embedder: Of one side of a model, with the carried rows in place; changed in place.
        columns: Encoded features of all users or items, (N, ...) each; features of the embedder
            without a column, such as those of the request, are no content.
        known: (V,) bool by feature that has a table: the rows that were carried over.

    Returns:
        How many rows were filled, by feature.
    """
    filled: dict[str, int] = {}
    learned = embedder.learned()
    ids = [f for f in embedder.features if f.kind == "id" and f.name in columns]
    for feature in embedder.features:
        carried = known.get(feature.name)
        if carried is None or bool(carried.all()):
            continue
        (table,) = learned[feature.name]  # (V, D), a view
        filled[feature.name] = int((~carried).sum())
        old = carried.clone()
        old[0] = False
        if bool(old.any()):
            table[~carried] = table[old].float().mean(dim=0).to(table.dtype)
    for feature in ids:
        if feature.name in filled:
            _regress(embedder, columns, feature.name, known[feature.name], learned[feature.name][0])
    return filled


def _regress(
    embedder: FeatureEmbedder,
    columns: Mapping[str, Tensor],
    name: str,
    carried: Tensor,
    table: Tensor,
) -> None:
    """Rows of new ids out of the content of theirs."""
    content = [f.name for f in embedder.features if f.name != name and f.name in columns]
    rows = columns[name].long()  # (N,)
    squares = products = None
    for place in _blocks((rows > 0) & carried[rows]):
        given = _content(embedder, columns, content, place)  # (B, W)
        wanted = table[rows[place]].double()  # (B, D)
        squares = given.T @ given + (0 if squares is None else squares)  # (W, W)
        products = given.T @ wanted + (0 if products is None else products)  # (W, D)
    if squares is None or products is None:
        return
    penalty = RIDGE * squares.diagonal().mean().clamp(min=1e-12)
    weights = torch.linalg.solve(squares + penalty * torch.eye(len(squares)), products)  # (W, D)
    for place in _blocks((rows > 0) & ~carried[rows]):
        given = _content(embedder, columns, content, place)
        table[rows[place]] = (given @ weights).to(table.dtype)  # (B, D)


def _blocks(chosen: Tensor) -> Sequence[Tensor]:
    """Places that are chosen (N,), some at a time."""
    places = chosen.nonzero().flatten()
    return torch.split(places, BLOCK) if len(places) else ()


def _content(
    embedder: FeatureEmbedder, columns: Mapping[str, Tensor], names: list[str], place: Tensor
) -> Tensor:
    ones = torch.ones(len(place), 1, dtype=torch.float64)
    if not names:
        return ones
    chosen = {name: columns[name][place] for name in names}
    chosen = {n: c if c.is_floating_point() else c.long() for n, c in chosen.items()}
    return torch.cat([embedder(chosen, names=names).double(), ones], dim=1)  # (B, W)


def embedders(model: torch.nn.Module) -> dict[str, FeatureEmbedder]:
    """The embedders of a model by the name of their side."""
    return {
        side: module
        for side in ("query", "item")
        if isinstance(module := getattr(model, f"{side}_embedder", None), FeatureEmbedder)
    }
