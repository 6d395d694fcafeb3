"""Times a training step on windows of events: all events padded and masked against none of it.

    python benchmarks/sequence_batches.py

Users are synthetic, as many and as active as those of MovieLens-1M (6,040; at least 20 events,
median 96, mean 165): a log-normal law has these two figures. Batches of 128 windows of 200 events,
a causal transformer of two blocks, width 64, one head, and 1,024 uniform negatives.

Before, every window was padded to 200 columns, and what a query may look at was a mask
(B, L, L). Now a batch is no wider than its longest window, windows of similar length are encoded
together, and padding stands behind the events, where a causal kernel needs no mask. Without dropout
both ways give the same loss, which is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from twotower.data.batches import Batch
from twotower.data.prepared import Entities, Events, Interactions, Prepared
from twotower.data.schema import HISTORY_MASK
from twotower.data.windows import PLACE, Windows
from twotower.features.spec import FeatureInput, ModelInputs
from twotower.losses.negatives import MixedNegatives
from twotower.losses.objective import Objective
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.models import two_tower
from twotower.models.columns import stage_columns
from twotower.models.transformer import Block, CausalTransformer
from twotower.models.two_tower import Cosine, TwoTower
from twotower.training.optimizers import OptimizerSettings
from twotower.training.retrieval import RetrievalTask

NUM_USERS, NUM_ITEMS, LEAST, MEDIAN, MEAN = 6040, 3416, 20, 96, 165
LENGTH, WINDOWS, WIDTH, BLOCKS = 200, 128, 64, 2
EVENTS, MASK = "history.item_id", HISTORY_MASK


class MaskedTransformer(CausalTransformer):
    """The same transformer with padding on the left and a mask (B, L, L)."""

    def every(self, events: Tensor, mask: Tensor) -> Tensor:
        """States ``(B, L, H)`` after every event."""
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        states = self.project(events) * math.sqrt(self.width)
        states = self.dropout(states + self.positions[places])
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        allowed = (causal & mask.unsqueeze(1)) | torch.eye(length, dtype=torch.bool)  # (B, L, L)
        for block in self.blocks:
            states = masked_block(block, states, allowed.unsqueeze(1))
        return self.norm(states) * mask.unsqueeze(-1)


def masked_block(block: Block, states: Tensor, allowed: Tensor) -> Tensor:
    """What a block does to states ``(B, L, H)``, with a mask ``(B, 1, L, L)``."""
    split = block.query_key_value(block.attention_norm(states)).chunk(3, dim=-1)
    query, key, value = (part.unsqueeze(1) for part in split)  # (B, 1, L, H)
    share = block.share if block.training else 0.0
    seen = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=share
    )
    states = states + block.dropout(block.output(seen.squeeze(1)))
    return states + block.perceptron(states)


def synthetic_log(generator: np.random.Generator) -> Prepared:
    """A prepared data set in memory: item ids alone, all of it training."""
    spread = math.sqrt(2 * math.log(MEAN / MEDIAN))
    drawn = np.exp(generator.normal(math.log(MEDIAN), spread, NUM_USERS))
    counts = np.maximum(drawn.astype(np.int64), LEAST)
    offsets, total = np.append(0, np.cumsum(counts)), int(counts.sum())
    rows = np.arange(total)
    items = np.minimum(generator.geometric(1 / 400, total) - 1, NUM_ITEMS - 1)
    users = np.repeat(np.arange(NUM_USERS), counts)
    train = np.zeros(total, np.int8)
    log = Interactions(
        rows=rows,
        split=train,
        labels=np.ones(total, np.float32),
        positive=np.ones(total, bool),
        weights=np.ones(total, np.float32),
        history_end=rows,
        user_rows=users,
        item_rows=items,
        timestamps=None,
        context={},
    )

    def entities(number: int, columns: dict[str, np.ndarray]) -> Entities:
        ids = pa.array(range(number))
        return Entities(ids=ids, table=pa.table({"id": ids}), columns=columns)

    return Prepared(
        folder=Path(),
        manifest={"counts": {"catalogue": NUM_ITEMS}},
        interactions=log,
        events=Events(offsets=offsets, item_rows=items, interactions=rows, split=train),
        users=entities(NUM_USERS, {}),
        items=entities(NUM_ITEMS, {"item_id": np.arange(1, NUM_ITEMS + 1)}),
    )


def task_of(prepared: Prepared, dropout: float) -> tuple[RetrievalTask, Windows]:
    """A task and the windows that it trains on."""
    item = FeatureInput(
        name="item_id", side="item", kind="id", dim=0, num_rows=NUM_ITEMS + 1, width=0
    )
    inputs = ModelInputs(features=(item,), history_length=LENGTH, history_features=("item_id",))
    columns = stage_columns(prepared, inputs)
    torch.manual_seed(0)
    model = TwoTower(
        inputs=inputs,
        dim=WIDTH,
        embedding_dim=WIDTH,
        hidden=[],
        history=partial(
            CausalTransformer,
            hidden=WIDTH,
            max_length=LENGTH,
            num_blocks=BLOCKS,
            dropout=dropout,
        ),
        similarity=Cosine(),
    )
    task = RetrievalTask(
        model=model,
        objective=Objective(
            loss=SampledSoftmax(temperature=0.05),
            negatives=MixedNegatives(in_batch=False, num_uniform=1024),
            mask_known=False,
        ),
        columns=columns,
        item_probability=torch.full((NUM_ITEMS,), 1 / NUM_ITEMS),
        optimizer=OptimizerSettings(learning_rate=1e-3, table_learning_rate=0.05),
    )
    return task, Windows.of(prepared, columns)


def padded(batch: Batch) -> Batch:
    """The batch as wide as the longest window that could be."""
    missing = LENGTH - batch[MASK].shape[1]
    wide = {name: functional.pad(batch[name], (missing, 0)) for name in (EVENTS, MASK)}
    return batch | wide | {PLACE: batch[PLACE] + missing}


def step(task: RetrievalTask, batch: Batch) -> Tensor:
    """Loss of a batch, with the gradients computed."""
    task.zero_grad()
    loss = task.training_step(batch, 0)
    loss.backward()
    return loss.detach()


def encode(task: RetrievalTask, batch: Batch) -> Tensor:
    """States of a batch alone, with the gradients computed."""
    task.zero_grad()
    vectors = task.model.embed_windows(batch)
    vectors.sum().backward()
    return vectors.detach()


class Before:
    """The former way inside a ``with`` block.

    Args:
        task: Of which the encoder is replaced.
    """

    def __init__(self, task: RetrievalTask) -> None:
        self.task = task

    def __enter__(self) -> None:
        self.by_length = two_tower.every_by_length
        two_tower.every_by_length = lambda encoder, events, mask: encoder.every(events, mask)
        self.task.model.history.__class__ = MaskedTransformer

    def __exit__(self, *error: object) -> None:
        two_tower.every_by_length = self.by_length
        self.task.model.history.__class__ = CausalTransformer


def seconds(
    work: Callable[[RetrievalTask, Batch], Tensor],
    task: RetrievalTask,
    given: Sequence[Callable[[], Batch]],
) -> float:
    """Mean time of one piece of work, assembling its batch included, after one for warming up."""
    work(task, given[0]())
    started = time.perf_counter()
    for one in given:
        work(task, one())
    return (time.perf_counter() - started) / len(given)


def main(num_batches: int) -> None:
    """Check that both ways say the same, then time them."""
    prepared = synthetic_log(np.random.default_rng(0))
    counts = np.diff(prepared.events.offsets)
    generator = torch.Generator().manual_seed(0)
    task, windows = task_of(prepared, dropout=0.0)
    chosen = [
        torch.randperm(len(windows), generator=generator)[:WINDOWS] for _ in range(num_batches)
    ]
    held = np.mean([windows.batch(one)[MASK].sum().item() / WINDOWS for one in chosen])
    print(
        f"{len(counts)} users, {np.median(counts):.0f} events (median), {counts.mean():.0f} (mean)"
    )
    print(f"{len(windows)} windows of {LENGTH}, {held:.0f} events each in these batches")

    batch = windows.batch(chosen[0])
    torch.manual_seed(1)
    now = step(task, batch)
    with Before(task):
        torch.manual_seed(1)
        before = step(task, padded(batch))
    torch.testing.assert_close(now, before)
    print(f"loss of one batch without dropout: before {before:.6f}, now {now:.6f}")

    task, windows = task_of(prepared, dropout=0.1)
    given = [partial(windows.batch, one) for one in chosen]
    given_before = [lambda one=one: padded(windows.batch(one)) for one in chosen]
    print(f"\n{torch.get_num_threads()} CPU threads, {num_batches} batches, seconds each")
    for name, work in {"encoder": encode, "whole step": step}.items():
        with Before(task):
            former = seconds(work, task, given_before)
        latter = seconds(work, task, given)
        print(f"{name:12}before {former:.3f}   now {latter:.3f}   {former / latter:.1f} times")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=5)
    main(parser.parse_args().batches)
