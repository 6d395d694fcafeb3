"""RecBole: its DCNV2 with the cross layers beside the perceptron.

It gives each dense column a vector too, so its layers are 39 x 16 = 624 wide where the others have
429, and it keeps rows only for values that occur, so its tables are smaller.
"""

from __future__ import annotations

import numpy as np
from measure import Clock, Run, main
from recbole_files import CATEGORY, NUMBER, train
from rows import read_clicks


def ranker(run: Run, clock: Clock) -> tuple[float, float]:
    clicks = read_clicks(run.data, run.rows, run.large)
    every = np.arange(len(clicks.labels))
    table = {
        # It cannot do without these two; neither is an input of the model.
        "row": every,
        "column": every % 2,
        **clicks.categorical,
        **clicks.dense,
        "label": clicks.labels,
    }
    kinds = {name: CATEGORY for name in ("row", "column", *clicks.names)}
    kinds |= dict.fromkeys((*clicks.dense, "label"), NUMBER)
    settings = {
        "USER_ID_FIELD": "row",
        "ITEM_ID_FIELD": "column",
        "LABEL_FIELD": "label",
        "ignored_fields": [],
        "embedding_size": 16,
        "mixed": False,
        "structure": "parallel",
        "cross_layer_num": 3,
        "mlp_hidden_size": [256, 128, 64],
        "dropout_prob": 0.0,
        "reg_weight": 0.0,
        "train_batch_size": run.batch,
        "train_neg_sample_args": None,
    }
    return train(run, clock, "DCNV2", {"inter": (table, kinds)}, settings)


if __name__ == "__main__":
    main("recbole DCNV2", ("parallel",), ranker)
