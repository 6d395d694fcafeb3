"""A tiny world, models without training, and bundles of them, made once for all tests."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.split import TemporalSplit
from twotower.data.synthetic import SyntheticSource
from twotower.export.build import ExportParts, ExportResult, export_bundle
from twotower.export.gates import GateSettings
from twotower.features.infer import AutoSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.index.flat import Flat
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Stacked
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP
from twotower.models.two_tower import Cosine, TwoTower

NUM_CANDIDATES = 20
NEGATIVE_RATE = 0.25
FIGURES = {
    "retrieval/test/recall@100": 0.8,
    "ranking/test/calibration_error": 0.01,
    "ranking/test/auc": float("nan"),
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    source = SyntheticSource(
        num_users=60, num_items=50, num_days=10, slates_per_user=4, slate_size=6, seed=0
    )
    return prepare(
        source=source,
        splitter=TemporalSplit(validation_share=0.2, test_share=0.3),
        encoders=PipelineFactory(provider=AutoSpec(history_length=5)),
        root=tmp_path_factory.mktemp("prepared"),
    )


@pytest.fixture(scope="session")
def pipeline(prepared: Prepared) -> FeaturePipeline:
    return FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)


@pytest.fixture(scope="session")
def two_tower(pipeline: FeaturePipeline) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(
        inputs=pipeline.inputs("retrieval"),
        dim=8,
        embedding_dim=4,
        hidden=[16],
        history=MeanPooling(),
        similarity=Cosine(),
        dropout=0.5,
    ).eval()


@pytest.fixture(scope="session")
def ranker(pipeline: FeaturePipeline) -> DCNv2:
    torch.manual_seed(1)
    return DCNv2(
        inputs=pipeline.inputs("ranking"),
        embedding_dim=4,
        structure=Stacked,
        cross=partial(full_rank, num_layers=1),
        deep=partial(MLP, hidden=[16], dropout=0.5),
        history=MeanPooling(),
        retrieval_score=True,
    ).eval()


@pytest.fixture(scope="session")
def parts(
    prepared: Prepared, pipeline: FeaturePipeline, two_tower: TwoTower, ranker: DCNv2
) -> ExportParts:
    return ExportParts(
        prepared=prepared,
        pipeline=pipeline,
        two_tower=two_tower,
        ranker=ranker,
        negative_rate=NEGATIVE_RATE,
        remove_seen=True,
        figures=FIGURES,
    )


def export(parts: ExportParts, root: Path, gates: GateSettings | None = None) -> ExportResult:
    return export_bundle(
        parts=parts,
        root=root,
        name="world",
        index_builder=Flat(device="cpu"),
        gate_settings=gates or GateSettings(),
        num_candidates=NUM_CANDIDATES,
    )


@pytest.fixture(scope="session")
def exported(parts: ExportParts, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The one real export; tests that change it work on a copy."""
    return export(parts, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def copy(exported: ExportResult, tmp_path: Path) -> Path:
    """A version folder to be damaged."""
    folder = tmp_path / "world" / exported.folder.name
    shutil.copytree(exported.folder, folder)
    return folder
