"""RecBole: the nearest it has to a two-tower model trained on the batch.

Variants: `dssm`, both towers on ids and features, binary cross entropy of the positive and one
drawn negative (no history, no negatives from the batch); `bpr`, two tables of ids of width 64.
An example is a positive: its negative is not counted.
"""

from __future__ import annotations

import numpy as np
from measure import Clock, Run, main
from recbole_files import CATEGORY, UNSPLIT, train
from rows import ITEM_COLUMNS, USER_COLUMNS, read_events

NEGATIVES = {"distribution": "uniform", "sample_num": 1}


def both(run: Run, clock: Clock) -> tuple[float, float]:
    events = read_events(run.data, run.rows)
    pairs = {"user_id": events.users, "item_id": events.items}
    tables = {"inter": (pairs, dict.fromkeys(pairs, CATEGORY))}
    features = {
        "user": ("user_id", USER_COLUMNS, events.user_features),
        "item": ("item_id", ITEM_COLUMNS, events.item_features),
    }
    ids = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id"}
    # Nothing is evaluated, but these must agree before it starts.
    ids |= {"eval_args": UNSPLIT | {"mode": "full"}, "valid_metric": "Recall@10"}
    ids |= {"metrics": ["Recall"], "train_neg_sample_args": NEGATIVES}
    if run.variant == "bpr":
        settings = {"embedding_size": 64, "train_batch_size": run.batch}
        return train(run, clock, "BPR", tables, ids | settings)
    for suffix, (key, names, columns) in features.items():
        rows = {key: np.arange(len(columns[names[0]]))} | {name: columns[name] for name in names}
        tables[suffix] = (rows, dict.fromkeys(rows, CATEGORY))
    settings = {
        "embedding_size": 32,
        "mlp_hidden_size": [256, 128, 64],
        "dropout_prob": 0.0,
        "train_batch_size": 2 * run.batch,  # counts the negatives too
    }
    return train(run, clock, "DSSM", tables, ids | settings)


if __name__ == "__main__":
    main("recbole", ("dssm", "bpr"), both)
