"""On Ray the same files and the same store are written as on threads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from twotower.data.ray_workers import RayWorkers
from twotower.data.workers import Threads
from twotower.export.bundle import open_bundle
from twotower.serving.batch import BatchSettings, run_batch
from twotower.serving.store_lmdb import LmdbStore

pytest.importorskip("lmdb", reason="LMDB is not installed (the extra `batch`)")


@pytest.fixture(scope="module")
def ray_workers():
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `distributed`)")
    pytest.importorskip("ray.data", reason="Ray Data is not installed (the extra `distributed`)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # no test asks the network
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield RayWorkers()
        ray.shutdown()


def test_the_same_bytes_are_written(tiny_run, ray_workers, tmp_path: Path) -> None:
    users = [*open_bundle(tiny_run.bundle).users.ids.to_pylist(), "nobody"]
    settings = BatchSettings(k=12, seconds=int(time.time()) - 60, chunk_size=40)
    found = []
    for workers in (Threads(num_threads=1), ray_workers):
        folder = tmp_path / type(workers).__name__
        home, store = folder / "batches", LmdbStore(path=str(folder / "stores"), name="tiny")
        report = run_batch(tiny_run.bundle, home, store, settings, workers).report
        assert report["scored_now"] == 120
        files = {
            path.name: path.read_bytes() for path in (home / "current" / "lists").glob("*.parquet")
        }
        assert len(files) == 3
        values = store.values()
        found.append((files, [values.read(user.encode()) for user in users]))
    assert found[0] == found[1]
