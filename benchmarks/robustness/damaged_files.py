"""Every kind of file that is read, a good one of each, and what is read out of it.

Readers that hold a checksum against what they read must refuse every change; the others may read
what a changed file says, which nobody can tell from what was meant.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import torch

from tests.onnx_model import write_model
from twotower.cli.load_run import load_run
from twotower.cli.main import main
from twotower.config_files import spec_file
from twotower.data.files import read_raw
from twotower.data.movielens import MovieLensSource
from twotower.data.prepared import open_prepared
from twotower.export.bundle import open_bundle
from twotower.monitoring.profile import Profile
from twotower.monitoring.reference import Reference
from twotower.monitoring.traffic_profile import profile_traffic
from twotower.serving.encoder import Encoder
from twotower.serving.item_journal import Change, ItemJournal
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
from twotower.serving.similar import read_vector
from twotower.serving.store import open_reader
from twotower.serving.traffic import TrafficRecorder
from twotower.training.cross_version import Space
from twotower.training.read_checkpoint import read_checkpoint
from twotower.training.run_folder import read_metrics


@dataclass(frozen=True)
class Reader:
    """A reader and its files.

    Args:
        name: What is read.
        files: Patterns of its files below the home folder; any of them is damaged.
        read: Opens them and returns what it found, to be compared.
        guarded: Whether every change must be seen: nothing else than what was written is read.
        torn: Whether a last part may be missing, which is what a crash leaves.
        maps: Whether it asks for far more addresses than memory.
        place: What else says where the file is.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    guarded: bool = False
    torn: bool = False
    maps: bool = False
    place: str = "\n"


def make_home(home: Path, run: Path, bundle: Path) -> None:
    """Good files of all kinds.

    Args:
        home: A new folder.
        run: A run folder.
        bundle: A version folder of a bundle of that run.
    """
    home.mkdir()
    shutil.copytree(run, home / "run", ignore=shutil.ignore_patterns("tensorboard"))
    where = json.loads((run / "prepared.json").read_text())
    shutil.copytree(where["folder"], home / "prepared")
    where["folder"] = str(home / "prepared")
    (home / "run" / "prepared.json").write_text(json.dumps(where))
    shutil.copytree(bundle, home / "bundle")
    _write_tables(home)
    _write_of_serving(home)
    with chdir(home):
        words = ["bundle=bundle", "k=3", "chunk_size=50", "ttl_days=null", "store.path=stores"]
        if main(["batch", *words, "name=tiny", "output_dir=batches", "quiet=true"]) != 0:
            raise RuntimeError("no lists could be written")


def _write_tables(home: Path) -> None:
    rng = np.random.default_rng(0)
    log = pa.table(
        {
            "user_id": rng.integers(0, 50, 400),
            "item_id": [f"item {n}" for n in rng.integers(0, 30, 400)],
            "timestamp": np.sort(rng.integers(1_700_000_000, 1_700_900_000, 400)),
            "tags": [["a", "b"][: n % 3] for n in range(400)],
        }
    )
    pq.write_table(log, home / "log.parquet")
    pyarrow.feather.write_feather(log, str(home / "log.arrow"))
    pyarrow.csv.write_csv(log.drop_columns(["tags"]), home / "log.csv")
    with zipfile.ZipFile(home / "ml.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        lines = [f"{n % 7},{n % 5},{1 + n % 5},{1_000_000_000 + n}" for n in range(60)]
        archive.writestr("ml/ratings.csv", "\n".join(["userId,movieId,rating,timestamp", *lines]))
        movies = [f"{n},Film {n} (19{n}0),Drama|War" for n in range(5)]
        archive.writestr("ml/movies.csv", "\n".join(["movieId,title,genres", *movies]))


def _write_of_serving(home: Path) -> None:
    bundle = open_bundle(home / "bundle")
    np.save(home / "vector.npy", np.ones(8, np.float32))
    journal = ItemJournal(home / "items.journal", bundle="tiny")
    for number in range(6):
        at = datetime(2026, 1, 1 + number, tzinfo=UTC)
        journal.append(Change(at=at, upsert=[{"item_id": f"new-{number}", "title": "A"}]))
    recommender = Recommender(bundle)
    recorder = TrafficRecorder(home / "traffic", bundle, per_second=1e6)
    recommender.observe = recorder.record
    users = bundle.users.ids[:20].to_pylist() if bundle.users is not None else []
    recommender.answer([Request(user=user, k=3, seconds=1_700_000_000) for user in users])
    recorder.close()
    write_model(
        home / "encoder.onnx",
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", onnx.TensorProto.FLOAT, ["B", 4])],
        [("y", onnx.TensorProto.FLOAT, ["B", 3])],
        [("w", np.arange(12, dtype=np.float32).reshape(4, 3))],
    )


def _table(name: str) -> Callable[[Path], Any]:
    return lambda home: read_raw(str(home / name)).data.to_pydict()


def _ratings(home: Path) -> Any:
    tables = MovieLensSource(archive=str(home / "ml.zip")).read()
    return [tables.interactions.to_pydict(), tables.items.to_pydict()]


def _prepared(home: Path) -> Any:
    return open_prepared(home / "prepared").manifest["files"]


def _run(home: Path) -> Any:
    run = load_run(home / "run")
    models = {"retrieval": run.two_tower, "ranking": run.ranker}
    weights = {
        f"{stage}.{name}": value.numpy().tobytes()
        for stage, model in models.items()
        if model is not None
        for name, value in model.state_dict().items()
    }
    return weights, run.pipeline.digest(), read_metrics(home / "run"), Space.load(home / "run")


def _last(home: Path) -> Any:
    found = read_checkpoint(home / "run" / "retrieval" / "last.ckpt")
    # What is no tensor is the state of a module that keeps numbers of its own.
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
        for name, value in found["state_dict"].items()
    }


def _bundle(home: Path) -> Any:
    return open_bundle(home / "bundle").manifest.to_bytes()


def _profile(home: Path) -> Any:
    return Profile.load(home / "bundle" / "reference" / "training.npz").digest()


def _traffic(home: Path) -> Any:
    bundle = open_bundle(home / "bundle")
    profile = profile_traffic(home / "traffic", bundle, Reference.of(bundle))
    return {name: column.counts.tobytes() for name, column in profile.columns.items()}


def _journal(home: Path) -> Any:
    read = ItemJournal(home / "items.journal", bundle="tiny").read()
    return [change.to_line() for change in read.changes]


def _store(home: Path) -> Any:
    users = open_bundle(home / "bundle").users
    look = open_reader(str(home / "stores" / "tiny"))
    return [look.lookup(user).items for user in ([] if users is None else users.ids.to_pylist())]


def _encoder(home: Path) -> Any:
    return Encoder(home / "encoder.onnx")({"x": np.ones((2, 4), np.float32)}).tolist()


READERS = (
    Reader("table, CSV", ("log.csv",), _table("log.csv")),
    Reader("table, Parquet", ("log.parquet",), _table("log.parquet")),
    Reader("table, Arrow", ("log.arrow",), _table("log.arrow")),
    Reader("MovieLens archive", ("ml.zip",), _ratings, guarded=True),
    Reader(
        "feature spec",
        ("run/features.yaml",),
        lambda home: repr(spec_file(str(home / "run" / "features.yaml"))),
    ),
    Reader("prepared data", ("prepared/*/*", "prepared/*.json"), _prepared, guarded=True),
    Reader(
        "run, settings and figures",
        ("run/config.yaml", "run/*.json", "run/*/finished.json"),
        _run,
    ),
    Reader("run, features", ("run/features/*",), _run, guarded=True),
    Reader("run, weights", ("run/*/best.ckpt",), _run, guarded=True),
    Reader("run, state to resume", ("run/retrieval/last.ckpt",), _last, guarded=True),
    Reader("bundle, manifest", ("bundle/manifest.json",), _bundle, guarded=True),
    Reader("bundle, data and index", ("bundle/*/*", "bundle/*.np*"), _bundle, guarded=True),
    Reader("bundle, models", ("bundle/*.onnx",), _bundle, guarded=True),
    Reader("profile", ("bundle/reference/training.npz",), _profile, guarded=True),
    Reader("traffic", ("traffic/*/*/*.npz",), _traffic, guarded=True),
    Reader("journal of items", ("items.journal",), _journal, guarded=True, torn=True),
    Reader(
        "lists in LMDB", ("stores/tiny/[!.]*/data.mdb",), _store, maps=True, place="stores/tiny"
    ),
    Reader("vector", ("vector.npy",), lambda home: read_vector(home / "vector.npy").tolist()),
    Reader("encoder, ONNX", ("encoder.onnx",), _encoder),
)
