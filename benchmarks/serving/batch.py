"""Times batch scoring: users a second, CPU-seconds, bytes and peak memory, by store.

    python benchmarks/serving/batch.py FOLDER --users 1e6 --stores none lmdb redis
    python benchmarks/serving/batch.py FOLDER --users 5e4 --ranker --stores lmdb redis

A bundle is made in FOLDER, once for every size: users of ten events on average (log-normal), items
of Zipf popularity, two features a user and one an item, the models of the default configs with the
weights that they begin with, and an inverted file of the default settings. Then `twotower batch`
runs in a process of its own, on the core that it is given; peak memory is its largest resident set,
mapped files included. Redis is a server of its own that writes nothing to the disk, and takes CPU
time that is not counted. At the end 20,000 users are looked up one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from running import keep_rows

NUM_EVENTS, EXPONENT, START = 10, 1.05, 1_700_000_000
FEATURES = {"users": {"country": 50, "segment": 1000}, "items": {"category": 1000}}
DIM, WIDTH, HIDDEN, NUM_CANDIDATES = 64, 32, [128], 200
NUM_LOOKUPS = 20_000
COLUMNS = {
    "store": "",
    "users": ",",
    "seconds": ",.0f",
    "cpu_seconds": ",.0f",
    "users_per_second": ",.0f",
    "peak_gib": ".2f",
    "parquet_bytes_a_user": ",.0f",
    "store_bytes_a_user": ",.0f",
    "lookup_p50_us": ",.0f",
    "lookup_p99_us": ",.0f",
}
COMMAND = """
import sys
from pathlib import Path
from twotower.cli.main import main
status = main(sys.argv[1:])
[peak] = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM")]
Path("peak").write_text(peak.split()[1])
sys.exit(status)
"""


def write_tables(folder: Path, num_users: int, num_items: int) -> None:
    rng = np.random.default_rng(0)
    ids = {"users": np.arange(num_users) * 7 + 1_000_003, "items": np.arange(num_items) + 500_009}
    activity = np.cumsum(rng.lognormal(sigma=1.0, size=num_users))
    popularity = np.cumsum(np.arange(1, num_items + 1) ** -EXPONENT)
    count = NUM_EVENTS * num_users
    users = np.searchsorted(activity, rng.random(count) * activity[-1])
    items = np.searchsorted(popularity, rng.random(count) * popularity[-1])
    times = START + rng.integers(0, 90 * 86_400, count)
    log = {"user_id": ids["users"][users], "item_id": ids["items"][items], "timestamp": times}
    pq.write_table(pa.table(log), folder / "interactions.parquet")
    for name, values in ids.items():
        columns: dict[str, Any] = {f"{name[:-1]}_id": values}
        for feature, size in FEATURES[name].items():
            columns[feature] = rng.integers(0, size, len(values)).astype(str)
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def make_bundle(folder: Path, num_users: int, num_items: int, *, ranker: bool) -> None:
    """Prepare a world and export models that were never trained."""
    import torch

    from twotower.data.prepare import prepare
    from twotower.data.prepared import FEATURES_FOLDER
    from twotower.data.split import TemporalSplit
    from twotower.data.tables import TableSource
    from twotower.export.build import ExportParts, export_bundle
    from twotower.export.gates import GateSettings
    from twotower.features.infer import AutoSpec, PipelineFactory
    from twotower.features.pipeline import FeaturePipeline
    from twotower.index.inverted_file import IVFFlat
    from twotower.losses.calibration import Calibration
    from twotower.models.cross import full_rank
    from twotower.models.dcn import DCNv2, Parallel
    from twotower.models.history import MeanPooling, RecentAndMean
    from twotower.models.mlp import MLP
    from twotower.models.two_tower import Cosine, TwoTower

    write_tables(folder, num_users, num_items)
    paths = {name: str(folder / f"{name}.parquet") for name in ("interactions", "users", "items")}
    prepared = prepare(
        source=TableSource(**paths),
        splitter=TemporalSplit(validation_share=0.01, test_share=0.01),
        encoders=PipelineFactory(provider=AutoSpec()),
        root=folder / "prepared",
    )
    pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
    torch.manual_seed(0)
    towers = TwoTower(
        inputs=pipeline.inputs("retrieval"),
        dim=DIM,
        embedding_dim=WIDTH,
        hidden=HIDDEN,
        history=MeanPooling,
        similarity=Cosine(),
    )
    ranking = DCNv2(
        inputs=pipeline.inputs("ranking"),
        embedding_dim=WIDTH,
        structure=Parallel,
        cross=partial(full_rank, num_layers=2),
        deep=partial(MLP, hidden=[128, 64]),
        history=partial(RecentAndMean, num_recent=5),
        retrieval_score=True,
    )
    for model in (towers, ranking):
        for weights in model.parameters():  # so large that users have lists of their own
            torch.nn.init.normal_(weights, std=0.3)
    result = export_bundle(
        parts=ExportParts(
            prepared=prepared,
            pipeline=pipeline,
            two_tower=towers.eval(),
            ranker=ranking.eval() if ranker else None,
            calibration=Calibration(negative_rate=1.0) if ranker else None,
            remove_seen=True,
            figures={"retrieval/test/recall@100": 1.0, "ranking/test/calibration_error": 0.0},
        ),
        root=folder / "bundles",
        name="world",
        index_builder=IVFFlat(device="cpu"),
        gate_settings=GateSettings(min_index_recall=0.0, max_parity=1e-3),
        num_candidates=NUM_CANDIDATES,
    )
    print(*result.gates, sep="\n")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A server behind a socket in a folder."""
    socket = folder / "redis.sock"
    options = {"port": 0, "unixsocket": socket, "save": "", "appendonly": "no", "dir": folder}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait()


def timed(folder: Path, store: str, url: str | None, k: int) -> dict[str, Any]:
    """Run the command and look at what it leaves."""
    for name in ("batches", "stores"):
        shutil.rmtree(folder / name, ignore_errors=True)
    overrides = ["bundle=bundles/world", f"k={k}", f"store={store}", "quiet=true"]
    overrides += [f"store.url={url}"] if url else []
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "batch", *overrides], cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"twotower batch {' '.join(overrides)}: ended with {status}")
    current = folder / "batches" / "world" / "current"
    report = json.loads((current / "batch.json").read_text())
    row = {
        "store": store,
        "users": report["users"],
        "k": k,
        "seconds": report["seconds"],
        "users_per_second": report["users_per_second"],
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": int((folder / "peak").read_text()) / 2**20,
        "parquet_bytes_a_user": report["parquet_bytes"] / report["users"],
    }
    if store != "none":
        row["store_bytes_a_user"] = store_bytes(folder, url) / report["users"]
        row |= lookups(folder, current, url)
    return row


def store_bytes(folder: Path, url: str | None) -> int:
    if url is None:
        return sum(path.stat().st_size for path in folder.glob("stores/world/[!c]*/data.mdb"))
    import redis

    with redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])


def lookups(folder: Path, current: Path, url: str | None) -> dict[str, float]:
    """Median and 99th percentile of one lookup, in microseconds."""
    from twotower.serving.store import open_reader

    reader = open_reader(str(folder / "stores" / "world") if url is None else f"{url}#world")
    [path, *_] = sorted(current.glob("lists/*.parquet"))
    users = pq.read_table(path, columns=["user_id"])["user_id"].to_pylist()
    users = np.random.default_rng(0).choice(users, NUM_LOOKUPS).tolist()
    seconds = []
    for user in users:
        begun = time.perf_counter()
        found = reader.lookup(user)
        seconds.append(time.perf_counter() - begun)
        if found.status != "found":
            raise SystemExit(f"user {user}: {found.note}")
    micro = np.array(seconds) * 1e6
    return {"lookup_p50_us": np.percentile(micro, 50), "lookup_p99_us": np.percentile(micro, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=float, default=1e6)
    parser.add_argument("--items", type=float, default=1e5)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--ranker", action="store_true")
    parser.add_argument("--stores", nargs="+", default=["none", "lmdb", "redis"])
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    given = parser.parse_args()
    stages = "both" if given.ranker else "retrieval"
    folder = (given.folder / f"{stages}-{given.users:g}-{given.items:g}").absolute()
    if not (folder / "bundles" / "world" / "current").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_bundle(folder, int(given.users), int(given.items), ranker=given.ranker)
    rows = []
    for store in given.stores:
        if store == "redis":
            with redis_server(folder) as url:
                row = timed(folder, store, url, given.k)
        else:
            row = timed(folder, store, None, given.k)
        rows.append({"stages": stages, "items": int(given.items), **row})
        print(json.dumps(rows[-1]), flush=True)
    if given.keep:
        title = f"Batch, {stages}: lists of {given.k} of {int(given.items):,} items in a store"
        if given.ranker:
            title += f", {NUM_CANDIDATES} candidates"
        further = " --ranker" if given.ranker else ""
        command = f"batch.py FOLDER --users {given.users:g}{further}"
        keep_rows(f"batch_{stages}", title, command, COLUMNS, rows)


if __name__ == "__main__":
    main()
