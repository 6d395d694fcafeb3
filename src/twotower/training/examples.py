"""What the ranker learns from: logged impressions, or positives among the retriever's candidates.

`ImpressionExamples` takes the log, or all its successes and in every epoch another share of the
rest. `twotower.training.candidates` is for logs of positives alone. What share of the negatives is
trained on stands in `trained_rate`, and is undone in the probability that is exported.

Shape letters: n examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import ITEM_ROWS, LABELS, WEIGHTS, Batch, Columns
from twotower.data.prepared import Prepared
from twotower.data.schema import (
    RETRIEVAL_RANK,
    RETRIEVAL_SCORE,
    TASK_PREFIX,
    TASK_WEIGHTS,
    TRAIN,
    DataError,
)
from twotower.losses.ranks import Ranks
from twotower.training.batches import TrainingExamples
from twotower.training.distributed import DistributedRanks, arrays_of_first
from twotower.training.retriever import Retriever

Array = npt.NDArray[Any]

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
        negative_rate: Share of the negatives that are here.
        ranks: (n,) float32 rank of the retrieval from 1, where the model takes it.
        tasks: (n,) float32 by further task, 1 for a success.
        num_drawn: How many of these negatives every epoch draws anew; None for all.
    """

    interactions: Array
    item_rows: Array | None
    labels: Array
    weights: Array
    scores: Array | None
    negative_rate: float
    ranks: Array | None = None
    tasks: Mapping[str, Array] = field(default_factory=dict)
    num_drawn: int | None = None

    @property
    def trained_rate(self) -> float:
        """Share of the negatives that an epoch trains on."""
        if self.num_drawn is None:
            return self.negative_rate
        return self.negative_rate * self.num_drawn / np.count_nonzero(self.labels == 0)

    def task_weights(self, rows: Array) -> Array:
        """(B,) float32 weights of some examples for further tasks.

        Negatives that are trained on stand for all of them: the sampling is undone in the
        probability of the task that is ranked by alone, and for the others in the loss.
        """
        stands_for = np.where(self.labels[rows] == 0, 1 / self.trained_rate, 1.0)
        return (self.weights[rows] * stands_for).astype(np.float32)


def with_ranks(examples: Examples, prepared: Prepared, retriever: Retriever | None) -> Examples:
    """The examples with their ranks.

    Raises:
        DataError: When there is no retriever.
    """
    if retriever is None or examples.item_rows is None:
        raise DataError([NO_RANKS])
    ranks = retriever.ranks(prepared, examples.interactions, examples.item_rows)
    return replace(examples, ranks=ranks)


def examples_of_first(make: Callable[[], Examples], ranks: Ranks) -> Examples:
    """Examples that the first process makes, in all processes.

    Scores that were computed twice may differ in their last digit, and lists of candidates with
    them.

    Args:
        make: Makes them; called by the first process alone.
        ranks: The processes.
    """
    if not isinstance(ranks, DistributedRanks):
        return make()
    sent: dict[str, Array] = {}
    if ranks.rank == 0:
        made = make()
        fields = {name: value for name, value in vars(made).items() if value is not None}
        sent = {TASK_PREFIX + name: won for name, won in fields.pop("tasks").items()}
        sent |= {name: np.asarray(value) for name, value in fields.items()}
    found = arrays_of_first(sent, ranks)
    tasks = {n: won for n, won in found.items() if n.startswith(TASK_PREFIX)}
    num_drawn = found.get("num_drawn")
    return Examples(
        interactions=found["interactions"],
        item_rows=found.get("item_rows"),
        labels=found["labels"],
        weights=found["weights"],
        scores=found.get("scores"),
        negative_rate=float(found["negative_rate"]),
        ranks=found.get("ranks"),
        tasks={name.removeprefix(TASK_PREFIX): won for name, won in tasks.items()},
        num_drawn=None if num_drawn is None else int(num_drawn),
    )


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
    """The impressions of the log are the examples.

    Scores and ranks of the retrieval, where the model takes them, are computed for all impressions,
    also those that no epoch draws.

    Args:
        negative_rate: Share of the training part's impressions without success that an epoch draws
            at random, in (0, 1]; each epoch others. The other parts are whole: figures are those of
            the log.

    Raises:
        ValueError: When the rate is out of range.
    """

    negative_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.negative_rate <= 1:
            raise ValueError(f"`negative_rate` must lie in (0, 1], got {self.negative_rate}")

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
        num_negatives = int(np.count_nonzero(~log.positive[rows]))
        draws = part == TRAIN and self.negative_rate < 1 and num_negatives > 0
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
            num_drawn=max(1, round(self.negative_rate * num_negatives)) if draws else None,
            tasks={name: won[rows].astype(np.float32) for name, won in log.tasks.items()},
        )


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

    def of_epochs(self) -> TrainingExamples:
        """What every epoch trains on: all of it, or the positives and a share of the negatives."""
        num_drawn = self.examples.num_drawn
        if num_drawn is None:
            return TrainingExamples(rows=torch.arange(len(self)), assemble=self.batch)
        negative = self.examples.labels == 0
        return TrainingExamples(
            rows=torch.from_numpy(np.flatnonzero(~negative)),
            assemble=self.batch,
            pool=torch.from_numpy(np.flatnonzero(negative)),
            num_drawn=num_drawn,
        )

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
        for name, labels in self.examples.tasks.items():
            batch[TASK_PREFIX + name] = torch.from_numpy(labels[rows]).to(device)
        if self.examples.tasks:
            batch[TASK_WEIGHTS] = torch.from_numpy(self.examples.task_weights(rows)).to(device)
        if self.examples.ranks is not None:
            batch[RETRIEVAL_RANK] = torch.from_numpy(self.examples.ranks[rows]).to(device)
        return batch


@dataclass(frozen=True, kw_only=True)
class ImpressionsElseCandidates:
    """Impressions where the log has any that did not succeed, else candidates of the retriever.

    Args:
        impressions: What is done with impressions.
        candidates: What is done without.
    """

    impressions: ExampleSource
    candidates: ExampleSource

    def check(self, prepared: Prepared, *, has_retriever: bool) -> None:
        """See `ExampleSource`."""
        self._of(prepared).check(prepared, has_retriever=has_retriever)

    def examples(self, prepared: Prepared, part: int, retriever: Retriever | None) -> Examples:
        """See `ExampleSource`."""
        return self._of(prepared).examples(prepared, part, retriever)

    def _of(self, prepared: Prepared) -> ExampleSource:
        return self.impressions if prepared.has_impressions else self.candidates
