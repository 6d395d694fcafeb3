"""On Ray the same bytes are written and the same is said as on threads."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.prepare import prepare
from twotower.data.ray_workers import RayWorkers
from twotower.data.schema import DataError, Label
from twotower.data.split import LeaveOneOut, TemporalSplit
from twotower.data.tables import TableSource
from twotower.data.workers import Budget, Threads
from twotower.features.infer import AutoSpec, PipelineFactory

BUDGET = Budget(rows_per_block=700, rows_per_bucket=500)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'twotower\[distributed\]'"):
        RayWorkers()


@pytest.fixture(scope="module")
def ray_workers():
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `distributed`)")
    pytest.importorskip("ray.data", reason="Ray Data is not installed (the extra `distributed`)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # no test asks the network
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield RayWorkers()
        ray.shutdown()


@pytest.fixture
def prepared(tmp_path):
    """Prepare one log; the files that are written, by their names."""
    rng = np.random.default_rng(0)
    count = 4000
    log = {
        "user_id": [f"u{n}" for n in rng.integers(0, 300, count)],
        "item_id": rng.zipf(1.3, count) % 200,
        "timestamp": rng.integers(0, 10**6, count),
        "click": rng.integers(0, 2, count),
        "load": rng.normal(size=count),
        "device": rng.choice(["phone", "desktop"], count),
        "image": list(rng.normal(size=(count, 3))),
    }

    def run(workers, splitter, **bad):
        columns = {name: list(values) for name, values in log.items()}
        for name, value in bad.items():
            columns[name][1234] = value
        pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=500)
        done = prepare(
            source=TableSource(
                interactions=str(tmp_path / "log.parquet"),
                label=Label(column="click"),
                context=["load", "device", "image"],
            ),
            splitter=splitter,
            encoders=PipelineFactory(provider=AutoSpec()),
            root=tmp_path / type(workers).__name__,
            workers=workers,
            budget=BUDGET,
        )
        paths = [path for path in done.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(done.folder)): path.read_bytes() for path in paths}

    return run


@pytest.mark.parametrize("splitter", [TemporalSplit(), LeaveOneOut()])
def test_the_same_bytes_are_written(prepared, ray_workers, splitter):
    expected = prepared(Threads(), splitter)
    found = prepared(ray_workers, splitter)
    assert len(expected) > 20
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    "bad", [{"user_id": None}, {"image": [1.0, 2.0]}], ids=["a bad row", "a bad vector"]
)
def test_the_same_is_said(prepared, ray_workers, bad):
    said = []
    for workers in (Threads(), ray_workers):
        with pytest.raises(DataError) as caught:
            prepared(workers, TemporalSplit(), **bad)
        said.append(caught.value.problems)
    assert said[0] == said[1]
    assert len(said[0]) == 1
