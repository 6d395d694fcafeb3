"""A tiny world, prepared once, and fresh models for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from twotower.data.batches import Columns
from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.queries import EvaluationSettings
from twotower.data.split import TemporalSplit
from twotower.data.synthetic import SyntheticSource
from twotower.features.infer import GivenSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History, ModelInputs, Stage
from twotower.models import embedding
from twotower.models.columns import stage_columns
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Parallel
from twotower.models.history import HistoryEncoder, MeanPooling
from twotower.models.mlp import MLP
from twotower.models.two_tower import Cosine, TwoTower
from twotower.training.context import Context
from twotower.training.settings import TrainerSettings

SPEC = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id"),
        Feature(name="item_id", side="item", kind="id"),
        Feature(name="category", side="item", kind="categorical"),
        Feature(name="image_vector", side="item", kind="vector"),
        Feature(name="device", side="context", kind="categorical"),
    ),
    history=History(length=4, features=("item_id",)),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """Prepared data and what is made from them."""

    prepared: Prepared
    pipeline: FeaturePipeline

    def columns(self, stage: Stage) -> Columns:
        return stage_columns(self.prepared, self.pipeline.inputs(stage), torch.device("cpu"))

    def towers(self, *, dropout: float = 0.0, seed: int = 0) -> TwoTower:
        return self.towers_for(self.pipeline.inputs("retrieval"), dropout=dropout, seed=seed)

    def towers_for(
        self,
        inputs: ModelInputs,
        *,
        history: Callable[..., HistoryEncoder] = MeanPooling,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> TwoTower:
        torch.manual_seed(seed)
        return TwoTower(
            inputs=inputs,
            dim=8,
            embedding_dim=4,
            hidden=[12],
            history=history,
            similarity=Cosine(),
            dropout=dropout,
        )

    def ranker(
        self,
        *,
        dropout: float = 0.0,
        retrieval_score: bool = False,
        retrieval_rank: bool = False,
        batch_norm: bool = False,
        seed: int = 0,
    ) -> DCNv2:
        torch.manual_seed(seed)
        return DCNv2(
            inputs=self.pipeline.inputs("ranking"),
            embedding_dim=4,
            structure=Parallel,
            cross=partial(full_rank, num_layers=1),
            deep=partial(MLP, hidden=[8], dropout=dropout, batch_norm=batch_norm),
            history=MeanPooling,
            retrieval_score=retrieval_score,
            retrieval_rank=retrieval_rank,
        )

    def context(self, folder: Path, trainer: TrainerSettings | None = None) -> Context:
        return Context(
            prepared=self.prepared,
            folder=folder,
            trainer=trainer or TrainerSettings(accelerator="cpu"),
            evaluation=EvaluationSettings(ks=(5, 10), num_resamples=50),
            seed=3,
            progress=False,
        )


@pytest.fixture(scope="session")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """Prepares a source."""

    def opened(source: object, splitter: object, spec: FeatureSpec = SPEC) -> World:
        prepared = prepare(
            source=source,
            splitter=splitter,
            encoders=PipelineFactory(provider=GivenSpec(given=spec)),
            root=tmp_path_factory.mktemp("prepared"),
        )
        pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
        return World(prepared=prepared, pipeline=pipeline)

    return opened


@pytest.fixture(scope="session")
def world(open_world: Callable[..., World]) -> World:
    source = SyntheticSource(
        num_users=60, num_items=40, num_days=20, slates_per_user=5, slate_size=6, seed=1
    )
    return open_world(source, TemporalSplit(validation_share=0.2, test_share=0.2))


@pytest.fixture
def sparse_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of every size have sparse gradients."""
    monkeypatch.setattr(embedding, "MIN_SPARSE_ROWS", 0)
