"""A small world with every kind of feature: its reference, and a profiler of windows."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.prepare import prepare
from twotower.data.schema import SPLIT, Tables
from twotower.data.split import GivenSplit
from twotower.data.synthetic import SyntheticSource
from twotower.features.infer import AutoSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.monitoring.reference import Reference, make_reference, window_form
from twotower.monitoring.window_profile import Known, WindowProfiler


@dataclass(frozen=True, kw_only=True)
class TablesInMemory:
    tables: Tables
    name: str = "made"

    def fingerprint(self):
        return "1"

    def read(self):
        return self.tables


@dataclass(frozen=True, kw_only=True)
class Small:
    log: pa.Table
    part: np.ndarray
    tables: Tables
    prepared: object
    pipeline: FeaturePipeline
    reference: Reference
    profiler: WindowProfiler


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    source = SyntheticSource(
        num_users=400, num_items=300, num_days=20, slates_per_user=6, slate_size=5, seed=3
    )
    tables = source.read()
    rng = np.random.default_rng(0)
    log = tables.interactions
    missing = rng.random(len(log)) < 0.1
    log = log.append_column("speed", pa.array(rng.lognormal(size=len(log)), mask=missing))
    place = log.column_names.index("device")
    log = log.set_column(place, "device", pa.array(log["device"].to_pylist(), mask=missing))
    part = np.digitize(np.arange(len(log)) / len(log), [0.7, 0.85]).astype(np.int8)
    known = log.append_column(SPLIT, pa.array(part))
    prepared = prepare(
        source=TablesInMemory(
            tables=replace(tables, interactions=known, context=(*tables.context, "speed"))
        ),
        splitter=GivenSplit(),
        encoders=PipelineFactory(provider=AutoSpec(history_length=3)),
        root=tmp_path_factory.mktemp("small"),
    )
    pipeline = FeaturePipeline.load(prepared.folder / "features")
    reference = make_reference(prepared, pipeline)
    known_to_it = Known(pipeline=pipeline, users=prepared.users, items=prepared.items)
    return Small(
        log=log,
        part=part,
        tables=tables,
        prepared=prepared,
        pipeline=pipeline,
        reference=reference,
        profiler=WindowProfiler(known_to_it, reference, window_form(reference)),
    )
