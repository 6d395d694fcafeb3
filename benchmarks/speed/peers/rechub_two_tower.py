"""torch-rechub: DSSM with in-batch negatives, its own trainer and its own loader.

Variants: `in_batch`, cross entropy against every other item of the batch; `point`, its default,
binary cross entropy of the positives alone (no negatives are drawn: less work, no retrieval model).
"""

from __future__ import annotations

import time

import numpy as np
import torch
from measure import Clock, Run, main
from rows import ITEM_COLUMNS, USER_COLUMNS, read_events, sizes
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import DSSM
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator

DIM, TOWER = 32, [256, 128, 64]


def model_of(counts: dict[str, int], padding: int) -> DSSM:
    """Both towers; the history shares the table of `item_id`, which has a row for the padding."""

    def feature(name: str, rows: int) -> SparseFeature:
        return SparseFeature(name, vocab_size=rows, embed_dim=DIM)

    history = SequenceFeature(
        "history",
        vocab_size=padding + 1,
        embed_dim=DIM,
        pooling="mean",
        shared_with="item_id",
        padding_idx=padding,
    )
    user = [feature(name, counts[name]) for name in ("user_id", *USER_COLUMNS)]
    item = [feature(name, counts[name]) for name in ITEM_COLUMNS]
    return DSSM(
        user_features=[*user, history],
        item_features=[feature("item_id", padding + 1), *item],
        user_params={"dims": TOWER},
        item_params={"dims": TOWER},
        temperature=0.05,
    )


def train(run: Run, clock: Clock) -> tuple[float, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    counts = sizes(run.data)
    padding = counts["item_id"]
    events = read_events(run.data, run.rows)
    every = np.arange(len(events.users))
    table = events.take(every) | {"history": events.padded_history(every, padding)}
    generator = MatchDataGenerator(table, np.ones(len(every), dtype=np.float32))
    loader, _, _ = generator.generate_dataloader(
        {"user_id": every}, {"item_id": every}, run.batch, 0
    )
    ready = time.process_time()
    trainer = MatchTrainer(
        model_of(counts, padding), mode=0, in_batch_neg=run.variant == "in_batch", n_epoch=1
    )
    return ready, trainer.train_one_epoch(clock.batches(loader))


if __name__ == "__main__":
    main("torch-rechub DSSM", ("in_batch", "point"), train)
