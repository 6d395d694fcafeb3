"""What has become of every item that was changed: many changes, in order, to what holds now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from twotower.data.schema import ITEM_ID
from twotower.serving.ids import ItemId
from twotower.serving.item_journal import Change


@dataclass
class _Latest:
    """One item.

    Args:
        values: Value and time of every column that was given.
        removed_at: When it was removed; None where it was not, or came back.
    """

    values: dict[str, tuple[Any, datetime]] = field(default_factory=dict)
    removed_at: datetime | None = None


class LatestChanges:
    """Changes to items, folded.

    Args:
        contained_before: An upsert before this time counts as contained in the bundle where the
            bundle has the item. A removal holds until the item is upserted again.
        id_of: The form of an id that the bundle has; None for what is no id.
    """

    def __init__(
        self, contained_before: datetime, id_of: Callable[[object], ItemId | None]
    ) -> None:
        self._contained_before = contained_before
        self._id_of = id_of
        self._items: dict[ItemId, _Latest] = {}

    def clear(self) -> None:
        """Forget all."""
        self._items.clear()

    def fold(self, changes: Sequence[Change]) -> list[ItemId]:
        """Add some changes; the items that they are about, each once.

        Args:
            changes: In order.
        """
        touched: dict[ItemId, None] = {}
        for change in changes:
            for row in change.upsert:
                item = self._id_of(row.get(ITEM_ID))
                if item is not None:
                    touched[item] = None
                    latest = self._items.setdefault(item, _Latest())
                    latest.values |= {name: (value, change.at) for name, value in row.items()}
                    latest.removed_at = None
            for given in change.remove:
                item = self._id_of(given)
                if item is not None:
                    touched[item] = None
                    self._items.setdefault(item, _Latest()).removed_at = change.at
        return list(touched)

    def is_removed(self, item: ItemId) -> bool:
        """Whether the item is not to be shown."""
        latest = self._items.get(item)
        return latest is not None and latest.removed_at is not None

    def values(self, item: ItemId, *, in_bundle: bool) -> dict[str, Any]:
        """What stands over the bundle's row of the item, by column.

        Args:
            item: Its id.
            in_bundle: Whether the bundle has it.
        """
        latest = self._items.get(item, _Latest())
        return {
            name: value
            for name, (value, at) in latest.values.items()
            if name != ITEM_ID and not (in_bundle and at < self._contained_before)
        }

    def left(self, in_bundle: Collection[ItemId]) -> list[Change]:
        """The fewest changes that lead to the same, in order of time.

        What was removed is forgotten with all that it had; that it was removed is remembered where
        the bundle has it.

        Args:
            in_bundle: Items of the bundle.
        """
        changes = []
        for item, latest in self._items.items():
            is_contained = item in in_bundle
            if latest.removed_at is not None:
                if is_contained:
                    changes.append(Change(at=latest.removed_at, remove=[item]))
                continue
            by_time: dict[datetime, dict[str, Any]] = {}
            for name, (value, at) in latest.values.items():
                if not (is_contained and at < self._contained_before):
                    by_time.setdefault(at, {})[name] = value
            changes += [
                Change(at=at, upsert=[{**values, ITEM_ID: item}]) for at, values in by_time.items()
            ]
        return sorted(changes, key=lambda change: change.at)
