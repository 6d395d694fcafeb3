"""The bundle that the latency of a request is measured on: a million items, both stages trained.

    python benchmarks/serving/world.py FOLDER                       1M items, 50k users, 15 minutes
    python benchmarks/serving/world.py FOLDER --items 20000 --users 2000 --rows 100000

Tables are drawn from a fixed seed, then `twotower train` and `twotower export` do the rest: what is
measured is what a user of them gets. An item has 12 ids (its own and 11 categorical columns, the
second of which is its taste) and 6 numbers; user and request have 14 ids and 7 numbers together.
The ranker is 3 full-rank cross layers beside 256-128-64 on embeddings 16 wide, 475 wide in all with
the history. A user likes items of an own taste, of which there are 200, and items of quality.

FOLDER/bundle/current is the bundle afterwards, FOLDER/plain_ranker.onnx the same ranker as PyTorch
exports it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from twotower.cli.load_run import load_run
from twotower.cli.main import main as twotower
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST
from twotower.export.golden import pairs, query_requests
from twotower.export.onnx import Ranker
from twotower.models.columns import stage_columns

SEED = 0
NUM_TASTES = 200
ITEM_VALUES = (NUM_TASTES, 5, 12, 30, 80, 150, 400, 1_000, 2_000, 5_000, 10_000)
USER_VALUES = (NUM_TASTES, 2, 7, 24, 50, 100, 300, 1_000, 5_000)
CONTEXT_VALUES = (3, 7, 24, 60)
NUM_ITEM_NUMBERS, NUM_USER_NUMBERS, NUM_CONTEXT_NUMBERS = 6, 5, 2
FIRST_SECOND, NUM_SECONDS = 1_700_000_000, 90 * 86_400
OWN_TASTE = 0.6


def described(
    rng: np.random.Generator, tastes: np.ndarray, prefix: str, values: tuple[int, ...], numbers: int
) -> dict[str, np.ndarray]:
    """Categorical columns, the first of which is the taste, and numbers."""
    columns = {f"{prefix}{at}": rng.integers(n, size=len(tastes)) for at, n in enumerate(values)}
    columns[f"{prefix}0"] = tastes
    drawn = rng.normal(size=(numbers, len(tastes))).astype(np.float32)
    return columns | {f"{prefix}n{at}": column for at, column in enumerate(drawn)}


def shown_items(
    rng: np.random.Generator, wanted: np.ndarray, item_tastes: np.ndarray
) -> np.ndarray:
    """An item of each wanted taste (-1: any), few of them most of the time."""
    by_taste = np.argsort(item_tastes, kind="stable")
    firsts = np.searchsorted(item_tastes[by_taste], np.arange(NUM_TASTES + 1))
    low = np.where(wanted < 0, 0, firsts[wanted])
    high = np.where(wanted < 0, len(item_tastes), firsts[wanted + 1])
    within = rng.random(len(wanted)) ** 3  # density falls with the place
    return by_taste[low + (within * (high - low)).astype(np.int64)]


def write_tables(folder: Path, num_items: int, num_users: int, num_rows: int) -> None:
    """Users, items and what was shown to whom and clicked."""
    rng = np.random.default_rng(SEED)
    item_tastes, user_tastes = (rng.integers(NUM_TASTES, size=n) for n in (num_items, num_users))
    items = described(rng, item_tastes, "i", ITEM_VALUES, NUM_ITEM_NUMBERS)
    users = described(rng, user_tastes, "u", USER_VALUES, NUM_USER_NUMBERS)
    item_ids = np.char.add("item-", np.arange(num_items).astype(str))
    titles = np.char.add("Title of ", item_ids)
    pq.write_table(
        pa.table({"item_id": item_ids, "title": titles, **items}), folder / "items.parquet"
    )
    pq.write_table(pa.table({"user_id": np.arange(num_users), **users}), folder / "users.parquet")

    viewers = rng.integers(num_users, size=num_rows)
    wanted = np.where(rng.random(num_rows) < OWN_TASTE, user_tastes[viewers], -1)
    shown = shown_items(rng, wanted, item_tastes)
    context = described(
        rng, rng.integers(3, size=num_rows), "c", CONTEXT_VALUES, NUM_CONTEXT_NUMBERS
    )
    logits = -2.0 + 2.0 * (item_tastes[shown] == user_tastes[viewers]) + 0.5 * items["in0"][shown]
    logits += 0.4 * users["un0"][viewers] * items["in1"][shown] + 0.3 * context["cn0"]
    clicked = rng.random(num_rows) < 1 / (1 + np.exp(-logits))
    seconds = np.sort(FIRST_SECOND + rng.integers(NUM_SECONDS, size=num_rows))
    log = {"user_id": viewers, "item_id": item_ids[shown], "timestamp": seconds}
    log |= {"click": clicked.astype(np.int64), **context}
    pq.write_table(pa.table(log), folder / "interactions.parquet")


def write_features(path: Path) -> None:
    """The spec: every column is a feature."""
    lines = ["version: 1", "features:"]
    sides = (
        ("user", "u", USER_VALUES, NUM_USER_NUMBERS),
        ("item", "i", ITEM_VALUES, NUM_ITEM_NUMBERS),
        ("context", "c", CONTEXT_VALUES, NUM_CONTEXT_NUMBERS),
    )
    for side, prefix, values, numbers in sides:
        if side != "context":
            lines.append(f"- {{name: {side}_id, side: {side}, kind: id}}")
        kinds = [(f"{prefix}{at}", "categorical") for at in range(len(values))]
        kinds += [(f"{prefix}n{at}", "numeric") for at in range(numbers)]
        lines += [f"- {{name: {name}, side: {side}, kind: {kind}}}" for name, kind in kinds]
    lines.append("history: {length: 20, features: [item_id]}")
    path.write_text("\n".join(lines) + "\n")


def train(folder: Path) -> Path:
    """Train both stages; the run folder."""
    context = [f"c{at}" for at in range(len(CONTEXT_VALUES))]
    context += [f"cn{at}" for at in range(NUM_CONTEXT_NUMBERS)]
    done = twotower(
        [
            *("train", "name=latency", "data=tables", "catalogue=all"),
            *(
                f"data.{name}={folder / name}.parquet"
                for name in ("interactions", "users", "items")
            ),
            *("data.label.column=click", f"data.context=[{','.join(context)}]"),
            *("features=file", f"features.path={folder / 'features.yaml'}"),
            *("models.retrieval.hidden=[256,128]", "training.retrieval.max_epochs=2"),
            *("models.ranking.embedding_dim=16", "models.ranking.cross.num_layers=3"),
            *("models.ranking.deep.hidden=[256,128,64]", "models.ranking.history.num_recent=1"),
            *("training.ranking.max_epochs=1", "evaluation.max_users=500"),
            *("trainer.accelerator=cpu", f"prepared_dir={folder / 'prepared'}"),
            f"output_dir={folder / 'run'}",
        ]
    )
    if done:
        sys.exit(done)
    return folder / "run"


def export(folder: Path, run: Path, *further: str) -> Path:
    """Export the run; the folder of the bundle."""
    done = twotower(
        [
            *("export", f"run={run}", "name=bundle", f"output_dir={folder}"),
            *("num_candidates=500", "ranker_precision=int8", "index.device=cpu", *further),
            *("gates.max_calibration_error=null", "gates.quality_metric=retrieval/test/recall@100"),
        ]
    )
    if done:
        sys.exit(done)
    return folder / "bundle"


def write_plain_ranker(run: Path, own: Path, path: Path) -> None:
    """The ranker as PyTorch exports it: so many rows of everything as there are pairs.

    Args:
        run: The run.
        own: The bundle's own ranker, which says what it looks at.
        path: Where it goes.
    """
    loaded = load_run(run)
    ranker = Ranker(loaded.ranker.cpu(), loaded.calibration).eval()
    inputs = loaded.pipeline.inputs("ranking")
    queries = evaluation_queries(loaded.prepared, TEST, remove_seen=False, max_users=13)
    requests = query_requests(queries, np.arange(13), remove_seen=False)
    columns = stage_columns(loaded.prepared, inputs, residency="disk")
    candidates = np.arange(13)[:, None]
    batch = pairs(columns, requests, candidates, np.zeros((13, 1), np.float32)).one_by_one()
    inputs_of_own = onnx.load(own, load_external_data=False).graph.input
    taken = {node.name: batch[node.name] for node in inputs_of_own if node.name in batch}
    rows = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        ranker,
        (),
        kwargs={"batch": taken},
        dynamo=True,
        dynamic_shapes={"batch": {name: {0: rows} for name in taken}},
        input_names=list(taken),
        output_names=ranker.outputs,
        verbose=False,
    )
    program.save(path)


def main(folder: Path, num_items: int, num_users: int, num_rows: int) -> None:
    """Make what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "features.yaml").exists():
        write_tables(folder, num_items, num_users, num_rows)
        write_features(folder / "features.yaml")
    run = folder / "run"
    if not (run / "metrics.json").exists():
        run = train(folder)
    index = (
        ["index=flat"]
        if num_items < 100_000
        else ["index=ivf_flat", "index.num_cells=4096", "index.num_probes=64"]
    )
    export(folder, run, *index)
    own = folder / "bundle" / "current" / "ranker.onnx"
    write_plain_ranker(run, own, folder / "plain_ranker.onnx")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=2_000_000)
    given = parser.parse_args()
    main(given.folder, given.items, given.users, given.rows)
