"""Towers that read the history in order, from training in windows to a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY_WORLD, export_tiny, train_tiny
from twotower.cli.recommend import recommend
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
