"""Examples for logs of positives alone: positives among what the retriever would have shown.

For the latest positives of every user the retriever is asked for its candidates at that moment, and
a share of them becomes the negatives. So the ranker trains on the lists that it will be given.

Negatives are drawn uniformly, or some of them from the top of the list, where the ranker's work is.
A draw from the top alone would make the top look worse than it is. Here a negative of a group, of
which m of n were drawn, weighs r n / m, with r the share of all negatives that was drawn: the loss
is in expectation that of a uniform draw at rate r, and r alone has to be undone in the probability
(weights of Horvitz and Thompson 1952, "A Generalization of Sampling Without Replacement from a
Finite Universe").

Shape letters: b positives of a block, K candidates, M negatives a positive, n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.data.schema import SPLIT_NAMES, TRAIN, DataError
from twotower.index.exact import exact_search
from twotower.training.examples import Examples
from twotower.training.retriever import SCORE_BLOCK, Retriever

Array = npt.NDArray[Any]

NO_RETRIEVER = (
    "the log holds positives alone, so the ranker learns on a retriever's candidates: train both "
    "stages, stages=[retrieval,ranking]"
)


@dataclass(frozen=True, kw_only=True)
class CandidateExamples:
    """The latest positives of every user among the retriever's candidates at that moment.

    Args:
        num_candidates: How many candidates the retriever gives, K.
        num_negatives: How many of them stand against each positive, M.
        hard_share: Share of these that is drawn from the top of the list, in [0, 1); in the
            training part alone, so that figures of the others do not depend on it.
        hard_window: How many candidates are the top of the list.
        positives_per_user: How many of a user's latest positives are taken; 0 for all.
        seed: Seed of the draw.

    Raises:
        ValueError: When a number is out of range.
    """

    num_candidates: int = 200
    num_negatives: int = 10
    hard_share: float = 0.0
    hard_window: int = 20
    positives_per_user: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {"positives_per_user": self.positives_per_user, "seed": self.seed}
        problems = [f"`{n}` must be at least 0, got {v}" for n, v in numbers.items() if v < 0]
        if not 0 < self.num_negatives < self.num_candidates:
            problems.append(
                "`num_negatives` must lie between 1 and `num_candidates` - 1, got "
                f"{self.num_negatives} and {self.num_candidates}"
            )
        if self.hard_share and not 0 < self.num_hard < self.num_negatives:
            problems.append(
                "`hard_share` of `num_negatives` must leave a negative from the top and one from "
                f"below, got {self.hard_share} of {self.num_negatives}; or say 0"
            )
        if self.hard_share and not 0 < self.hard_window < self.num_candidates:
            problems.append(
                "`hard_window` must lie between 1 and `num_candidates` - 1, got "
                f"{self.hard_window} and {self.num_candidates}"
            )
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def num_hard(self) -> int:
        """How many negatives of a positive are drawn from the top of its list."""
        return round(self.hard_share * self.num_negatives)

    def check(self, prepared: Prepared, *, has_retriever: bool) -> None:
        """See `ExampleSource`."""
        problems = [] if has_retriever else [NO_RETRIEVER]
        if prepared.interactions.tasks:
            problems.append(
                "data.label.tasks: nothing is known of the further outcomes of candidates that "
                "were not shown; learn on impressions (training/examples=impressions)"
            )
        if problems:
            raise DataError(problems)

    def examples(self, prepared: Prepared, part: int, retriever: Retriever | None) -> Examples:
        """See `ExampleSource`; a positive that the retriever would have missed is left out."""
        if retriever is None:
            raise DataError([NO_RETRIEVER])
        events, _, _ = prepared.require_events()
        chosen = self._latest(events.offsets, events.split == part)
        generator = np.random.default_rng([self.seed, part])
        num_hard = self.num_hard if part == TRAIN else 0
        blocks = [
            self._block(prepared, retriever, block, num_hard, generator)
            for block in np.split(chosen, range(SCORE_BLOCK, len(chosen), SCORE_BLOCK))
        ]
        if not sum(len(block[0]) for block in blocks):
            raise DataError(
                [f"none of the {len(chosen)} positives of the {SPLIT_NAMES[part]} part is among "
                 f"the retriever's {self.num_candidates} candidates; raise num_candidates of the "
                 "examples or train the retriever longer"]
            )  # fmt: skip
        parts = [np.concatenate(part) for part in zip(*blocks, strict=True)]
        interactions, item_rows, labels, scores, stands_for = parts
        is_negative = labels == 0
        rate = is_negative.sum() / stands_for[is_negative].sum() if is_negative.any() else 1.0
        weights = np.where(is_negative, rate * stands_for, 1.0).astype(np.float32)
        return Examples(
            interactions=interactions,
            item_rows=item_rows,
            labels=labels,
            weights=np.asarray(prepared.interactions.weights[interactions]) * weights,
            scores=scores,
            negative_rate=float(rate),
        )

    def _latest(self, offsets: Array, inside: Array) -> Array:
        """Events of the part, at most `positives_per_user` a user, the latest ones."""
        chosen = np.flatnonzero(inside)
        if not self.positives_per_user:
            return chosen
        users = np.searchsorted(offsets, chosen, side="right") - 1
        after = np.searchsorted(users, users, side="right") - 1 - np.arange(len(users))
        return np.asarray(chosen[after < self.positives_per_user])

    def _block(
        self,
        prepared: Prepared,
        retriever: Retriever,
        chosen: Array,
        num_hard: int,
        generator: np.random.Generator,
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Interactions, items, labels, scores; and for how many candidates each of them stands."""
        events, _, _ = prepared.require_events()
        interactions = events.interactions[chosen]
        targets = np.asarray(events.item_rows[chosen], np.int64)
        left_out = _other_positives(prepared, interactions, targets, len(retriever.items))
        found = exact_search(
            retriever.queries(interactions), retriever.items, self.num_candidates, left_out
        )
        is_target = found.rows == targets[:, None]  # (b, K)
        kept = is_target.any(axis=1)
        rows, scores, is_target = found.rows[kept], found.scores[kept], is_target[kept]
        order = generator.random(rows.shape)
        stands_for = self._stands_for(order, (rows >= 0) & ~is_target, num_hard)  # (b, K)
        order[is_target] = -1.0  # the target first, then the others in the order of the draw
        order[~is_target & (stands_for == 0)] = 2.0
        columns = np.argsort(order, axis=1)[:, : self.num_negatives + 1]  # (b, M + 1)
        rows, scores, stands_for, labels = (
            np.take_along_axis(values, columns, 1)
            for values in (rows, scores, stands_for, is_target.astype(np.float32))
        )
        owners = np.broadcast_to(interactions[kept][:, None], rows.shape)
        drawn = (stands_for > 0) | (labels == 1)
        return owners[drawn], rows[drawn], labels[drawn], scores[drawn], stands_for[drawn]

    def _stands_for(self, order: Array, possible: Array, num_hard: int) -> Array:
        """(b, K) for how many candidates a drawn one stands; 0 where it was not drawn.

        Args:
            order: (b, K) the smallest are drawn.
            possible: (b, K) bool, True for what may be a negative.
            num_hard: How many are drawn from the top, where there are so many.
        """
        top = np.arange(order.shape[1]) < (self.hard_window if num_hard else 0)  # (K,)
        groups = (possible & top, possible & ~top)
        num_top, num_below = (group.sum(axis=1) for group in groups)  # (b,)
        below = np.minimum(self.num_negatives - np.minimum(num_hard, num_top), num_below)
        wanted = (np.minimum(self.num_negatives - below, num_top), below)
        stands_for = np.zeros(order.shape)
        for group, num_drawn in zip(groups, wanted, strict=True):
            place = np.argsort(np.argsort(np.where(group, order, 2.0), axis=1), axis=1)
            drawn = group & (place < num_drawn[:, None])
            weight = group.sum(axis=1) / np.maximum(num_drawn, 1)  # (b,)
            stands_for[drawn] = np.broadcast_to(weight[:, None], order.shape)[drawn]
        return stands_for


def _other_positives(
    prepared: Prepared, interactions: Array, targets: Array, num_catalogue: int
) -> ItemLists:
    """What may be no negative: all other positives of the user up to and including the part."""
    events, _, _ = prepared.require_events()
    users = np.asarray(prepared.interactions.user_rows)[interactions]
    part = int(np.asarray(prepared.interactions.split)[interactions].max())
    lists = ItemLists.cut(events.item_rows, events.offsets[users], events.part_end(part)[users])
    other = lists.item_rows != np.repeat(targets, lists.counts)
    return lists.where(other & (lists.item_rows < num_catalogue))
