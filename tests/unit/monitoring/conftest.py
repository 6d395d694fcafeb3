"""A small world with every kind of feature, and windows of the tiny world by time."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.cli.load_run import load_run
from twotower.data.prepare import prepare
from twotower.data.schema import MICROSECONDS, SPLIT, TIMESTAMP, Tables
from twotower.data.split import GivenSplit
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import Bundle, open_bundle
from twotower.features.infer import AutoSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.monitoring.reference import Reference, make_reference, window_form
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.window_profile import Known, WindowProfiler
from twotower.monitoring.windows import Window

DAY = 86_400

Cut = Callable[[float, float], Window]


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


@pytest.fixture(scope="session")
def bundle(tiny_run) -> Bundle:
    return open_bundle(tiny_run.bundle)


@pytest.fixture(scope="session")
def models(bundle: Bundle) -> BundleModels:
    return BundleModels(bundle, num_threads=1)


@pytest.fixture(scope="session")
def log(tiny_run) -> Tables:
    config = load_run(tiny_run.run).config.data
    return SyntheticSource(**{k: v for k, v in config.items() if not k.startswith("_")}).read()


@pytest.fixture(scope="session")
def cut(log: Tables) -> Cut:
    """The rows between two days, counted from the first row."""
    seconds = log.interactions[TIMESTAMP].to_numpy() // MICROSECONDS
    first = int(seconds.min())

    def between(start: float, end: float) -> Window:
        low, high = first + int(start * DAY), first + int(end * DAY)
        rows = np.flatnonzero((seconds >= low) & (seconds < high))
        return Window(interactions=log.interactions.take(pa.array(rows)), start=low, end=high)

    return between
