"""RecBole: its DCNV2 with the cross layers beside the perceptron.

It gives each dense column a vector too, so its layers are 39 x 16 = 624 wide where the others have
429, and it keeps rows only for values that occur, so its tables are smaller.
"""

from __future__ import annotations

from measure import Clock, Run, main
from recbole_files import CATEGORY, NUMBER, UNSPLIT, train
from rows import read_clicks


def ranker(run: Run, clock: Clock) -> tuple[float, float]:
    clicks = read_clicks(run.data, run.rows, run.large)
    kinds = dict.fromkeys(clicks.names, CATEGORY) | dict.fromkeys((*clicks.dense, "label"), NUMBER)
    settings = {
        # It cannot do without a user and an item; to its model they are columns as any other.
        "USER_ID_FIELD": "c1",
        "ITEM_ID_FIELD": "c2",
        "LABEL_FIELD": "label",
        "numerical_features": list(clicks.dense),
        "embedding_size": 16,
        "mixed": False,
        "structure": "parallel",
        "cross_layer_num": 3,
        "mlp_hidden_size": [256, 128, 64],
        "dropout_prob": 0.0,
        "reg_weight": 0.0,
        "train_batch_size": run.batch,
        "train_neg_sample_args": None,
        "eval_args": UNSPLIT | {"mode": "labeled"},
    }
    table = {**clicks.categorical, **clicks.dense, "label": clicks.labels}
    return train(run, clock, "DCNV2", {"inter": (table, kinds)}, settings)


if __name__ == "__main__":
    main("recbole DCNV2", ("parallel",), ranker)
