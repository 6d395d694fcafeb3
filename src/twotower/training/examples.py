"""What the ranker learns from: logged impressions, or positives among the retriever's candidates.

`ImpressionExamples` takes the log as it is. `CandidateExamples` is for logs of positives alone: for
the latest positives of every user the retriever is asked what it would have shown, and a share of
that, whose size is kept as `negative_rate`, becomes the negatives. So the ranker trains on the
lists that it will be given; the probability that it exports has the sampling undone.

Shape letters: n examples, K candidates, M negatives a positive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import ITEM_ROWS, LABELS, WEIGHTS, Batch, Columns
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.data.schema import RETRIEVAL_RANK, RETRIEVAL_SCORE, SPLIT_NAMES, DataError
from twotower.index.exact import exact_search
from twotower.training.retriever import SCORE_BLOCK, Retriever

Array = npt.NDArray[Any]

NO_RETRIEVER = (
    "the log holds positives alone, so the ranker learns on a retriever's candidates: train both "
    "stages, stages=[retrieval,ranking]"
)

NO_RANKS = (
    "the ranker wants the retrieval's rank but there is no retriever; train both stages or set "
    "models.ranking.retrieval_rank=false"
)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples of one part.

    Args:
        interactions: (n,) the interaction whose user, context and history the query has.
        item_rows: (n,) the candidate, or None where the log has no items.
        labels: (n,) float32, 1 for a positive.
        weights: (n,) float32.
        scores: (n,) float32 score of the retrieval, or None.
        negative_rate: Share of the negatives that were kept.
        ranks: (n,) float32 rank of the retrieval from 1, where the model takes it.
    """

    interactions: Array
    item_rows: Array | None
    labels: Array
    weights: Array
    scores: Array | None
    negative_rate: float
    ranks: Array | None = None


def with_ranks(examples: Examples, prepared: Prepared, retriever: Retriever | None) -> Examples:
    """The examples with their ranks.

    Raises:
        DataError: When there is no retriever.
    """
    if retriever is None or examples.item_rows is None:
        raise DataError([NO_RANKS])
    ranks = retriever.ranks(prepared, examples.interactions, examples.item_rows)
    return replace(examples, ranks=ranks)


class ExampleSource(Protocol):
    """Makes the examples of a part."""

    def check(self, prepared: Prepared, *, has_retriever: bool) -> None:
        """Refuse, before anything is trained, data that no examples can be made of.

        Raises:
            DataError: When the log does not give what is needed.
        """

    def examples(self, prepared: Prepared, part: int, retriever: Retriever | None) -> Examples:
        """Examples of a part.

        Raises:
            DataError: When the log or the retriever does not give what is needed.
        """


@dataclass(frozen=True, kw_only=True)
class ImpressionExamples:
    """Every impression of the log is an example."""

    def check(self, prepared: Prepared, *, has_retriever: bool) -> None:
        """See `ExampleSource`."""
        if not prepared.has_impressions:
            raise DataError(
                ["the log holds positives alone; the ranker needs impressions that did not succeed "
                 "(data.label.positive_from) or the candidates of a retriever "
                 "(stages=[retrieval,ranking], training/examples=candidates)"]
            )  # fmt: skip

    def examples(self, prepared: Prepared, part: int, retriever: Retriever | None) -> Examples:
        """See `ExampleSource`."""
        self.check(prepared, has_retriever=retriever is not None)
        log = prepared.interactions
        rows = np.flatnonzero(log.split == part)
        item_rows = None if log.item_rows is None else log.item_rows[rows]
        scores = None
        if retriever is not None and item_rows is not None:
            scores = retriever.scores(rows, item_rows)
        return Examples(
            interactions=rows,
            item_rows=item_rows,
            labels=log.positive[rows].astype(np.float32),
            weights=np.asarray(log.weights[rows]),
            scores=scores,
            negative_rate=1.0,
        )


@dataclass(frozen=True, kw_only=True)
class CandidateExamples:
    """The latest positives of every user among the retriever's candidates at that moment.

    Args:
        num_candidates: How many candidates the retriever gives, K.
        num_negatives: How many of them stand against each positive, M.
        positives_per_user: How many of a user's latest positives are taken; 0 for all.
        seed: Seed of the draw.
    """

    num_candidates: int = 200
    num_negatives: int = 10
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
        if problems:
            raise ValueError("\n".join(problems))

    def check(self, prepared: Prepared, *, has_retriever: bool) -> None:
        """See `ExampleSource`."""
        if not has_retriever:
            raise DataError([NO_RETRIEVER])

    def examples(self, prepared: Prepared, part: int, retriever: Retriever | None) -> Examples:
        """See `ExampleSource`; a positive that the retriever would have missed is left out."""
        if retriever is None:
            raise DataError([NO_RETRIEVER])
        events, _, _ = prepared.require_events()
        chosen = self._latest(events.offsets, events.split == part)
        generator = np.random.default_rng([self.seed, part])
        blocks = [
            self._block(prepared, retriever, chosen[start : start + SCORE_BLOCK], generator)
            for start in range(0, len(chosen), SCORE_BLOCK)
        ]
        if not sum(len(block[0]) for block in blocks):
            raise DataError(
                [f"none of the {len(chosen)} positives of the {SPLIT_NAMES[part]} part is among "
                 f"the retriever's {self.num_candidates} candidates; raise num_candidates of the "
                 "examples or train the retriever longer"]
            )  # fmt: skip
        parts = [np.concatenate(part) for part in zip(*blocks, strict=True)]
        interactions, item_rows, labels, scores, shown = parts
        num_negatives = int((labels == 0).sum())
        return Examples(
            interactions=interactions,
            item_rows=item_rows,
            labels=labels,
            weights=np.asarray(prepared.interactions.weights[interactions]),
            scores=scores,
            negative_rate=num_negatives / int(shown.sum()) if num_negatives else 1.0,
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
        generator: np.random.Generator,
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Interactions, items, labels and scores; and of how many negatives they are a draw."""
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
        shown = (rows >= 0).sum(axis=1) - 1  # (b,) the list is short where the catalogue is
        order = generator.random(rows.shape)
        order[is_target] = -1.0  # the target first, then a random draw of the others
        order[rows < 0] = 2.0
        columns = np.argsort(order, axis=1)[:, : self.num_negatives + 1]  # (b, M + 1)
        rows, scores = np.take_along_axis(rows, columns, 1), np.take_along_axis(scores, columns, 1)
        labels = np.zeros(rows.shape, np.float32)
        labels[:, 0] = 1.0
        owners = np.broadcast_to(interactions[kept][:, None], rows.shape)
        real = rows >= 0
        return owners[real], rows[real], labels[real], scores[real], shown


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


@dataclass(frozen=True, kw_only=True)
class ExampleBatches:
    """Batches of examples, gathered from the columns of the ranking stage.

    Args:
        examples: The examples.
        columns: Features of the ranking stage.
        with_scores: Whether the model takes the retrieval's score.
    """

    examples: Examples
    columns: Columns
    with_scores: bool

    def __len__(self) -> int:
        return len(self.examples.labels)

    def batch(self, chosen: Tensor) -> Batch:
        """Features, labels and weights of some examples (B,)."""
        rows, device = chosen.numpy(), self.columns.device
        batch = self.columns.queries(torch.from_numpy(self.examples.interactions[rows]).to(device))
        if self.examples.item_rows is not None:
            items = torch.from_numpy(np.asarray(self.examples.item_rows[rows], np.int64)).to(device)
            batch |= self.columns.items(items) | {ITEM_ROWS: items}
        batch[LABELS] = torch.from_numpy(self.examples.labels[rows]).to(device)
        batch[WEIGHTS] = torch.from_numpy(self.examples.weights[rows]).to(device)
        if self.with_scores:
            if self.examples.scores is None:
                raise DataError(
                    ["the ranker wants the retrieval's score but there is no retriever; train both "
                     "stages or set models.ranking.retrieval_score=false"]
                )  # fmt: skip
            batch[RETRIEVAL_SCORE] = torch.from_numpy(self.examples.scores[rows]).to(device)
        if self.examples.ranks is not None:
            batch[RETRIEVAL_RANK] = torch.from_numpy(self.examples.ranks[rows]).to(device)
        return batch


@dataclass(frozen=True, kw_only=True)
class ImpressionsElseCandidates:
    """Impressions where the log has any that did not succeed, else candidates of the retriever.

    Args:
        candidates: What is done without impressions.
    """

    candidates: CandidateExamples

    def check(self, prepared: Prepared, *, has_retriever: bool) -> None:
        """See `ExampleSource`."""
        self._of(prepared).check(prepared, has_retriever=has_retriever)

    def examples(self, prepared: Prepared, part: int, retriever: Retriever | None) -> Examples:
        """See `ExampleSource`."""
        return self._of(prepared).examples(prepared, part, retriever)

    def _of(self, prepared: Prepared) -> ExampleSource:
        return ImpressionExamples() if prepared.has_impressions else self.candidates
