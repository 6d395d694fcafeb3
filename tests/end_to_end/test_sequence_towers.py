"""Towers that read the history in order, from training in windows to a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY_WORLD, export_tiny, train_tiny
from twotower.cli.recommend import recommend
from twotower.cli.train import train
from twotower.config import compose
from twotower.export.bundle import open_bundle
from twotower.serving.queries import history_columns
from twotower.serving.recommender import Recommender


@pytest.mark.parametrize("option", ["two_tower_transformer", "two_tower_gru", "two_tower_hstu"])
def test_from_windows_to_recommendations(option: str, tmp_path: Path) -> None:
    further = [
        f"models/retrieval={option}",
        "models.retrieval.history.hidden=16",
        "training/batches=sequence",
        "training.retrieval.batch_size=16",
        "features.history_length=10",
    ]
    run = train_tiny(tmp_path, TINY_WORLD, *further)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["retrieval/test/recall@100"] > 0
    bundle = export_tiny(tmp_path, run)  # the gate compares ONNX with torch
    served = open_bundle(bundle)
    golden, recommender = served.golden(), Recommender(served)
    history = served.pipeline.spec.history
    columns = dict(golden.context)
    columns |= {name: c[golden.user_rows] for name, c in served.users.columns.items()}
    columns |= history_columns(
        *(served.item_rows, served.event_times, served.offsets[golden.user_rows]),
        *(golden.history_ends, served.items.columns, history.features, history.length),
    )
    np.testing.assert_allclose(recommender.embed(columns), golden.query_vectors, atol=1e-5)
    items = recommend(
        compose("recommend", [f"bundle={bundle}", "user=u000007", "k=5", "quiet=true"])
    )
    assert len({item.item_id for item in items}) == 5


def test_the_next_item_is_found_where_only_the_order_says_which(tmp_path: Path) -> None:
    """Users walk round a circle of 40 items, nine steps of ten forward, the tenth anywhere.

    Nobody comes round, so what was seen does not say it. Without the order, the items on both sides
    of a history are as likely.
    """
    rng = np.random.default_rng(0)
    num_users, length, num_items = 300, 16, 40
    steps = np.where(rng.random((num_users, length)) < 0.9, 1, rng.integers(2, 24, (300, 16)))
    walks = (rng.integers(0, num_items, (num_users, 1)) + steps.cumsum(axis=1)) % num_items
    log = pa.table(
        {
            "user_id": np.repeat(np.arange(num_users), length),
            "item_id": walks.flatten(),
            "timestamp": np.tile(1_700_000_000 + 60 * np.arange(length), num_users),
        }
    )
    pq.write_table(log, tmp_path / "log.parquet")
    metrics = train(
        compose(
            "train",
            [
                *("experiment=sequence", "data=tables", "split=leave_one_out", "quiet=true"),
                f"data.interactions={tmp_path / 'log.parquet'}",
                f"output_dir={tmp_path / 'run'}",
                f"prepared_dir={tmp_path / 'prepared'}",
                *("models.retrieval.dim=32", "models.retrieval.embedding_dim=32"),
                *("models.retrieval.history.hidden=32", "evaluation.ks=[1,10]"),
                "losses.retrieval.negatives.num_uniform=64",
                *("training.retrieval.min_steps=600", "training.retrieval.batch_size=16"),
            ],
        )
    )
    assert metrics["retrieval/test/hit_rate@1"] > 0.75  # 0.9, if nothing of it was seen before
    assert metrics["item_knn/test/hit_rate@1"] < 0.6
    assert metrics["popularity/test/hit_rate@1"] < 0.1
