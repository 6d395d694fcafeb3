"""Columns that are always gathered together, side by side in memory.

A batch takes rows from all over a log. With a column after the other in memory, each of its values
is a cache line that is fetched for it alone: 26 for an impression of 26 features. Side by side they
are two lines, and on a GPU one kernel.

Shapes: N rows, B rows that are taken, F columns of one type.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class PackedColumns:
    """Columns by name, for rows to be taken from all of them.

    Args:
        columns: ``(N, ...)`` each; those with one number a row are packed by their type.
        pack: Whether they are; columns that are mapped from files stay there.
    """

    def __init__(self, columns: Mapping[str, Tensor], *, pack: bool = True) -> None:
        self._names = tuple(columns)
        by_type: dict[torch.dtype, list[str]] = {}
        for name, values in columns.items():
            if pack and values.dim() == 1:
                by_type.setdefault(values.dtype, []).append(name)
        blocks = [names for names in by_type.values() if len(names) > 1]
        self._blocks = [(n, torch.stack([columns[one] for one in n], dim=1)) for n in blocks]
        packed = {name for names in blocks for name in names}
        self._single = {n: values for n, values in columns.items() if n not in packed}

    def rows(self, rows: Tensor) -> dict[str, Tensor]:
        """Some rows ``(B,)`` of every column, ``(B, ...)``; what is no float comes as int64."""
        found = {name: gather(values, rows) for name, values in self._single.items()}
        for names, block in self._blocks:
            found |= dict(zip(names, gather(block, rows).unbind(1), strict=True))
        return {name: found[name] for name in self._names}


def gather(column: Tensor, rows: Tensor) -> Tensor:
    """Rows ``(B,)`` of a column ``(N, ...)``; what is no float comes out as int64."""
    values = column.index_select(0, rows)
    return values if values.is_floating_point() else values.long()
