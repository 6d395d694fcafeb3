"""A tiny world, models without training, and one real bundle of them for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.split import TemporalSplit
from twotower.data.synthetic import SyntheticSource
from twotower.export import manifest as names
from twotower.export import stages
from twotower.export.build import ExportParts, ExportResult, export_bundle
from twotower.export.gates import GateSettings
from twotower.export.manifest import file_digests, read_manifest
from twotower.features.infer import GivenSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History
from twotower.index.flat import Flat
from twotower.losses.calibration import Calibration
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Stacked
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP
from twotower.models.two_tower import Cosine, TwoTower

NUM_CANDIDATES = 20
CALIBRATION = Calibration(negative_rate=0.25, scale=0.5, bias=0.3)
FIGURES = {
    "retrieval/test/recall@100": 0.8,
    "ranking/test/calibration_error": 0.01,
    "ranking/test/log_loss": float("nan"),
}

SPEC = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id"),
        Feature(name="interests", side="user", kind="tags"),
        Feature(name="item_id", side="item", kind="id"),
        Feature(name="category", side="item", kind="categorical"),
        Feature(name="tags", side="item", kind="tags"),
        Feature(name="price", side="item", kind="numeric"),
        Feature(name="image_vector", side="item", kind="vector"),
        Feature(name="position", side="context", kind="categorical", stages=("ranking",)),
        Feature(name="device", side="context", kind="categorical"),
        Feature(name="timestamp", side="context", kind="time"),
    ),
    history=History(length=5, features=("item_id", "image_vector")),
)


def make_prepared(root: Path) -> Prepared:
    source = SyntheticSource(
        num_users=60, num_items=50, num_days=10, slates_per_user=4, slate_size=6, seed=0
    )
    return prepare(
        source=source,
        splitter=TemporalSplit(validation_share=0.2, test_share=0.3),
        encoders=PipelineFactory(provider=GivenSpec(given=SPEC)),
        root=root,
    )


def make_ranker(pipeline: FeaturePipeline, *, retrieval_score: bool = True) -> DCNv2:
    torch.manual_seed(1)
    return DCNv2(
        inputs=pipeline.inputs("ranking"),
        embedding_dim=4,
        structure=Stacked,
        cross=partial(full_rank, num_layers=1),
        deep=partial(MLP, hidden=[16], dropout=0.5),
        history=MeanPooling,
        retrieval_score=retrieval_score,
        retrieval_rank=retrieval_score,
    )


def make_parts(prepared: Prepared) -> ExportParts:
    pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
    torch.manual_seed(0)
    towers = TwoTower(
        inputs=pipeline.inputs("retrieval"),
        dim=8,
        embedding_dim=4,
        hidden=[16],
        history=MeanPooling,
        similarity=Cosine(),
        dropout=0.5,
    )
    return ExportParts(
        prepared=prepared,
        pipeline=pipeline,
        two_tower=towers,
        ranker=make_ranker(pipeline),
        calibration=CALIBRATION,
        remove_seen=True,
        figures=FIGURES,
    )


def export_world(parts: ExportParts, root: Path, gates: GateSettings | None = None) -> ExportResult:
    return export_bundle(
        parts=parts,
        root=root,
        name="world",
        index_builder=Flat(device="cpu"),
        gate_settings=gates or GateSettings(),
        num_candidates=NUM_CANDIDATES,
    )


def skip_onnx(patch: pytest.MonkeyPatch, exported: Path) -> None:
    """Copy the ONNX files of an earlier export of the same models instead of making them."""

    def copied(name: str, *given: object, **options: object) -> None:
        target = next(value for value in given if isinstance(value, Path))
        shutil.copyfile(exported / name, target)

    patch.setattr(stages, "export_query_tower", partial(copied, names.QUERY_TOWER))
    patch.setattr(stages, "export_item_tower", partial(copied, names.ITEM_TOWER))
    patch.setattr(stages, "export_ranker", partial(copied, names.RANKER))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def parts(prepared: Prepared) -> ExportParts:
    return make_parts(prepared)


@pytest.fixture(scope="session")
def exported(parts: ExportParts, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The one export with a real ONNX exporter; tests that change it work on a copy."""
    return export_world(parts, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def copy(exported: ExportResult, tmp_path: Path) -> Path:
    """A version folder to be damaged."""
    folder = tmp_path / "world" / exported.folder.name
    shutil.copytree(exported.folder, folder)
    return folder


@pytest.fixture
def export(exported: ExportResult, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExportResult]:
    """Exports the same models again, without the seconds that the ONNX exporter takes."""
    skip_onnx(monkeypatch, exported.folder)
    return export_world


@pytest.fixture
def resign() -> Callable[..., None]:
    """Lets a manifest agree with the files as they are now."""

    def signed(folder: Path, **changes: object) -> None:
        manifest = replace(read_manifest(folder), files=file_digests(folder), **changes)
        (folder / names.MANIFEST).write_bytes(manifest.to_bytes())

    return signed
